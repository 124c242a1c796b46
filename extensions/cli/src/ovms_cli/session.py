"""How commands are made of coroutine functions: options that all of them have, signals, and how an error ends."""

# The annotations of commands are read at run time, so they are not postponed here nor in any module of commands.
import inspect
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from typer.core import TyperCommand

from ovms_cli.usage import PlainCommand
from ovms_kernel.api.commands import Session, run_command

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Folder of models, engines and logs.", show_default=False),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show debug messages and tracebacks.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


Function: TypeAlias = Callable[..., Coroutine[Any, Any, None] | None]


def add(app: typer.Typer, *functions: Function) -> None:
    """Make commands of functions whose first parameter is the session.

    A coroutine function may wait, a plain one only reads what is on disk, which takes a third of the time. The options
    that all commands have are added to their own, and errors end as one sentence and an exit code.
    """
    for function in functions:
        app.command(function.__name__.rstrip("_"), cls=PlainCommand)(as_command(function))


def adopt(app: typer.Typer) -> None:
    """Do the same with the coroutine functions that an extension's commands consist of, in place."""
    for command in app.registered_commands:
        command.cls = PlainCommand if command.cls in (None, TyperCommand) else command.cls
        if inspect.iscoroutinefunction(command.callback):
            command.callback = as_command(command.callback)
    for group in app.registered_groups:
        if group.typer_instance:
            adopt(group.typer_instance)


def as_command(function: Function) -> Callable[..., None]:
    """Return the function that typer calls instead."""

    def call(*, data_dir: Path | None, debug: bool, **values: Any) -> None:  # noqa: ANN401 - what typer read
        options = {name: getattr(function, name) for name in ("fast_loop", "reads_config") if hasattr(function, name)}
        options["waits"] = waits
        raise typer.Exit(run_command(lambda session: function(session, **values), data_dir, debug=debug, **options))

    waits = inspect.iscoroutinefunction(function)

    by_name = inspect.Parameter.KEYWORD_ONLY
    parameters = [each.replace(kind=by_name) for each in list(inspect.signature(function).parameters.values())[1:]]
    parameters.append(inspect.Parameter("data_dir", by_name, default=None, annotation=DataDir))
    parameters.append(inspect.Parameter("debug", by_name, default=False, annotation=Debug))
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    call.__name__, call.__doc__ = function.__name__, function.__doc__
    return call


__all__ = ["Json", "Session", "add", "adopt", "as_command"]
