"""The demo's story: what AOG asks of a plugin, in its order, and what the answers look like."""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Any

import anyio
from rich.filesize import decimal

from ovms_kernel.api.commands import EngineFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from ovms_face_aog.client import PluginHost
    from ovms_face_aog.demo import Place
    from ovms_face_aog.demo.steps import Steps
    from ovms_face_aog.demo.traces import Traces

CHAT, EMBED = "demo/tiny-chat", "demo/tiny-embeddings"
SERVICES = {CHAT: "chat", EMBED: "embed"}
QUESTION = "What is OpenVINO?"
SENTENCES = ("I love my kitten", "我喜欢小猫", "The weather is sunny today.")
GRACE = 15.0
"""Seconds for the plugin to end itself when the demo ends early; a host has no such limit, but somebody waits here."""


async def take_in(place: Place, model: str, source: Path) -> str:
    """Import a tiny model into the plugin's data folder, where its PullModel will find it; return what it is."""
    from ovms_kernel.api.programs import compose_kernel, read_settings

    async with compose_kernel(read_settings(place.environment())) as kernel:
        taken = {each.id: each for each in await kernel.list_models()}.get(model)
        # The tiny model has no file that says its pooling, which a user would be told.
        pooling = {"pooling": "CLS"} if SERVICES[model] == "embed" else {}
        taken = taken or await kernel.import_model(source, model, options=pooling)
    return f"{taken.model_type}, {decimal(taken.size)}"


async def tell(steps: Steps, traces: Traces, place: Place, sources: Mapping[str, Path], executable: Path) -> None:
    """Run the plugin from its start to its end; it is ended whatever happens."""
    from ovms_face_aog.client import PluginFailed, PluginHost

    for model, source in sources.items():
        with steps.step(f"import {model.partition('/')[2]}") as step:
            step.note = await take_in(place, model, source)
    host = PluginHost([executable], place.environment())
    try:
        with steps.step("start the plugin") as step:
            await host.start()
            step.note = f"handshake after {host.handshake_seconds * 1000:.0f} ms"
        await _ask(steps, traces, Plugin(host))
        with steps.step("Shutdown") as step:
            step.note = f"the process ended {await host.kill() * 1000:.0f} ms after its answer"
    except PluginFailed as error:
        raise EngineFailed(str(error)) from error
    finally:
        with anyio.move_on_after(GRACE, shield=True):
            await host.__aexit__(None, None, None)


class Plugin:
    """Asks the plugin as AOG does and takes an error in an answer for an error."""

    def __init__(self, host: PluginHost) -> None:
        self._host = host

    async def ask(self, rpc: str, **fields: Any) -> Any:  # noqa: ANN401 - the rpc's own message
        """Call an rpc that answers once."""
        return _checked(rpc, await self._host.call(rpc, **fields))

    async def about(self, rpc: str, **request: object) -> None:
        """Call an rpc whose request is JSON about a model."""
        await self.ask(rpc, request_json=json.dumps(request).encode())

    async def chunks(self, service: str, request: Mapping[str, object]) -> AsyncIterator[bytes]:
        """Call a service that streams."""
        body = json.dumps(request, ensure_ascii=False).encode()
        async for chunk in self._host.stream("InvokeServiceStream", service_name=service, request_data=body):
            yield _checked("InvokeServiceStream", chunk).chunk_data

    async def invoke(self, service: str, request: Mapping[str, object]) -> Any:  # noqa: ANN401 - JSON
        """Call a service that answers once."""
        body = json.dumps(request, ensure_ascii=False).encode()
        return json.loads((await self.ask("InvokeService", service_name=service, request_data=body)).response_data)


def _checked(rpc: str, response: Any) -> Any:  # noqa: ANN401 - any response has a code and a message
    if response.code not in (0, 200):
        raise EngineFailed(f"{rpc} was answered with code {response.code}: {response.message}")
    return response


async def _ask(steps: Steps, traces: Traces, plugin: Plugin) -> None:
    with steps.step("CheckEngine") as step:
        installed = (await plugin.ask("CheckEngine")).installed
        step.note = "installed" if installed else "not installed"
    for rpc in ("InstallEngine", "InitEnv"):
        with steps.step(rpc):
            await plugin.ask(rpc)
    with steps.step("StartEngine"):
        await plugin.ask("StartEngine", mode="daemon")
    with steps.step("UpgradeEngine"):
        await plugin.ask("UpgradeEngine")
    for model, service in SERVICES.items():
        with steps.step("PullModel") as step:
            await plugin.about("PullModel", model=model, stream=False, model_type=service)
            step.note = f"{model}, here already"
    for model in SERVICES:
        with steps.step("LoadModel") as step:
            await plugin.about("LoadModel", model=model)
            step.note = model
    traces.look()
    await _chat(steps, plugin)
    await _compare(steps, plugin)
    with steps.step("HealthCheck") as step:
        await plugin.ask("HealthCheck")
        step.note = "the engine answers"
    with steps.step("GetRunningModels") as step:
        running = json.loads((await plugin.ask("GetRunningModels")).response_json)["models"]
        step.note = ", ".join(each["name"] for each in running)
    with steps.step("UnloadModel") as step:
        await plugin.about("UnloadModel", models=list(SERVICES))
        step.note = ", ".join(SERVICES)
    traces.look()


async def _chat(steps: Steps, plugin: Plugin) -> None:
    steps.line()
    steps.line(f"      {QUESTION}", "bold")
    request = {"model": CHAT, "messages": [{"role": "user", "content": QUESTION}], "stream": True, "temperature": 0}
    with steps.step("InvokeServiceStream", writes=True) as step, steps.quote():
        began, first, count = time.monotonic(), 0.0, 0
        async for piece in pieces(plugin.chunks("chat", request)):
            first = first or time.monotonic() - began
            count += 1
            steps.write(piece)
        step.note = f"chat, {count} pieces, the first after {first * 1000:.0f} ms"
    steps.line()


async def pieces(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """Yield the texts in a stream's chunks; a chunk may hold several events."""
    async for chunk in chunks:
        for event in chunk.split(b"\n\n"):
            for choice in json.loads(event[6:])["choices"] if event else ():
                if text := choice["delta"].get("content"):
                    yield text


async def _compare(steps: Steps, plugin: Plugin) -> None:
    with steps.step("InvokeService") as step:
        found = await plugin.invoke("embed", {"model": EMBED, "input": SENTENCES})
        vectors = [each["embedding"] for each in sorted(found["data"], key=lambda each: each["index"])]
        step.note = f"embed, {len(vectors)} sentences, {len(vectors[0])} dimensions each"
    steps.line()
    for sentence, vector in zip(SENTENCES[1:], vectors[1:], strict=True):
        likeness = cosine(vectors[0], vector)
        steps.line(f"      {likeness:5.2f}   {SENTENCES[0]}  ·  {sentence}")
    steps.line()


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Return how alike two vectors point: 1 = the same way, 0 = nothing in common."""
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / (math.hypot(*one) * math.hypot(*other))
