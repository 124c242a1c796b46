"""Graphs of speech synthesis models: SpeechT5, Kokoro and their kin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovms_kernel.api.graphs import BadRequest, architectures_of, default_device, fill, graph_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovms_kernel.api.graphs import CalculatorGraphConfig, GraphOptions, ModelFiles, T2sCalculatorOptions


class TextToSpeech:
    """The graph driver; its section sets calculator options for all models of the type.

    ``speed_min`` and ``speed_max`` are written only if somebody sets them: OVMS 2026.3.0 does not know them.
    """

    model_type = "text_to_speech"
    settings_type = dict  # of :meth:`options`

    def __init__(self, section: Mapping[str, Any]) -> None:
        self._section = section

    @staticmethod
    def options() -> T2sCalculatorOptions:
        """Return the options of the calculator, none of them set."""
        from ovms_kernel.api.graphs import T2sCalculatorOptions

        return T2sCalculatorOptions()

    def recognises(self, files: ModelFiles) -> int:
        """Return 50 for a model that speaks, 0 otherwise."""
        config = files.json("config.json") or {}
        if "architectures" in config and config["architectures"] is None and "n_mels" in config:
            return 50  # Kokoro
        names = architectures_of(files)
        return (
            50 if any(name.endswith(("ForTextToSpeech", "ParlerTTSForConditionalGeneration")) for name in names) else 0
        )

    def build(self, files: ModelFiles, options: GraphOptions) -> CalculatorGraphConfig:
        """Return the graph; voices in the folder ``voices`` are found by the engine, others are options."""
        message = self.options()
        defaults = {"models_path": "./", "target_device": default_device(options.host)}
        fill(message, defaults, self._section, options.values, what=self.model_type)
        for voice in message.voices:
            if not voice.path.startswith("/") and voice.path.removeprefix("./") not in files.sizes:
                raise BadRequest(f"The voice {voice.name} names {voice.path}, which the model does not have; add it.")
        if message.speed_min > message.speed_max:
            raise BadRequest(f"speed_min ({message.speed_min:g}) must not be above speed_max ({message.speed_max:g}).")
        return graph_of("T2sCalculator", "T2sExecutor", message, side_packets=("TTS_NODE_RESOURCES:t2s_servable",))
