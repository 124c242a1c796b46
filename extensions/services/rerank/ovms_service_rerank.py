"""The rerank service: which documents answer a question best, as Jina's and Cohere's APIs ask and answer."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from ovms_kernel.api.services import (
    Answer,
    BadRequest,
    EngineFailed,
    NotFound,
    ServiceDefinition,
    check,
    decode_answer,
    encode,
    need,
    present,
    served_model,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ovms_kernel.api.services import Call, Engine


class RerankSettings(msgspec.Struct, frozen=True):
    """What can be set."""

    default_model: str = "OpenVINO/Qwen3-Reranker-0.6B-seq-cls-fp16-ov"
    """The model of requests that name none."""


class Rerank:
    """Scores ``documents`` by how well they answer ``query``, the best first."""

    settings_type = RerankSettings

    def __init__(self, settings: RerankSettings) -> None:
        self.definition = ServiceDefinition(
            name="rerank",
            model_type="rerank",
            endpoint="/v3/rerank",
            paths=("/v1/rerank", "/v2/rerank", "/rerank"),
            default_model=settings.default_model,
            support_models=("OpenVINO/Qwen3-Reranker-0.6B-seq-cls-fp16-ov",),
            probes=('{"query":"What do cats eat?","documents":["Cats eat fish and mice.","Oil is dear."]}',),
            probe_answers="scores",
            extras={"aog": {"config_ref": "openvino:rerank", "config_ref_full": "aog:rerank"}},
        )

    async def invoke(self, call: Call, engine: Engine) -> Answer:
        """Return the documents' places in the order of their scores."""
        fields = present(call)
        wanted = prepare(fields)
        with_documents = wanted.pop("return_documents", False)
        async with served_model(self.definition, call, engine) as model:
            wanted["model"] = model
            answer = await engine.post(self.definition.endpoint, encode(wanted))
            ranked = decode_answer(answer.body)
            if (usage := ranked.get("usage")) is None:
                texts = [wanted["query"], *wanted["documents"]]
                usage = await count_tokens(engine, model, texts)
        results = ranked_results(ranked, fields["documents"] if with_documents else None)
        answered = {"id": f"rerank-{uuid.uuid4().hex}", "model": model, "results": results, "usage": usage}
        return Answer(encode(ranked | answered), model=model)


def prepare(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the engine's request: plain texts of documents that are objects, and ``top_n`` of ``top_k``."""
    query = fields.get("query")
    if isinstance(query, dict) and isinstance(query.get("text"), str):  # as Jina's clients may write it
        fields = fields | {"query": query["text"]}
    need(fields, "query", str, "a text that is not empty")
    documents = need(fields, "documents", list, "a list of texts, or of objects with text")
    ranks = fields.get("rank_fields")
    names = [each for each in ranks if isinstance(each, str)] if isinstance(ranks, list) else []
    fields = fields | {"documents": [text_of(number, each, names) for number, each in enumerate(documents)]}
    top_k = fields.pop("top_k", None)
    if top_k is not None:
        fields.setdefault("top_n", top_k)
    if (top_n := check(fields, "top_n", int, "a whole number")) is not None and top_n < 1:
        raise BadRequest("The field top_n must be at least 1.")
    check(fields, "return_documents", bool, "true or false")
    return fields


def text_of(number: int, document: object, names: Sequence[str]) -> str:
    """Return what of a document is scored: itself, its ``text``, or those fields of it that ``rank_fields`` names."""
    if isinstance(document, dict) and names:
        lines = [f"{name}: {document[name]}" for name in names if document.get(name) is not None]
        if lines:
            return "\n".join(lines)
    text = document.get("text") if isinstance(document, dict) else document
    if not isinstance(text, str):
        raise BadRequest(f"Document {number} must be a text, or an object with text.")
    return text


def ranked_results(answer: dict[str, Any], documents: Sequence[Any] | None) -> list[dict[str, Any]]:
    """Return the results sorted by score, with the documents as the caller wrote them if those are given.

    :raises EngineFailed: the answer has no scores.
    """
    try:
        results = sorted(
            ({"index": each["index"], "relevance_score": float(each["relevance_score"])} for each in answer["results"]),
            key=lambda each: -each["relevance_score"],
        )
        if documents is None:
            return results
        found = [documents[int(each["index"])] for each in results]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise EngineFailed("The engine's answer holds no scores.") from error
    return [
        each | {"document": document if isinstance(document, dict) else {"text": document}}
        for each, document in zip(results, found, strict=True)
    ]


async def count_tokens(engine: Engine, model: str, texts: Sequence[str]) -> dict[str, int]:
    """Return how many tokens the query and the documents have; an engine that cannot tell counts none."""
    try:
        answer = await engine.post("/v3/tokenize", encode({"model": model, "text": list(texts)}))
        tokens = decode_answer(answer.body).get("tokens") or []
        total = sum(len(each) if isinstance(each, list) else 1 for each in tokens)
    except (BadRequest, EngineFailed, NotFound, TypeError):
        total = 0
    return {"prompt_tokens": total, "total_tokens": total}
