"""Which endpoint serves which path of which graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovms_embedded.rest.errors import HttpError, Invalid
from ovms_embedded.rest.rerank import tokenize

if TYPE_CHECKING:
    from ovms_embedded.manager import Servable
    from ovms_embedded.rest.http import Reply, Request, Stream


async def dispatch(request: Request, servable: Servable) -> Reply | Stream:
    """Answer a request by the graph that it names.

    :raises Invalid: this graph does not serve this path.
    """
    if servable.graph is None or servable.worker is None:
        raise HttpError(500, "Mediapipe graph definition with requested name is not loaded yet")
    calculator = servable.graph.calculator
    endpoint = calculator.endpoints.get(calculator.aliases.get(request.path, request.path))
    if request.path.endswith("tokenize") and calculator.tokenizes:
        endpoint = tokenize
    if endpoint is None:
        allowed = ", ".join(f"/v3/{path}" for path in calculator.endpoints)
        raise Invalid(f"Wrong endpoint. Allowed endpoints: {allowed}")
    return await endpoint(request, servable, servable.worker)
