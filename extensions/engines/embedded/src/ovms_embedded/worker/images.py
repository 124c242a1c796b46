"""Images from text, from images, and into parts of images."""

from __future__ import annotations

import io
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino_genai as genai
from PIL import Image

from ovms_embedded import wire
from ovms_embedded.worker import common, pictures
from ovms_embedded.worker.image_options import Resolutions, devices, resolutions
from ovms_embedded.worker.pipe import Refused, serve, tidy

if TYPE_CHECKING:
    import openvino

    from ovms_embedded.worker.pipe import Pipe

PASSED = (
    "prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "negative_prompt_3", "num_images_per_prompt",
    "num_inference_steps", "strength", "guidance_scale", "rng_seed", "max_sequence_length",
)  # fmt: skip
MODES = {"DYNAMIC": "MODE_DYNAMIC", "STATIC": "MODE_STATIC", "FUSE": "MODE_FUSE"}


class Images:
    """One request at a time. The pipelines share the models."""

    def __init__(self, spec: dict[str, Any], pipe: Pipe) -> None:
        options = spec["options"]
        self.pipe = pipe
        self.options = options
        self.folder = common.models_path(spec)
        self.sizes: Resolutions = resolutions(options)
        self.devices = devices(common.device(spec, pipe, "device"), self.sizes)
        self.properties = common.properties(spec, " ".join(self.devices))
        self.adapters = {
            each["alias"]: (genai.Adapter(Path(spec["base_path"], each["path"])), each["alpha"])
            for each in options["lora_adapters"]
        }
        if self.adapters:
            mode = getattr(genai.AdapterConfig.Mode, MODES[options["lora_adapters"][0]["mode"]])
            self.properties["adapters"] = genai.AdapterConfig(list(self.adapters.values()), mode=mode)
        self.inpaint: Any = None
        self.edit: Any = None
        self.draw: Any = None
        self._load()
        self.info: dict[str, Any] = {}

    def _load(self) -> None:
        # Inpainting comes first, because the others can be made of it; made of another one, it crashes (2026.4.1).
        if (self.folder / "vae_encoder").exists():
            try:
                self.inpaint = self._compile(genai.InpaintingPipeline)
                self.edit = genai.Image2ImagePipeline(self.inpaint)
                self.draw = genai.Text2ImagePipeline(self.inpaint)
            except Exception as error:  # noqa: BLE001 - not every model can do it; the others tell what is wrong with it
                self.pipe.log("info", "serving", f"No inpainting with this model: {tidy(error)}")
                self.inpaint = None
                try:
                    self.edit = self._compile(genai.Image2ImagePipeline)
                    self.draw = genai.Text2ImagePipeline(self.edit)
                except Exception as reason:  # noqa: BLE001 - as above
                    self.pipe.log("info", "serving", f"No image editing with this model: {tidy(reason)}")
                    self.edit = None
        if self.draw is None or (self.inpaint is None and self.edit is None):
            self.draw = self._compile(genai.Text2ImagePipeline)

    def _compile(self, kind: Any) -> Any:  # noqa: ANN401 - three classes without a common one
        static = self.sizes.static
        if static is None and len(set(self.devices)) == 1:
            return kind(self.folder, self.devices[0], **self.properties)
        pipeline = kind(self.folder)
        if static is not None:
            number = self.options.get("num_images_per_prompt") or 1
            scale = self.options.get("guidance_scale", pipeline.get_generation_config().guidance_scale)
            pipeline.reshape(number, static[1], static[0], scale)
        pipeline.compile(*self.devices, **self.properties)
        return pipeline

    def run(self) -> None:
        """Take calls, for ever."""
        serve(self.pipe, {"draw": self.generate}, listen=True)

    def generate(self, number: int, payload: dict[str, Any]) -> list[bytes] | None:
        """Return images as PNG files."""
        arguments: dict[str, Any] = {name: payload[name] for name in PASSED if payload.get(name) is not None}
        arguments.setdefault("rng_seed", secrets.randbelow(1 << 32))
        arguments.setdefault("num_inference_steps", self.options["default_num_inference_steps"])
        if self.adapters and self.options["lora_adapters"][0]["mode"] == "DYNAMIC":
            chosen = [(self.adapters[alias][0], alpha) for alias, alpha in payload["adapters"].items()]
            arguments["adapters"] = genai.AdapterConfig(chosen)
        arguments["callback"] = lambda *_: number in self.pipe.cancelled
        size = self.sizes.choose(payload["size"])
        if self.sizes.static is not None:
            self._check_static(arguments)
        if payload["image"] is None:
            if size is not None:
                arguments["width"], arguments["height"] = size
            result = self.draw.generate(payload["prompt"], **arguments)
        else:
            picture = _tensor(payload["image"], size, self.sizes.largest)
            if payload["mask"] is None:
                result = _need(self.edit, "Image to image").generate(payload["prompt"], picture, **arguments)
            else:
                height, width = picture.shape[1:3]
                mask = _tensor(payload["mask"], (width, height), self.sizes.largest)
                result = _need(self.inpaint, "Inpainting").generate(payload["prompt"], picture, mask, **arguments)
        if number in self.pipe.cancelled:
            return None
        return [_png(each) for each in np.array(result.data, copy=True)]

    def _check_static(self, arguments: dict[str, Any]) -> None:
        for name in ("num_images_per_prompt", "guidance_scale"):
            fixed = self.options.get(name, 1 if name == "num_images_per_prompt" else None)
            if fixed is not None and arguments.get(name, fixed) != fixed:
                raise Refused(f"{name} of this graph is fixed to {fixed}")
            if fixed is not None:
                arguments[name] = fixed


def _need(pipeline: Any, what: str) -> Any:  # noqa: ANN401 - see _compile
    if pipeline is None:
        raise Refused(f"{what} pipeline is not available for this model", wire.PRECONDITION)
    return pipeline


def _tensor(data: bytes, size: tuple[int, int] | None, largest: tuple[int, int]) -> openvino.Tensor:
    (picture,) = pictures.decode([data])
    width, height = size or picture.size
    if width > largest[0] or height > largest[1]:
        raise Refused(
            f"The image is {width}x{height}, more than the maximum allowed resolution: {largest[0]}x{largest[1]}"
        )
    if size is not None and picture.size != size:
        picture = picture.resize(size)
    return pictures.tensor(picture)


def _png(pixels: Any) -> bytes:  # noqa: ANN401 - an array
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def load(spec: dict[str, Any], pipe: Pipe) -> Images:
    """Load the graph's model; whatever the library throws is the reason why it does not serve."""
    return Images(spec, pipe)
