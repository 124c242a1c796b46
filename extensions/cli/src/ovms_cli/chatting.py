"""``run`` and ``chat``: talking to a model, one question or a whole conversation."""

import json as json_
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer

from ovms_cli import output
from ovms_cli.asking import services_of
from ovms_cli.completing import installed
from ovms_cli.conversation import Conversation, read_file
from ovms_cli.managing import library_of
from ovms_cli.services import WITHDRAWN, piped
from ovms_cli.session import Session, add
from ovms_kernel.api.commands import BadRequest, ModelRef, NotFound, parse_model_ref

if TYPE_CHECKING:
    from ovms_cli.asking import Services

TYPE = "text_generation"
"""The model type that chats."""

System = Annotated[str, typer.Option(metavar="TEXT", help="System prompt.", show_default=False)]
Temperature = Annotated[
    float | None, typer.Option(metavar="T", help="0 always picks the likeliest token.", min=0, show_default=False)
]
MaxTokens = Annotated[
    int, typer.Option(metavar="N", help="Maximum length of the answer, in tokens.", min=0, show_default=False)
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Makes answers repeatable.", show_default=False)]
Image = Annotated[list[Path], typer.Option("--image", metavar="FILE", help="Image to attach.", show_default=False)]
JsonAnswer = Annotated[bool, typer.Option("--json", help="Answer with a JSON object.")]
Schema = Annotated[
    Path | None, typer.Option(metavar="FILE", help="JSON schema that the answer must match.", show_default=False)
]
Stats = Annotated[bool, typer.Option("--stats", help="Show speed after the answer.")]


def typed(words: list[str]) -> list[str]:
    """Return the question that was typed or piped, as one text; none for a conversation at a terminal.

    Called before the event loop begins, whose signals a read of stdin would hold up.
    """
    if words == ["-"] or (not words and not sys.stdin.isatty()):
        return [piped("-")]
    return [piped(" ".join(words))] if words else []


Text = Annotated[
    list[str],
    typer.Argument(metavar="TEXT", help="Question; - reads it from stdin.", callback=typed, show_default=False),
]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    add(app, run, chat)


async def run(
    session: Session,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", autocompletion=installed, help="As owner/name.", show_default=False)
    ],
    text: Text = [],  # noqa: B006 - typer's way to say none or more
    *,
    system: System = "",
    temperature: Temperature = None,
    max_tokens: MaxTokens = 0,
    seed: Seed = None,
    image: Image = [],  # noqa: B006
    json: JsonAnswer = False,
    schema: Schema = None,
    stats: Stats = False,
) -> None:
    """Chat with a model, or ask it one question; pull it first if needed.

    With a text, or one on stdin, it prints the answer; without, it goes on until you leave with /bye.
    """
    ref = parse_model_ref(model)
    options = {"temperature": temperature, "max_tokens": max_tokens or None, "seed": seed}
    conversation = await _conversation(ref.id, system, options, image, await _schema(schema, any_object=json))
    await _need(session, ref)
    await _talk(session, conversation, text, stats=stats)


async def chat(
    session: Session,
    text: Text = [],  # noqa: B006
    *,
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", metavar="MODEL", autocompletion=installed, help="As owner/name.", show_default=False
        ),
    ] = "",
    system: System = "",
    temperature: Temperature = None,
    max_tokens: MaxTokens = 0,
    seed: Seed = None,
    image: Image = [],  # noqa: B006
    json: JsonAnswer = False,
    schema: Schema = None,
    stats: Stats = False,
) -> None:
    """Chat with the default model, or ask it one question.

    Without a text it goes on until you leave with /bye.

    The setting services.chat.default_model names the default; with one model for text, that is it.
    """
    options = {"temperature": temperature, "max_tokens": max_tokens or None, "seed": seed}
    conversation = await _conversation(model, system, options, image, await _schema(schema, any_object=json))
    await _talk(session, conversation, text, stats=stats)


async def _talk(session: Session, conversation: Conversation, text: list[str], *, stats: bool) -> None:
    from ovms_cli.repl import Repl, ask_once

    session.kept = WITHDRAWN
    if text and not text[0].strip():
        raise BadRequest('There is nothing to ask; give a text, such as `ovms-plugin chat "Hello"`.')
    async with services_of(session) as services:
        if not conversation.model:
            conversation.model = await _default_of(session, services)
        if not text:
            session.kept = ""
            kept = session.settings.data_dir / "history" / "chat"
            await Repl(session, services, conversation, kept, stats=stats).run()
        else:
            await ask_once(services, conversation, text[0], stats=stats)


async def _default_of(session: Session, services: "Services") -> str:
    """Return the model of a chat that names none.

    :raises NotFound: none is installed, or several and none of them is the default.
    """
    installed = [each.id for each in await services.list_models() if each.model_type == TYPE and not each.alias_of]
    default = str(session.settings.section("services", "chat").get("default_model", ""))
    if default in installed or default in session.settings.aliases:
        return default
    if len(installed) == 1:
        return installed[0]
    if not installed:
        raise NotFound("No model for text is installed; `ovms-plugin run OpenVINO/Qwen3-0.6B-int4-ov` pulls one.")
    names = ", ".join(installed)
    raise NotFound(
        f"Several models are installed ({names}); name one with --model, or set a default with "
        f"`ovms-plugin config set services.chat.default_model {installed[0]}`."
    )


async def _need(session: Session, model: ModelRef) -> None:
    """Pull a model that is not here."""
    if any(each.id == model.id for each in session.list_models()):
        return
    output.say(f"{model.id} is not installed; pulling it first.")
    session.kept = f"Interrupted; the partial download of {model.id} is kept. Run the same command again to resume."
    async with library_of(session) as library:
        with output.progress(model.id) as report:
            await library.pull(str(model), "", refresh=False, report=report)


async def _conversation(
    model: str, system: str, options: dict[str, Any], images: list[Path], schema: dict[str, Any] | None
) -> Conversation:
    given = {name: value for name, value in options.items() if value is not None}
    conversation = Conversation(model, system, given, schema=schema)
    for path in images:
        await anyio.to_thread.run_sync(conversation.add_image, path)
    return conversation


async def _schema(path: Path | None, *, any_object: bool) -> dict[str, Any] | None:
    if path is None:
        return {} if any_object else None
    try:
        schema = json_.loads(await anyio.to_thread.run_sync(read_file, path))
    except ValueError as error:
        raise BadRequest(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(schema, dict):
        raise BadRequest(f"{path} must hold one JSON object, a schema.")
    return schema
