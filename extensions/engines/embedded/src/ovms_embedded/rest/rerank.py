"""``rerank`` and ``tokenize``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovms_embedded.rest.errors import Invalid
from ovms_embedded.rest.fields import INT32, Fields
from ovms_embedded.rest.http import Reply, Request, encode

if TYPE_CHECKING:
    from ovms_embedded.servable import Servable
    from ovms_embedded.workers import Worker


async def rerank(request: Request, _: Servable, worker: Worker) -> Reply:
    """Answer a rerank request."""
    data = request.fields
    fields = Fields(data)
    query = fields.text("query", required=True)
    documents = _documents(data)
    top_n = fields.unsigned("top_n", least=1)
    with_text = fields.boolean("return_documents")
    ranks = data.get("rank_fields")
    if ranks is not None and not (isinstance(ranks, list) and all(isinstance(each, str) for each in ranks)):
        raise Invalid("rank_fields is not an array of strings")
    fields.unsigned("max_chunks_per_doc")
    call = worker.call("rerank", {"query": query, "documents": documents})
    try:
        ranked = await call.result()
    finally:
        call.close()
    results: list[dict[str, Any]] = []
    for index, score in ranked[:top_n]:
        result: dict[str, Any] = {"index": index, "relevance_score": score}
        if with_text:
            result["document"] = {"text": documents[index]}
        results.append(result)
    return Reply(encode({"results": results}))


def _documents(data: dict[str, Any]) -> list[str]:
    given = data.get("documents")
    if "documents" not in data:
        raise Invalid("documents field is required")
    if not isinstance(given, list):
        raise Invalid("documents field is not an array")
    if not given:
        raise Invalid("documents array should not be empty")
    if all(isinstance(each, str) for each in given):
        return given
    if all(isinstance(each, dict) for each in given):
        raise Invalid("documents as objects are not supported; use strings")
    raise Invalid("documents should all be strings")


async def tokenize(request: Request, _: Servable, worker: Worker) -> Reply:
    """Answer a tokenize request."""
    data = request.fields
    fields = Fields(data)
    given = data.get("text")
    if "text" not in data:
        raise Invalid("text field is required")
    texts = given if isinstance(given, list) else [given]
    if not texts or not all(isinstance(each, str) for each in texts):
        raise Invalid("text should be string or array of strings")
    side = fields.text("padding_side")
    if side not in (None, "left", "right"):
        raise Invalid("padding_side should be either left or right")
    special = fields.boolean("add_special_tokens")
    payload = {
        "texts": texts,
        "max_length": fields.unsigned("max_length", least=1, most=INT32),
        "pad_to_max_length": bool(fields.boolean("pad_to_max_length")),
        "add_special_tokens": special is not False,
        "padding_side": side,
    }
    call = worker.call("tokenize", payload)
    try:
        rows = await call.result()
    finally:
        call.close()
    return Reply(encode({"tokens": rows if isinstance(given, list) and len(rows) > 1 else rows[0]}))
