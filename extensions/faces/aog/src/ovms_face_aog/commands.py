"""What the AOG face adds to ``ovms-plugin``. The annotations are read at run time, so they are not postponed here."""

import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ovms_kernel.api.commands import Session, print_json


class Bodies(StrEnum):
    """Which conversion templates the manifest names."""

    openvino = "openvino"
    full = "full"


BodiesOption = Annotated[Bodies, typer.Option(help="Templates of AOG's own engine, or those that keep every field.")]


class Manifest:
    """``ovms-plugin manifest``."""

    def __init__(self, section: Mapping[str, Any]) -> None:
        del section
        self.app = typer.Typer()
        self.app.command()(manifest)


class Deploy:
    """``ovms-plugin deploy``."""

    def __init__(self, section: Mapping[str, Any]) -> None:
        del section
        self.app = typer.Typer()
        self.app.command()(deploy)


class Demo:
    """``ovms-plugin demo``."""

    def __init__(self, section: Mapping[str, Any]) -> None:
        del section
        self.app = typer.Typer()
        self.app.command()(demo)


async def manifest(
    session: Session,
    *,
    bodies: BodiesOption = Bodies.openvino,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Print plugin.yaml, AOG's manifest of the services."""
    from ovms_face_aog.manifest import manifest_of

    async with session.kernel() as kernel:
        made = manifest_of(kernel.services, bodies=bodies.value)
    if json:
        print_json(made.as_dict())
    else:
        sys.stdout.write(made.as_yaml())


async def deploy(
    session: Session,
    *,
    plugin_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="AOG's folder of plugins, if it is not the usual one.", show_default=False),
    ] = None,
    bodies: BodiesOption = Bodies.openvino,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove the plugin from AOG; models and engine stay.")
    ] = False,
) -> None:
    """Install this plugin into AOG.

    Writes a folder with plugin.yaml and a launcher that starts this very environment, starts it once as AOG would, and
    says what to do next.
    """
    from ovms_face_aog.deploy import deploy as do

    await do(session, plugin_dir, bodies.value, remove=remove)


async def demo(
    session: Session,
    *,
    models: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the tiny models.", show_default=False)
    ] = None,
) -> None:
    """Try the plugin with tiny models, as AOG uses it.

    The plugin is started and asked as AOG would do it, with two tiny models, in a temporary folder (or in the one that
    --data-dir names, which is kept).
    """
    from ovms_face_aog.demo import run

    await run(session, models)
