"""Ways to the same services beside HTTP: AOG's, and the terminal's in this process."""

from __future__ import annotations

import contextvars
import json
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from anyio.from_thread import start_blocking_portal

from ovms_cli.app import run as run_command
from ovms_face_aog.client import PluginHost, bidi_request, plugin_command

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    import pytest
    from anyio.from_thread import BlockingPortal

FRAME = 2000
"""Bytes of a message of live sound."""


class Aog:
    """The plugin as AOG starts it, asked from outside of an event loop."""

    def __init__(self, portal: BlockingPortal, host: PluginHost) -> None:
        self._portal, self._host = portal, host

    def ask(self, service: str, **body: Any) -> dict[str, Any]:
        return self._portal.call(self._ask, service, body)

    async def _ask(self, service: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = await self._host.call("InvokeService", service_name=service, request_data=json.dumps(body).encode())
        assert answer.code == 0, answer.message
        found: dict[str, Any] = json.loads(answer.response_data)
        return found

    def listen(self, sound: bytes, form: str) -> str:
        return self._portal.call(self._listen, sound, form)

    async def _listen(self, sound: bytes, form: str) -> str:
        metadata = {"language": "en", "format": form, "model": "tiny/listener", "ws_conn_id": "c"}

        async def messages() -> AsyncIterator[Any]:
            text = json.dumps({"model": "tiny/listener"}).encode()
            yield bidi_request(text, service_name="speech-to-text-ws", is_first=True, metadata=metadata)
            for at in range(0, len(sound), FRAME):
                yield bidi_request(sound[at : at + FRAME], "binary", metadata=metadata)
            yield bidi_request(text, metadata=metadata)

        call = self._host.converse(messages())
        events = []
        async for each in call:
            events.append(json.loads(each.data))
            if events[-1]["header"]["event"] in ("task-finished", "task-failed"):
                break
        call.cancel()
        return sentences(events)


def sentences(events: list[dict[str, Any]]) -> str:
    said = [each["payload"]["output"]["sentence"] for each in events if each["header"]["event"] == "result-generated"]
    return " ".join(each["text"] for each in said if each["end_time"] is not None) or str(events[-1]["header"])


@contextmanager
def aog_beside(server: Any) -> Iterator[Aog]:
    """Run the plugin as AOG does, on the data folder of a server."""
    environment = dict.fromkeys(name for name in os.environ if name.startswith(("OVMS_PLUGIN_", "AOG_DATA")))
    environment |= {name: value for name, value in server.environment.items() if name.startswith("OVMS_PLUGIN_")}
    environment["OVMS_PLUGIN_FACES__AOG__OUTPUT_DIR"] = str(server.data_dir / "spoken")
    with start_blocking_portal() as portal:
        host = PluginHost(plugin_command(), environment)
        with portal.wrap_async_context_manager(host):
            yield Aog(portal, host)


class Terminal:
    """Runs commands in this process, without the second that a new one takes."""

    def __init__(self, server: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._environment, self._monkeypatch, self._capfd = server.environment, monkeypatch, capfd

    def __call__(self, *words: str, piped: Path | None = None) -> str:
        """Return what a command prints, its white space joined."""
        with self._monkeypatch.context() as patch, stdin_of(patch, piped):
            for name in os.environ.keys() - self._environment.keys():
                patch.delenv(name)
            for name, value in self._environment.items():
                patch.setenv(name, value)
            self._capfd.readouterr()
            ended = contextvars.Context().run(run_command, list(words))
        out, err = self._capfd.readouterr()
        assert ended == 0, err
        return " ".join(out.split())


@contextmanager
def stdin_of(patch: pytest.MonkeyPatch, piped: Path | None) -> Iterator[None]:
    if piped is None:
        yield
        return
    with piped.open() as file:
        patch.setattr(sys, "stdin", file)
        yield
