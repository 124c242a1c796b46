"""Models on disk: pulled, imported and deleted, with their progress as lines of JSON.

A line is the kernel's ``Progress`` or ``{"notice": TEXT}``, and the last one ``{"model": ID}`` or an error object.
"""

from __future__ import annotations

import logging
import secrets
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import unquote

import msgspec

from ovms_face_http.errors import problem_of
from ovms_face_http.exchange import encode
from ovms_face_http.guard import Denied
from ovms_face_http.services import in_words
from ovms_kernel.api.faces import BadRequest, OvmsError, reported

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from ovms_face_http.exchange import Exchange
    from ovms_kernel.api.faces import KernelApi, LocalModel, Progress

T = TypeVar("T")

LINES = b"application/x-ndjson"
CONTROL = b"x-ovms-control"
"""Header of a program of this user, who may name files of this machine."""


class Pull(msgspec.Struct, forbid_unknown_fields=True):
    """What a pull takes."""

    model: str
    """As ``ovms-plugin pull`` takes it, such as ``hf:owner/name@revision``."""
    type: str = ""
    refresh: bool = False
    """Fetch what has changed on the hub, even if a complete copy is here."""


class Import(msgspec.Struct, forbid_unknown_fields=True):
    """What an import takes."""

    path: str
    """Absolute, of a folder or archive on this machine."""
    model: str
    type: str = ""
    options: dict[str, Any] = {}
    """Options of its graph."""


class Work(Protocol):
    """A pull or an import."""

    async def __call__(self, *, report: Callable[[Progress], None]) -> LocalModel:
        """Do it."""
        ...


class Library:
    """Endpoints that change which models there are.

    :param control: what a request shows to come from a program of this user on this machine.
    """

    def __init__(self, kernel: KernelApi, control: str) -> None:
        self._kernel = kernel
        self._control = control.encode()

    async def pull(self, exchange: Exchange) -> None:
        """Fetch a model from its hub; a client that leaves ends that, unless another one waits for the same model."""
        asked = _read(await exchange.body(), Pull)
        work = partial(self._kernel.pull_model, asked.model, model_type=asked.type, refresh=asked.refresh)
        await exchange.stream(_lines(work), _failed, LINES, b"")

    async def import_(self, exchange: Exchange) -> None:
        """Take a model in from this machine, which only a program of this user may ask for."""
        asked = _read(await exchange.body(), Import)
        if not secrets.compare_digest(exchange.headers.get(CONTROL, b""), self._control):
            raise Denied(403, "Models are imported by `ovms-plugin import` on this machine alone.", "not_allowed")
        work = partial(
            self._kernel.import_model, Path(asked.path), asked.model, model_type=asked.type, options=asked.options
        )
        await exchange.stream(_lines(work), _failed, LINES, b"")

    async def delete(self, exchange: Exchange) -> None:
        """Unload a model and remove it from disk; its name may have a slash."""
        name = unquote(exchange.path.split("/", 3)[3])
        await self._kernel.delete_model(name)
        await exchange.json({"id": name, "object": "model", "deleted": True})


class Notices(logging.Handler):
    """Hands on the warnings of one piece of work, which a command in this process would print.

    :param tell: takes the text of each.
    """

    work: ContextVar[Notices | None] = ContextVar("work", default=None)

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Hand on a warning if it is of this work: tasks and threads that work starts have its context."""
        if self.work.get() is self and record.levelno == logging.WARNING:
            self._tell(record.getMessage())

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen until the end of the block, to what is begun in it."""
        token = self.work.set(self)
        logging.getLogger("ovms_kernel").addHandler(self)
        try:
            yield
        finally:
            logging.getLogger("ovms_kernel").removeHandler(self)
            self.work.reset(token)


async def _lines(work: Work) -> AsyncGenerator[bytes, None]:
    notices: list[str] = []
    models: list[LocalModel] = []

    async def run(report: Callable[[bytes], None]) -> None:
        with Notices(notices.append).listening():
            models.append(await work(report=lambda now: report(encode(now) + b"\n")))

    async with aclosing(reported(run)) as lines:
        async for line in lines:
            yield line
    for each in [*({"notice": text} for text in notices), *({"model": model.id} for model in models)]:
        yield encode(each) + b"\n"


def _failed(error: Exception) -> bytes:
    known = error if isinstance(error, OvmsError) else OvmsError(in_words(error))
    return encode(problem_of(known).as_dict()) + b"\n"


def _read(body: bytes, of: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=of)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"The request cannot be read: {error}.") from error
