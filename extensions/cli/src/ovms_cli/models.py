"""Commands about models: on disk and in the running engine."""

import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ovms_cli import output
from ovms_cli.completing import installed
from ovms_cli.managing import Library, library_of
from ovms_cli.session import Json, Session, add
from ovms_kernel.api.commands import ENGINE_KINDS, OvmsError, parse_duration, running
from ovms_kernel.api.commands import report as report_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ovms_kernel.api.commands import Kernel, LocalModel, ModelRef, ResidentModel

Model = Annotated[
    str, typer.Argument(metavar="MODEL", autocompletion=installed, help="As owner/name.", show_default=False)
]
Models = Annotated[
    list[str],
    typer.Argument(metavar="MODEL", autocompletion=installed, help="One or more, as owner/name.", show_default=False),
]
Type = Annotated[
    str, typer.Option("--type", metavar="TYPE", help="What it is, if its files do not tell.", show_default=False)
]

DIGEST = len("sha256:") + 12
"""Characters of a digest that `show` prints; `--json` has it all."""


def add_to(app: typer.Typer) -> None:
    """Add these commands, in the order in which help lists them."""
    add(app, search, pull, import_, ls, show, verify, rm, df, load, unload, pin, unpin, ps)


async def search(
    session: Session,
    words: Annotated[list[str], typer.Argument(metavar="WORDS", help="Words of the name.", show_default=False)],
    *,
    hub: Annotated[
        str, typer.Option(metavar="NAME", help="Such as hf or ms; else the setting hub.", show_default=False)
    ] = "",
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=100, help="How many models at most.")] = 20,
    json: Json = False,
) -> None:
    """Search a hub for models."""
    async with session.kernel() as kernel:
        found = await kernel.ingest.search(" ".join(words), hub, limit)
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
        bool, typer.Option("--dry-run", help="Only say what the hub has, and what of it is here.")
    ] = False,
    max_rate: Annotated[
        str, typer.Option(metavar="RATE", help="Bytes per second at most, such as 5MB.", show_default=False)
    ] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only what goes wrong.")] = False,
    json: Json = False,
) -> None:
    """Fetch models from the hub.

    A model is named owner/name, hf:owner/name, or by the address of its page. A pull
    that broke off goes on where it was. A complete copy is left as it is, without a look at the hub.
    """
    from ovms_kernel.api.commands import parse_model_ref

    refs = [parse_model_ref(f"{each}@{revision}" if revision else each) for each in models]
    limit = {(each.hub or session.settings.hub): {"max_rate": output.read_rate(max_rate)} for each in refs if max_rate}
    if dry_run:
        async with session.kernel() as kernel:
            for ref in refs:
                await _tell_plan(kernel, ref, json=json)
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
        session.kept = f"Interrupted; what has arrived of {ref.id} is kept, the same command goes on from there."
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
            print(f"{pulled.id} is here: {pulled.model_type}, {output.size(pulled.size)}.")
    return results


async def _tell_plan(kernel: "Kernel", ref: "ModelRef", *, json: bool) -> None:
    """Print what a pull would fetch and what of it is here."""
    plan, usage = await kernel.ingest.plan(ref), kernel.store.usage()
    installed, missing = ref.id in usage.models, plan.total - plan.present
    if json:
        asked = {"id": ref.id, "revision": ref.revision, "hub": ref.hub or kernel.settings.hub}
        output.print_json(asked | output.plain(plan) | {"free": usage.free, "installed": installed})
        return
    output.print_table(("FILE", "SIZE"), [(file.path, output.size(file.size)) for file in plan.files], right=("SIZE",))
    told = f"{ref.id}: {len(plan.files)} files, {output.size(plan.total)}"
    if not missing:
        print(f"\n{told}; all of it is here already.")
        return
    here = f", {output.size(plan.present)} of them are here already" if plan.present else ""
    how = "; a copy is here, and --refresh fetches what differs" if installed else ""
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
    """Take in a model from a folder or archive."""
    async with library_of(session) as library:
        with output.progress(model) as report:
            options = {"pooling": pooling.upper()} if pooling else {}
            taken = await library.import_(path, model, type_, options, report)
    if json:
        output.print_json(taken)
    else:
        print(f"{taken.id} is here: {taken.model_type}, {output.size(taken.size)}.")


