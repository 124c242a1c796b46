"""Live speech with a true model, and many requests at once through the whole kernel and the embedded engine."""

import asyncio
import base64
import json
import random
import time
import wave
from contextlib import aclosing
from pathlib import Path

import anyio
import psutil
import pytest

from ovms_kernel.api.observers import hookimpl
from ovms_kernel.values import Message, Request

from .conftest import events_in

RATE = 16000
FRAME = 640
"""Bytes of 20 ms."""


def joined(folder, names, pause=1.0):
    """Return the sound of utterances with pauses between them, and the truth: begin, end, text."""
    expected = json.loads((folder / "expected.json").read_text("utf-8"))
    sound, truth = b"", []
    for name in names:
        offset = len(sound) / 2 / RATE
        with wave.open(str(folder / name)) as file:
            sound += file.readframes(file.getnframes()) + bytes(int(pause * RATE) * 2)
        truth += [(each["start"] + offset, each["end"] + offset, each["text"]) for each in expected[name]["segments"]]
    return sound, truth


async def speak(house, sound, speed, language="en"):
    """Hold one session at that many times real speed; return the events, each with the time when it came."""
    events, began = [], None

    async def inbound():
        nonlocal began
        run = {"task": "speech-to-text-ws", "action": "run-task", "model": "tiny/listener"}
        yield Message(json.dumps(run | {"parameters": {"language": language, "format": "pcm"}}).encode())
        began = time.monotonic()
        for number, at in enumerate(range(0, len(sound), FRAME)):
            await anyio.sleep(max(0, began + number * 0.02 / speed - time.monotonic()))
            yield Message(sound[at : at + FRAME], "binary")
        yield Message(json.dumps({"task": "speech-to-text-ws", "action": "finish-task"}).encode())

    async for message in house.converse("speech-to-text-ws", inbound()):
        now = time.monotonic()
        events.append((now - (began or now), json.loads(message.data)))
    return events


def sentences(events, *, final=True):
    found = [(at, event["payload"]["output"]["sentence"]) for at, event in events if event["payload"]]
    return [(at, each) for at, each in found if (each["end_time"] is not None) == final]


def check(events, truth):
    assert events[0][1]["header"]["event"] == "task-started"
    assert events[-1][1]["header"]["event"] == "task-finished"
    found = [each for _, each in sentences(events)]
    assert [each["text"] for each in found] == [text for _, _, text in truth]
    for each, (begin, end, _) in zip(found, truth, strict=True):
        assert each["begin_time"] / 1000 == pytest.approx(begin, abs=0.3)
        assert each["end_time"] / 1000 == pytest.approx(end, abs=0.3)


ENGLISH = ["en_turn_on_the_light.wav", "en_one_two_three.wav"]


@pytest.mark.parametrize("speed", [10, 1])
async def test_live_speech_at_ten_times_and_at_real_speed(house, fixtures, speed):
    sound, truth = joined(fixtures / "speech_to_text_samples", ENGLISH)
    await house.load_model("tiny/listener")
    events = await speak(house, sound, speed)
    check(events, truth)
    if speed == 1:
        partials = sentences(events, final=False)
        assert partials[0][0] < truth[0][0] + 1.3, "partial text appears within about a second of speech"
        for at, each in sentences(events):
            assert at < each["end_time"] / 1000 + 1.5, "a sentence is told soon after its end"


async def test_live_chinese(house, fixtures):
    sound, truth = joined(fixtures / "speech_to_text_samples", ["zh_ni_hao.wav"] * 2)
    check(await speak(house, sound, 10, "zh"), truth)


async def test_several_sessions_at_once(house, fixtures):
    sound, truth = joined(fixtures / "speech_to_text_samples", ENGLISH)
    results = [None] * 4

    async def one(number):
        results[number] = await speak(house, sound, 4)

    async with anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(one, number)
    for events in results:
        check(events, truth)


@pytest.mark.parametrize("mishap", ["unloaded", "killed"])
async def test_what_happens_in_a_pause_costs_nothing(house, fixtures, mishap):
    """AOG unloads models five minutes after their load, whatever goes on; and engines may die."""
    sound, truth = joined(fixtures / "speech_to_text_samples", ENGLISH[:1])
    heard = []
    send, receive = anyio.create_memory_object_stream[Message](0)

    async def listen():
        heard.extend([(0, json.loads(each.data)) async for each in house.converse("speech-to-text-ws", receive)])

    async with anyio.create_task_group() as group:
        group.start_soon(listen)
        run = {"action": "run-task", "model": "tiny/listener", "parameters": {"language": "en"}}
        await send.send(Message(json.dumps(run).encode()))
        await send.send(Message(bytes(RATE), "binary"))
        if mishap == "unloaded":
            await house.unload_models(["tiny/listener"])
        else:
            exited = anyio.Event()

            class Watcher:
                @hookimpl
                async def ovms_engine_exited(self):
                    exited.set()

            house.events.register({"observers.exits": Watcher()})
            psutil.Process((await house.engine()).pid).kill()
            with anyio.fail_after(5):
                await exited.wait()
        await send.send(Message(sound, "binary"))
        await send.aclose()
    receive.close()
    assert [each["text"] for _, each in sentences(heard)] == [truth[0][2]], heard


