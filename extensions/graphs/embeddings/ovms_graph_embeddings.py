"""Graphs of embeddings models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovms_kernel.api.graphs import architectures_of, default_device, fill, graph_of, module_types_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovms_kernel.api.graphs import CalculatorGraphConfig, EmbeddingsCalculatorOVOptions, GraphOptions, ModelFiles

OTHERS = ("CLIPTextModel", "InternVLChatModel", "UNet2DConditionModel", "Transformer2DModel")
"""Architectures that end in Model and do something else."""


class Embeddings:
    """The graph driver; its section sets calculator options for all models of the type."""

    model_type = "embeddings"
    settings_type = dict  # of :meth:`options`

    def __init__(self, section: Mapping[str, Any]) -> None:
        self._section = section

    @staticmethod
    def options() -> EmbeddingsCalculatorOVOptions:
        """Return the options of the calculator, none of them set."""
        from ovms_kernel.api.graphs import EmbeddingsCalculatorOVOptions

        return EmbeddingsCalculatorOVOptions()

    def recognises(self, files: ModelFiles) -> int:
        """Return 20 for an encoder, 1 for a language model that could be one if the caller says so, 0 otherwise."""
        modules, names = module_types_of(files), architectures_of(files)
        if any("Pooling" in each for each in modules or ()):
            return 20
        if any(name.endswith("Model") and not name.endswith(OTHERS) for name in names):
            return 20
        if modules is None and "Qwen3ForCausalLM" in names and "embed" in files.identifier.lower():
            return 20
        return int(any(name.endswith("ForCausalLM") for name in names))

    def guess(self, files: ModelFiles, values: Mapping[str, Any]) -> str:
        """Return what had to be guessed of a model, in a sentence; empty if nothing was."""
        if "pooling" in {**self._section, **values} or said_pooling(files):
            return ""
        return (
            f"How {files.identifier} makes one vector of its tokens is a guess ({pooling_of(files) or 'CLS'}), "
            "as it has no 1_Pooling/config.json of sentence-transformers; if its vectors are wrong, import it again "
            "with --pooling MEAN, CLS or LAST."
        )

    def build(self, files: ModelFiles, options: GraphOptions) -> CalculatorGraphConfig:
        """Return the graph."""
        defaults = {
            "models_path": "./",
            "target_device": default_device(options.host),
            "pooling": pooling_of(files),
        }
        message = self.options()
        fill(message, defaults, self._section, options.values, what=self.model_type)
        return graph_of(
            "EmbeddingsCalculatorOV",
            "EmbeddingsExecutor",
            message,
            side_packets=("EMBEDDINGS_NODE_RESOURCES:embeddings_servable",),
            tags=("REQUEST_PAYLOAD", "RESPONSE_PAYLOAD"),
        )


def pooling_of(files: ModelFiles) -> str:
    """Return how the tokens become one vector; empty leaves it to the engine (CLS)."""
    if said := said_pooling(files):
        return said
    # Embedding models made from a language model read their last token.
    return "LAST" if any(name.endswith("ForCausalLM") for name in architectures_of(files)) else ""


def said_pooling(files: ModelFiles) -> str:
    """Return how the model itself says that its tokens become one vector; empty if it does not."""
    config = files.json("1_Pooling/config.json") or {}
    for key, pooling in (
        ("pooling_mode_cls_token", "CLS"),
        ("pooling_mode_lasttoken", "LAST"),
        ("pooling_mode_mean_tokens", "MEAN"),
    ):
        if config.get(key) is True:
            return pooling
    # Newer sentence-transformers name the mode instead of having a switch for each.
    return {"cls": "CLS", "lasttoken": "LAST", "mean": "MEAN"}.get(str(config.get("pooling_mode")), "")
