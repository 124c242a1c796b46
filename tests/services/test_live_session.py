"""The session protocol of live speech against a stub of the engine that answers with what the sound looks like."""

import asyncio
import gc
import io
import json
import re
import tracemalloc
import wave
from contextlib import asynccontextmanager

import anyio
import numpy as np
import pytest
import soundfile

from ovms_kernel.errors import NotSupported
from ovms_kernel.testing.contract import ServiceContract, configured, make_call
from ovms_kernel.values import Message
from ovms_service_speech_to_text_ws import LiveSpeech
from tests.recordings import EVERY, recorded

RATE = 16000
RUN = {"task": "speech-to-text-ws", "action": "run-task", "model": "listener", "parameters": {"format": "pcm"}}
FINISH = {"task": "speech-to-text-ws", "action": "finish-task", "model": "listener"}
HEAR = "/v3/audio/transcriptions"


class TestLiveSpeech(ServiceContract):
    driver = LiveSpeech


def seconds_of(request):
    with wave.open(io.BytesIO(request.form["file"])) as sound:
        assert (sound.getnchannels(), sound.getframerate(), sound.getsampwidth()) == (1, RATE, 2)
        return sound.getnframes() / RATE


async def measure(request, reply):
    """Hear one word for each 0.45 s of sound."""
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    await reply.json({"text": " ".join(words[: max(1, int(seconds_of(request) / 0.45))])})


@pytest.fixture
def speech(fixtures):
    """One second and a half of somebody speaking, 0.3 to 1.23 s."""
    with wave.open(str(fixtures / "speech_to_text_samples" / "en_turn_on_the_light.wav")) as file:
        return file.readframes(file.getnframes())


def silence(seconds):
    return bytes(int(seconds * RATE) * 2)


class Client:
    """Talks to a session and keeps what it says."""

    def __init__(self, send):
        self._send = send
        self.events = []
        self.more = anyio.Event()

    async def say(self, body, **metadata):
        await self._send.send(Message(json.dumps(body).encode(), "text", metadata))

    async def play(self, sound, size=6400, **metadata):
        for at in range(0, len(sound), size):
            await self._send.send(Message(sound[at : at + size], "binary", metadata))

    async def until(self, event, count=1):
        with anyio.fail_after(30):
            while len(found := self.of(event)) < count:
                self.more = anyio.Event()
                await self.more.wait()
        return found[count - 1]

    def of(self, event):
        return [each for each in self.events if each["header"]["event"] == event]

    def sentences(self, *, final=True):
        said = [each["payload"]["output"]["sentence"] for each in self.of("result-generated")]
        return [each for each in said if (each["end_time"] is not None) == final]


@asynccontextmanager
async def session(engine, service=None):
    send, receive = anyio.create_memory_object_stream[Message](0)
    client = Client(send)

    async def listen():
        async for message in (service or configured(LiveSpeech)).converse(receive, engine):
            assert message.kind == "text"
            client.events.append(json.loads(message.data))
            client.more.set()

    async with anyio.create_task_group() as group:
        group.start_soon(listen)
        yield client
        await send.aclose()
    receive.close()


async def test_d2_37_a_whole_session(stub, engine, speech):
    stub.answers[HEAR] = measure
    async with session(engine) as client:
        await client.say(RUN, ws_conn_id="conn-7")
        await client.until("task-started")
        assert client.events == [{"header": {"task_id": "conn-7", "event": "task-started"}, "payload": {}}]
        assert not stub.requests
        await client.play(speech + silence(1) + speech + silence(0.2))
        await client.say(FINISH)
        await client.until("task-finished")
    first, second = client.sentences()
    assert first["begin_time"] == pytest.approx(300, abs=100)
    assert first["end_time"] == pytest.approx(1230, abs=100)
    assert second["begin_time"] == pytest.approx(2626 + 300, abs=100)
    assert second["end_time"] == pytest.approx(2626 + 1230, abs=100)
    assert first["text"] == second["text"] == "one two three"
    assert client.events[-1] == {"header": {"task_id": "conn-7", "event": "task-finished"}, "payload": {}}
    assert all(each["header"]["task_id"] == "conn-7" for each in client.events)
    # Nothing but whole requests of OVMS's own API: no private protocol between us and one build of the engine.
    assert {(request.path, request.form["model"]) for request in stub.requests} == {(HEAR, "listener")}


