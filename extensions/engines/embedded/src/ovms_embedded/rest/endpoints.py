"""Which endpoint serves which path of which graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovms_embedded.rest.audio import recognise, speech
from ovms_embedded.rest.chat import chat
from ovms_embedded.rest.completions import completions
from ovms_embedded.rest.embeddings import embeddings
from ovms_embedded.rest.errors import HttpError, Invalid
from ovms_embedded.rest.images import images
from ovms_embedded.rest.rerank import rerank, tokenize
from ovms_embedded.rest.responses import responses

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ovms_embedded.manager import Servable
    from ovms_embedded.rest.http import Reply, Request, Stream
    from ovms_embedded.workers import Worker

    Endpoint = Callable[[Request, Servable, Worker], Awaitable[Reply | Stream]]

ENDPOINTS: dict[str, dict[str, Endpoint]] = {
    "HttpLLMCalculator": {"chat/completions": chat, "completions": completions, "responses": responses},
    "EmbeddingsCalculatorOV": {"embeddings": embeddings},
    "RerankCalculatorOV": {"rerank": rerank},
    "ImageGenCalculator": {"images/generations": images, "images/edits": images},
    "S2tCalculator": {"audio/transcriptions": recognise, "audio/translations": recognise},
    "T2sCalculator": {"audio/speech": speech},
}
TOKENIZERS = {"HttpLLMCalculator", "EmbeddingsCalculatorOV", "RerankCalculatorOV"}
"""Graphs that serve any path that ends in ``tokenize``."""


async def dispatch(request: Request, servable: Servable) -> Reply | Stream:
    """Answer a request by the graph that it names.

    :raises Invalid: this graph does not serve this path.
    """
    if servable.graph is None or servable.worker is None:
        raise HttpError(500, "Mediapipe graph definition with requested name is not loaded yet")
    known = ENDPOINTS[servable.graph.calculator]
    generates = servable.graph.calculator == "HttpLLMCalculator"
    # /v3/v1/ is an old prefix, of text generation alone (spec E.0).
    endpoint = known.get(request.path.removeprefix("v1/") if generates else request.path)
    if request.path.endswith("tokenize") and servable.graph.calculator in TOKENIZERS:
        endpoint = tokenize
    if endpoint is None:
        allowed = ", ".join(f"/v3/{path}" for path in known)
        raise Invalid(f"Wrong endpoint. Allowed endpoints: {allowed}")
    return await endpoint(request, servable, servable.worker)
