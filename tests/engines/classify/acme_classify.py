"""Text classification: the calculator and its endpoint, which live in the front process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from ovms_embedded.calculators import Calculator, ModelFiles
from ovms_embedded.rest.errors import Invalid
from ovms_embedded.rest.http import Reply, Request, encode

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from ovms_embedded.manager import Servable
    from ovms_embedded.workers import Worker


def _options() -> type[Message]:
    """Return acme.ClassifyCalculatorOptions; an author with protoc imports a generated module instead."""
    file = descriptor_pb2.FileDescriptorProto(name="acme_classify.proto", package="acme", syntax="proto2")
    message = file.message_type.add(name="ClassifyCalculatorOptions")
    message.field.add(name="models_path", number=1, type="TYPE_STRING", label="LABEL_REQUIRED")
    message.field.add(name="labels", number=2, type="TYPE_STRING", label="LABEL_REPEATED")
    descriptor_pool.Default().Add(file)
    added = descriptor_pool.Default().FindFileByName(file.name)
    return message_factory.GetMessageClass(added.message_types_by_name["ClassifyCalculatorOptions"])


async def classify(request: Request, _: Servable, worker: Worker) -> Reply:
    """Answer ``{"model", "text"}`` with the most likely label."""
    text = request.fields.get("text")
    if not isinstance(text, str):
        raise Invalid("text is not a string")
    call = worker.call("classify", {"text": text})
    try:
        return Reply(encode(await call.result()))
    finally:
        call.close()


def detects(files: ModelFiles) -> bool:
    return files.config.get("model_type") == "acme-classifier"


CALCULATOR = Calculator(
    name="ClassifyCalculator",
    task="text_classification",
    options=_options(),
    endpoints={"classify": classify},
    worker="acme_classify_worker",
    node="ClassifyExecutor",
    tokenizes=True,
    detects=detects,
    defaults='labels: "low" labels: "high"',
)
