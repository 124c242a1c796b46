"""Live sessions as AOG drives them: never closed, ended for good by a code, and with actions that were lost."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from ovms_face_aog import framing, payloads
from ovms_kernel.admission import decode_request
from ovms_kernel.errors import BadRequest, OvmsError
from ovms_kernel.values import Message

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

log = logging.getLogger(__name__)

IDLE = 600.0
"""Seconds without a message after which a session ends (D1-40)."""
IDLE_AFTER_TASK = 90.0
"""The same once a task was finished: the client may begin another one on the same socket."""
WAITING = 64
"""Messages that wait for the service; a client that is faster is slowed down."""
ENDS = (b"task-finished", b"task-failed")


class Session:
    """One RPC: the messages of the client, made whole, and what the conversations with the service need of them."""

    def __init__(self, service: str, inbound: AsyncIterator[Message]) -> None:
        self._service = service
        self._inbound = inbound
        self._waiting: asyncio.Queue[Message | None] = asyncio.Queue(WAITING)
        self._audio = False
        self._metadata: dict[str, str] = {}
        self.idle_limit = IDLE
        self.ended = False

    @property
    def id(self) -> str:
        """AOG's id of the connection, which its clients know as the task's."""
        return self._metadata.get("ws_conn_id", "")

    async def read(self) -> None:
        """Take messages in until the client's end."""
        try:
            async for message in self._inbound:
                await self._waiting.put(self._whole(message))
        except OvmsError as error:
            log.info("A session ends: %s", error.message)
        await self._waiting.put(None)

    async def next(self, *, text_only: bool = False) -> Message | None:
        """Return the next message, ``None`` at the end of all or when nothing came for long."""
        while not self.ended:
            try:
                async with asyncio.timeout(self.idle_limit):
                    message = await self._waiting.get()
            except TimeoutError:
                log.info("A session ends as nothing came for %g s", self.idle_limit)
                message = None
            if message is None:
                self.ended = True
            elif message.kind == "text" or not text_only:
                return message
        return None

    def _whole(self, message: Message) -> Message:
        """Return a message with what AOG's conversion has lost (D1-39)."""
        # Only the first message names the connection.
        self._metadata |= message.metadata
        metadata = dict(self._metadata)
        if message.kind == "binary":
            self._audio = True
            return Message(message.data, "binary", metadata)
        try:
            fields = decode_request(message.data)
        except BadRequest:
            return Message(message.data, "text", metadata)  # the service says what is wrong with it
        if not fields.get("action"):
            fields = self._task(fields, metadata)
        if fields.get("action") != "run-task":
            self._audio = False
        return Message(payloads.write(fields), "text", metadata)

    def _task(self, fields: dict[str, Any], metadata: dict[str, str]) -> dict[str, Any]:
        task: dict[str, Any] = {
            "task": self._service,
            "action": "finish-task" if self._audio else "run-task",
            "task_id": self.id,
        }
        if model := fields.get("model") or metadata.get("model"):
            task["model"] = model
        if not self._audio:
            parameters: dict[str, Any] = {name: metadata[name] for name in ("language", "format") if name in metadata}
            if metadata.get("sample_rate", "").isdigit():
                parameters["sample_rate"] = int(metadata["sample_rate"])
            task["parameters"] = parameters
        return fields | task


async def hold_session(
    service: str,
    converse: Callable[[AsyncIterator[Message]], AsyncGenerator[Message, None]],
    inbound: AsyncIterator[Message],
) -> AsyncGenerator[Message, None]:
    """Yield the messages of one session, one conversation with the service after another.

    A failure is told as an event and ends the conversation only: a code would make AOG close a channel that it still
    writes to, which ends AOG (D1-42).
    """
    session = Session(service, inbound)
    reading = asyncio.create_task(session.read())
    try:
        failed = False
        while (first := await session.next(text_only=failed)) is not None:
            failed = False
            try:
                messages = converse(_conversation(session, first))
                async with aclosing(messages) as answers:
                    async for answer in answers:
                        if any(end in answer.data[:256] for end in ENDS):
                            session.idle_limit = IDLE_AFTER_TASK
                        # AOG greets the client itself.
                        if not framing.is_task_started(answer.data):
                            yield Message(answer.data, "text", answer.metadata)
            except OvmsError as error:
                failed = True
                log.info("Session: %d %s", error.code, error.message)
                yield Message(framing.session_failed(session.id, error), "text")
            except Exception:
                failed = True
                log.exception("Session failed")
                problem = OvmsError("The session failed unexpectedly; the plugin's log tells more.")
                yield Message(framing.session_failed(session.id, problem), "text")
            if failed:
                session.idle_limit = IDLE_AFTER_TASK
    finally:
        session.ended = True
        reading.cancel()
        await asyncio.wait([reading])


async def _conversation(session: Session, first: Message) -> AsyncGenerator[Message, None]:
    message: Message | None = first
    while message is not None:
        if message.kind == "text":
            session.idle_limit = IDLE
        yield message
        message = await session.next()
