"""The rerank service: which documents answer a question best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovms_kernel.api.services import BadRequest, Route, ServiceDefinition, check, forward, need, with_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovms_kernel.api.services import Answer, Call, Engine


class Rerank:
    """Hands ``query`` and ``documents`` to the engine and the documents' scores back, the best first.

    :param section: ``default_model``, the model of requests that name none.
    """

    def __init__(self, section: Mapping[str, Any]) -> None:
        self.definition = ServiceDefinition(
            name="rerank",
            model_type="rerank",
            endpoint="/v3/rerank",
            paths=("/v1/rerank",),
            default_model=section.get("default_model", "OpenVINO/Qwen3-Reranker-0.6B-seq-cls-fp16-ov"),
            support_models=("OpenVINO/Qwen3-Reranker-0.6B-seq-cls-fp16-ov",),
            probe='{"query":".","documents":["."]}',
            extras={"aog": {"config_ref": "openvino:rerank", "config_ref_full": "aog:rerank"}},
        )
        self._route = Route(self.definition, prepare, adds=with_model, finish=finish)

    async def invoke(self, call: Call, engine: Engine) -> Answer:
        """Return the documents' places in the order of their scores."""
        return await forward(self._route, call, engine)


def prepare(fields: dict[str, Any]) -> dict[str, Any]:
    """Make plain texts of documents that are objects, and ``top_n`` of ``top_k``."""
    need(fields, "query", str, "a text that is not empty")
    documents = need(fields, "documents", list, "a list of texts, or of objects with text")
    texts = [each.get("text") if isinstance(each, dict) else each for each in documents]
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise BadRequest(f"Document {number} must be a text, or an object with text.")
    fields = fields | {"documents": texts}
    top_k = fields.pop("top_k", None)
    if top_k is not None:
        fields.setdefault("top_n", top_k)
    if (top_n := check(fields, "top_n", int, "a whole number")) is not None and top_n < 1:
        raise BadRequest("The field top_n must be at least 1.")
    check(fields, "return_documents", bool, "true or false")
    return fields


def finish(answer: dict[str, Any], model: str) -> dict[str, Any]:  # noqa: ARG001 - a route's
    """Sort the results by score."""
    return answer | {"results": sorted(answer.get("results", []), key=lambda each: -each["relevance_score"])}
