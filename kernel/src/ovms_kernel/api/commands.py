"""What the author of a command of ``ovms-plugin`` imports.

A command is an entry point of the group ``ovms.commands``, named as the command. Like every driver it is constructed
with its section of the settings; its ``app`` is a ``typer.Typer`` whose coroutine functions get a :class:`Session` as
their first argument. The command line adds ``--data-dir`` and ``--debug``, handles signals, and turns an
:class:`OvmsError` into one sentence and an exit code. Nothing here knows a terminal library.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import shutil
import signal
import sys
import traceback
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ovms_kernel.errors import *
from ovms_kernel.errors import Cancelled, OvmsError, Unavailable
from ovms_kernel.on_demand import on_demand

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
    from types import FrameType

    from ovms_kernel.admission import decode_request as decode_request
    from ovms_kernel.construction import construct as construct
    from ovms_kernel.drivers import DRIVER_PROTOCOLS as DRIVER_PROTOCOLS
    from ovms_kernel.drivers import KERNEL_KINDS as KERNEL_KINDS
    from ovms_kernel.drivers import Command as Command
    from ovms_kernel.drivers import Service as Service
    from ovms_kernel.engine.installation import Installations
    from ovms_kernel.extensions import ExtensionReport as ExtensionReport
    from ovms_kernel.extensions import Extensions as Extensions
    from ovms_kernel.folding import folded as folded
    from ovms_kernel.hookspecs import hookimpl as hookimpl
    from ovms_kernel.kernel import Kernel as Kernel
    from ovms_kernel.media import read_file as read_file
    from ovms_kernel.media import source_of as source_of
    from ovms_kernel.models.names import parse_model_id as parse_model_id
    from ovms_kernel.models.names import parse_model_ref as parse_model_ref
    from ovms_kernel.models.passport import PassportEntry as PassportEntry
    from ovms_kernel.models.report import ResidentModel as ResidentModel
    from ovms_kernel.models.store import Store as Store
    from ovms_kernel.models.usage import Usage as Usage
    from ovms_kernel.quantities import parse_duration as parse_duration
    from ovms_kernel.server import RunningServer as RunningServer
    from ovms_kernel.server import forget_dead_server as forget_dead_server
    from ovms_kernel.server import read_server as read_server
    from ovms_kernel.server import refuse_second as refuse_second
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import Answer as Answer
    from ovms_kernel.values import Finding as Finding
    from ovms_kernel.values import Installation as Installation
    from ovms_kernel.values import LocalModel as LocalModel
    from ovms_kernel.values import Message as Message
    from ovms_kernel.values import ModelRef as ModelRef
    from ovms_kernel.values import Progress as Progress
    from ovms_kernel.values import Request as Request
    from ovms_kernel.values import Upload as Upload
else:
    __getattr__ = on_demand(
        __name__,
        {
            "admission": "decode_request",
            "construction": "construct",
            "drivers": "DRIVER_PROTOCOLS KERNEL_KINDS Command Service",
            "extensions": "ExtensionReport Extensions",
            "folding": "folded",
            "hookspecs": "hookimpl",
            "kernel": "Kernel",
            "media": "read_file source_of",
            "models.names": "parse_model_id parse_model_ref",
            "models.passport": "PassportEntry",
            "models.report": "ResidentModel",
            "models.store": "Store",
            "models.usage": "Usage",
            "quantities": "parse_duration",
            "server": "RunningServer forget_dead_server read_server refuse_second",
            "values": "Answer Finding Installation LocalModel Message ModelRef Progress Request Upload",
        },
        own=(
            "ENGINE_KINDS EXIT_CODES Session need_engine offered_commands plain print_json report run_command running "
            "say"
        ),
    )

FAILED, USAGE, NOT_FOUND, ENGINE, CREDENTIALS, TIME, UNSUPPORTED = 1, 2, 3, 4, 5, 6, 7
EXIT_CODES = {
    400: USAGE,
    401: CREDENTIALS,
    404: NOT_FOUND,
    408: TIME,
    412: ENGINE,
    499: 130,
    501: UNSUPPORTED,
    503: ENGINE,
}
"""Exit codes by code of the error; what is not listed ends with 1. A signal ends with 128 and its number."""

ENGINE_KINDS = ("platforms",)
"""The kinds of extension that a command needs to look at the engine."""
TOLD_OTHERWISE = ("ovms_kernel.engine", "ovms_kernel.models")
"""Loggers whose errors also reach the command, as an exception or an event."""


@dataclass
class Session:
    """One run of one command."""

    settings: Settings
    data_dir_given: bool = False
    kept: str = "Interrupted; nothing was changed."
    """What is said when a signal ends the command. A command sets it when it begins what leaves something behind."""
    code: int = 0
    """The exit code of a command that ends by itself."""
    received: list[signal.Signals] = field(default_factory=list)
    on_interrupt: Callable[[], object] | None = None
    """Called for Ctrl-C instead of ending the command, while a command wants it for a part of its work."""

    @asynccontextmanager
    async def kernel(
        self,
        *,
        kinds: Iterable[str] | None = None,
        **overrides: Any,  # noqa: ANN401 - as read_settings takes them
    ) -> AsyncIterator[Kernel]:
        """Compose the kernel, with settings that win over all others; an engine that it starts ends with it.

        :param kinds: the kinds of extension that the command needs; ``None`` means all.
        """
        from ovms_kernel.compose import compose_kernel
        from ovms_kernel.settings import read_settings

        settings = read_settings(data_dir=self.settings.data_dir, **overrides) if overrides else self.settings
        extensions = dataclasses.replace(self, settings=settings).extensions(kinds) if kinds else None
        async with compose_kernel(settings, extensions=extensions) as kernel:
            yield kernel

    def extensions(self, kinds: Iterable[str]) -> Extensions:
        """Return the installed extensions of some kinds, for a command that needs no kernel."""
        from ovms_kernel.engine.host import read_host
        from ovms_kernel.extensions import compose

        return compose(self.settings, read_host(), kinds=kinds)

    def store(self) -> Store:
        """Return the models on disk, for a command that reads them and needs no extension."""
        from ovms_kernel.models.store import Store

        return Store(self.settings)

    def installations(self) -> Installations:
        """Return the engine versions on disk, for a command that reads them and needs no extension."""
        from ovms_kernel.engine.installation import Installations
        from ovms_kernel.events import Events

        return Installations(self.settings, Events(self.settings.hook_timeout))

    def model_id(self, name: str) -> str:
        """Return the id of the model that a name stands for: the name itself unless it is an alias."""
        from ovms_kernel.aliases import target

        return target(self.settings.aliases, name)

    def list_models(self) -> list[LocalModel]:
        """Return the models on disk and their aliases, by id, as a kernel does."""
        from ovms_kernel.aliases import listed

        return listed(self.settings.aliases, self.store().served())


def offered_commands(names: Sequence[str]) -> Mapping[str, Command]:
    """Return the commands of these names that extensions offer; why one cannot be used is logged as an error."""
    from ovms_kernel.extensions import compose
    from ovms_kernel.settings import Settings, read_settings
    from ovms_kernel.values import Host

    try:
        settings = read_settings()
    except OvmsError:
        settings = Settings(Path())  # the command itself says what is wrong with them; help works without
    anywhere = Host("linux", "")  # only platforms ask where they are
    return compose(settings, anywhere, kinds=["commands"], names=names).commands


def say(text: str) -> None:
    """Print a notice on stderr: anything that is not the command's result. One that cannot be written is dropped."""
    # In one write: events are told in threads of their own, and two lines must not become one.
    with suppress(OSError):  # a file on a full disk, or a terminal that is gone
        print(f"{_wrapped(text)}\n", end="", file=sys.stderr, flush=True)  # noqa: T201


