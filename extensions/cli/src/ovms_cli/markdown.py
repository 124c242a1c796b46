"""Showing an answer while it arrives: Markdown at a terminal, plain text in a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from rich.console import Console
    from rich.live import Live

    from ovms_cli.conversation import Piece

FENCES = ("```", "~~~")


def split_block(text: str) -> tuple[str, str]:
    """Return the Markdown that is complete, and the rest that may still change as more arrives.

    A blank line ends a block, except inside a code fence, which only its closing fence ends.
    """
    end = position = 0
    fence = ""
    for line in text.splitlines(keepends=True):
        position += len(line)
        stripped = line.strip()
        if fence:
            if stripped == fence and line.endswith("\n"):
                fence, end = "", position
        elif stripped.startswith(FENCES):
            fence = stripped[: len(stripped) - len(stripped.lstrip(stripped[0]))]
        elif not stripped and line.endswith("\n"):
            end = position
    return text[:end], text[end:]


class PlainWriter:
    """Writes the text of an answer as it is; reasoning is left out."""

    def __init__(self) -> None:
        self.text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.text and not self.text.endswith("\n"):
            print(flush=True)

    def write(self, piece: Piece) -> None:
        """Write a piece."""
        if piece.kind == "text":
            self.text += piece.text
            print(piece.text, end="", flush=True)


class MarkdownWriter:
    """Draws an answer at a terminal: complete blocks once, the block that is still growing again and again.

    :param reasoning: show what a model thinks before it answers, dimmed.
    """

    def __init__(self, console: Console, *, reasoning: bool = True) -> None:
        self.text = ""
        self._console = console
        self._reasoning = reasoning
        self._thinking = False
        self._rest = ""
        self._live: Live | None = None

    def __enter__(self) -> Self:
        from rich.live import Live
        from rich.spinner import Spinner
        from rich.text import Text

        waiting = Spinner("dots", Text("waiting for the answer", style="dim"))
        self._live = Live(waiting, console=self._console, refresh_per_second=12, transient=True)
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show("")
        if self._live is not None:
            self._live.stop()
        if self._thinking:
            self._console.print()
        self._print(self._rest)

    def write(self, piece: Piece) -> None:
        """Draw a piece."""
        if piece.kind == "reasoning":
            self._think(piece.text)
            return
        if self._thinking:
            self._thinking = False
            self._console.print("\n")
        piece_text = piece.text.lstrip("\n") if not self.text else piece.text
        self.text += piece_text
        done, self._rest = split_block(self._rest + piece_text)
        if done:
            self._show("")
            self._print(done)
        self._show(self._rest)

    def _think(self, text: str) -> None:
        from rich.spinner import Spinner
        from rich.text import Text

        if self._reasoning:
            self._show("")
            self._console.print(Text(text, style="dim"), end="", soft_wrap=True)
            self._thinking = True
        elif self._live is not None:
            self._live.update(Spinner("dots", Text("thinking", style="dim")))

    def _show(self, text: str) -> None:
        """Draw the block that still grows; only as many of its last lines as the terminal has."""
        from rich.markdown import Markdown

        if self._live is not None:
            height = max(3, self._console.height - 2)
            self._live.update(Markdown("\n".join(text.splitlines()[-height:])), refresh=not text)

    def _print(self, text: str) -> None:
        from rich.markdown import Markdown

        if text.strip():
            self._console.print(Markdown(text))


def writer(*, plain: bool = False, reasoning: bool = True) -> PlainWriter | MarkdownWriter:
    """Return what shows an answer here: Markdown where a person looks at it."""
    from ovms_cli.output import stdout

    console = stdout()
    if plain or not sys.stdout.isatty() or console.is_dumb_terminal:
        return PlainWriter()
    console.soft_wrap = False  # prose is broken between words, also while it is drawn
    return MarkdownWriter(console, reasoning=reasoning)