async def ls(session: Session, *, json: Json = False) -> None:
    """List the models on this machine."""
    models = await session.list_models()
    for name in session.store().damaged():
        output.say(f"The record of {name} is damaged; `ovms-plugin pull {name}` fetches it again, `rm` removes it.")
    if json:
        output.print_json(models)
    elif models:
        rows = [
            (each.id, each.model_type, "", "", f"{'profile' if each.profile else 'alias'} of {each.alias_of}")
            if each.alias_of
            else (each.id, each.model_type, output.size(each.size), each.quantization or "-", output.ago(each.modified))
            for each in models
        ]
        titles = ("MODEL", "TYPE", "SIZE", "WEIGHTS", "CHANGED")
        output.print_table(titles, rows, right=("SIZE",), spare=("WEIGHTS", "CHANGED", "TYPE"))
    else:
        output.say(
            "No model is here yet; `ovms-plugin pull OWNER/NAME` fetches one, `ovms-plugin import` takes one in."
        )


async def ps(session: Session, *, json: Json = False) -> None:
    """List the models that are loaded, and for how long."""
    async with session.kernel(kinds=ENGINE_KINDS) as kernel:
        models = await kernel.resident_models() if await running(kernel) else []
        state = kernel.supervisor.describe()
    if json:
        output.print_json([plain_resident(each) for each in models])
    elif models:
        rows = [
            (
                each.model.id,
                output.size(each.memory),
                each.device,
                str(each.users),
                idle_time(each),
                what_next(each),
            )
            for each in models
        ]
        titles = ("MODEL", "MEMORY", "DEVICE", "USERS", "IDLE", "UNLOADED")
        output.print_table(titles, rows, right=("MEMORY", "USERS"), spare=("DEVICE", "IDLE", "USERS"))
        for each in models:
            if each.suspect:
                output.say(f"{each.model.id} {each.suspect}; see `ovms-plugin passport {each.model.id}`.")
    else:
        output.say(f"No model is loaded; the engine is {state}.")


def plain_resident(each: "ResidentModel") -> dict[str, Any]:
    """Return a loaded model as JSON has it."""
    fields = {name: value for name, value in output.plain(each).items() if name != "model"}
    return {"id": each.model.id, "model_type": each.model.model_type} | fields


def idle_time(each: "ResidentModel") -> str:
    """Return for how long a model was not used."""
    return "-" if each.users or not each.last_used else output.duration(time.time() - each.last_used)


def what_next(each: "ResidentModel") -> str:
    """Return when a model is unloaded, or why not."""
    if each.state != "loaded":
        return f"failed: {each.failure}" if each.state == "failed" else f"{each.state} …"
    if each.pinned:
        return "never: pinned"
    if each.users:
        return "in use"
    if each.unload_at is None:
        return "for memory"
    return f"in {output.duration(max(0.0, each.unload_at - time.time()))}"


async def show(session: Session, model: Model, *, json: Json = False) -> None:
    """Show everything that is known of a model."""
    alias = session.settings.aliases.get(model)
    facts = session.store().describe(session.model_id(model))
    if alias:
        facts = {"alias": model} | facts | {"system": alias.system, "request": dict(alias.request)}
    if json:
        output.print_json(facts)
        return
    if alias:
        facts["request"] = output.assignments(alias.request)
    files, graph = facts.pop("files"), facts.pop("graph")
    facts |= {"size": output.size(facts["size"]), "digest": facts["digest"][:DIGEST]}
    options = output.assignments(facts.pop("options"))
    edited = facts.pop("graph_edited")
    named = {name.replace("_", " "): str(value) for name, value in facts.items() if value}
    output.print_facts(named | ({"options": options} if options else {}))
    print()
    output.print_table(
        ("FILE", "SIZE", "SHA-256"),
        [(each["path"], output.size(each["size"]), each["sha256"][:12]) for each in files],
        right=("SIZE",),
    )
    print(f"\ngraph.pbtxt{', edited by hand' if edited else ''}:\n")
    print(graph.strip())