async def test_partial_texts_come_while_the_sentence_is_spoken(stub, engine, speech):
    stub.answers[HEAR] = measure
    async with session(engine) as client:
        await client.say(RUN)
        await client.play(speech[: int(0.9 * RATE) * 2], size=640)  # 0.6 s of speech, and more of it to come
        partial = await client.until("result-generated")
        sentence = partial["payload"]["output"]["sentence"]
        assert sentence["end_time"] is None
        assert sentence["text"]
        await client.play(speech[int(0.9 * RATE) * 2 :] + silence(1), size=640)
        await client.say(FINISH)
        await client.until("task-finished")
    partials = client.sentences(final=False)
    assert {each["begin_time"] for each in partials} == {client.sentences()[0]["begin_time"]}
    lengths = [len(each["text"].split()) for each in partials]
    assert lengths == sorted(lengths)


async def test_a_partial_text_does_not_flicker(stub, engine, speech):
    async def mishear(request, reply):
        """Every second hypothesis is another one."""
        await reply.json({"text": "turn on the light" if len(stub.requests) % 2 else "turnip"})

    stub.answers[HEAR] = mishear
    long_speech = speech[int(0.3 * RATE) * 2 : int(1.2 * RATE) * 2] * 4
    async with session(engine) as client:
        await client.say(RUN)
        for at in range(0, len(long_speech), 12_800):  # 0.4 s
            await client.play(long_speech[at : at + 12_800])
            await anyio.sleep(0.1)  # time to ask for a partial text; fewer of them fail nothing
        await client.say(FINISH)
        await client.until("task-finished")
    assert {each["text"] for each in client.sentences(final=False)} == {"turn on the light"}


async def test_several_tasks_follow_one_another(stub, engine, speech):
    stub.answers[HEAR] = measure
    async with session(engine) as client:
        for count in (1, 2, 3):
            await client.say(RUN)
            await client.play(speech)
            await client.say(FINISH)
            await client.until("task-finished", count)
    begins = [each["begin_time"] for each in client.sentences()]
    assert len(begins) == 3
    assert max(begins) - min(begins) < 50, "each task counts its own time"


async def test_parameters_reach_the_engine_whether_as_body_or_as_metadata(stub, engine, speech):
    stub.answers[HEAR] = {"text": "x"}
    eight = np.frombuffer(speech, "<i2")[::2].tobytes()
    for body, metadata in (
        (RUN | {"parameters": {"sample_rate": 8000, "language": "<|zh|>", "format": "pcm"}}, {}),
        ({"model": "listener"}, {"language": "zh", "format": "wav", "sample_rate": "8000"}),
        (RUN | {"parameters": {"sample_rate": 8000, "language": "zh"}}, {"language": "en", "sample_rate": "16000"}),
    ):
        stub.requests.clear()
        async with session(engine) as client:
            await client.say(body, **metadata)
            await client.play(eight)
            await client.say({"model": "listener"})  # AOG's template takes the action away
            await client.until("task-finished")
        assert stub.requests[-1].form["language"] == "zh"
        (sentence,) = client.sentences()
        assert sentence["end_time"] == pytest.approx(1230, abs=120)


@pytest.mark.parametrize("finish", [FINISH, {"model": "listener"}])
async def test_sound_may_begin_a_session(stub, engine, speech, finish):
    stub.answers[HEAR] = measure
    async with session(engine) as client:
        await client.play(speech, size=len(speech), language="en", ws_conn_id="c")
        await client.say(finish)
        await client.until("task-finished")
    assert [each["text"] for each in client.sentences()] == ["one two three"]


# The index of an MP4 is at its front where its maker wants it to be played while it arrives, as browsers do.
OPTIONS = {"mp4": {"movflags": "frag_keyframe+empty_moov"}}


@pytest.mark.parametrize("form", EVERY)
async def test_a_recording_is_heard_while_it_is_made(stub, engine, fixtures, speech, tmp_path, form):
    stub.answers[HEAR] = measure
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((speech + silence(1)) * 4)
    sound = recorded(tmp_path / "a.wav", form, **OPTIONS.get(form, {}))
    half = 0 if form == "m4a" else len(sound) // 2  # the index of the other kind of MP4 is at its end
    async with session(engine) as client:
        await client.say(RUN | {"parameters": {"format": "aac" if form == "aac" else "pcm"}})
        await client.play(sound[:half], size=1000)
        if half:
            await client.until("result-generated")
        await client.play(sound[half:], size=1000)
        await client.say(FINISH)
        await client.until("task-finished")
    said = client.sentences()
    assert [each["text"] for each in said] == ["one two three"] * 4
    assert said[3]["begin_time"] == pytest.approx(3 * 2626 + 300, abs=150)


