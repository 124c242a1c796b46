"""Graphs of image generation models: Stable Diffusion, Flux and kin, with LoRA adapters."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ovms_kernel.api.graphs import BadRequest, architectures_of, default_device, fill, graph_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovms_kernel.api.graphs import CalculatorGraphConfig, GraphOptions, ImageGenCalculatorOptions, ModelFiles

RESOLUTION = re.compile(r"([1-9]\d*)x([1-9]\d*)")


class ImageGeneration:
    """The graph driver; its section sets calculator options for all models of the type."""

    model_type = "image_generation"
    settings_type = dict  # of :meth:`options`

    def __init__(self, section: Mapping[str, Any]) -> None:
        self._section = section

    @staticmethod
    def options() -> ImageGenCalculatorOptions:
        """Return the options of the calculator, none of them set."""
        from ovms_kernel.api.graphs import ImageGenCalculatorOptions

        return ImageGenCalculatorOptions()

    def recognises(self, files: ModelFiles) -> int:
        """Return 30 for a diffusion pipeline or one of its parts, 0 otherwise."""
        kind = str((files.json("model_index.json") or {}).get("_class_name", ""))
        parts = ("CLIPTextModel", "UNet2DConditionModel", "AutoencoderKL")
        names = architectures_of(files)
        if "StableDiffusion" in kind or "Flux" in kind:
            return 30
        return 30 if any(name in parts or name.endswith("Transformer2DModel") for name in names) else 0

    def build(self, files: ModelFiles, options: GraphOptions) -> CalculatorGraphConfig:
        """Return the graph; adapters in the model's folder ``loras`` are registered under their file's name."""
        message = self.options()
        defaults = {"models_path": "./", "device": default_device(options.host), "lora_adapters": adapters_of(files)}
        fill(message, defaults, self._section, options.values, what=self.model_type)
        check(message)
        return graph_of(
            "ImageGenCalculator", "ImageGenExecutor", message, side_packets=("IMAGE_GEN_NODE_RESOURCES:pipes",)
        )


def adapters_of(files: ModelFiles) -> list[dict[str, str]]:
    """Return the LoRA adapters that lie in the model's folder."""
    paths = [path for path in sorted(files.sizes) if path.startswith("loras/") and path.endswith(".safetensors")]
    return [{"alias": path.rsplit("/", 1)[-1].removesuffix(".safetensors"), "path": path} for path in paths]


def check(options: ImageGenCalculatorOptions) -> None:
    """Refuse what the engine would refuse at load, where it says less about the cause.

    :raises BadRequest: one sentence says what does not fit.
    """
    devices = options.device.split()
    npu = any("NPU" in device for device in devices)
    if len(devices) not in (0, 1, 3):
        raise BadRequest(
            "device of an image model must name one device, or three with blanks between: text encoder, denoiser, VAE."
        )
    sizes = options.resolution.split()
    named = [("resolution", each) for each in sizes]
    named += [(name, getattr(options, name)) for name in ("max_resolution", "default_resolution")]
    for name, text in named:
        if text and not RESOLUTION.fullmatch(text):
            raise BadRequest(f"{name} must be written as WIDTHxHEIGHT, such as 512x512, not {text!r}.")
    if len(set(sizes)) != len(sizes):
        raise BadRequest("resolution names a size twice; name each once.")
    if sizes and (options.HasField("max_resolution") or options.HasField("max_num_images_per_prompt")):
        raise BadRequest("resolution fixes the sizes, so max_resolution and max_num_images_per_prompt cannot be set.")
    if len(sizes) != 1 and (options.HasField("num_images_per_prompt") or options.HasField("guidance_scale")):
        raise BadRequest("num_images_per_prompt and guidance_scale need exactly one resolution.")
    if npu and len(sizes) != 1:
        raise BadRequest("An image model on NPU needs exactly one resolution, such as 512x512.")
    _check_default(options, sizes)
    if npu:
        for adapter in options.lora_adapters:
            if not adapter.HasField("mode"):
                adapter.mode = adapter.STATIC
    aliases = {adapter.alias for adapter in options.lora_adapters}
    for composite in options.composite_lora_adapters:
        for component in composite.components:
            if component.adapter_alias not in aliases:
                raise BadRequest(
                    f"The composite adapter {composite.alias} names {component.adapter_alias}, "
                    f"which is not an adapter; there are {', '.join(sorted(aliases)) or 'none'}."
                )


def _check_default(options: ImageGenCalculatorOptions, sizes: list[str]) -> None:
    default, most = options.default_resolution, options.max_resolution
    if default and sizes and default not in sizes:
        raise BadRequest(f"default_resolution {default} is not one of the resolutions {options.resolution}; name one.")
    if default and any(int(side) > int(limit) for side, limit in zip(default.split("x"), most.split("x"), strict=True)):
        raise BadRequest(f"default_resolution {default} is above max_resolution {most}; lower it.")
