"""Grammars that may take long are compiled in a process of its own first.

The library cannot stop a compile, but anyone can end a process. What is compiled there is lost; it tells whether the
worker, which would have to finish it, can do the same in bounded time and memory.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovms_embedded import wire

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

MEMORY = 2 << 30
"""Bytes that a compile may take."""
NICENESS = 10
"""How far the system puts steps before compiling."""
READ_SIZE = 1 << 16
QUICK_TEXT, QUICK_OBJECTS, QUICK_VALUES, QUICK_COUNT = 8000, 100, 1000, 1000
"""Characters, objects, values and repetitions of a grammar that compiles in less than a second with any vocabulary."""
COUNT = re.compile(r'"(?:min|max)(?:Length|Items|Properties|Contains)": (\d+)')


def is_quick(grammar: str) -> bool:
    """Tell whether a grammar compiles in no time, by its text; ``json.dumps`` has written it."""
    return (
        len(grammar) <= QUICK_TEXT
        and grammar.count("{") <= QUICK_OBJECTS
        and grammar.count(",") <= QUICK_VALUES
        and '"pattern' not in grammar
        and all(len(each) <= len(str(QUICK_COUNT)) and int(each) <= QUICK_COUNT for each in COUNT.findall(grammar))
    )


class Ended(Exception):
    """The process ended before the grammar was compiled: it took too much time or memory, or nobody wants it."""


class Failed(Exception):
    """The library does not take the grammar, with its reason."""


class Trial:
    """The process, which is started at the first grammar; one thread uses it, any may stop it.

    :param folder: of the model, which has the tokenizer.
    :param limit: seconds that a compile may take.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.left = False
        """Whether nobody waits for the grammar any more."""
        self._folder = folder
        self._limit = limit
        self._process: subprocess.Popen[bytes] | None = None
        self._unpacker = wire.Unpacker()

    def compile(self, grammar: str) -> None:
        """Compile a grammar.

        :raises Ended: the process ended before.
        :raises Failed: the library does not take it.
        """
        process = self._process = self._process or self._start()
        if self.left:  # meanwhile, so that nobody has stopped what has started
            raise Ended
        timer = threading.Timer(self._limit, process.kill)
        timer.start()
        try:
            answer = self._ask(process, [wire.CALL, 1, "compile", {"grammar": grammar}])
        except OSError as error:
            raise Ended from error
        finally:
            timer.cancel()
        if answer[0] == wire.ERROR:
            raise Failed(answer[3])

    def leave(self) -> None:
        """Stop the compile; nobody wants it."""
        self.left = True
        if process := self._process:
            process.kill()

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _start(self) -> subprocess.Popen[bytes]:
        import subprocess  # takes as long as all of this package, and few requests have a grammar

        self._unpacker = wire.Unpacker()
        command = [sys.executable, "-P", "-X", "utf8", "-m", __name__]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        _write(process, [wire.LOAD, {"folder": str(self._folder)}])
        return process

    def _ask(self, process: subprocess.Popen[bytes], message: list[Any]) -> list[Any]:
        """Return the answer to a call."""
        _write(process, message)
        if process.stdout is None:
            raise AssertionError
        while data := os.read(process.stdout.fileno(), READ_SIZE):
            for answer in self._unpacker.feed(data):
                if answer[0] in (wire.END, wire.ERROR):
                    found: list[Any] = answer
                    return found
        raise Ended


def _write(process: subprocess.Popen[bytes], message: list[Any]) -> None:
    if process.stdin is None:
        raise AssertionError
    process.stdin.write(wire.pack(message))
    process.stdin.flush()


def main() -> None:
    """Compile what comes, until the worker goes away."""
    from ovms_embedded.worker import grammars
    from ovms_embedded.worker.pipe import Refused, serve, tidy
    from ovms_embedded.worker.process import bound_memory, open_pipe

    pipe = open_pipe()
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    folder = Path(pipe.receive()[1]["folder"])
    compile_: Callable[[str], None] = grammars.compiler(folder)
    bound_memory(MEMORY)

    def answer(_: int, payload: dict[str, Any]) -> None:
        try:
            compile_(payload["grammar"])
        except Exception as error:  # whatever the library throws at a grammar
            raise Refused(tidy(error)) from error

    serve(pipe, {"compile": answer}, listen=sys.platform != "linux")


if __name__ == "__main__":
    main()