@pytest.mark.parametrize("sound", [b"OggS" + bytes(5000), b"\x1a\x45\xdf\xa3 and no more", b"....ftypM4A " * 9])
async def test_a_recording_that_cannot_be_decoded_is_an_event_and_the_session_goes_on(stub, engine, speech, sound):
    stub.answers[HEAR] = measure
    async with session(engine) as client:
        for count in (1, 2):
            await client.say(RUN)
            await client.play(sound)
            await client.say(FINISH)
            header = (await client.until("task-failed", count))["header"]
            assert header["error_code"] == "CLIENT_ERROR"
            assert header["error_message"].startswith("The audio cannot be decoded; send raw PCM, WAV, MP3")
        await client.say(RUN)
        await client.play(speech)
        await client.say(FINISH)
        await client.until("task-finished")
    assert len(client.sentences()) == 1


async def test_what_names_another_format_than_it_sends_is_refused(stub, engine, speech):
    async with session(engine) as client:
        await client.say(RUN | {"parameters": {"format": "webm"}})
        await client.play(speech)
        assert "cannot be decoded" in (await client.until("task-failed"))["header"]["error_message"]


async def test_a_recording_of_an_absurd_rate_is_refused_before_it_grows(stub, engine):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(20_000, np.int16), 1, format="FLAC")
    async with session(engine) as client:
        await client.say(RUN)
        await client.play(buffer.getvalue())
        await client.say(FINISH)
        assert "between 4000 and 192000, not 1" in (await client.until("task-failed"))["header"]["error_message"]


async def test_an_mp4_that_must_be_kept_whole_is_bounded(stub, engine, monkeypatch):
    monkeypatch.setattr("ovms_service_speech_to_text_ws.recording.SPOOL", 10_000)
    async with session(engine) as client:
        await client.say(RUN)
        await client.play(b"\x00\x00\x00\x20ftypM4A " + bytes(20) + b"\x7f\xff\xff\xffmdat" + bytes(50_000))
        assert "too much for live M4A" in (await client.until("task-failed"))["header"]["error_message"]


async def test_d2_36_a_session_that_ends_without_finish_task_says_everything(stub, engine, speech):
    stub.answers[HEAR] = measure
    async with session(engine) as client:
        await client.say(RUN)
        await client.play(speech)
    assert client.sentences()[0]["text"] == "one two three"


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (b"{", "one JSON object"),
        (b"[]", "one JSON object"),
        (b'{"action":"run-task","model":"\\ud8"}', "one JSON object"),
        (b'{"action":"run-task","parameters":{"sample_rate":1e400}}', "one JSON object"),
        (b'{"action":"stop"}', "There is no action"),
        (b'{"action":"finish-task"}', "No task runs"),
        (b'{"action":"run-task","model":"nobody"}', "nobody is not installed"),
        (b'{"action":"run-task","model":"llm"}', "text_generation model"),
        (b'{"action":"run-task","model":7}', "must be a text"),
        (b'{"action":"run-task","parameters":[]}', "must be an object"),
        (b'{"action":"run-task","parameters":{"format":"midi"}}', "one of pcm, wav, mp3, .*, not midi"),
        (b'{"action":"run-task","parameters":{"sample_rate":"fast"}}', "whole number"),
        (b'{"action":"run-task","parameters":{"sample_rate":1}}', "between 4000"),
        (b'{"action":"run-task","parameters":{"language":"Chinese please"}}', "must be a code"),
    ],
)
async def test_a_wrong_message_is_an_event_and_the_session_goes_on(stub, engine, message, sentence):
    async with session(engine) as client:
        await client._send.send(Message(message, "text"))
        header = (await client.until("task-failed"))["header"]
        assert header["error_code"] == "CLIENT_ERROR"
        assert re.search(sentence, header["error_message"])
        await client.say(RUN)
        await client.until("task-started")


