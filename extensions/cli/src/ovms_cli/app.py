"""The command line as a whole: which commands there are and in which order help lists them."""

import os
from collections.abc import Iterable, Sequence
from importlib import import_module, metadata
from typing import Annotated, cast

import typer
from typer.core import TyperGroup

from ovms_cli.session import adopt
from ovms_cli.usage import told
from ovms_cli.verbs import COMMANDS, Verbs, meant, translated

COMPLETION = "_OVMS_PLUGIN_COMPLETE"
"""Set by a shell that asks for what could be typed next."""


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer's way of calling
    if wanted:
        print(f"ovms-plugin {metadata.version('ovms-cli')}")
        raise typer.Exit


def make_app(wanted: str | None = None) -> typer.Typer:
    """Return the program's commands, and after them those of extensions.

    :param wanted: the command that is to run; what does not offer it is not imported. ``None`` means all of them, and
        empty those of extensions, as help knows the others by name.
    """
    # Help in plain text: rich's takes a fifth of a second more than all the rest.
    app = typer.Typer(
        name="ovms-plugin",
        cls=Verbs,
        help="OpenVINO Model Server as AI services: for AOG, for any go-plugin host, and for a person at a terminal.",
        epilog="Every command takes --data-dir and --debug, and tells more of itself with --help.",
        rich_markup_mode=None,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    ours = {name for names in COMMANDS.values() for name in names}
    offered = {each.name: each for each in metadata.entry_points(group="ovms.commands") if each.name not in ours}
    known = wanted in ours or wanted in offered
    for module, names in COMMANDS.items():
        if wanted in names or (wanted != "" and not known):
            import_module(f"ovms_cli.{module}").add_to(app)
    if wanted == "":
        _add_for_help(app, offered.values())
    elif wanted not in ours:
        _add_extensions(app, [wanted] if wanted in offered else sorted(offered))
    return app


def _add_for_help(app: typer.Typer, offered: Iterable[metadata.EntryPoint]) -> None:
    """Add the commands of extensions for help alone, which does without settings where an extension lets it."""
    for each in sorted(offered, key=lambda each: each.name):
        try:
            _add(app, each.name, each.load()({}).app)
        except Exception:  # noqa: BLE001 - this is another's code
            _add_extensions(app, [each.name])


def _add_extensions(app: typer.Typer, names: Sequence[str]) -> None:
    """Add the commands of these names that extensions offer; why one cannot be used is logged as an error."""
    from ovms_kernel.api.commands import offered_commands

    for name, driver in sorted(offered_commands(names).items()):
        _add(app, name, driver.app)


def _add(app: typer.Typer, name: str, commands: typer.Typer) -> None:
    adopt(commands)
    if len(commands.registered_commands) == 1 and not commands.registered_groups:
        [only] = commands.registered_commands
        only.name = name
        app.registered_commands.append(only)
    else:
        app.add_typer(commands, name=name)


def _options(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", "-v", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


def make_command(wanted: str | None = None) -> TyperGroup:
    """Return the same commands as they are run."""
    return cast("TyperGroup", typer.main.get_command(make_app(wanted)))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    arguments = translated(arguments)
    words = [each for each in arguments if not each.startswith("-")]
    if words[:1] == ["help"]:
        words = words[1:]
    command = make_command(None if COMPLETION in os.environ else meant(next(iter(words), "")))
    try:
        code = command.main(arguments, prog_name="ovms-plugin", standalone_mode=False)
    except typer._click.ClickException as error:
        return told(error)
    except typer.Abort:
        return 1
    except SystemExit as end:
        code = end.code
    return code if isinstance(code, int) else 1 if code else 0
