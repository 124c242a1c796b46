"""The two faces as processes that are started again when they end, as a service manager does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
import httpx

from ovms_face_aog.client import PluginFailed, PluginHost, plugin_command

if TYPE_CHECKING:
    from typing import IO

START_LIMIT = 60.0


class Face:
    """What both faces have in common."""

    name = ""

    def __init__(self, data: Path, environment: dict[str, str], log: IO[bytes]) -> None:
        self.data = data
        self.environment = environment
        self.log = log
        self.up = asyncio.Event()
        self.last_fault = time.monotonic()
        self.starts = 0
        self.failures: list[str] = []
        """Starts and ends that no fault explains."""
        self.told: Counter[str] = Counter()
        """What was refused, in which words."""
        self.stopping = False
        self.killed = False

    async def keep(self) -> None:
        """Start the face whenever it does not run, until it is stopped."""
        while not self.stopping:
            self.killed = False
            try:
                async with asyncio.timeout(START_LIMIT):
                    await self.start()
            except (TimeoutError, PluginFailed, OSError, httpx.HTTPError, grpc.aio.AioRpcError) as error:
                if "disk is full" in str(error) or "free some space on that disk" in str(error):
                    self.told[str(error)[-160:]] += 1
                elif not self.killed and not self.stopping:
                    self.failures.append(f"{self.name} did not start: {error!r:.600}")
                await self.end()
                await asyncio.sleep(0.5)
                continue
            except BaseException:  # the soak itself ends
                await self.end()
                raise
            self.starts += 1
            self.up.set()
            try:
                code = await self.process.wait()
            except asyncio.CancelledError:
                await self.end()
                raise
            self.up.clear()
            # An engine that was killed again and again is given up, and a disk may be full at a start: that has a code.
            recent = code > 0 and time.monotonic() - self.last_fault < START_LIMIT
            if not self.killed and not self.stopping and not recent:
                self.failures.append(f"{self.name} ended by itself with code {code}")
            await self.end()

    def kill(self) -> None:
        """End the face as the system's out-of-memory killer does."""
        self.killed, self.last_fault = True, time.monotonic()
        with suppress(ProcessLookupError, AttributeError):
            self.process.kill()

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The face's process."""
        raise NotImplementedError

    async def start(self) -> None:
        """Start it and return when it answers."""
        raise NotImplementedError

    async def end(self) -> None:
        """Take away what is left of a face that has ended."""


class HttpFace(Face):
    """``ovms-plugin serve``, always at one port."""

    name = "serve"

    def __init__(self, data: Path, environment: dict[str, str], log: IO[bytes]) -> None:
        super().__init__(data, environment, log)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.key = ""
        self.client = httpx.AsyncClient(base_url=self.url, timeout=None, trust_env=False)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The server."""
        assert self._process
        return self._process

    async def start(self) -> None:
        """Start it and return when it serves."""
        program = str(Path(sys.executable).with_name("ovms-plugin"))
        self._process = await asyncio.create_subprocess_exec(
            program, "serve", "--port", str(self.port), env=self.environment, stdout=self.log, stderr=self.log
        )
        where = self.data / "run" / "http.json"
        while True:
            if self._process.returncode is not None:
                said = Path(self.log.name).read_text("utf-8", "replace").splitlines()[-2:]
                raise OSError(f"it ended with code {self._process.returncode}: {' '.join(said)}")
            with suppress(OSError, ValueError):
                found = json.loads(where.read_text())
                if found["pid"] == self._process.pid:
                    self.key = Path(found["key_file"]).read_text().strip()
                    self.client.headers["authorization"] = f"Bearer {self.key}"
                    if (await self.client.get("/health")).status_code == 200:
                        return
            await asyncio.sleep(0.05)

    async def end(self) -> None:
        """Wait for a process that is killed."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def stop(self) -> None:
        """End it as a person does."""
        self.stopping = True
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            await self._process.wait()
        await self.client.aclose()


class AogFace(Face):
    """The plugin below a go-plugin host."""

    name = "AOG plugin"

    host: PluginHost
    """The last one that connected."""
    latest: PluginHost
    """The last one that was started, whether or not it connected."""

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The plugin."""
        return self.latest.process

    async def start(self) -> None:
        """Start it and its engine as AOG does."""
        environment: dict[str, str | None] = dict.fromkeys(os.environ.keys() - self.environment.keys())
        # A name in the data folder marks the plugin among all processes.
        host = PluginHost([*plugin_command(), self.data / "plugin"], environment | self.environment)
        self.latest = host
        await host.start()
        self.host = host
        for method in ("InstallEngine", "InitEnv", "StartEngine"):
            answer = await host.call(method, timeout=START_LIMIT)
            if answer.code not in (0, 200) and not self.killed:
                raise PluginFailed(f"{method}: {answer.code} {answer.message}")

    async def end(self) -> None:
        """End what is left of it, and keep what it said."""
        if hasattr(self, "latest") and hasattr(self.latest, "process"):
            self.log.write("\n".join(self.latest.stderr).encode() + b"\n")
            with suppress(ProcessLookupError):
                self.latest.process.kill()
            await self.latest.process.wait()
            if hasattr(self.latest, "channel"):
                await self.latest.channel.close()

    async def stop(self) -> None:
        """End it as a host does."""
        self.stopping = True
        if self.up.is_set():
            with suppress(PluginFailed):
                await self.host.kill()