# -- many at once ---------------------------------------------------------------------------------------------------


class Mix:
    """Asks for different things and checks each answer's content."""

    def __init__(self, house, fixtures):
        self.house = house
        sample = fixtures / "speech_to_text_samples" / "en_turn_on_the_light.wav"
        self.audio = base64.b64encode(Path(sample).read_bytes()).decode()

    async def ask(self, service, **body):
        return json.loads((await self.house.invoke(service, Request(json.dumps(body).encode()))).body)

    async def chat(self):
        messages = [{"role": "user", "content": "Count to five"}]
        answer = await self.ask("chat", messages=messages, temperature=0, max_tokens=50)
        assert answer["choices"][0]["message"]["content"] == "1, 2, 3, 4, 5."

    async def stream(self):
        body = {"messages": [{"role": "user", "content": "Count to fifty"}], "temperature": 0, "max_tokens": 300}
        text = ""
        async with aclosing(self.house.stream("chat", Request(json.dumps(body).encode()))) as chunks:
            pieces = [piece async for piece in chunks]
        for event in events_in(pieces):
            if event != b"data: [DONE]\n\n":
                text += json.loads(event[6:])["choices"][0]["delta"].get("content") or ""
        assert text == ", ".join(str(number) for number in range(1, 51)) + "."

    async def generate(self):
        answer = await self.ask("generate", prompt="The capital of France is", temperature=0, max_tokens=20)
        assert answer["choices"][0]["text"] == " Paris."

    async def embed(self):
        answer = await self.ask("embed", input=["a cat", "a cat"])
        one, two = (each["embedding"] for each in answer["data"])
        assert one == pytest.approx(two, abs=1e-4)

    async def rerank(self):
        answer = await self.ask("rerank", query="capital of France", documents=["bread", "Paris, France's capital"])
        assert answer["results"][0]["index"] == 1

    async def paint(self):
        body = {"prompt": "a fox", "size": "64x64", "num_inference_steps": 1, "seed": 1}
        assert (await self.ask("text-to-image", **body))["data"][0]["b64_json"]

    async def hear(self):
        answer = await self.ask("speech-to-text", audio=self.audio, language="en")
        assert answer["text"] == "turn on the light"

    async def speak(self):
        body = json.dumps({"text": "Hi", "response_format": "wav"}).encode()
        assert (await self.house.invoke("text-to-speech", Request(body))).body.startswith(b"RIFF")


async def test_100_mixed_requests_at_once_with_25_cancelled(house, fixtures):
    mix = Mix(house, fixtures)
    kinds = [mix.chat, mix.stream, mix.generate, mix.embed, mix.rerank, mix.hear, mix.chat, mix.embed]
    rare = [mix.paint, mix.speak]
    for kind in {*kinds, *rare}:
        await kind()  # everything is loaded
    tasks_before = asyncio.all_tasks()
    client = await house.control.client()
    rng = random.Random(5)  # a fixed seed: the same plan each time
    plan = [(rare if number % 20 == 0 else kinds)[number % (2 if number % 20 == 0 else 8)] for number in range(100)]
    cancelled = set(rng.sample(range(100), 25))
    done = set()

    async def one(number):
        with anyio.CancelScope() as scope:
            if number in cancelled:
                asyncio.get_running_loop().call_later(rng.uniform(0, 1.5), scope.cancel)
            await plan[number]()
            done.add(number)

    with anyio.fail_after(90):
        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(one, number)
    assert done >= set(range(100)) - cancelled
    assert len(done) < 100, "some were still under way when they were cancelled"
    # Nothing leaks: no task, no connection in use, no slot of the engine.
    with anyio.fail_after(5):
        while left := asyncio.all_tasks() - tasks_before - {asyncio.current_task()}:
            await asyncio.wait(left, timeout=1)
    assert not client._http._transport._busy
    port = int(client.endpoint.rest.rpartition(":")[2])
    ours = [each for each in psutil.Process().net_connections("tcp") if each.raddr and each.raddr.port == port]
    assert len(ours) <= 64 + 4, "idle ones, and those of the supervisor"
    with anyio.fail_after(20):
        for kind in {*kinds, *rare}:
            await kind()
