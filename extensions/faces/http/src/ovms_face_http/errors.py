"""Errors as OpenAI's API has them: a status, and an object with ``message``, ``type``, ``param`` and ``code``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ovms_kernel.api.faces import (
    BadRequest,
    Cancelled,
    EngineFailed,
    NotFound,
    NotSupported,
    OvmsError,
    PreconditionFailed,
    Refused,
    TimedOut,
    Unauthorized,
    Unavailable,
)

if TYPE_CHECKING:
    from ovms_face_http.guard import Headers

RETRY_AFTER = b"1"
"""Seconds after which a request that a full engine refused is worth another try."""
NO_RETRY = (b"x-should-retry", b"false")
"""OpenAI's clients send again what failed with a 5xx, unless they are told that it is no use."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An error on its way to a program."""

    status: int
    message: str
    kind: str
    """OpenAI's ``type``."""
    code: str | None = None
    param: str | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return OpenAI's error object."""
        inner = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": inner}


INVALID, SERVER = "invalid_request_error", "server_error"
STATUSES: tuple[tuple[type[OvmsError], int, str, str | None, Headers], ...] = (
    (Refused, 400, INVALID, "refused", []),
    (BadRequest, 400, INVALID, None, []),
    (NotFound, 404, INVALID, "model_not_found", []),
    (NotSupported, 400, INVALID, "unsupported", []),
    (TimedOut, 504, SERVER, "timeout", []),
    (PreconditionFailed, 503, SERVER, "not_ready", [NO_RETRY]),
    (Unauthorized, 502, SERVER, "engine_unauthorized", [NO_RETRY]),
    (Cancelled, 499, SERVER, "cancelled", []),
    (EngineFailed, 502, SERVER, "engine_failed", [NO_RETRY]),
    (Unavailable, 503, SERVER, "overloaded", [(b"retry-after", RETRY_AFTER)]),
)
FIELD = re.compile(r"\b[Tt]he field (\w+)")


def problem_of(error: OvmsError) -> Problem:
    """Return the error as a program is to see it."""
    for kind, status, name, code, headers in STATUSES:
        if isinstance(error, kind):
            named = FIELD.search(error.message) if status == 400 else None
            return Problem(status, error.message, name, code, named[1] if named else None, tuple(headers))
    return Problem(500, error.message, SERVER, "internal_error", None, (NO_RETRY,))


def unknown_url(method: str, path: str) -> Problem:
    """Return the error of an address that nothing answers."""
    return Problem(
        404, f"There is nothing at {method} {path}; GET /openapi.json lists what is.", INVALID, "unknown_url"
    )
