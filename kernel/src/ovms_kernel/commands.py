"""Running one command: its settings, a kernel, signals, and how an error ends. Knows no terminal library."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import os
import shutil
import signal
import sys
import traceback
import unicodedata
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovms_kernel.errors import OvmsError, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from types import FrameType

    from ovms_kernel.engine.installation import Installations
    from ovms_kernel.kernel import Kernel
    from ovms_kernel.models.store import Store
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import LocalModel

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
        from ovms_kernel.engine.host import read_host
        from ovms_kernel.extensions import compose
        from ovms_kernel.settings import read_settings

        settings = read_settings(data_dir=self.settings.data_dir, **overrides) if overrides else self.settings
        extensions = compose(settings, read_host(), kinds=kinds) if kinds else None
        async with compose_kernel(settings, extensions=extensions) as kernel:
            yield kernel

    def store(self) -> Store:
        """Return the models on disk, for a command that reads them and needs no extension."""
        from ovms_kernel.events import Events
        from ovms_kernel.models.store import Store

        return Store(self.settings, Events(self.settings.hook_timeout))

    def installations(self) -> Installations:
        """Return the engine versions on disk, for a command that reads them and needs no extension."""
        from ovms_kernel.engine.installation import Installations
        from ovms_kernel.events import Events

        return Installations(self.settings, Events(self.settings.hook_timeout))

    async def list_models(self) -> list[LocalModel]:
        """Return the models on disk and their aliases, by id, as a kernel does."""
        import anyio.to_thread

        from ovms_kernel.aliases import listed

        return listed(self.settings.aliases, await anyio.to_thread.run_sync(self.store().served))


def say(text: str) -> None:
    """Print a notice on stderr: anything that is not the command's result. One that cannot be written is dropped."""
    # In one write: events are told in threads of their own, and two lines must not become one.
    with suppress(OSError):  # a file on a full disk, or a terminal that is gone
        print(f"{_wrapped(text)}\n", end="", file=sys.stderr, flush=True)  # noqa: T201


def _wrapped(text: str) -> str:
    """Break a sentence between words where a terminal would break it within one."""
    if not sys.stderr.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(part for line in text.splitlines() for part in folded(line, width))


def folded(text: str, width: int) -> list[str]:
    """Return a text in lines of so many columns at most, broken between words, or between Chinese characters.

    Other words stay whole, such as a path that somebody copies.
    """
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if columns(joined) <= width:
            lines[-1] = joined
        elif columns(word) > width and not word.isascii() and os.sep not in word:
            lines[-1:] = _chopped(joined, width)
        else:
            lines += [word]
    return [each for each in lines if each] or [""]


def columns(text: str) -> int:
    """Return how many columns of a terminal a text takes: a Chinese character takes two."""
    return len(text) if text.isascii() else sum(map(_column, text))


def _column(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _chopped(text: str, width: int) -> list[str]:
    lines, used = [""], 0
    for character in text:
        used += _column(character)
        if used > width:
            lines, used = [*lines, ""], _column(character)
        lines[-1] += character
    return lines


def print_json(value: Any) -> None:  # noqa: ANN401 - whatever a command reports
    """Print a result as JSON."""
    print(json.dumps(plain(value), indent=2, ensure_ascii=False))  # noqa: T201


def plain(value: Any) -> Any:  # noqa: ANN401 - any value to its JSON
    """Return values of the kernel as JSON has them: dataclasses and structs as objects, paths and times as texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value) if each.repr}
    if fields := getattr(value, "__struct_fields__", ()):
        return {name: plain(getattr(value, name)) for name in fields}
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, Path) else value


def run_command(
    work: Callable[[Session], Awaitable[None]],
    data_dir: Path | None = None,
    *,
    debug: bool = False,
    fast_loop: bool = False,
    reads_config: bool = True,
) -> int:
    """Run a command to its end and return its exit code; an error is one sentence on stderr.

    :param work: called with the session within an event loop; cancelled by the first signal to end.
    :param data_dir: wins over every other setting of it.
    :param debug: log in detail, and show tracebacks.
    :param fast_loop: use uvloop where it exists; a coroutine function with a true ``fast_loop`` asks for it.
    :param reads_config: whether the config file must be correct; a command that corrects it does without.
    :raises BrokenPipeError: the reader of the output is gone.
    """
    import asyncio  # takes a tenth of the time that help may take, so not at the top

    import anyio

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
            options = {"use_uvloop": fast_loop and importlib.util.find_spec("uvloop") is not None}
            anyio.run(_until_signal, work, session, backend_options=options)
        finally:
            # All is done and cleared away; a signal from now on would only spoil the exit code.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            kept, code = session.kept, session.code
    except (Exception, KeyboardInterrupt, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever it is, it is told
        caught = error
    if isinstance(caught, KeyboardInterrupt):
        received.append(signal.SIGINT)
    if caught is not None and debug:
        traceback.print_exception(caught)
    return _exit_code(caught, received, kept) or code


def _exit_code(caught: BaseException | None, received: list[signal.Signals], kept: str) -> int:
    """Say what ended a command and return its exit code; 0 if nothing did but its own end."""
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
