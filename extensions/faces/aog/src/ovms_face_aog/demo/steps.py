"""A list of steps that grows on the screen, each with its time."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDTH = 22


class Step:
    """One step that is being done."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.note = ""
        """What is said of it when it is done."""


class Steps:
    """Prints steps, aligned; while one is being done a terminal shows its name and a spinner."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the first step began."""
        return time.monotonic() - self._began

    @contextmanager
    def step(self, name: str, *, writes: bool = False) -> Iterator[Step]:
        """Time what is done inside; a step that fails or is withdrawn is marked, and the error passed on.

        :param writes: the step prints lines of its own, so that no spinner may turn under them.
        """
        step, began, mark = Step(name), time.monotonic(), Text("✗", "red")
        status = None if writes or not self._console.is_terminal else self._console.status(f" {name}", spinner="dots")
        try:
            if status:
                status.start()
            yield step
            mark = Text("✓", "green")
        except Exception:
            raise
        except BaseException:
            mark = Text("–", "yellow")  # withdrawn, not failed
            raise
        finally:
            if status:
                status.stop()
            seconds = f"{time.monotonic() - began:6.2f} s"
            line = Text.assemble("  ", mark, f" {step.name:<{WIDTH}} ", (seconds, "dim"), f"   {step.note}")
            line.rstrip()
            self._console.print(line)

    def line(self, text: str = "", style: str = "") -> None:
        """Print a line between steps."""
        self._console.print(Text(text, style))

    @contextmanager
    def quote(self) -> Iterator[None]:
        """Indent a text that is written piece by piece with :meth:`write`."""
        self.write("      ")
        try:
            yield
        finally:
            self.line()

    def write(self, piece: str) -> None:
        """Print a piece of text at once."""
        self._console.print(Text(piece), end="")
        self._console.file.flush()
