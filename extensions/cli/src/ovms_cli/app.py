"""The command line as a whole: which commands there are and in which order help lists them."""

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, cast

import typer
from typer.core import TyperGroup

from ovms_cli.session import adopt
from ovms_cli.usage import told
from ovms_cli.verbs import COMMANDS, Verbs, behind, meant, translated

COMPLETION = "_OVMS_PLUGIN_COMPLETE"
"""Set by a shell that asks for what could be typed next."""


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer's way of calling
    if wanted:
        from importlib import metadata

        print(f"ovms-plugin {metadata.version('ovms-cli')}")
        raise typer.Exit


def make_app(wanted: str | None = None) -> typer.Typer:
    """Return the program's commands, and after them those of extensions.

    :param wanted: the command that is to run; what does not offer it is not imported. ``None`` means all of them, and
        empty none, as help lists them by name.
    """
    # Help in plain text: rich's takes a fifth of a second more than all the rest.
    app = typer.Typer(
        name="ovms-plugin",
        cls=Verbs,
        help="Serve AI models on this machine through OpenVINO Model Server: over HTTP, for AOG, and at the terminal.",
        epilog="Every command accepts --data-dir and --debug; `COMMAND --help` shows its options.",
        rich_markup_mode=None,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    if wanted == "":
        return app
    own = [module for module, names in COMMANDS.items() if wanted is None or wanted in names]
    offered = [] if wanted and own else _offered()
    if wanted and not own and wanted not in offered:
        own = list(COMMANDS)  # a word that means nothing; what it is like is said
    for module in own:
        import_module(f"ovms_cli.{module}").add_to(app)
    _add_extensions(app, [wanted] if wanted in offered else offered)
    return app


def _offered() -> list[str]:
    """Return the commands that extensions add, by name."""
    from importlib import metadata  # takes a fifth of the time that a command of our own may take

    return sorted({each.name for each in metadata.entry_points(group="ovms.commands")}.difference(*COMMANDS.values()))


def _add_extensions(app: typer.Typer, names: Sequence[str]) -> None:
    """Add the commands of these names that extensions offer; why one cannot be used is logged as an error."""
    if not names:
        return
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
    arguments = translated(behind(arguments))
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
