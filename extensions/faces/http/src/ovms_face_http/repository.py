"""KServe's model repository extension: which models there are, loading and unloading them.

https://github.com/kserve/open-inference-protocol, `specification/protocol/model_repository_api.md`; `keep_alive` in the
parameters of a load is Ollama's.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from ovms_face_http.models import find
from ovms_kernel.api.faces import BadRequest, parse_duration

if TYPE_CHECKING:
    from ovms_face_http.exchange import Exchange
    from ovms_kernel.api.faces import KernelApi

PATH = "/v2/repository/models/"
VERBS = ("load", "unload", "pin", "unpin")


class Repository:
    """Endpoints that change which models are loaded."""

    def __init__(self, kernel: KernelApi) -> None:
        self._kernel = kernel

    async def index(self, exchange: Exchange) -> None:
        """List the installed models with their states."""
        await exchange.body()
        resident = {each.model.id: each for each in await self._kernel.resident_models()}
        found = []
        for model in await self._kernel.list_models():
            loaded = resident.get(model.served_as)
            state = "READY" if loaded and loaded.state == "loaded" else "UNAVAILABLE"
            found.append({"name": model.id, "version": "1", "state": state, "reason": loaded.failure if loaded else ""})
        await exchange.json(found)

    async def change(self, exchange: Exchange) -> None:
        """Load, unload, pin or unpin a model; its name may have a slash."""
        body = await exchange.body()
        name, _, verb = unquote(exchange.path.removeprefix(PATH)).rpartition("/")
        if verb not in VERBS or not name:
            raise BadRequest(f"Ask for {PATH}OWNER/NAME/ and one of {', '.join(VERBS)}.")
        model = find(await self._kernel.list_models(), name)
        if verb == "load":
            await self._kernel.load_model(model.id, keep_alive=_keep_alive(body))
        elif verb == "unload":
            await self._kernel.unload_models([model.id])
        else:
            await self._kernel.pin_model(model.id, pinned=verb == "pin")
        await exchange.json({})


def _keep_alive(body: bytes) -> float | None:
    """Return how long a model stays after its last use, in seconds; ``None`` if the request does not say.

    :raises BadRequest: the body is no such request.
    """
    try:
        value: Any = json.loads(body) if body.strip() else {}
        found = value.get("parameters", {}).get("keep_alive")
    except (ValueError, AttributeError) as error:
        raise BadRequest('A load takes nothing, or JSON such as {"parameters": {"keep_alive": "5m"}}.') from error
    return None if found is None else parse_duration(found)
