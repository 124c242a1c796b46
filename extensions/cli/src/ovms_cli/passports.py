"""``passport``: what a model answered to fixed requests on each device, engine and driver."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ovms_cli import output
from ovms_cli.session import Session, add
from ovms_kernel.api.administration import find_model, forget_passport, passport_of

if TYPE_CHECKING:
    from ovms_kernel.api.commands import PassportEntry


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    add(app, passport)


async def passport(
    session: Session,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Such as OpenVINO/Qwen3-8B-int4-ov.")],
    *,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, the answers included.")] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Remove what is known, so that the model is compared again.")
    ] = False,
) -> None:
    """Show with which engine, device and driver a model answers correctly.

    A model that answers nonsense on a device runs on another one until the engine or the driver changes, or until you
    use --forget.
    """
    async with session.kernel() as kernel:
        found = find_model(kernel, model)
        entries = passport_of(kernel, found)
        known = forget and forget_passport(kernel, found)
    if forget:
        print(f"Removed the passport of {model}." if known else f"There is no passport of {model}.")
        return
    if json:
        output.print_json({"model": found.id, "digest": found.digest, "entries": entries})
    elif entries:
        output.print_table(("ENGINE", "DEVICE", "DRIVER", "AT", "ANSWERS"), [row(each) for each in entries])
    else:
        output.say(
            f"{model} has not been checked yet; it is checked when it loads on a GPU or NPU, "
            "or after a minute without requests."
        )


def row(entry: "PassportEntry") -> tuple[Any, ...]:
    """Return what a person reads of an entry."""
    key = entry.key
    said = f"wrong: {entry.fault}" if entry.fault else f"{len(entry.answers)} kept, as they should be"
    return key.engine, key.device, key.driver or "-", entry.at, said
