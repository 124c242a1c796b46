"""One session of live speech: its messages, and its tasks one after the other.

Everything is bounded: sound is read only as fast as sentences are transcribed, a sentence is at most 25 s long, and
two of them wait.
"""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from ovms_kernel.api.services import (
    BadRequest,
    EngineFailed,
    Message,
    NotFound,
    NotSupported,
    OvmsError,
    decode_request,
    transcription_fields,
)
from ovms_service_speech_to_text_ws.pcm import Decoder, checked_rate
from ovms_service_speech_to_text_ws.recording import FORMATS, HEAD, WAITING, container_of, decode
from ovms_service_speech_to_text_ws.segments import RATE, Segmenter
from ovms_service_speech_to_text_ws.transcriber import Transcriber
from ovms_service_speech_to_text_ws.vad import Detector

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import numpy as np
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
    from numpy.typing import NDArray

    from ovms_kernel.api.services import Engine, ServiceDefinition

YIELD_BLOCKS = 8
"""Blocks that are judged before others get their turn, some 2 ms of work."""


@dataclass
class Task:
    """What is between run-task and finish-task."""

    id: str
    model: str
    fields: dict[str, str | list[str]]
    form: str
    """The format of its sound, as the client names it."""
    decoder: Decoder
    use_vad: bool
    segmenter: Segmenter = field(default_factory=Segmenter)
    heard_sound: bool = False


class Session:
    """Reads messages and answers with events; docs/services.md describes both."""

    def __init__(self, definition: ServiceDefinition, engine: Engine, out: MemoryObjectSendStream[Message]) -> None:
        self._definition = definition
        self._engine = engine
        self._out = out
        self._id = ""
        self._task: Task | None = None
        self._ran = False
        self._told = False
        self._detector: Detector | None = None

    async def run(self, inbound: AsyncIterator[Message]) -> None:
        """Work until the client ends the session and everything was said."""
        # Through a stream of our own, as a task that fails may not take the reading of messages with it.
        send, messages = anyio.create_memory_object_stream[Message](0)

        async def read() -> None:
            async with send:
                async for message in inbound:
                    await send.send(message)

        async with messages, anyio.create_task_group() as group:
            group.start_soon(read)
            while first := await self._first_of_task(messages):
                try:
                    await self._run_task(first, messages)
                except OvmsError as error:
                    self._told = True
                    await self._fail(error)
                self._task = None

    # -- messages --------------------------------------------------------------------------------------------------

    async def _first_of_task(self, messages: MemoryObjectReceiveStream[Message]) -> Message | None:
        """Wait for what begins a task: run-task, or sound if none ever ran."""
        async for message in messages:
            self._id = self._id or message.metadata.get("ws_conn_id", "")
            try:
                if message.kind == "text":
                    if action_of(message) in ("run-task", ""):
                        return message
                    if not self._told:  # the client may end a task before it hears that it failed
                        raise BadRequest("No task runs that could be finished; send run-task first.")
                elif not self._ran:
                    return message
                elif not self._told:  # once, not for each frame
                    self._told = True
                    raise BadRequest("Audio came while no task runs; send run-task first.")
            except BadRequest as error:
                await self._fail(error)
        return None

    async def _run_task(self, first: Message, messages: MemoryObjectReceiveStream[Message]) -> None:
        self._task = task = await self._begin(first)
        await self._say("task-started")
        transcriber = Transcriber(self._engine, task.model, task.fields, task.segmenter, self._say_sentence)
        send, sound = anyio.create_memory_object_stream[bytes](0)
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(transcriber.run)
                group.start_soon(self._hear, task, sound, transcriber)
                await feed(task, first, messages, send)
        except BaseExceptionGroup as errors:
            raise cause_of(errors) from None
        await self._say("task-finished")

    async def _begin(self, message: Message) -> Task:
        self._ran = True  # sound that follows a run-task belongs to that, even if it was refused
        body = json_of(message) if message.kind == "text" else {}
        given = body.get("parameters")
        if given is not None and not isinstance(given, dict):
            raise BadRequest("The parameters of run-task must be an object.")
        # What the body says wins over AOG's metadata, which has defaults for what the client did not say.
        parameters = dict(message.metadata) | {
            name: value for name, value in (given or {}).items() if value is not None
        }
        self._id = self._id or str(body.get("task_id") or "") or uuid.uuid4().hex
        if (form := str(parameters.get("format") or "pcm").lower()) not in FORMATS:
            raise BadRequest(f"Live audio must be one of {', '.join(FORMATS)}, not {form:.40}.")
        try:
            rate = checked_rate(int(parameters.get("sample_rate") or RATE))
        except (TypeError, ValueError):
            raise BadRequest("The sample_rate must be a whole number.") from None
        fields = transcription_fields({"language": parameters.get("language")})
        model = await self._ready(body.get("model") or parameters.get("model") or "")
        if self._detector is None:
            self._detector = await anyio.to_thread.run_sync(Detector)
        self._detector.reset()
        self._told = False
        use_vad = str(parameters.get("use_vad", True)).lower() not in ("false", "0", "no")
        return Task(self._id, model, fields, form, Decoder(rate), use_vad)

    async def _ready(self, model: object) -> str:
        if not isinstance(model, str):
            raise BadRequest("The model must be a text; name an installed model or leave it out.")
        definition = self._definition
        async with self._engine.model(model, definition.model_type, default=definition.default_model) as found:
            return found  # each sentence takes it again, so that a session does not hold memory while nobody speaks

    # -- sound and events ------------------------------------------------------------------------------------------

    async def _hear(self, task: Task, sound: MemoryObjectReceiveStream[bytes], transcriber: Transcriber) -> None:
        """Cut all of a task's sound into sentences."""
        async with sound:
            head = b""
            while len(head) < HEAD:
                try:
                    head += await sound.receive()
                except anyio.EndOfStream:
                    break
            if container := container_of(head, task.form) if head else "":
                async with anyio.create_task_group() as group:
                    send, samples = anyio.create_memory_object_stream[Any](WAITING)
                    group.start_soon(decode, container, head, sound, send)
                    async with samples:
                        async for each in samples:
                            await self._listen(task, task.decoder.take(each), transcriber)
                async for _ in sound:  # behind the end of the recording
                    pass
            else:
                await self._listen(task, task.decoder.push(head), transcriber)
                async for data in sound:
                    await self._listen(task, task.decoder.push(data), transcriber)
        await self._listen(task, task.decoder.finish(), transcriber)
        if last := task.segmenter.finish():
            await transcriber.put(last)
        transcriber.close()

    async def _listen(self, task: Task, blocks: Iterator[NDArray[np.int16]], transcriber: Transcriber) -> None:
        assert self._detector  # noqa: S101 - every task has one
        for number, block in enumerate(blocks, 1):
            likely = self._detector.likely(block) if task.use_vad else 1.0
            if sentence := task.segmenter.push(block, likely):
                await transcriber.put(sentence)  # waits while sentences wait, and with it the client
            elif number % YIELD_BLOCKS == 0:
                await anyio.lowlevel.checkpoint()
        transcriber.look()

    async def _say_sentence(self, begin: int, end: int | None, text: str) -> None:
        sentence = {"begin_time": begin, "end_time": end, "text": text}
        await self._say("result-generated", {"output": {"sentence": sentence}})

    async def _say(self, event: str, payload: dict[str, Any] | None = None, **header: str) -> None:
        self._id = self._id or uuid.uuid4().hex
        body = {"header": {"task_id": self._id, "event": event} | header, "payload": payload or {}}
        await self._out.send(Message(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()))

    async def _fail(self, error: OvmsError) -> None:
        of_client = isinstance(error, BadRequest | NotFound | NotSupported)
        code = "CLIENT_ERROR" if of_client else "MODEL_ERROR" if isinstance(error, EngineFailed) else "SERVER_ERROR"
        await self._say("task-failed", error_code=code, error_message=error.message)