def _wrapped(text: str) -> str:
    """Break a sentence between words where a terminal would break it within one."""
    if not sys.stderr.isatty():
        return text
    from ovms_kernel.folding import columns, folded

    width = shutil.get_terminal_size().columns
    return "\n".join("\n".join(folded(line, width)) if columns(line) > width else line for line in text.splitlines())


def print_json(value: Any) -> None:  # noqa: ANN401 - whatever a command reports
    """Print a result as JSON."""
    print(json.dumps(plain(value), indent=2, ensure_ascii=False))  # noqa: T201


def plain(value: Any) -> Any:  # noqa: ANN401 - any value to its JSON
    """Return values of the kernel as JSON has them: dataclasses and structs as objects, paths and times as texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value) if each.repr}
    if fields := getattr(value, "__struct_fields__", ()):
        return {name: plain(getattr(value, name)) for name in fields if name not in getattr(value, "hidden", ())}
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, Path) else value


def run_command(
    work: Callable[[Session], Awaitable[None] | None],
    data_dir: Path | None = None,
    *,
    debug: bool = False,
    fast_loop: bool = False,
    reads_config: bool = True,
    waits: bool = True,
) -> int:
    """Run a command to its end and return its exit code; an error is one sentence on stderr.

    :param work: called with the session, within an event loop if it waits; cancelled by the first signal to end.
    :param data_dir: wins over every other setting of it.
    :param debug: log in detail, and show tracebacks.
    :param fast_loop: use uvloop where it exists; a coroutine function with a true ``fast_loop`` asks for it.
    :param reads_config: whether the config file must be correct; a command that corrects it does without.
    :param waits: whether ``work`` is a coroutine function; a plain one only reads what is on disk.
    :raises BrokenPipeError: the reader of the output is gone.
    """
    from ovms_kernel.settings import read_settings

    _log(debug=debug)
    received: list[signal.Signals] = []
    kept, code = Session.kept, 0
    caught: BaseException | None = None
    try:
        overrides: dict[str, Any] = {} if data_dir is None else {"data_dir": data_dir.expanduser()}
        settings = read_settings(file=None if reads_config else {}, **overrides)
        session = Session(settings, data_dir is not None, received=received)
        try:
            if waits:
                _run_loop(cast("Callable[[Session], Awaitable[None]]", work), session, fast=fast_loop)
            else:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                work(session)
        finally:
            # All is done and cleared away; a signal from now on would only spoil the exit code.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            kept, code = session.kept, session.code
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever it is, it is told
        caught = error
    if caught is not None and debug:
        traceback.print_exception(caught)
    return _exit_code(caught, received, kept) or code


def _run_loop(work: Callable[[Session], Awaitable[None]], session: Session, *, fast: bool) -> None:
    """Run a command in an event loop, whose import takes as long as a command that only reads."""
    import asyncio

    import anyio

    try:
        options = {"use_uvloop": fast and importlib.util.find_spec("uvloop") is not None}
        anyio.run(_until_signal, work, session, backend_options=options)
    except asyncio.CancelledError as error:
        raise Cancelled("The command was cancelled.") from error


def _exit_code(caught: BaseException | None, received: list[signal.Signals], kept: str) -> int:
    """Say what ended a command and return its exit code; 0 if nothing did but its own end."""
    if isinstance(caught, KeyboardInterrupt):
        received.append(signal.SIGINT)
    if received:
        # Whatever error the cancel may have turned into, the signal is what ended the command.
        say(kept)
        return 128 + received[0]
    if isinstance(caught, BrokenPipeError):
        raise caught
    return 0 if caught is None else report(caught)


def report(error: BaseException) -> int:
    """Tell an error in one sentence and return its exit code."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OvmsError):
        say(error.message)
        return EXIT_CODES.get(error.code, FAILED)
    from ovms_kernel.blame import blame
    from ovms_kernel.files import refused_by_system

    if told := refused_by_system(error):
        return report(told)
    cause = " ".join(f"{type(error).__name__}: {error}".split())
    say(f"{blame(error)} ({cause}); --debug shows where.")
    return FAILED


