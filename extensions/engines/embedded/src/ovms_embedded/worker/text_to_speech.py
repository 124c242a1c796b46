"""Text to speech, by SpeechT5 or Kokoro."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino
import openvino_genai as genai

from ovms_embedded.worker import audio, common
from ovms_embedded.worker.pipe import Refused, serve

if TYPE_CHECKING:
    from ovms_embedded.worker.pipe import Pipe


class TextToSpeech:
    """One text at a time."""

    def __init__(self, spec: dict[str, Any], pipe: Pipe) -> None:
        options = spec["options"]
        if options["speed_min"] > options["speed_max"]:
            message = "speed_min is greater than speed_max"
            raise ValueError(message)
        folder = common.models_path(spec)
        device = common.device(spec, pipe, "target_device")
        properties = common.properties(spec, device)
        if device == "CPU":
            # Every step has a shape of its own; kept for the next time, they are gigabytes after one long text.
            properties.setdefault("CPU_RUNTIME_CACHE_CAPACITY", 0)
        self.pipe = pipe
        self.pipeline = genai.Text2SpeechPipeline(folder, device, **properties)
        config = common.read_json(folder / "config.json")
        self.kokoro = config.get("n_mels") is not None
        self.window: int | None = config.get("max_text_positions")
        self.tokenizer = common.tokenizer_of(folder) if self.window else None
        named = {each["name"]: Path(spec["base_path"], each["path"]) for each in options["voices"]}
        found = {path.stem: path for path in sorted((folder / "voices").glob("*.bin"))}
        self.voices = {name: self._voice(path) for name, path in (found | named).items()}
        self.info: dict[str, Any] = {"voices": sorted(self.voices)}

    def run(self) -> None:
        """Take calls, for ever."""
        serve(self.pipe, {"speak": self.speak}, listen=True)

    def _voice(self, path: Path) -> openvino.Tensor:
        try:
            values = np.fromfile(path, np.float32)
        except OSError as error:
            message = f"Failed to open voice file: {path}"
            raise FileNotFoundError(message) from error
        shape = [int(each) for each in self.pipeline.get_speaker_embedding_shape()]
        if values.size != np.prod(shape) or path.stat().st_size != values.nbytes:
            message = f"Voice file {path} does not hold {np.prod(shape)} float32 values"
            raise ValueError(message)
        return openvino.Tensor(values.reshape(shape))

    def speak(self, _: int, payload: dict[str, Any]) -> bytes:
        """Return what a text sounds like, as a file."""
        voice = None
        if (name := payload["voice"]) is not None:
            voice = self.voices.get(name)
            if voice is None:
                raise Refused(f"Requested voice: {name} is not available")
        common.check_length(payload["input"], self.window)
        if self.tokenizer and (length := common.encode(self.tokenizer, [payload["input"]])[0].shape[1]) > self.window:
            raise Refused(f"Input length {length} longer than allowed {self.window}")
        settings: dict[str, Any] = {}
        if self.kokoro:
            settings = {"language": payload["language"] or "en-us", "speed": payload["speed"] or 1.0}
            if voice is None and self.voices:
                voice = next(iter(self.voices.values()))
        result = self.pipeline.generate(payload["input"], voice, **settings)
        # Copied at once: the tensor is a view of memory that the pipeline uses again.
        samples = np.array(result.speeches[0].data, np.float32, copy=True).reshape(-1)
        return audio.write(samples, int(result.output_sample_rate), payload["format"])


def load(spec: dict[str, Any], pipe: Pipe) -> TextToSpeech:
    """Load the graph's model; whatever the library throws is the reason why it does not serve."""
    return TextToSpeech(spec, pipe)
