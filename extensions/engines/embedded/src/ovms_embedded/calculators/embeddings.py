"""Embeddings."""

from ovms_embedded.calculators import Calculator, ModelFiles
from ovms_embedded.protos import ovms_graph_pb2 as pb
from ovms_embedded.rest.embeddings import embeddings

OTHERS = {"CLIPTextModel", "InternVLChatModel", "UNet2DConditionModel"}


def detects(files: ModelFiles) -> bool:
    """Tell whether a folder has an encoder of texts."""
    if any("Pooling" in each for each in files.modules) or files.qwen3_named("embed"):
        return True
    return any(each.endswith("Model") and each not in OTHERS for each in files.architectures)


CALCULATOR = Calculator(
    name="EmbeddingsCalculatorOV",
    task="embeddings",
    options=pb.EmbeddingsCalculatorOVOptions,
    endpoints={"embeddings": embeddings},
    worker="ovms_embedded.worker.embeddings",
    node="EmbeddingsExecutor",
    tokenizes=True,
    detects=detects,
    order=500,
)
