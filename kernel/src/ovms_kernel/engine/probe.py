"""Whether an engine answers, and whether it works: while it has nothing to do, it is asked for a little real work.

Its health says little about models: a servable may be AVAILABLE while every request to it hangs or fails until the
engine is restarted. What to ask is said by the services, as ``ServiceDefinition.probe``.
"""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Protocol

import anyio
import anyio.to_thread

from ovms_kernel.errors import BadRequest, NotFound, OvmsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ovms_kernel.drivers import Service
    from ovms_kernel.engine.client import EngineClient
    from ovms_kernel.values import LocalModel

log = logging.getLogger(__name__)

READY_POLL = 0.01
"""Seconds between two looks at an engine that starts, at first; it grows to three times that."""
IDLE = 60.0
"""Seconds without a request after which the engine is probed, and again after each that went well."""
LIMIT = 60.0
"""Seconds that a probe may take; another plugin's requests may be before it."""


class Probed(Protocol):
    """What the probe needs to know of a loaded model."""

    id: str
    model: LocalModel | None
    users: int
    last_used: float
    """By the monotonic clock."""

    @property
    def state(self) -> str:
        """Is ``loaded`` if the engine serves it."""
        ...


LOADED = "loaded"


async def await_answers(client: EngineClient, is_it: Callable[[], bool], limit: float) -> bool:
    """Return true once REST and gRPC answer, false if that takes too long.

    :param is_it: tells, in a thread, whether what answers is the engine that was started.
    :param limit: seconds.
    """
    pause = READY_POLL
    with anyio.move_on_after(limit):
        while True:
            # gRPC is up before REST, so its channel connects at the first try.
            if await client.live() and await client.grpc_live() and await anyio.to_thread.run_sync(is_it):
                return True
            await anyio.sleep(pause)
            pause = min(pause * 1.2, READY_POLL * 3)
    return False


async def no_probe(client: EngineClient) -> bool:
    """Ask nothing."""
    del client
    return True


class IdleProbe:
    """Probes one loaded model after the other while there are no requests.

    :param services: those that may be asked.
    :param table: the models that are known, with their users and when they were used last.
    """

    def __init__(self, services: Iterable[Service], table: Mapping[str, Probed]) -> None:
        self._requests = {
            each.definition.model_type: (each.definition.endpoint, json.loads(each.definition.probe))
            for each in services
            if each.definition.probe
        }
        self._table = table
        self._probed: dict[str, float] = {}

    async def __call__(self, client: EngineClient) -> bool:
        """Return false if a model that is loaded does not do its work; true also if nothing had to be asked."""
        loaded = [each for each in self._table.values() if each.state == LOADED]
        models = [each for each in loaded if each.model and each.model.model_type in self._requests]
        now = time.monotonic()
        last = max([0.0, *(each.last_used for each in loaded), *self._probed.values()])
        if not models or any(each.users for each in loaded) or now - last < IDLE:
            return True
        chosen = min(models, key=lambda each: self._probed.get(each.id, 0.0))
        endpoint, body = self._requests[chosen.model.model_type] if chosen.model else ("", {})
        try:
            await client.post(endpoint, json.dumps(body | {"model": chosen.id}).encode(), timeout=LIMIT)
        except (BadRequest, NotFound) as error:
            log.debug("Probe of %s: %s", chosen.id, error.message)  # an answer, even if the probe is wrong
        except OvmsError as error:
            log.warning("Model %s did not answer a small request: %s", chosen.id, error.message)
            return False
        self._probed[chosen.id] = time.monotonic()
        return True
