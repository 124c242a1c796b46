"""Graphs of rerank models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovms_kernel.api.graphs import architectures_of, default_device, fill, graph_of, module_types_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovms_kernel.api.graphs import CalculatorGraphConfig, GraphOptions, ModelFiles, RerankCalculatorOVOptions


class Rerank:
    """The graph driver; its section sets calculator options for all models of the type."""

    model_type = "rerank"
    settings_type = dict  # of :meth:`options`

    def __init__(self, section: Mapping[str, Any]) -> None:
        self._section = section

    @staticmethod
    def options() -> RerankCalculatorOVOptions:
        """Return the options of the calculator, none of them set."""
        from ovms_kernel.api.graphs import RerankCalculatorOVOptions

        return RerankCalculatorOVOptions()

    def recognises(self, files: ModelFiles) -> int:
        """Return 40 for a cross encoder, 1 for a language model that could be one if the caller says so, else 0."""
        modules, names = module_types_of(files), architectures_of(files)
        if any("LogitScore" in each or "CrossEncoder" in each for each in modules or ()):
            return 40
        if any(name.endswith("ForSequenceClassification") for name in names):
            return 40
        if modules is None and "Qwen3ForCausalLM" in names and "rerank" in files.identifier.lower():
            return 40
        return int(any(name.endswith("ForCausalLM") for name in names))

    def build(self, files: ModelFiles, options: GraphOptions) -> CalculatorGraphConfig:  # noqa: ARG002 - nothing to learn
        """Return the graph."""
        message = self.options()
        defaults = {"models_path": "./", "target_device": default_device(options.host)}
        fill(message, defaults, self._section, options.values, what=self.model_type)
        return graph_of(
            "RerankCalculatorOV",
            "RerankExecutor",
            message,
            side_packets=("RERANK_NODE_RESOURCES:rerank_servable",),
            tags=("REQUEST_PAYLOAD", "RESPONSE_PAYLOAD"),
        )
