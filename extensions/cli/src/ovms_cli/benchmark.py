"""``ovms-plugin bench MODEL``: how fast a model answers on this machine."""

import json as json_
import re
import statistics
import time
from contextlib import aclosing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer

from ovms_cli import output
from ovms_cli.asking import services_of
from ovms_cli.completing import installed
from ovms_cli.conversation import Stats, pieces
from ovms_cli.session import Json, Session, add
from ovms_kernel.api.commands import BadRequest, EngineFailed, Request

if TYPE_CHECKING:
    from ovms_cli.asking import Services

WORDS = "The quick brown fox jumps over the lazy dog while seven wise owls watch from a tall old tree. "
"""What prompts are made of."""
KEPT = 20
"""Earlier runs of a model that are kept."""


@dataclass(frozen=True)
class Row:
    """What was measured with so many answers at once."""

    streams: int
    tokens_per_second: float
    """Of all streams together, the prompt not counted."""
    first_seconds: float
    """Until the first token, the median over the streams."""
    prompt_tokens: int
    tokens: int
    seconds: float


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    add(app, bench)


async def bench(
    session: Session,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", autocompletion=installed, help="As owner/name.", show_default=False)
    ],
    *,
    streams: Annotated[
        str, typer.Option(metavar="N,N...", help="Numbers of concurrent requests, one run each.")
    ] = "1,4",
    prompt: Annotated[int, typer.Option(metavar="N", help="Approximate length of the prompt, in tokens.", min=1)] = 128,
    tokens: Annotated[int, typer.Option(metavar="N", help="Length of each answer, in tokens.", min=2)] = 64,
    json: Json = False,
) -> None:
    """Measure how fast a model answers.

    Tokens per second and the time to the first one, compared with the run before.
    """
    counts = _counts(streams)
    session.kept = "Interrupted; nothing was measured."
    rows: list[Row] = []
    async with services_of(session) as services:
        with output.waiting(f"warming up {model}"):
            words = await _prompt(services, model, prompt)
        for count in counts:
            with output.waiting(f"{count} at once"):
                rows.append(await _measure(services, model, words, count, tokens))
    kept = session.settings.data_dir / "bench" / f"{model.replace('/', '--')}.json"
    before = await anyio.to_thread.run_sync(_keep, kept, rows)
    if json:
        output.print_json({"model": model, "runs": rows})
        return
    table = [
        (
            str(each.streams),
            f"{each.tokens_per_second:.1f}",
            f"{each.first_seconds * 1000:.0f} ms",
            str(each.prompt_tokens),
        )
        for each in rows
    ]
    titles = ("STREAMS", "TOKENS/S", "FIRST TOKEN", "PROMPT")
    output.print_table(titles, table, right=titles)
    if before:
        print(f"\n{_compare(before, rows)}")


def _counts(text: str) -> list[int]:
    if not re.fullmatch(r"[1-9]\d{0,2}(,[1-9]\d{0,2})*", text):
        raise BadRequest(f"--streams takes numbers such as 1,4,8, not {text!r}.")
    return [int(each) for each in text.split(",")]


def _request(model: str, text: str, tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream_options": {"include_usage": True},
    }


async def _prompt(services: "Services", model: str, tokens: int) -> str:
    """Return a text of about so many tokens, as the model itself counts them."""
    one = (await _ask(services, _request(model, WORDS, 2))).prompt_tokens
    two = (await _ask(services, _request(model, WORDS * 2, 2))).prompt_tokens
    length = max(two - one, 1)
    around = max(one - length, 0)
    text = WORDS * (1 + (tokens // length))
    return text[: max(1, len(WORDS) * max(tokens - around, 1) // length)]


async def _ask(services: "Services", request: dict[str, Any]) -> Stats:
    stats = Stats()
    async with aclosing(pieces(services.stream("chat", Request(fields=request, caller="cli")), stats)) as found:
        async for _ in found:
            pass
    if not stats.completion_tokens:
        raise EngineFailed("The model's answer does not report its tokens, so its speed cannot be measured.")
    return stats


async def _measure(services: "Services", model: str, words: str, count: int, tokens: int) -> Row:
    found: list[Stats] = []

    async def one(number: int) -> None:
        # Each begins differently, so that no answer gains from another's prompt in the engine's cache.
        found.append(await _ask(services, _request(model, f"{time.monotonic_ns()}-{number}: {words}", tokens)))

    began = time.monotonic()
    async with anyio.create_task_group() as group:
        for number in range(count):
            group.start_soon(one, number)
    seconds = time.monotonic() - began
    first = statistics.median(each.first or each.seconds for each in found)
    made = sum(each.completion_tokens for each in found)
    generating = max(seconds - min(each.first or 0.0 for each in found), 1e-9)
    return Row(count, made / generating, first, found[0].prompt_tokens, made, seconds)


def _keep(path: Path, rows: list[Row]) -> dict[str, Any] | None:
    """Write a run beside the earlier ones; return the last of those."""
    try:
        earlier = json_.loads(path.read_bytes())
    except (OSError, ValueError):
        earlier = []
    run = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "rows": [asdict(each) for each in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json_.dumps([*earlier[1 - KEPT :], run], indent=1), "utf-8")
    return earlier[-1] if earlier else None


def _compare(before: dict[str, Any], rows: list[Row]) -> str:
    """Return a line that compares with an earlier run."""
    old = {each["streams"]: each["tokens_per_second"] for each in before["rows"]}
    parts = [
        f"{each.streams} streams {each.tokens_per_second / old[each.streams] - 1:+.0%}"
        for each in rows
        if old.get(each.streams)
    ]
    when = output.ago(datetime.fromisoformat(before["at"]))
    return f"Against the run {when}: {', '.join(parts)}." if parts else f"The run {when} used other numbers of streams."
