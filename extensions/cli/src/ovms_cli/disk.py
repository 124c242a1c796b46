"""Commands about the models on this machine, which need no engine and no server."""

from typing import TYPE_CHECKING, Annotated

import typer

from ovms_cli import output
from ovms_cli.completing import installed
from ovms_cli.operands import Model
from ovms_cli.session import Json, Session, add

if TYPE_CHECKING:
    from collections.abc import Sequence

DIGEST = len("sha256:") + 12
"""Characters of a digest that `show` prints; `--json` has it all."""


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    add(app, ls, show, verify, df)


def ls(session: Session, *, json: Json = False) -> None:
    """List the models on this machine."""
    models = session.list_models()
    for name in session.store().damaged():
        output.say(f"The record of {name} is damaged; `ovms-plugin pull {name}` fetches it again, `rm` removes it.")
    if json:
        output.print_json(models)
    elif models:
        rows = [
            (each.id, f"{'profile' if each.profile else 'alias'} of {each.alias_of}")
            if each.alias_of
            else (each.id, each.model_type, output.size(each.size), each.quantization or "-", output.ago(each.modified))
            for each in models
        ]
        titles = ("MODEL", "TYPE", "SIZE", "WEIGHTS", "CHANGED")
        output.print_table(titles, rows, right=("SIZE",), spare=("WEIGHTS", "CHANGED", "TYPE"))
    else:
        output.say(
            "No models are installed; `ovms-plugin pull OWNER/NAME` downloads one, "
            "`ovms-plugin import` adds a local one."
        )


def show(session: Session, model: Model, *, json: Json = False) -> None:
    """Show the details of a model."""
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
    """Check models for missing and changed files.

    Every file is read again and its SHA-256 compared.
    """
    store = session.store()
    faults: dict[str, Sequence[str]] = {}
    for model in models or [each.id for each in store.list()]:
        with output.progress(model) as report:
            faults[model] = await store.verify(model, report)
        if not json:
            print(f"{model}: {'; '.join(faults[model]) or 'unchanged.'}")
    if json:
        output.print_json(faults)
    if any(faults.values()):
        output.say("Pull or import the damaged models again.")
        session.code = 1


def df(session: Session, *, json: Json = False) -> None:
    """Show the disk space that models, pulls and engines use."""
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
