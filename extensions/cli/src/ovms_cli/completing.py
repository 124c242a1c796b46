"""``completion``: what a shell completes, which is commands and the names of models, services and settings."""

from enum import StrEnum
from typing import Annotated

import typer

from ovms_cli.session import Session, add

RECORD = ".ovms-plugin.json"
"""What lies in the folder of every installed model."""


def installed(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of models and aliases that begin so; for the shell, which takes no error."""
    from ovms_kernel.api.configuration import OvmsError, read_settings

    given = ctx.params.get("data_dir")
    try:
        settings = read_settings(**({"data_dir": given} if given else {}))
        records = settings.models_dir.glob(f"*/**/{RECORD}")
        found = [each.parent.relative_to(settings.models_dir).as_posix() for each in records]
    except (OvmsError, OSError):
        return []
    names = [each for each in found if not each.startswith(".")]
    return sorted(each for each in (*names, *settings.aliases) if each.startswith(incomplete))


def offered(incomplete: str) -> list[str]:
    """Return the names of services that begin so."""
    from importlib import metadata

    return sorted(
        each.name for each in metadata.entry_points(group="ovms.services") if each.name.startswith(incomplete)
    )


def declared(incomplete: str) -> list[tuple[str, str]]:
    """Return the settings that begin so, with their meaning."""
    from ovms_cli.keys import declared_keys

    return [(str(key), told) for key, told in declared_keys().items() if str(key).startswith(incomplete)]


class Shell(StrEnum):
    """Shells that complete."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"
    powershell = "powershell"


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    add(app, completion)


def completion(
    session: Session,
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh, fish or powershell.", show_default=False)],
) -> None:
    """Print the completion script for a shell.

    For bash: `ovms-plugin completion bash >> ~/.bashrc`. `--install-completion` does it for the shell you are in.
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    del session
    print(get_completion_script(prog_name="ovms-plugin", complete_var="_OVMS_PLUGIN_COMPLETE", shell=shell))
