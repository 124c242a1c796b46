"""Graphs of speech recognition models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovms_kernel.api.graphs import architectures_of, default_device, fill, graph_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovms_kernel.api.graphs import CalculatorGraphConfig, GraphOptions, ModelFiles, S2tCalculatorOptions


class SpeechToText:
    """The graph driver; its section sets calculator options for all models of the type."""

    model_type = "speech_to_text"
    settings_type = dict  # of :meth:`options`

    def __init__(self, section: Mapping[str, Any]) -> None:
        self._section = section

    @staticmethod
    def options() -> S2tCalculatorOptions:
        """Return the options of the calculator, none of them set."""
        from ovms_kernel.api.graphs import S2tCalculatorOptions

        return S2tCalculatorOptions()

    def recognises(self, files: ModelFiles) -> int:
        """Return 60 for Whisper, Qwen3-ASR and SeamlessM4T, 0 otherwise."""
        known = ("WhisperForConditionalGeneration", "Qwen3ASRForConditionalGeneration")
        return 60 if any(name in known or name.startswith("SeamlessM4T") for name in architectures_of(files)) else 0

    def build(self, files: ModelFiles, options: GraphOptions) -> CalculatorGraphConfig:  # noqa: ARG002 - nothing to learn
        """Return the graph; the LOOPBACK is what lets it stream."""
        message = self.options()
        defaults = {"models_path": "./", "target_device": default_device(options.host)}
        fill(message, defaults, self._section, options.values, what=self.model_type)
        return graph_of(
            "S2tCalculator",
            "S2tExecutor",
            message,
            side_packets=("STT_NODE_RESOURCES:s2t_servable",),
            loopback=True,
        )
