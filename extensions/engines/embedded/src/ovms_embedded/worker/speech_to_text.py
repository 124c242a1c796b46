"""Speech to text, by Whisper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openvino_genai as genai

from ovms_embedded import wire
from ovms_embedded.worker import audio, common
from ovms_embedded.worker.pipe import Refused, serve

if TYPE_CHECKING:
    from ovms_embedded.worker.pipe import Pipe


class SpeechToText:
    """One recording at a time."""

    def __init__(self, spec: dict[str, Any], pipe: Pipe) -> None:
        folder = common.models_path(spec)
        device = common.device(spec, pipe, "target_device")
        properties = common.properties(spec, device)
        if spec["options"]["enable_word_timestamps"]:
            properties["word_timestamps"] = True
        self.pipe = pipe
        self.pipeline = genai.WhisperPipeline(folder, device, **properties)
        self.info: dict[str, Any] = {}

    def run(self) -> None:
        """Take calls, for ever."""
        serve(self.pipe, {"transcribe": self.transcribe}, listen=True)

    def transcribe(self, number: int, payload: dict[str, Any]) -> dict[str, Any]:
        """Return the text of a recording, and when what was said; stream the text if it is wanted."""
        config = self.pipeline.get_generation_config()
        samples = audio.read(payload["data"])
        if config.is_multilingual:
            config.task = payload["task"]
            if language := payload["language"]:
                code = f"<|{language}|>"
                if code not in config.lang_to_id:
                    raise Refused(f"Language {language} is not supported by the model")
                config.language = code
        if (temperature := payload["temperature"]) is not None:
            config.do_sample = temperature > 0
            config.temperature = temperature or 1.0
        config.return_timestamps = payload["segments"]
        config.word_timestamps = payload["words"]

        def stream(piece: str) -> genai.StreamingStatus:
            if number in self.pipe.cancelled:
                return genai.StreamingStatus.CANCEL
            if payload["stream"] and piece:
                self.pipe.send([wire.ITEMS, [[number, piece]]])
            return genai.StreamingStatus.RUNNING

        result = self.pipeline.generate(samples, config, stream)
        answer: dict[str, Any] = {"text": result.texts[0]}
        if result.language:  # beyond OVMS, which does not tell it
            answer["language"] = result.language.strip("<|>")
        if payload["words"]:
            answer["words"] = [
                {"word": each.word, "start": each.start_ts, "end": each.end_ts} for each in result.words or ()
            ]
        if payload["segments"]:
            answer["segments"] = [
                {"text": each.text, "start": each.start_ts, "end": each.end_ts} for each in result.chunks or ()
            ]
        return answer


def load(spec: dict[str, Any], pipe: Pipe) -> SpeechToText:
    """Load the graph's model; whatever the library throws is the reason why it does not serve."""
    return SpeechToText(spec, pipe)
