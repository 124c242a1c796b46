"""Reranking."""

from ovms_embedded.calculators import Calculator, ModelFiles
from ovms_embedded.protos import ovms_graph_pb2 as pb
from ovms_embedded.rest.rerank import rerank


def detects(files: ModelFiles) -> bool:
    """Tell whether a folder has a cross encoder."""
    if any("LogitScore" in each or "CrossEncoder" in each for each in files.modules):
        return True
    classifies = any(each.endswith("ForSequenceClassification") for each in files.architectures)
    return classifies or files.qwen3_named("rerank")


CALCULATOR = Calculator(
    name="RerankCalculatorOV",
    task="rerank",
    options=pb.RerankCalculatorOVOptions,
    endpoints={"rerank": rerank},
    worker="ovms_embedded.worker.rerank",
    node="RerankExecutor",
    tokenizes=True,
    detects=detects,
    order=300,
)
