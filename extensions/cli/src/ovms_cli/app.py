"""The command line as a whole: which commands there are and in which order help lists them."""

from importlib import import_module
from importlib.util import find_spec
from typing import Annotated

import typer

from ovms_cli import about, demo, engines, models, services


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer's way of calling
    if wanted:
        from importlib.metadata import version

        print(f"ovms-plugin {version('ovms-cli')}")
        raise typer.Exit


def make_app() -> typer.Typer:
    """Return the program's commands."""
    # Help in plain text: rich's takes a fifth of a second more than all the rest.
    app = typer.Typer(
        name="ovms-plugin",
        help="OpenVINO Model Server as AI services: for AOG, for any go-plugin host, and for a person at a terminal.",
        epilog="Every command takes --data-dir and --debug, and tells more of itself with --help.",
        rich_markup_mode=None,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    demo.add_to(app)
    models.add_to(app)
    services.add_to(app)
    engines.add_to(app)
    about.add_to(app)
    if find_spec("ovms_face_http"):
        import_module("ovms_face_http.commands").add_to(app)
    if find_spec("ovms_face_aog.deploy"):
        import_module("ovms_face_aog.deploy").add_to(app)
    return app


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
        make_app()(arguments, prog_name="ovms-plugin")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0
