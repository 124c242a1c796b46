"""The protocols that extensions implement, what they are given and give, and the engine as services see it.

A driver is found by name through an entry point and constructed once. What can be set, ``services.chat`` and so on, it
declares with the class attribute ``settings_type``: a ``msgspec.Struct`` (see ``declared``), an instance of which its
constructor is given; or ``dict``, if it checks its section itself. A driver without one is constructed with nothing. It
may also implement any of the hooks of ``hookspecs``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from ovms_kernel.api.faces import KernelApi
    from ovms_kernel.fetch.http import Body
    from ovms_kernel.fetch.transfer import Pace
    from ovms_kernel.models.protos.ovms_graph_pb2 import CalculatorGraphConfig
    from ovms_kernel.values import (
        Answer,
        Call,
        Host,
        Installation,
        LaunchPlan,
        Message,
        ModelRef,
        Ports,
        Release,
        RemoteFile,
        Requirement,
        ServiceDefinition,
        Upload,
    )


class FoundModel(msgspec.Struct, frozen=True):
    """One model that a search on a hub found."""

    id: str
    """As ``owner/name``."""
    downloads: int = 0
    """As the hub counts them; 0 if it does not tell."""
    task: str = ""
    """What the hub says it is for, such as ``text-generation``."""


class ModelFiles(msgspec.Struct, frozen=True):
    """A model's files as far as recognising it and building its graph need them, on disk or still on a hub."""

    identifier: str
    """Last part of the model id; some families are told apart by it only."""
    sizes: Mapping[str, int]
    """Bytes by relative path with forward slashes."""
    texts: Mapping[str, str]
    """Contents of the small text files by path, such as ``config.json`` and ``chat_template.jinja``."""

    def json(self, path: str) -> dict[str, Any] | None:
        """Return the JSON object in that file; ``None`` if it is absent, broken or not an object."""
        try:
            value = json.loads(self.texts[path])
        except (KeyError, ValueError):
            return None
        return value if isinstance(value, dict) else None


class GraphOptions(msgspec.Struct, frozen=True):
    """What a graph is built for: the host, and the options of the calculator that the user or a setting gave."""

    host: Host
    values: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """By field name of the calculator's options, such as ``device`` or ``cache_size``."""


class GraphPatch(msgspec.Struct, frozen=True):
    """Calculator options that an extension sets in ``ovms_amend_graph``, by field name; same name twice is an error."""

    values: Mapping[str, Any]


class Engine(Protocol):
    """The running engine as a service sees it: requests go out once and are never retried.

    All methods raise ``BadRequest`` (the engine refuses the request), ``EngineFailed`` (it failed) or ``Unavailable``
    (it is not there), with the engine's own cause stripped of its wrapper text. The kernel keeps the call's time limit:
    it cancels what is awaited when the time is up.
    """

    async def post(self, path: str, body: bytes, *, content_type: str = "application/json") -> Answer:
        """Send one request and return the whole answer."""
        ...

    def stream(self, path: str, body: bytes, *, content_type: str = "application/json") -> AsyncGenerator[bytes, None]:
        """Send one request and yield the events of the answer as they arrive.

        An item is one or more whole server-sent events, each with its closing blank line: all that had arrived. Closing
        the iterator closes the connection, which makes the engine stop generating.
        """
        ...

    async def upload(self, path: str, fields: Mapping[str, str | list[str]], files: Mapping[str, Upload]) -> Answer:
        """Send one multipart request and return the whole answer."""
        ...

    def model(self, name: str, model_type: str, *, default: str = "") -> AbstractAsyncContextManager[str]:
        """Hold a model for as long as the block lasts: loaded, and not unloaded for another one; gives its id.

        Keep it until the last byte of the answer has arrived, and not longer: others may wait for its memory.

        :param name: empty means the default, else the model of that type that was used last, else the only one.
        :raises NotFound: it is not installed; the sentence lists what is, and how to pull it.
        :raises BadRequest: it is a model of another type.
        :raises Unavailable: the memory that it needs is in use, or does not suffice.
        """
        ...


@runtime_checkable
class Service(Protocol):
    """One AI service. ``stream`` is needed if the definition says ``streaming``, ``converse`` if ``bidirectional``."""

    definition: ServiceDefinition

    async def invoke(self, call: Call, engine: Engine) -> Answer:
        """Answer the call: OpenAI's answer to this request, as JSON or as the bytes that its content type names."""
        ...


@runtime_checkable
class StreamingService(Service, Protocol):
    """A service that can answer in pieces.

    One whose pieces are no server-sent events has a method ``stream_content_type(fields) -> str``, too: the content
    type of what ``stream`` yields for a request's fields, such as ``audio/mpeg``. It raises nothing.
    """

    def stream(self, call: Call, engine: Engine) -> AsyncGenerator[bytes, None]:
        """Yield whole server-sent events, one or more at a time, or the bytes of another content type."""
        ...


@runtime_checkable
class ConversingService(Service, Protocol):
    """A service that listens and speaks at the same time."""

    def converse(self, inbound: AsyncIterator[Message], engine: Engine) -> AsyncGenerator[Message, None]:
        """Answer a session of messages; ends when the inbound side ends and everything was said."""
        ...


