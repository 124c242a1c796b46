"""The command line as a whole: which commands there are and in which order help lists them."""

import os
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from ovms_cli import (
    about,
    autostart,
    benchmark,
    chatting,
    configuration,
    engines,
    models,
    naming,
    passports,
    people,
    services,
    stopping,
)
from ovms_cli.session import adopt
from ovms_cli.verbs import Verbs, meant

COMPLETION = "_OVMS_PLUGIN_COMPLETE"
"""Set by a shell that asks for what could be typed next."""


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer's way of calling
    if wanted:
        from importlib.metadata import version

        print(f"ovms-plugin {version('ovms-cli')}")
        raise typer.Exit


def make_app(wanted: str = "") -> typer.Typer:
    """Return the program's commands, and after them those of extensions.

    :param wanted: the command that is to run; extensions that do not offer it are not imported. Empty means all.
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
    groups = (
        chatting,
        models,
        naming,
        passports,
        people,
        services,
        stopping,
        engines,
        configuration,
        autostart,
        benchmark,
        about,
    )
    for each in groups:
        each.add_to(app)
    ours = {each.name for each in app.registered_commands} | {each.name for each in app.registered_groups}
    offered = {each.name for each in metadata.entry_points(group="ovms.commands")} - ours
    if wanted not in ours:
        _add_extensions(app, [wanted] if wanted in offered else sorted(offered))
    return app


def _add_extensions(app: typer.Typer, names: Sequence[str]) -> None:
    """Add the commands of these names that extensions offer; why one cannot be used is logged as an error."""
    from ovms_kernel.errors import OvmsError
    from ovms_kernel.extensions import compose
    from ovms_kernel.settings import Settings, read_settings
    from ovms_kernel.values import Host

    anywhere = Host("linux", "")  # only platforms ask where they are
    try:
        settings = read_settings()
    except OvmsError:
        settings = Settings(Path())  # the command itself says what is wrong with them; help works without
    for name, driver in sorted(compose(settings, anywhere, kinds=["commands"], names=names).commands.items()):
        adopt(driver.app)
        if len(driver.app.registered_commands) == 1 and not driver.app.registered_groups:
            [only] = driver.app.registered_commands
            only.name = name
            app.registered_commands.append(only)
        else:
            app.add_typer(driver.app, name=name)


def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    try:
        words = [each for each in arguments if not each.startswith("-")]
        make_app("" if COMPLETION in os.environ else meant(next(iter(words), "")))(arguments, prog_name="ovms-plugin")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0
