"""What commands print: results on stdout, everything else on stderr, calm on a terminal and plain in a pipe."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer
from rich.cells import cell_len, chop_cells

from ovms_kernel.api.commands import BadRequest, folded, plain, print_json, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rich.console import Console

    from ovms_kernel.api.commands import Progress

__all__ = [
    "ago", "folded", "plain", "print_facts", "print_json", "print_table", "progress", "say", "size", "stderr", "stdout",
    "tell",
]  # fmt: skip

PLAIN_STEP = 5.0
"""Seconds between two lines of progress where there is no terminal."""
QUICK = 1.0
"""Seconds that work may take without any such line."""

NUMBERS = 36
"""Columns of a terminal that bytes, speed and time need beside a name, such as `999.9/999.9 MB 999.9 MB/s 0:59:59`."""


GAP = 3
"""Columns of a terminal between two columns of a table."""
LEAST = 12
"""Columns that are left of a text of which only the beginning is shown."""


def print_table(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    spare: Sequence[str] = (),
    clip: str = "",
) -> None:
    """Print rows under titles, aligned; no borders, so that it reads well and cuts well.

    :param rows: one that is shorter than the titles has a last cell that spans what is left of the line.
    :param right: titles of the columns that are aligned at their right, such as sizes.
    :param spare: titles of the columns that a terminal without room for them does without, the first one first.
    :param clip: title of the column whose texts a terminal without room for them shows the beginning of.
    """
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns
        for title in spare:
            if _width(titles, rows) > room:
                place = list(titles).index(title)
                titles, *rows = ([*each[:place], *each[place + 1 :]] for each in (titles, *rows))
        if clip and (over := _width(titles, rows) - room) > 0:
            place = list(titles).index(clip)
            most = max(_widths(titles, rows)[place] - over, LEAST)
            rows = [[*each[:place], clipped(each[place], most), *each[place + 1 :]] for each in rows]
        rows = [_fitting(row, titles, _widths(titles, rows), room) for row in rows]
    widths = _widths(titles, rows)
    for row in (titles, *rows):
        cells = [
            cell if _spans(place, row, titles) else _padded(cell, widths[place], right=titles[place] in right)
            for place, cell in enumerate(row)
        ]
        line = (" " * GAP).join(cells).rstrip()
        typer.echo(typer.style(line, dim=True) if row is titles and not os.environ.get("NO_COLOR") else line)


def _width(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    return sum(each + GAP for each in _widths(titles, rows)) - GAP


def _widths(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the columns of a terminal that each column of a table needs."""
    widths = [cell_len(title) for title in titles]
    for row in rows:
        for place, cell in enumerate(row):
            if not _spans(place, row, titles):
                widths[place] = max(widths[place], cell_len(cell))
    return widths


def _fitting(row: Sequence[str], titles: Sequence[str], widths: Sequence[int], room: int) -> Sequence[str]:
    """Return a row whose cell that spans the rest of the line ends where the terminal does."""
    last = len(row) - 1
    if not _spans(last, row, titles):
        return row
    return [*row[:last], clipped(row[last], max(room - sum(widths[:last]) - GAP * last, LEAST))]


def _spans(place: int, row: Sequence[str], titles: Sequence[str]) -> bool:
    """Tell whether a cell takes what is left of the line."""
    return place == len(row) - 1 < len(titles) - 1


def _padded(text: str, width: int, *, right: bool) -> str:
    # A Chinese character takes two columns of a terminal.
    space = " " * (width - cell_len(text))
    return space + text if right else text + space


def tell(text: str) -> None:
    """Print a sentence that is the command's result, at a terminal broken between words."""
    typer.echo("\n".join(folded(text, shutil.get_terminal_size().columns)) if sys.stdout.isatty() else text)