async def test_wrong_turns(stub, engine, speech):
    stub.answers[HEAR] = measure
    async with session(engine) as client:
        await client.say(RUN)
        await client.say(RUN)
        assert "runs already" in (await client.until("task-failed"))["header"]["error_message"]
        await client.play(speech)  # of the task that failed: no further event for each frame
        await client.say(RUN)
        await client.until("task-started", 2)
        await client.say(FINISH)
        await client.until("task-finished")
        await client.play(speech)
        failed = await client.until("task-failed", 2)
        assert "send run-task first" in failed["header"]["error_message"]
    assert len(client.of("task-failed")) == 2


async def test_what_belongs_to_a_refused_task_is_passed_over(stub, engine, speech):
    """Its sound begins no task, which would take MIDI for PCM, and its end is no further failure."""
    stub.answers[HEAR] = measure
    async with session(engine) as client:
        await client.say(RUN | {"parameters": {"format": "midi"}})
        await client.play(speech + silence(1))
        await client.say(FINISH)
        await client.say(RUN)
        await client.say(FINISH)
        await client.until("task-finished")
    assert [each["header"]["event"] for each in client.events] == ["task-failed", "task-started", "task-finished"]
    assert not stub.requests


async def test_failures_of_the_engine_are_told_as_what_they_are(stub, engine, speech):
    async def broken(request, reply):
        await reply.json({"error": "Calculator::Process() for node failed: no memory"}, 500)

    async def cut(request, reply):
        reply.cut()

    for handler, code, sentence in ((broken, "MODEL_ERROR", "no memory"), (cut, "SERVER_ERROR", "broke off")):
        stub.answers[HEAR] = handler
        async with session(engine) as client:
            await client.say(RUN)
            await client.play(speech + silence(1))
            header = (await client.until("task-failed"))["header"]
            assert header["error_code"] == code
            assert sentence in header["error_message"]
            stub.answers[HEAR] = measure
            await client.say(RUN)
            await client.play(speech)
            await client.say(FINISH)
            await client.until("task-finished")
        assert len(client.sentences()) == 1


async def test_a_partial_text_that_fails_costs_nothing(stub, engine, speech):
    async def sometimes(request, reply):
        if seconds_of(request) < 1:
            await reply.json({"error": "busy"}, 503)
        else:
            await measure(request, reply)

    stub.answers[HEAR] = sometimes
    async with session(engine) as client:
        await client.say(RUN)
        await client.play(speech, size=640)
        await client.say(FINISH)
        await client.until("task-finished")
    assert len(client.sentences()) == 1
    assert not client.of("task-failed")


async def test_without_the_detector_everything_is_speech(stub, engine):
    stub.answers[HEAR] = measure
    async with session(engine) as client:
        await client.say(RUN | {"parameters": {"use_vad": False}})
        await client.play(silence(30), size=64000)
        await client.say(FINISH)
        await client.until("task-finished")
    first, second = client.sentences()
    assert (first["begin_time"], second["begin_time"]) == (0, first["end_time"])
    assert second["end_time"] == pytest.approx(30_000, abs=40)


async def test_a_client_that_is_faster_than_the_engine_is_slowed_down(stub, engine, speech):
    """The engine hears nothing out for now: only so much sound is taken in, and none of it is lost."""
    may_answer = anyio.Event()

    async def wait(request, reply):
        await may_answer.wait()
        await measure(request, reply)

    stub.answers[HEAR] = wait
    sent = 0
    async with session(engine) as client, anyio.create_task_group() as group:
        await client.say(RUN)

        async def pour():
            nonlocal sent
            for _ in range(20):
                await client.play(speech + silence(0.7), size=20_000)
                sent += 1
            await client.say(FINISH)

        group.start_soon(pour)
        while sent < 2:  # noqa: ASYNC110 - what is counted are its own steps
            await anyio.sleep(0.01)
        await anyio.sleep(0.7)
        assert sent <= 5, "two sentences wait, one is with the engine, one is held up"
        may_answer.set()
        await client.until("task-finished")
    assert len(client.sentences()) == 20


