"""What every command shares: its settings, the kernel, signals, and how an error ends."""

# The annotations of commands are read at run time, so they are not postponed here nor in any module of commands.
import asyncio
import inspect
import logging
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer

from ovms_cli import output
from ovms_kernel.errors import OvmsError, Unavailable

if TYPE_CHECKING:
    from types import FrameType

    from ovms_kernel.kernel import Kernel
    from ovms_kernel.settings import Settings

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

TOLD_OTHERWISE = ("ovms_kernel.engine", "ovms_kernel.models")
"""Loggers whose errors also reach the command, as an exception or an event."""

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Folder of models, engines and logs.", show_default=False),
]
Debug = Annotated[bool, typer.Option("--debug", help="Tell in detail what happens; show tracebacks.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@dataclass
class Session:
    """One run of one command."""

    settings: "Settings"
    data_dir_given: bool = False
    kept: str = "Interrupted; nothing was changed."
    """What is said when a signal ends the command. A command sets it when it begins what leaves something behind."""
    code: int = 0
    """The exit code of a command that ends by itself."""
    received: list[signal.Signals] = field(default_factory=list)

    @asynccontextmanager
    async def kernel(self, **overrides: Any) -> AsyncIterator["Kernel"]:  # noqa: ANN401 - as read_settings takes them
        """Compose the kernel, with settings that win over all others; an engine that it starts ends with it."""
        from ovms_kernel.compose import compose_kernel
        from ovms_kernel.settings import read_settings

        settings = read_settings(data_dir=self.settings.data_dir, **overrides) if overrides else self.settings
        async with compose_kernel(settings) as kernel:
            yield kernel


def add(app: typer.Typer, *functions: Callable[..., Coroutine[Any, Any, None]]) -> None:
    """Make commands of coroutine functions whose first parameter is the session.

    The options that all commands have are added to their own, and errors end as one sentence and an exit code.
    """
    for function in functions:
        app.command(function.__name__.rstrip("_"))(_as_command(function))


def _as_command(function: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    def call(*, data_dir: Path | None, debug: bool, **values: Any) -> None:  # noqa: ANN401 - what typer read
        _run(lambda session: function(session, **values), data_dir, debug=debug)

    by_name = inspect.Parameter.KEYWORD_ONLY
    parameters = [each.replace(kind=by_name) for each in list(inspect.signature(function).parameters.values())[1:]]
    parameters.append(inspect.Parameter("data_dir", by_name, default=None, annotation=DataDir))
    parameters.append(inspect.Parameter("debug", by_name, default=False, annotation=Debug))
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    call.__doc__ = function.__doc__
    return call


class _Notices(logging.Handler):
    """Prints what is logged as commands print their notices, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        output.say(self.format(record))


def _is_news(record: logging.LogRecord) -> bool:
    """Tell what nobody else tells: warnings of ours, and errors that do not end the command."""
    if record.levelno < logging.ERROR:
        return record.name.startswith("ovms_")
    return not record.name.startswith(TOLD_OTHERWISE)


def _run(work: Callable[[Session], Awaitable[None]], data_dir: Path | None, *, debug: bool) -> None:
    from ovms_kernel.settings import read_settings

    if debug:
        from ovms_kernel.log import set_up

        set_up("DEBUG")
    else:
        handler = _Notices()
        handler.addFilter(_is_news)
        logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    received: list[signal.Signals] = []
    kept = Session.kept
    caught: BaseException | None = None
    code = 0
    try:
        overrides: dict[str, Any] = {} if data_dir is None else {"data_dir": data_dir.expanduser()}
        session = Session(read_settings(**overrides), data_dir is not None, received=received)
        try:
            anyio.run(_until_signal, work, session)
        finally:
            # All is done and cleared away; a signal from now on would only spoil the exit code.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            kept, code = session.kept, session.code
    except (Exception, KeyboardInterrupt, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever it is, it is told
        caught = error
    if isinstance(caught, KeyboardInterrupt):
        received.append(signal.SIGINT)
    if received:
        # Whatever error the cancel may have turned into, the signal is what ended the command.
        print(kept, file=sys.stderr)
        code = 128 + received[0]
    elif isinstance(caught, BrokenPipeError):
        raise caught  # typer ends quietly, as a program does whose reader has gone
    elif caught is not None:
        code = report(caught)
    if caught is not None and debug:
        traceback.print_exception(caught)
    raise typer.Exit(code)


def report(error: BaseException) -> int:
    """Tell an error in one sentence and return its exit code."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OvmsError):
        print(error.message, file=sys.stderr)
        return EXIT_CODES.get(error.code, FAILED)
    from ovms_kernel.extensions import blame
    from ovms_kernel.settings import refused_by_system

    if told := refused_by_system(error):
        return report(told)
    cause = " ".join(f"{type(error).__name__}: {error}".split())
    print(f"{blame(error)} ({cause}); --debug shows where.", file=sys.stderr)
    return FAILED


async def _until_signal(work: Callable[[Session], Awaitable[None]], session: Session) -> None:
    """Run a command; the first signal to end cancels it, further ones must not disturb its cleaning up."""
    loop = asyncio.get_running_loop()
    with anyio.CancelScope() as scope:

        def end(number: signal.Signals) -> None:
            session.received.append(number)
            scope.cancel()

        def noted(number: int, _frame: "FrameType | None") -> None:
            loop.call_soon_threadsafe(end, signal.Signals(number))

        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
            if number := getattr(signal, name, None):
                try:
                    loop.add_signal_handler(number, end, number)
                except NotImplementedError:  # Windows
                    signal.signal(number, noted)
        await work(session)


async def running(kernel: "Kernel") -> bool:
    """Use the engine that runs for this data folder, whoever started it; return whether there is one."""
    if not kernel.engine_runs():
        return False
    await kernel.engine()
    return True


async def need_engine(kernel: "Kernel") -> None:
    """Use the engine that runs for this data folder.

    :raises Unavailable: there is none.
    """
    if not await running(kernel):
        raise Unavailable("No engine runs here; start one with `ovms-plugin serve` in another terminal.")
