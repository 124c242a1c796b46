"""``/v1/realtime?intent=transcription``: OpenAI's transcription sessions over the live speech service.

https://platform.openai.com/docs/guides/realtime-transcription describes the events; docs/services.md the service's own.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import uuid
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import anyio

from ovms_face_http.exchange import encode
from ovms_kernel.api.faces import BadRequest, Message, OvmsError, decode_request

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, MutableMapping

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    from ovms_face_http.exchange import Receive, Send
    from ovms_kernel.api.faces import KernelApi

    Fields = dict[str, Any]

log = logging.getLogger(__name__)

SERVICE = "speech-to-text-ws"
RATE = 24000
"""Samples in a second of OpenAI's ``pcm16``, unless the session says another rate."""
RATES = range(4000, 192_001)
WAITING = 8
"""Messages of sound that wait for the service; a client that sends faster waits itself."""


def _object(value: Any, name: str) -> Fields:  # noqa: ANN401 - as the client sent it
    """Return an object of an event; one that is absent or null counts as empty.

    :raises BadRequest: it is something else.
    """
    if not isinstance(value, dict | None):
        raise BadRequest(f"The event's {name} must be an object.")
    return value or {}


class Realtime:
    """Lets sessions in."""

    def __init__(self, kernel: KernelApi) -> None:
        self._kernel = kernel

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Hold one session."""
        await receive()  # the connect
        asked = parse_qs(scope["query_string"].decode("latin-1"))
        protocols = scope.get("subprotocols") or []
        chosen = {"subprotocol": "realtime"} if "realtime" in protocols else {}
        await send({"type": "websocket.accept", **chosen})
        session = _Session(self._kernel, send, (asked.get("model") or [""])[0])
        if asked.get("intent", [""])[0] != "transcription" and "model" not in asked:
            await session.fail("Add ?intent=transcription to the address; this server transcribes speech.", "")
            await send({"type": "websocket.close", "code": 1008})
            return
        await session.run(receive)


class _Session:
    def __init__(self, kernel: KernelApi, send: Send, model: str) -> None:
        self._kernel = kernel
        self._send = send
        self._id = f"sess_{uuid.uuid4().hex}"
        self._model = model
        self._language = ""
        self._rate = RATE
        self._vad: Fields | None = {
            "type": "server_vad",
            "threshold": 0.5,
            "prefix_padding_ms": 300,
            "silence_duration_ms": 500,
        }
        self._item = ""
        self._said = ""
        self._previous: str | None = None
        self._running = False
        self._closing = False
        self._ended = anyio.Event()
        self._to_service: MemoryObjectSendStream[Message] | None = None

    async def run(self, receive: Receive) -> None:
        """Answer events until the client leaves."""
        await self._tell("session.created", session=self._session())
        try:
            async with anyio.create_task_group() as group:
                while (event := await self._next(receive)) is not None:
                    try:
                        await self._act(event, group)
                    except BadRequest as error:
                        await self.fail(error.message, str(event.get("event_id") or ""))
                group.cancel_scope.cancel()
        except ExceptionGroup:
            log.exception("A realtime session failed")

    async def _next(self, receive: Receive) -> Fields | None:
        """Return the next event; ``None`` when the client is gone."""
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return None
            sent = message.get("bytes") or (message.get("text") or "").encode("utf-8", "replace")
            try:
                return decode_request(sent)
            except BadRequest:
                await self.fail("An event must be one JSON object with a type.", "")

    async def _act(self, event: Fields, group: Any) -> None:  # noqa: ANN401 - anyio's task group
        kind = event.get("type")
        if kind in ("session.update", "transcription_session.update"):
            self._configure(event.get("session"))
            await self._tell(f"{kind}d", session=self._session())
        elif kind == "input_audio_buffer.append":
            try:
                sound = base64.b64decode(event.get("audio") or "", validate=True)
            except (binascii.Error, TypeError, ValueError):
                raise BadRequest("The field audio must be a text in base64.") from None
            if self._closing:
                await self._ended.wait()
            if not self._running:
                await self._begin(group)
            await self._hand(Message(sound, "binary"))
        elif kind == "input_audio_buffer.commit":
            await self._finish()
        elif kind == "input_audio_buffer.clear":
            await self._finish()
            await self._tell("input_audio_buffer.cleared")
        else:
            raise BadRequest(f"There is no event {kind!r} in a transcription session.")

    def _configure(self, given: Any) -> None:  # noqa: ANN401 - as the client sent it
        """Take the settings of a session, where newer and older clients put them."""
        if given is None:
            raise BadRequest("The event needs a session object.")
        session = _object(given, "session")
        sound = _object(_object(session.get("audio"), "audio").get("input"), "audio.input")
        form: Any = sound.get("format") or session.get("input_audio_format") or {}
        rate: Any = self._rate
        if isinstance(form, dict):
            rate = form.get("rate") or RATE
            form = form.get("type") or "audio/pcm"
        if form not in ("audio/pcm", "pcm16"):
            raise BadRequest(f"Sound must be audio/pcm, not {form!s:.40}.")
        if not isinstance(rate, int) or rate not in RATES:
            raise BadRequest(f"The rate must be a whole number from {RATES.start} to {RATES.stop - 1}.")
        wanted = _object(sound.get("transcription") or session.get("input_audio_transcription"), "transcription")
        model, language = wanted.get("model") or self._model, wanted.get("language") or self._language
        if not isinstance(model, str) or not isinstance(language, str):
            raise BadRequest("The fields model and language of transcription must be texts.")
        self._rate, self._model, self._language = rate, model, language
        for place, name in ((sound, "turn_detection"), (session, "turn_detection")):
            if name in place:
                self._vad = _object(place[name], name) or None

    async def _begin(self, group: Any) -> None:  # noqa: ANN401 - anyio's task group
        send, inbound = anyio.create_memory_object_stream[Message](WAITING)
        self._to_service, self._running, self._ended = send, True, anyio.Event()
        self._new_item()
        group.start_soon(self._listen, inbound)
        parameters = {"format": "pcm", "sample_rate": self._rate, "use_vad": True, "return_format": "text"}
        if self._language:
            parameters["language"] = self._language
        body = {"task": SERVICE, "action": "run-task", "model": self._model, "parameters": parameters}
        await self._hand(Message(encode(body)))

    async def _finish(self) -> None:
        if self._running and not self._closing:
            self._closing = True
            await self._hand(Message(encode({"task": SERVICE, "action": "finish-task"})))

    async def _hand(self, message: Message) -> None:
        assert self._to_service  # noqa: S101 - a task runs
        try:
            await self._to_service.send(message)
        except anyio.BrokenResourceError:
            self._running = False  # the service has ended, and has said why

    async def _listen(self, inbound: MemoryObjectReceiveStream[Message]) -> None:
        """Turn what the service says into events."""

        async def messages() -> AsyncGenerator[Message, None]:
            async with inbound:
                async for each in inbound:
                    yield each

        try:
            async with aclosing(self._kernel.converse(SERVICE, messages())) as answers:
                async for answer in answers:
                    said = json.loads(answer.data)
                    event = said["header"]["event"]
                    if event == "result-generated":
                        await self._sentence(said["payload"]["output"]["sentence"])
                    elif event == "task-failed":
                        await self.fail(said["header"].get("error_message", "The transcription failed."), "")
                    if event in ("task-finished", "task-failed"):
                        break
        except OvmsError as error:
            await self.fail(error.message, "")
        finally:
            self._running = self._closing = False
            self._ended.set()

    async def _sentence(self, sentence: Fields) -> None:
        text = sentence["text"]
        if not self._said and self._vad:
            await self._tell(
                "input_audio_buffer.speech_started", audio_start_ms=sentence["begin_time"], item_id=self._item
            )
        kind = "conversation.item.input_audio_transcription"
        if text.startswith(self._said) and (delta := text[len(self._said) :]):
            # What was said differently before is put right by the whole text at the end.
            await self._tell(f"{kind}.delta", item_id=self._item, content_index=0, delta=delta)
            self._said = text
        if sentence["end_time"] is None:
            self._said = self._said or text
            return
        if self._vad:
            await self._tell("input_audio_buffer.speech_stopped", audio_end_ms=sentence["end_time"], item_id=self._item)
        await self._tell("input_audio_buffer.committed", item_id=self._item, previous_item_id=self._previous)
        usage = {"type": "duration", "seconds": (sentence["end_time"] - sentence["begin_time"]) / 1000}
        await self._tell(f"{kind}.completed", item_id=self._item, content_index=0, transcript=text, usage=usage)
        self._new_item()

    def _new_item(self) -> None:
        self._previous = self._item or None
        self._item, self._said = f"item_{uuid.uuid4().hex}", ""

    def _session(self) -> Fields:
        transcription = {"model": self._model, "language": self._language or None, "prompt": ""}
        form = {"type": "audio/pcm", "rate": self._rate}
        sound = {"format": form, "transcription": transcription, "noise_reduction": None, "turn_detection": self._vad}
        return {
            "id": self._id,
            "object": "realtime.transcription_session",
            "type": "transcription",
            "audio": {"input": sound},
        }

    async def fail(self, message: str, event: str) -> None:
        """Tell an error; the session goes on."""
        error = {
            "type": "invalid_request_error",
            "code": None,
            "message": message,
            "param": None,
            "event_id": event or None,
        }
        await self._tell("error", error=error)

    async def _tell(self, kind: str, **fields: Any) -> None:  # noqa: ANN401 - fields of the event
        event = {"type": kind, "event_id": f"event_{uuid.uuid4().hex}", **fields}
        await self._send({"type": "websocket.send", "text": encode(event).decode()})
