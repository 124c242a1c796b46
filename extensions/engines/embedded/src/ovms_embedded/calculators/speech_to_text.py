"""Speech to text."""

from ovms_embedded.calculators import Calculator, ModelFiles
from ovms_embedded.protos import ovms_graph_pb2 as pb
from ovms_embedded.rest.audio import recognise

MODELS = {"WhisperForConditionalGeneration", "Qwen3ASRForConditionalGeneration"}


def detects(files: ModelFiles) -> bool:
    """Tell whether a folder has a model that transcribes."""
    return any(each in MODELS or each.startswith("SeamlessM4T") for each in files.architectures)


CALCULATOR = Calculator(
    name="S2tCalculator",
    task="speech2text",
    options=pb.S2tCalculatorOptions,
    endpoints={"audio/transcriptions": recognise, "audio/translations": recognise},
    worker="ovms_embedded.worker.speech_to_text",
    node="S2tExecutor",
    detects=detects,
    order=100,
)
