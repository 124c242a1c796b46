"""Text to speech."""

from ovms_embedded.calculators import Calculator, ModelFiles
from ovms_embedded.protos import ovms_graph_pb2 as pb
from ovms_embedded.rest.audio import speech

MODELS = {"SpeechT5ForTextToSpeech", "ParlerTTSForConditionalGeneration"}


def detects(files: ModelFiles) -> bool:
    """Tell whether a folder has a model that speaks."""
    config = files.config
    kokoro = "architectures" in config and config["architectures"] is None and "n_mels" in config
    return kokoro or any(each in MODELS or each.endswith("ForTextToSpeech") for each in files.architectures)


CALCULATOR = Calculator(
    name="T2sCalculator",
    task="text2speech",
    options=pb.T2sCalculatorOptions,
    endpoints={"audio/speech": speech},
    worker="ovms_embedded.worker.text_to_speech",
    node="T2sExecutor",
    detects=detects,
    order=200,
)
