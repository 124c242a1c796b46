"""Asks an engine that has nothing to do for a little real work, as answering its health says little about models.

A servable may be AVAILABLE while every request to it hangs or fails until the engine is restarted (spec/field.md 0.7).
What to ask is said by the services, as ``ServiceDefinition.probe``.
"""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING

from ovms_kernel.errors import BadRequest, NotFound, OvmsError
from ovms_kernel.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ovms_kernel.drivers import Service
    from ovms_kernel.engine.client import EngineClient
    from ovms_kernel.values import Call, LocalModel, Outcome

log = logging.getLogger(__name__)

IDLE = 60.0
"""Seconds without a request after which the engine is probed, and again after each that went well."""
LIMIT = 60.0
"""Seconds that a probe may take; another plugin's requests may be before it."""


async def no_probe(client: EngineClient) -> bool:
    """Ask nothing."""
    del client
    return True


class IdleProbe:
    """Listens to requests and probes one served model after the other while there are none.

    :param services: those that may be asked.
    :param served: what the engine serves, by id; looked at anew each time.
    """

    def __init__(self, services: Iterable[Service], served: Mapping[str, LocalModel]) -> None:
        self._requests = {
            each.definition.model_type: (each.definition.endpoint, json.loads(each.definition.probe))
            for each in services
            if each.definition.probe
        }
        self._served = served
        self._active = 0
        self._due = 0.0
        self._turn = 0
        self._touch()

    @hookimpl
    async def ovms_before_request(self, call: Call) -> None:  # noqa: ARG002 - the event's own word
        """Begin to be busy."""
        self._active += 1

    @hookimpl
    async def ovms_request_finished(self, call: Call, outcome: Outcome) -> None:  # noqa: ARG002 - the event's own words
        """Be less busy; a request that was answered is as good as a probe."""
        self._active = max(0, self._active - 1)
        self._touch()

    async def __call__(self, client: EngineClient) -> bool:
        """Return false if a model that is served does not do its work; true also if nothing had to be asked."""
        models = sorted(name for name, model in self._served.items() if model.model_type in self._requests)
        if self._active or not models or time.monotonic() < self._due:
            return True
        name = models[self._turn % len(models)]
        endpoint, body = self._requests[self._served[name].model_type]
        try:
            await client.post(endpoint, json.dumps(body | {"model": name}).encode(), timeout=LIMIT)
        except (BadRequest, NotFound) as error:
            log.debug("Probe of %s: %s", name, error.message)  # an answer, be it one that the probe is wrong
        except OvmsError as error:
            log.warning("Model %s did not answer a small request: %s", name, error.message)
            return False
        self._turn += 1
        self._touch()
        return True

    def _touch(self) -> None:
        self._due = time.monotonic() + IDLE
