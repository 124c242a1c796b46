"""What a person types. The annotations are read at run time, so they are not postponed here."""

from pathlib import Path
from typing import Annotated

import typer

from ovms_authoring.kinds import Kind
from ovms_kernel.api.commands import Session, print_json, say

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Distributions, wheels or folders.")]


async def new(
    session: Session,
    kind: Annotated[Kind, typer.Argument(help="What it adds.")],
    name: Annotated[str, typer.Argument(help="Lower case and dashes, such as word-count.")],
    *,
    into: Annotated[Path, typer.Option(help="Folder in which the new folder is created.")] = Path(),
) -> None:
    """Write a distribution of a new extension, with a test, that you can install as it is."""
    del session
    from ovms_authoring.scaffold import write

    made = write(kind, name, into)
    print(made.folder)
    say(f"Install it with `ovms-plugin extension install {made.folder}`, check it with `ovms-plugin extension check`.")
    say(made.next)


async def check(
    session: Session, path: Annotated[Path, typer.Argument(help="The folder of a distribution.")] = Path()
) -> None:
    """Run the contract of each extension in a distribution, and its own tests."""
    from ovms_authoring.checking import check as run

    session.code = await run(path)


async def available(
    session: Session,
    *,
    available: Annotated[bool, typer.Option("--available", help="Include extensions that are not installed.")] = False,
    index: Annotated[str, typer.Option(help="A file or URL of another index, as JSON.")] = "",
    json: Json = False,
) -> None:
    """List distributions of extensions: what they are for, and whether they are installed."""
    del session
    from ovms_authoring.index import known

    found = await known(index, only_installed=not available)
    if json:
        print_json(found)
        return
    wide = max(len(each.name) for each in found)
    for each in found:
        print(f"{each.name:{wide}}  {each.version or '-':8}  {each.description}")


async def install(session: Session, names: Names) -> None:
    """Install distributions into this environment, and say what became of their extensions."""
    from ovms_authoring.environment import install as run

    session.kept = "Interrupted; run the command again, as the installation may be incomplete."
    await run(names)


async def remove(session: Session, names: Names) -> None:
    """Remove distributions of extensions from this environment."""
    from ovms_authoring.environment import remove as run

    session.kept = "Interrupted; run the command again, as the removal may be incomplete."
    await run(names)
