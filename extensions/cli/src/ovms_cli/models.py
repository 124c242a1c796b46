"""Commands about models in the running engine, and ``rm``."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ovms_cli import output
from ovms_cli.managing import library_of
from ovms_cli.operands import Models
from ovms_cli.session import Json, Session, add
from ovms_kernel.api.administration import report_engine
from ovms_kernel.api.commands import ENGINE_KINDS, parse_duration, running

if TYPE_CHECKING:
    from ovms_kernel.api.commands import ResidentModel


def add_to(app: typer.Typer) -> None:
    """Add these commands, in the order in which help lists them."""
    add(app, rm, load, unload, pin, unpin, ps)


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
                    f"Aliases stand for it: {', '.join(names)}; pull it again, or remove one with "
                    f"`ovms-plugin rm {names[0]}`."
                )


async def load(
    session: Session,
    models: Models,
    *,
    keep: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="How long each stays loaded after its last use: 90s, 5m, 2h, or -1 for always.",
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


async def unload(session: Session, models: Models) -> None:
    """Unload models from the running engine."""
    async with library_of(session) as library:
        for model in models:
            await library.unload(model)
            print(f"{session.model_id(model)} is unloaded.")


async def pin(session: Session, models: Models) -> None:
    """Keep models loaded until you unpin or unload them."""
    async with library_of(session) as library:
        for model in models:
            await library.pin(model, pinned=True)
            print(f"{session.model_id(model)} is pinned.")


async def unpin(session: Session, models: Models) -> None:
    """Allow pinned models to be unloaded again."""
    async with library_of(session) as library:
        for model in models:
            await library.pin(model, pinned=False)
            print(f"{session.model_id(model)} is not pinned.")


async def ps(session: Session, *, json: Json = False) -> None:
    """List the loaded models and when each unloads."""
    async with session.kernel(kinds=ENGINE_KINDS) as kernel:
        models = await kernel.resident_models() if await running(kernel) else []
        state = report_engine(kernel).state
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
