"""Commands that bring models here: ``search``, ``pull`` and ``import``."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ovms_cli import output
from ovms_cli.managing import Library, library_of
from ovms_cli.operands import Model, Models
from ovms_cli.session import Json, Session, add
from ovms_kernel.api.administration import plan_pull, search_models
from ovms_kernel.api.commands import OvmsError
from ovms_kernel.api.commands import report as report_error

if TYPE_CHECKING:
    from ovms_kernel.api.commands import Kernel, LocalModel, ModelRef, Usage

Type = Annotated[
    str,
    typer.Option("--type", metavar="TYPE", help="Type of the model, if its files do not show it.", show_default=False),
]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    add(app, search, pull, import_)


async def search(
    session: Session,
    words: Annotated[list[str], typer.Argument(metavar="WORDS", help="Words in the name.", show_default=False)],
    *,
    hub: Annotated[
        str, typer.Option(metavar="NAME", help="Such as hf or ms; else the setting hub.", show_default=False)
    ] = "",
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=100, help="Maximum number of models.")] = 20,
    json: Json = False,
) -> None:
    """Search a hub for models."""
    async with session.kernel() as kernel:
        found = await search_models(kernel, " ".join(words), hub, limit)
    if json:
        output.print_json(found)
    elif found:
        rows = [(each.id, each.task or "-", str(each.downloads or "-")) for each in found]
        output.print_table(("MODEL", "TASK", "DOWNLOADS"), rows, right=("DOWNLOADS",))
    else:
        output.say("No model was found; try other words.")


async def pull(
    session: Session,
    models: Models,
    *,
    revision: Annotated[
        str, typer.Option(metavar="NAME", help="Branch, tag or commit on the hub.", show_default=False)
    ] = "",
    type_: Type = "",
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Fetch what has changed on the hub, even if a complete copy is here.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what a pull would download, and download nothing.")
    ] = False,
    max_rate: Annotated[
        str, typer.Option(metavar="RATE", help="Bytes per second at most, such as 5MB.", show_default=False)
    ] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    json: Json = False,
) -> None:
    """Download models from a hub.

    A model is named owner/name, hf:owner/name, or by the address of its page. A pull
    that broke off goes on where it was. A complete copy is left as it is, without a look at the hub.
    """
    from ovms_kernel.api.commands import parse_model_ref

    refs = [parse_model_ref(f"{each}@{revision}" if revision else each) for each in models]
    limit = {(each.hub or session.settings.hub): {"max_rate": output.read_rate(max_rate)} for each in refs if max_rate}
    if dry_run:
        usage = session.store().usage()
        async with session.kernel() as kernel:
            for ref in refs:
                await _tell_plan(kernel, ref, usage, json=json)
        return
    async with library_of(session, **({"hubs": limit} if limit else {})) as library:
        results = await _pull_all(session, library, refs, type_, refresh=refresh, quiet=quiet, json=json)
    if json:
        output.print_json(results if len(refs) > 1 else results[0])


async def _pull_all(
    session: Session, library: Library, refs: "list[ModelRef]", type_: str, *, refresh: bool, quiet: bool, json: bool
) -> "list[LocalModel]":
    """Pull models one after the other; where there are several, one that fails costs itself alone."""
    results = []
    for ref in refs:
        session.kept = f"Interrupted; the partial download of {ref.id} is kept. Run the same command again to resume."
        try:
            with nullcontext(lambda _: None) if quiet else output.progress(ref.id) as report:
                pulled = await library.pull(str(ref), type_, refresh=refresh, report=report)
        except OvmsError as error:
            if len(refs) == 1:
                raise
            output.say(f"{ref.id} was not pulled.")
            session.code = session.code or report_error(error)
            continue
        results.append(pulled)
        if not json and not quiet:
            print(f"Pulled {pulled.id}: {pulled.model_type}, {output.size(pulled.size)}.")
    return results


async def _tell_plan(kernel: "Kernel", ref: "ModelRef", usage: "Usage", *, json: bool) -> None:
    """Print what a pull would fetch and what of it is here."""
    plan = await plan_pull(kernel, ref)
    installed, missing = ref.id in usage.models, plan.total - plan.present
    if json:
        asked = {"id": ref.id, "revision": ref.revision, "hub": ref.hub or kernel.settings.hub}
        output.print_json(asked | output.plain(plan) | {"free": usage.free, "installed": installed})
        return
    output.print_table(("FILE", "SIZE"), [(file.path, output.size(file.size)) for file in plan.files], right=("SIZE",))
    told = f"{ref.id}: {len(plan.files)} files, {output.size(plan.total)}"
    if not missing:
        print(f"\n{told}; all of it is already downloaded.")
        return
    here = f", {output.size(plan.present)} of them already downloaded" if plan.present else ""
    how = "; the model is installed, and --refresh updates it" if installed else ""
    print(f"\n{told}{here}; {output.size(missing)} are to be fetched, {output.size(usage.free)} are free{how}.")


async def import_(
    session: Session,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder or an archive.", show_default=False)],
    model: Model,
    *,
    type_: Type = "",
    pooling: Annotated[
        str, typer.Option(metavar="HOW", help="CLS, LAST or MEAN, of an embeddings model.", show_default=False)
    ] = "",
    json: Json = False,
) -> None:
    """Import a model from a folder or archive."""
    async with library_of(session) as library:
        with output.progress(model) as report:
            options = {"pooling": pooling.upper()} if pooling else {}
            taken = await library.import_(path, model, type_, options, report)
    if json:
        output.print_json(taken)
    else:
        print(f"Imported {taken.id}: {taken.model_type}, {output.size(taken.size)}.")
