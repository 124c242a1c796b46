"""What goes wrong in a soak: processes killed at random, a full disk, a clock that jumps, commands killed half way."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psutil

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from tests.soak.faces import Face

SIZE = 700 << 20
"""Bytes of the file system that is filled up."""
FAKETIME = tuple(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
FIXTURES = Path(__file__).parents[1] / "fixtures"
ORPHAN = 30.0
"""Seconds that a process may outlive the one that is responsible for it: engines of killed plugins end at once, but on
a busy machine that takes its time."""
COMMAND_LIMIT = 180.0


class Place:
    """A folder of the soak's own, on a small file system if this user may mount one."""

    def __enter__(self) -> Self:
        self.own = Path(tempfile.mkdtemp(prefix="ovms-"))
        # What the faces print has room when the small file system has none.
        self.beside = Path(tempfile.mkdtemp(prefix="ovms-"))
        mounting = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(self.own)]
        self.mounted = (
            sys.platform == "linux"
            and bool(shutil.which("mount"))
            and subprocess.run(mounting, capture_output=True, check=False).returncode == 0
        )
        self.data, self.temporary = self.own / "data", self.own / "t"
        self.temporary.mkdir()
        self.clock = self.own / "clock"
        self.clock.write_text("+0")
        return self

    def __exit__(self, *exception: object) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.own)], check=False)
        for each in (self.own, self.beside):
            shutil.rmtree(each, ignore_errors=True)

    def environment(self) -> dict[str, str]:
        """Return the environment of all that is started, with a clock that can be set if there is libfaketime."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OVMS_PLUGIN_", "AOG_"))}
        clock = {}
        if FAKETIME:
            clock = {
                "LD_PRELOAD": str(FAKETIME[0]),
                "FAKETIME_TIMESTAMP_FILE": str(self.clock),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        return kept | clock | {
            "OVMS_PLUGIN_DATA_DIR": str(self.data),
            "OVMS_PLUGIN_PLATFORM": "portable",
            "TMPDIR": str(self.temporary),
        }  # fmt: skip


class Orphans:
    """Watches every process that the soak started, and those that they started."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, float], psutil.Process] = {}
        self._alone: dict[tuple[int, float], float] = {}
        self.found: list[str] = []

    def look(self) -> None:
        """Note who is there, and who is there although nobody is responsible for it any more."""
        ours = {each.pid: each for each in psutil.Process().children(recursive=True)}
        now = time.monotonic()
        for each in ours.values():
            with suppress(psutil.Error):
                self._known[each.pid, each.create_time()] = each
        for key, process in list(self._known.items()):
            if not self._lives(process):
                del self._known[key]
                self._alone.pop(key, None)
            elif key[0] in ours:
                self._alone.pop(key, None)
            elif now - self._alone.setdefault(key, now) > ORPHAN:
                with suppress(psutil.Error):
                    self.found.append(f"{key[0]}: {' '.join(process.cmdline())[:200]}")
                    process.kill()

    async def watch(self) -> None:
        """Look every second."""
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(1)

    def left(self) -> list[str]:
        """Return what still runs."""
        return [f"{each.pid}" for each in self._known.values() if self._lives(each)]

    @staticmethod
    def _lives(process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return False


class Faults:
    """Causes one fault after the other.

    :param hub: address of a hub that has ``me/pulled``.
    """

    def __init__(self, place: Place, faces: Sequence[Face], rolls: random.Random, hub: str) -> None:
        self._place = place
        self._faces = faces
        self._rolls = rolls
        self._hub = hub
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def cause(self, pause: float) -> None:
        """Cause faults until cancelled.

        :param pause: seconds between two of them, on the average.
        """
        kinds = [
            self.kill_serve, self.kill_aog, self.kill_engine, self.kill_engine, self.kill_guard, self.kill_worker,
            self.kill_worker, self.stop_worker, self.kill_command, self.kill_command, self.finish_command,
            self.step_clock, self.fill_disk,
        ]  # fmt: skip
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(self._rolls.uniform(0, 2 * pause))
                group.create_task(self._cause(self._rolls.choice(kinds)))

    async def _cause(self, kind: Callable[[], Awaitable[bool]]) -> None:
        if await kind():
            self._note()

    def _note(self) -> None:
        for each in self._faces:
            each.last_fault = time.monotonic()

    def _count(self, name: str) -> bool:
        self.counts[name] += 1
        self._note()
        return True

    async def kill_serve(self) -> bool:
        """Kill the HTTP face."""
        self._faces[0].kill()
        return self._count("serve killed")

    async def kill_aog(self) -> bool:
        """Kill the AOG face."""
        self._faces[1].kill()
        return self._count("AOG plugin killed")

    async def kill_engine(self) -> bool:
        """Kill the engine's front process."""
        with suppress(OSError, ValueError, psutil.Error):
            found = json.loads((self._place.data / "run" / "engine.json").read_text())
            process = psutil.Process(found["pid"])
            if "--rest_port" in process.cmdline():
                process.kill()
                return self._count("engine killed")
        return False

    async def kill_guard(self) -> bool:
        """Kill the guard that would end the engine with its plugin."""
        return self._signal("guard killed", signal.SIGKILL, "engine/guard.py")

    async def kill_worker(self) -> bool:
        """Kill the process of one model."""
        return self._signal("worker killed", signal.SIGKILL, "ovms_embedded.worker")

    async def stop_worker(self) -> bool:
        """Have a model's process stand still for a while."""
        if not (found := self._found("ovms_embedded.worker")):
            return False
        process = self._rolls.choice(found)
        with suppress(psutil.Error):
            process.suspend()
            try:
                await asyncio.sleep(self._rolls.uniform(0, 3))
            finally:
                process.resume()
        return self._count("worker halted")

    async def step_clock(self) -> bool:
        """Set the clock of faces and commands to another hour."""
        if not FAKETIME:
            return False
        self._place.clock.write_text(f"{self._rolls.uniform(-90_000, 90_000):+.0f}")
        return self._count("clock stepped")

    async def fill_disk(self) -> bool:
        """Leave no byte of the disk for a while."""
        if not self._place.mounted:
            return False
        self._count("disk full")
        balloon = self._place.own / "balloon"
        try:
            with suppress(OSError), balloon.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 20))
            await asyncio.sleep(self._rolls.uniform(0, 4))
        finally:
            balloon.unlink(missing_ok=True)
        return True

    async def kill_command(self) -> bool:
        """Kill an import, a pull or a removal half way."""
        process = await self._command(*self._chosen())
        try:
            await asyncio.sleep(self._rolls.uniform(0, 4))
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                self._count("command killed")
            await process.communicate()
        return True

    async def finish_command(self) -> bool:
        """Import, pull or remove a model meanwhile."""
        words = self._chosen()
        process = await self._command(*words)
        try:
            async with asyncio.timeout(COMMAND_LIMIT):
                said = (await process.communicate())[0].decode(errors="replace")
        except (TimeoutError, asyncio.CancelledError) as error:
            process.kill()
            await process.communicate()
            if isinstance(error, asyncio.CancelledError):
                raise
            self.wrong.append(f"{' '.join(words)}: no end within {COMMAND_LIMIT:g} s")
            return False
        if "Traceback" in said or "Internal error" in said:
            self.wrong.append(f"{' '.join(words)}: {said[-500:]}")
        self.counts[f"{words[0]} finished" if process.returncode == 0 else f"{words[0]} refused in words"] += 1
        return False

    def _chosen(self) -> tuple[str, ...]:
        name = f"me/{self._rolls.choice('abc')}"
        source = self._rolls.choice(["embeddings", "rerank", "text_generation"])
        return self._rolls.choice(
            [("import", str(FIXTURES / source), name), ("pull", "me/pulled"), ("rm", "me/pulled"), ("rm", name)]
        )

    async def _command(self, *words: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("ovms-plugin")),
            *words,
            env=self._place.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def _signal(self, name: str, number: int, word: str) -> bool:
        if not (found := self._found(word)):
            return False
        with suppress(psutil.Error):
            self._rolls.choice(found).send_signal(number)
            return self._count(name)
        return False

    @staticmethod
    def _found(word: str) -> list[psutil.Process]:
        return list(_with_word(psutil.Process().children(recursive=True), word))


def _with_word(processes: Sequence[psutil.Process], word: str) -> Iterator[psutil.Process]:
    for each in processes:
        with suppress(psutil.Error):
            if any(word in part for part in each.cmdline()):
                yield each
