"""All that is served: OpenAI's API, health, KServe's questions, and the installed dialects."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ovms_face_http import openapi, services
from ovms_face_http.app import Routes
from ovms_face_http.exchange import encode
from ovms_face_http.library import Library
from ovms_face_http.models import Models
from ovms_face_http.realtime import SERVICE as SPEECH
from ovms_face_http.realtime import Realtime
from ovms_face_http.repository import PATH, Repository
from ovms_face_http.response_endpoints import Responses
from ovms_kernel.api.faces import compose

if TYPE_CHECKING:
    from ovms_face_http.exchange import Exchange
    from ovms_kernel.api.faces import KernelApi

log = logging.getLogger(__name__)


def routes(kernel: KernelApi, control: str) -> Routes:
    """Return what is answered where.

    :param control: what a request shows to come from a program of this user on this machine.
    """
    made = Routes()
    for path, endpoint in services.endpoints(kernel):
        made.exact["POST", path] = endpoint
    models, library, answers = Models(kernel), Library(kernel, control), Responses(kernel)
    for version in ("/v1", "/v3"):
        made.exact["GET", f"{version}/models"] = models.list_all
        made.below.append(("GET", f"{version}/models/", models.retrieve))
        made.below.append(("DELETE", f"{version}/models/", library.delete))
        made.exact["GET", f"{version}/audio/voices"] = models.voices
        if "chat" in kernel.services:
            made.exact["POST", f"{version}/responses"] = answers.create
            made.below.append(("GET", f"{version}/responses/", answers.retrieve))
            made.below.append(("DELETE", f"{version}/responses/", answers.delete))
    made.below.append(("GET", "/v2/models/", models.kserve))
    repository = Repository(kernel)
    made.exact["POST", "/v2/repository/index"] = repository.index
    made.exact["POST", "/v2/repository/pull"] = library.pull
    made.exact["POST", "/v2/repository/import"] = library.import_
    made.below.append(("POST", PATH, repository.change))
    for path in ("/health", "/v2/health/live", "/v2/health/ready"):
        made.exact["GET", path] = _healthy
    if SPEECH in kernel.services:
        made.sockets["/v1/realtime"] = Realtime(kernel)
    document: list[bytes] = []

    async def describe(exchange: Exchange) -> None:
        await exchange.answer(document[0])

    made.exact["GET", "/openapi.json"] = describe
    for name, dialect in compose(kernel.settings, kernel.host, kinds=["dialects"]).dialects.items():
        try:
            made.dialects.append((dialect, dialect.routes(kernel)))
        except Exception:
            log.exception("The dialect %s is left out", name)
    document.append(encode(openapi.document(made)))
    return made


async def _healthy(exchange: Exchange) -> None:
    await exchange.json({"status": "ok"})