@runtime_checkable
class Platform(Protocol):
    """How an engine is got and started on one kind of system."""

    def matches(self, host: Host) -> int:
        """Return how well it fits: 0 if not at all, 1 if any host will do, else ``GUESS``, ``DERIVED`` or ``EXACT``.

        The highest is used. Where a ``GUESS`` does not run, the next one is. More than ``EXACT`` means that the
        driver's settings ask for it, whatever the host is.
        """
        ...

    def release(self, host: Host, version: str) -> Release:
        """Return what to fetch; an empty ``version`` means the newest that is known to work.

        :raises NotFound: that version is not offered for this host.
        """
        ...

    async def requirements(self, installation: Installation) -> list[Requirement]:
        """Return what the system lacks for that installation, each with its exact remedy."""
        ...

    def launch(self, installation: Installation, ports: Ports) -> LaunchPlan:
        """Return how to start it; the OVMS flags are appended by the kernel."""
        ...


@runtime_checkable
class GraphTemplate(Protocol):
    """Knows one model type: how to recognise it and what its graph looks like.

    It may also have ``guess(files, values) -> str``, which says in a sentence what it had to guess of a model, and with
    ``settings_type = dict`` a static ``options()``: the calculator's options as an empty message, by which its section
    of the settings is checked at the start.
    """

    model_type: str

    def recognises(self, files: ModelFiles) -> int:
        """Return 0 if the files are not of this type, else a number that is higher the surer it is."""
        ...

    def build(self, files: ModelFiles, options: GraphOptions) -> CalculatorGraphConfig:
        """Return the graph as a message; paths in it are relative to the model's folder.

        :raises BadRequest: an option is unknown or has a wrong value.
        """
        ...


@runtime_checkable
class Hub(Protocol):
    """A place that models come from."""

    async def list_files(self, ref: ModelRef) -> list[RemoteFile]:
        """Return every file of the model.

        :raises NotFound: the hub has no such model or revision.
        :raises Unauthorized: it wants a token, or another one.
        :raises Unavailable: the hub cannot be reached.
        """
        ...

    alias: str
    """Short name, as in ``hf:owner/name``."""
    pace: Pace
    """How many connections it takes, how large a part is, how long one may stall."""

    def open(self, ref: ModelRef, file: RemoteFile, start: int, end: int) -> Body:
        """Ask for the bytes of a file from ``start`` to ``end``, both included; called in several threads at once.

        The kernel does the rest: parts, resume, digests, progress, limits.

        :raises FetchFailed: for the moment it does not work; it is asked again.
        :raises OvmsError: any other error ends the pull.
        """
        ...


@runtime_checkable
class SearchableHub(Hub, Protocol):
    """A hub that can be searched."""

    async def search(self, words: str, limit: int) -> list[FoundModel]:
        """Return models that the words find, the most used first.

        :raises Unavailable: the hub cannot be reached.
        """
        ...


@runtime_checkable
class Face(Protocol):
    """One way for requests to arrive.

    It may say more of itself: ``why_not(definition: ServiceDefinition) -> str`` why it does not offer a service, for
    ``ovms-plugin extensions``, and ``status(settings: Settings) -> Mapping[str, Any]`` where it listens, for
    ``ovms-plugin status``.
    """

    async def serve(self, kernel: Awaitable[KernelApi]) -> None:
        """Serve until cancelled, or until the host that started this process ends it.

        :param kernel: awaited when first needed, as a handshake may have to be out before it is composed; raises
            ``OvmsError`` if it could not be composed.
        """
        ...


@runtime_checkable
class Dialect(Protocol):
    """Another HTTP API over the same services, which the HTTP face serves beside its own."""

    name: str
    """The entry point's name, such as ``anthropic``."""

    def routes(self, kernel: KernelApi) -> Sequence[Any]:
        """Return starlette's ``BaseRoute`` objects; what they do is translate, ask the kernel and translate back.

        An endpoint raises ``OvmsError``; an answer in pieces goes through ``api.faces.StreamedAnswer``.
        """
        ...

    def error(self, status: int, message: str, code: str) -> Mapping[str, Any]:
        """Return the body of an error as this API writes it.

        :param status: the answer's HTTP status.
        :param code: a word for programs, such as ``model_not_found``; empty if there is none.
        """
        ...


@runtime_checkable
class Command(Protocol):
    """A command of ``ovms-plugin``, named as its entry point; see :mod:`ovms_kernel.api.commands`."""

    app: Any
    """A ``typer.Typer``; several commands in it become a group."""


DRIVER_PROTOCOLS: dict[str, Any] = {
    "services": Service,
    "platforms": Platform,
    "graphs": GraphTemplate,
    "hubs": Hub,
    "observers": object,
    "faces": Face,
    "dialects": Dialect,
    "commands": Command,
}
"""The kinds of driver, in the order in which they are composed; the entry point groups are ``ovms.<kind>``."""

KERNEL_KINDS = ("services", "platforms", "graphs", "hubs", "observers")
"""The kinds that a kernel is composed of. The others bring libraries of their own, so they are loaded where they are
used: a face by the process that serves it, dialects by the HTTP face, commands by the command line."""