async def test_a_client_that_does_not_read_slows_everything_down(stub, engine, speech):
    stub.answers[HEAR] = measure
    send, receive = anyio.create_memory_object_stream[Message](0)
    messages = configured(LiveSpeech).converse(receive, engine)
    sent = 0

    async def pour():
        nonlocal sent
        await send.send(Message(json.dumps(RUN).encode()))
        for _ in range(200):
            await send.send(Message(speech + silence(0.7), "binary"))
            sent += 1

    async with anyio.create_task_group() as group:
        group.start_soon(pour)
        await anext(messages)
        while sent < 2:  # noqa: ASYNC110 - what is counted are its own steps
            await anyio.sleep(0.01)
        before = -1
        while before != sent:
            before = sent
            await anyio.sleep(0.5)
        assert sent < 60
        await messages.aclose()
        group.cancel_scope.cancel()
    send.close()
    receive.close()


@pytest.mark.parametrize("form", ["pcm", "opus"])
async def test_leaving_a_session_frees_everything(stub, engine, speech, fixtures, form):
    asked, dropped = anyio.Event(), anyio.Event()

    async def hang(request, reply):
        asked.set()
        try:
            await anyio.sleep_forever()
        finally:
            dropped.set()

    stub.answers[HEAR] = hang
    before = asyncio.all_tasks()
    send, receive = anyio.create_memory_object_stream[Message](5)
    messages = configured(LiveSpeech).converse(receive, engine)
    sample = fixtures / "speech_to_text_samples" / "en_turn_on_the_light.wav"
    await send.send(Message(json.dumps(RUN).encode()))
    await send.send(Message(speech if form == "pcm" else recorded(sample, form), "binary"))
    await anext(messages)
    with anyio.fail_after(20):
        await asked.wait()
    with anyio.fail_after(5):
        await messages.aclose()
    with anyio.fail_after(2):
        await dropped.wait()
    # A server accepts on Windows in a task of the event loop.
    of_the_stub = ("StubEngine", "IocpProactor.accept")
    left = {each for each in asyncio.all_tasks() - before if not any(name in repr(each) for name in of_the_stub)}
    assert not left
    send.close()
    receive.close()


async def test_many_sessions_over_one_engine(stub, engine, speech):
    async def spell(request, reply):
        await reply.json({"text": str(round(seconds_of(request), 1))})

    stub.answers[HEAR] = spell

    async def one(number):
        async with session(engine) as client:
            await client.say(RUN, ws_conn_id=f"c{number}")
            for _ in range(number % 3 + 1):
                await client.play(speech + silence(0.7))
            await client.say(FINISH)
            await client.until("task-finished")
        assert len(client.sentences()) == number % 3 + 1
        assert {each["header"]["task_id"] for each in client.events} == {f"c{number}"}

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(one, number)


async def test_an_hour_of_silence_and_noise_asks_nothing_and_keeps_nothing(stub, engine, speech):
    stub.answers[HEAR] = measure
    minute = silence(60)
    rng = np.random.default_rng(3)
    noise = (rng.standard_normal(10 * RATE) * 400).astype("<i2").tobytes()
    async with session(engine) as client:
        await client.say(RUN)
        tracemalloc.start()
        await client.play(minute + noise, size=64_000)  # everything is imported and warm
        gc.collect()
        size = tracemalloc.get_traced_memory()[0]
        for number in range(59):
            await client.play(minute, size=64_000)
            if number % 10 == 5:
                await client.play(noise, size=64_000)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - size
        tracemalloc.stop()
        assert not stub.requests
        assert grown < 50_000
        await client.play(speech)
        await client.say(FINISH)
        await client.until("task-finished")
    (sentence,) = client.sentences()
    assert sentence["begin_time"] == pytest.approx((60 * 60 + 7 * 10) * 1000 + 300, abs=100)


async def test_sentences_that_were_written_down_are_kept_nowhere(stub, engine, speech):
    stub.answers[HEAR] = measure
    sizes = []
    async with session(engine) as client:
        await client.say(RUN)
        tracemalloc.start()
        for _ in range(3):
            for _ in range(15):
                await client.play(speech + silence(1), size=32_000)
            await client.until("result-generated", len(client.events))
            client.events.clear()
            stub.requests.clear()
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert sizes[2] - sizes[1] < 8 * len(speech), "15 sentences more"


async def test_it_answers_no_single_requests(engine):
    service = configured(LiveSpeech)
    with pytest.raises(NotSupported, match="speech-to-text"):
        await service.invoke(make_call(), engine)
    with pytest.raises(NotSupported, match="speech-to-text"):
        service.stream(make_call(), engine)
