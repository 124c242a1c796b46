"""Which endpoint serves which path of which graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovms_embedded.drafting import refuses_drafts
from ovms_embedded.rest.errors import HttpError, Invalid
from ovms_embedded.rest.rerank import tokenize
from ovms_embedded.workers import LoadFailed

if TYPE_CHECKING:
    from ovms_embedded.manager import Manager
    from ovms_embedded.rest.http import Reply, Request, Stream
    from ovms_embedded.servable import Servable


async def dispatch(request: Request, servable: Servable, manager: Manager) -> Reply | Stream:
    """Answer a request by the graph that it names.

    :raises Invalid: this graph does not serve this path.
    :raises HttpError: the graph, or the model without its drafts, is not loaded.
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
    worker = servable.worker
    if refuses_drafts(request.fields, servable.graph.options):
        try:
            worker = await manager.undrafted(servable)
        except LoadFailed as error:
            raise HttpError(500, f"The model does not load without its drafts: {error}") from error
    return await endpoint(request, servable, worker)