def print_facts(facts: Mapping[str, str]) -> None:
    """Print names and values; a terminal breaks long lists between words, below the values."""
    width = max(map(len, facts), default=0)
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for name, value in facts.items():
        line = f"{name:<{width}}   {value}".rstrip()
        if columns and "\n" not in line:
            first, *rest = folded(value, columns - width - 3)
            line = "\n".join([f"{name:<{width}}   {first}".rstrip(), *(f"{'':<{width}}   {each}" for each in rest)])
        print(line)


def assignments(values: Mapping[str, object]) -> str:
    """Return names and values as one types them, such as ``temperature=0.2, seed=1``."""
    return ", ".join(f"{name}={value}" for name, value in values.items())


def clipped(text: str, width: int) -> str:
    """Return a text in so many columns at most; an ellipsis tells that there is more."""
    return text if cell_len(text) <= width else f"{chop_cells(text, width - 1)[0]}…"


def stdout() -> Console:
    """Return a console for results."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def stderr() -> Console:
    """Return a console for notices."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def size(count: int) -> str:
    """Return a number of bytes as people read it, such as ``4.6 GB``."""
    from rich.filesize import decimal

    return decimal(count)


def duration(seconds: float) -> str:
    """Return a time as ``45 s``, ``12 min`` or ``2.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def ago(moment: datetime) -> str:
    """Return how long ago a moment was, such as ``3 days ago``."""
    seconds = (datetime.now(UTC) - moment).total_seconds()
    for unit, length in (("year", 31_536_000), ("month", 2_592_000), ("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


@contextmanager
def progress(subject: str) -> Iterator[Callable[[Progress], None]]:
    """Show how long work gets on; gives the function that is to hear of it.

    On a terminal that is a bar which goes when the work is done, elsewhere a line every few seconds.
    """
    console = stderr()
    if not console.is_terminal or console.is_dumb_terminal:
        yield _lines(subject)
        return
    from rich import progress as rich_progress
    from rich.table import Column

    # On a narrow terminal the bar gives way first, then the end of a long name, and never a number.
    name = Column(no_wrap=True, overflow="ellipsis", max_width=max(8, console.width - NUMBERS))
    columns = (
        rich_progress.TextColumn("{task.description}", table_column=name),
        rich_progress.BarColumn(bar_width=24, complete_style="cyan", finished_style="cyan"),
        rich_progress.DownloadColumn(table_column=Column(no_wrap=True)),
        rich_progress.TransferSpeedColumn(table_column=Column(no_wrap=True)),
        rich_progress.TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
    )
    with rich_progress.Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(subject, total=None)
        phase = ""

        def show(now: Progress) -> None:
            nonlocal phase
            if now.status != phase:
                # Each phase has a speed of its own: hashing is no download.
                phase = now.status
                bars.reset(task, description=f"{subject}: {phase}", total=now.total or None)
            bars.update(task, completed=now.completed, total=now.total or None)

        yield show


def _lines(subject: str) -> Callable[[Progress], None]:
    phase, before = "", 0
    last = time.monotonic() - PLAIN_STEP + QUICK

    def show(now: Progress) -> None:
        nonlocal phase, last, before
        moment = time.monotonic()
        if moment - last < PLAIN_STEP:
            return
        text = f"{subject}: {now.status}"
        if now.total:
            text += f", {size(now.completed)} of {size(now.total)}"
            if now.status == phase and (speed := (now.completed - before) / (moment - last)) > 0:
                left = (now.total - now.completed) / speed
                text += f", {size(int(speed))}/s, {left:.0f} s left"
        phase, last, before = now.status, moment, now.completed
        say(text)

    return show


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show at a terminal that work goes on whose length nobody knows."""
    console = stderr()
    if not console.is_terminal or console.is_dumb_terminal:
        yield
        return
    with console.status(what, spinner="dots"):
        yield


def read_rate(text: str) -> int:
    """Return the bytes per second that were typed, as ``5MB``, ``500k`` or a number."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)i?b?(?:/s)?", text.strip().lower())
    if not found or not (rate := int(float(found[1]) * {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}[found[2]])):
        raise BadRequest(f"{text!r} is not a rate; write bytes per second such as 5MB or 500k.")
    return rate
