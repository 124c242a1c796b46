"""The error tree: one class for each code that a host can be told.

    OvmsError (500)
    ├── BadRequest (400)        the caller's input is wrong
    │   └── Refused (400)       an extension vetoed it
    ├── Unauthorized (401)      a hub or a remote engine wants other credentials
    ├── NotFound (404)          no such model, service or version
    ├── TimedOut (408)          the caller's deadline passed
    ├── PreconditionFailed (412) something has to be done first, such as installing the engine
    ├── Cancelled (499)         the caller withdrew the request
    ├── NotSupported (501)      this plugin, host or engine does not offer that
    ├── EngineFailed (502)      the engine was asked and answered with an error of its own
    └── Unavailable (503)       the engine is not there, starting, or full

The message is one sentence for a user: what is wrong and what to do. Tracebacks belong in the log. The codes are those
of HTTP; faces send them.
"""

from __future__ import annotations

import re
from typing import Self

__all__ = [
    "BadRequest",
    "Cancelled",
    "EngineFailed",
    "NotFound",
    "NotSupported",
    "OvmsError",
    "PreconditionFailed",
    "Refused",
    "TimedOut",
    "Unauthorized",
    "Unavailable",
]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What would move a terminal's cursor, color it or turn its text around; names that callers send may hold any."""


class OvmsError(Exception):
    """An error whose text may be shown to a user as it is."""

    code = 500

    def __init__(self, message: str) -> None:
        message = _CONTROL.sub(lambda found: repr(found[0])[1:-1], message)
        super().__init__(message)
        self.message = message

    def again(self, message: str = "") -> Self:
        """Return an error of the same kind and content, caused by this one, to be raised to another caller.

        :param message: says it in other words.
        """
        fresh = type(self).__new__(type(self), *self.args)
        fresh.__dict__.update(self.__dict__)
        if message:
            fresh.args, fresh.message = (message,), message
        fresh.__cause__ = self
        return fresh


class BadRequest(OvmsError):
    """The caller's input is wrong; nothing was changed."""

    code = 400


class Refused(BadRequest):
    """An extension vetoes what is about to happen; raise it from a ``before`` or ``amend`` hook with one sentence."""


class Unauthorized(OvmsError):
    """Credentials are missing or not accepted by the hub or the engine."""

    code = 401


class NotFound(OvmsError):
    """There is no such model, service, version or file."""

    code = 404


class TimedOut(OvmsError):
    """The deadline that the caller set has passed."""

    code = 408


class PreconditionFailed(OvmsError):
    """Something else has to be done first; the message says what."""

    code = 412


class Cancelled(OvmsError):
    """The work was withdrawn before it was done; what is finished of it is kept."""

    code = 499


class NotSupported(OvmsError):
    """Nothing here offers that; the message says what does."""

    code = 501


class EngineFailed(OvmsError):
    """The engine answered with an error of its own, or broke off in the middle of an answer."""

    code = 502


class Unavailable(OvmsError):
    """The engine is not there, not ready yet, or full; trying again later may help."""

    code = 503