async def verify(
    session: Session,
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", autocompletion=installed, help="All, if none is named.", show_default=False),
    ] = None,
    *,
    json: Json = False,
) -> None:
    """Check that models are still as they were pulled.

    Every file is read again and its SHA-256 compared.
    """
    store = session.store()
    faults: dict[str, Sequence[str]] = {}
    for model in models or [each.id for each in store.list()]:
        with output.progress(model) as report:
            faults[model] = await store.verify(model, report)
        if not json:
            print(f"{model}: {'; '.join(faults[model]) or 'as it was pulled.'}")
    if json:
        output.print_json(faults)
    if any(faults.values()):
        output.say("Pull or import the damaged models again.")
        session.code = 1


async def rm(session: Session, models: Models) -> None:
    """Delete models from this machine.

    A model that is served is unloaded first.
    """
    from ovms_cli import naming

    store = session.store()
    async with library_of(session) as library:
        for model in models:
            if model in session.settings.aliases:
                await naming.remove(session, model)
                continue
            unfinished = {each.id for each in store.staging()}
            if model in unfinished and model not in store.usage().models:
                await store.discard_staging(model)
            else:
                await library.delete(model)
            print(f"{model} is deleted.")
            session.kept = f"Interrupted; {model} was deleted already."
            if names := [name for name, each in session.settings.aliases.items() if each.model == model]:
                output.say(
                    f"Without it nothing answers to {', '.join(names)}; pull it again, or remove an alias with "
                    f"`ovms-plugin rm {names[0]}`."
                )


async def df(session: Session, *, json: Json = False) -> None:
    """Show how much disk models, pulls and engines take."""
    usage, staging = session.store().usage(), session.store().staging()
    engines = {
        each.version: sum(file.stat().st_size for file in each.directory.rglob("*") if file.is_file())
        for each in session.installations().versions()
    }
    if json:
        sizes = {"models": usage.models, "staging": staging, "trash": usage.trash, "cache": usage.cache}
        output.print_json(sizes | {"engines": engines, "free": usage.free})
        return
    rows = [(name, "model", output.size(count)) for name, count in usage.models.items()]
    rows += [
        (each.id, "old unfinished pull" if each.offered else "unfinished pull", output.size(each.size))
        for each in staging
    ]
    for name, count in usage.cache.items():
        rows.append(("all models" if name == "*" else name, "compiled code", output.size(count)))
    if usage.trash:
        rows.append(("removed models", "trash, emptied at the next start", output.size(usage.trash)))
    rows += [(name, "engine", output.size(count)) for name, count in engines.items()]
    rows.append(("free", str(session.settings.data_dir), output.size(usage.free)))
    output.print_table(("WHAT", "KIND", "SIZE"), rows, right=("SIZE",))


async def load(
    session: Session,
    models: Models,
    *,
    keep: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="How long each stays after its last use: 90s, 5m, 2h, or -1 for ever.",
            show_default=False,
        ),
    ] = "",
) -> None:
    """Load models into the running engine."""
    keep_alive = parse_duration(keep) if keep else None
    async with library_of(session) as library:
        for model in models:
            session.kept = f"Interrupted; the engine may go on loading {model} by itself."
            with output.waiting(f"loading {model}"):
                await library.load(model, keep_alive)
            name = session.model_id(model)
            print(f"{name} is loaded.")
            if problem := session.store().describe(name)["problem"]:
                output.say(problem)


async def pin(session: Session, models: Models) -> None:
    """Keep models loaded until you unpin or unload them."""
    async with library_of(session) as library:
        for model in models:
            await library.pin(model, pinned=True)
            print(f"{session.model_id(model)} is pinned.")


async def unpin(session: Session, models: Models) -> None:
    """Let pinned models be unloaded again."""
    async with library_of(session) as library:
        for model in models:
            await library.pin(model, pinned=False)
            print(f"{session.model_id(model)} is not pinned.")


async def unload(session: Session, models: Models) -> None:
    """Unload models from the running engine."""
    async with library_of(session) as library:
        for model in models:
            await library.unload(model)
            print(f"{session.model_id(model)} is unloaded.")