def json_of(message: Message) -> dict[str, Any]:
    """Return the JSON object in a text message.

    :raises BadRequest: there is something else in it.
    """
    try:
        return decode_request(message.data)
    except BadRequest as error:
        raise BadRequest("A text message must be one JSON object with an action: run-task or finish-task.") from error


def action_of(message: Message) -> str:
    """Return ``run-task``, ``finish-task``, or an empty text where AOG's template took the action away.

    :raises BadRequest: it is another one.
    """
    action = json_of(message).get("action") or ""
    if action not in ("run-task", "finish-task", ""):
        raise BadRequest(f"There is no action {action!r}; send run-task or finish-task.")
    return str(action)


async def feed(
    task: Task, first: Message, messages: MemoryObjectReceiveStream[Message], sound: MemoryObjectSendStream[bytes]
) -> None:
    """Hand on the sound of a task until its end, or until nobody takes it any more because it is refused."""
    async with sound:
        with suppress(anyio.BrokenResourceError):
            if first.kind == "binary":
                task.heard_sound = True
                await sound.send(first.data)
            async for message in messages:
                if message.kind == "binary":
                    task.heard_sound = True
                    await sound.send(message.data)
                elif finishes(message, task):
                    break


def finishes(message: Message, task: Task) -> bool:
    """Tell whether a text message ends the running task; one without an action does if it comes after sound."""
    action = action_of(message)
    if action == "run-task":
        raise BadRequest("A task runs already; send finish-task before the next run-task.")
    return action == "finish-task" or task.heard_sound


def cause_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one known error that ended a task, or the whole group if there is something else in it."""
    ours, rest = errors.split(OvmsError)
    if ours is None or rest is not None:
        return errors
    found: BaseException = ours
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