async def running(kernel: Kernel) -> bool:
    """Use the engine that runs for this data folder; return whether there is one."""
    if not kernel.engine_runs():
        return False
    await kernel.engine()
    return True


async def need_engine(kernel: Kernel) -> None:
    """Use the engine that runs for this data folder.

    :raises Unavailable: there is none.
    """
    if not await running(kernel):
        raise Unavailable("No engine runs here; start one with `ovms-plugin serve` in another terminal.")


class _Notices(logging.Handler):
    """Prints what is logged as commands print their notices."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def _is_news(record: logging.LogRecord) -> bool:
    """Tell what nobody else tells: the plugin's warnings, and errors that do not end the command."""
    if record.levelno < logging.ERROR:
        return record.name.startswith("ovms_")
    return not record.name.startswith(TOLD_OTHERWISE)


def _log(*, debug: bool) -> None:
    if debug:
        from ovms_kernel.log import set_up

        set_up("DEBUG")
        return
    handler = _Notices()
    handler.addFilter(_is_news)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])


async def _until_signal(work: Callable[[Session], Awaitable[None]], session: Session) -> None:
    """Run a command; the first signal to end cancels it, further ones must not disturb its cleaning up."""
    import asyncio

    import anyio

    loop = asyncio.get_running_loop()
    with anyio.CancelScope() as scope:

        def end(number: signal.Signals) -> None:
            if number == signal.SIGINT and session.on_interrupt is not None:
                session.on_interrupt()
                return
            session.received.append(number)
            scope.cancel()

        def noted(number: int, _frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(end, signal.Signals(number))

        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
            if number := getattr(signal, name, None):
                try:
                    loop.add_signal_handler(number, end, number)
                except NotImplementedError:  # Windows
                    signal.signal(number, noted)
        await work(session)
