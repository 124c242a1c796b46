"""Text classification: the calculator and its endpoint, which live in the front process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from acme_classify_options import ClassifyCalculatorOptions  # type: ignore[import-not-found]

from ovms_embedded.calculators import Calculator, ModelFiles
from ovms_embedded.rest.errors import Invalid
from ovms_embedded.rest.http import Reply, Request, encode

if TYPE_CHECKING:
    from ovms_embedded.servable import Servable
    from ovms_embedded.workers import Worker


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
    options=ClassifyCalculatorOptions,
    endpoints={"classify": classify},
    worker="acme_classify_worker",
    node="ClassifyExecutor",
    tokenizes=True,
    detects=detects,
    defaults='labels: "low" labels: "high"',
)
