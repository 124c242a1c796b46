"""Live sessions as AOG drives them: never closed, ended for good by a code, and with messages that were lost.

AOG's template takes ``action`` and ``parameters`` out of texts (D1-39), and its queue may lose any message of a
session: run-task, audio or finish-task. So a task begins with whatever comes first, audio or text, from what is known
of the session, and ends with the next text, or when no sound has come for ``SILENCE``.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from ovms_face_aog import framing, payloads
from ovms_kernel.api.faces import BadRequest, Message, OvmsError, decode_request

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

log = logging.getLogger(__name__)

IDLE = 600.0
"""Seconds without a message after which a session ends (D1-40)."""
IDLE_AFTER_TASK = 90.0
"""The same once a task was finished: the client may begin another one on the same socket."""
SILENCE = 15.0
"""Seconds without a message after which a task that was given audio is finished, as its finish-task may be lost."""
WAITING = 64
"""Messages that wait for the service; a client that is faster is slowed down."""
ENDS = (b"task-finished", b"task-failed")


class Session:
    """One RPC: the messages of the client, made whole, and what the conversations with the service need of them."""

    def __init__(self, service: str, inbound: AsyncIterator[Message]) -> None:
        self._service = service
        self._inbound = inbound
        self._waiting: asyncio.Queue[Message | None] = asyncio.Queue(WAITING)
        self._behind: Message | None = None
        """Audio that waits for the run-task that was put before it."""
        self._metadata: dict[str, str] = {}
        self._running = False
        """A task runs."""
        self._heard = False
        """It was given audio."""
        self.idle_limit = IDLE
        self.failed = False
        """The task failed: the audio that is still sent for it is dropped."""
        self.ended = False

    @property
    def id(self) -> str:
        """AOG's id of the connection, which its clients know as the task's."""
        return self._metadata.get("ws_conn_id", "")

    async def read(self) -> None:
        """Take messages in until the client's end."""
        try:
            async for message in self._inbound:
                await self._waiting.put(message)
        except OvmsError as error:
            log.info("A session ends: %s", error.message)
        await self._waiting.put(None)

    async def next(self) -> Message | None:
        """Return the next message for the service, ``None`` at the end of all or when nothing came for long."""
        import anyio  # not before the handshake, which a host waits for

        if self._behind:
            audio, self._behind = self._behind, None
            return audio
        while not self.ended:
            silence = SILENCE if self._running and self._heard else self.idle_limit
            try:
                with anyio.fail_after(min(silence, self.idle_limit)):
                    message: Message | None = await self._waiting.get()
            except TimeoutError:
                if silence < self.idle_limit:
                    log.info("A task is finished as no sound came for %g s", SILENCE)
                    return self._text({})
                log.info("A session ends as nothing came for %g s", self.idle_limit)
                message = None
            if message is None:
                self.ended = True
            elif (whole := self._whole(message)) is not None:
                return whole
        return None

    def fail(self) -> None:
        """Note that the task failed."""
        self.failed, self._running, self._behind = True, False, None
        self.idle_limit = IDLE_AFTER_TASK

    def _whole(self, message: Message) -> Message | None:
        """Return a message with what was lost on the way put back; ``None`` if it is of no use any more."""
        # Only the first message names the connection.
        self._metadata |= message.metadata
        if message.kind == "text":
            try:
                return self._text(decode_request(message.data))
            except BadRequest:
                self.failed = False
                return Message(message.data, "text", dict(self._metadata))  # the service says what is wrong with it
        if self.failed:
            return None
        audio = Message(message.data, "binary", dict(self._metadata))
        begin = None if self._running else self._text({})
        self._heard = True
        if begin is None:
            return audio
        self._behind = audio
        return begin

    def _text(self, fields: dict[str, Any]) -> Message:
        """Return a text with its action, and note what that begins or ends."""
        metadata = dict(self._metadata)
        if not fields.get("action"):
            fields = fields | self._task(fields, metadata)
        self._running = fields["action"] == "run-task"
        self._heard = self.failed = False
        return Message(payloads.write(fields), "text", metadata)

    def _task(self, fields: dict[str, Any], metadata: dict[str, str]) -> dict[str, Any]:
        task: dict[str, Any] = {
            "task": self._service,
            "action": "finish-task" if self._running else "run-task",
            "task_id": self.id,
        }
        if model := fields.get("model") or metadata.get("model"):
            task["model"] = model
        if not self._running:
            parameters: dict[str, Any] = {name: metadata[name] for name in ("language", "format") if name in metadata}
            if metadata.get("sample_rate", "").isdigit():
                parameters["sample_rate"] = int(metadata["sample_rate"])
            task["parameters"] = parameters
        return task


async def hold_session(
    service: str,
    converse: Callable[[AsyncIterator[Message]], AsyncGenerator[Message, None]],
    inbound: AsyncIterator[Message],
    begin: Callable[[Callable[[], Awaitable[object]], str], asyncio.Task[None]],
) -> AsyncGenerator[Message, None]:
    """Yield the messages of one session, one conversation with the service after another.

    A failure is sent as an event and ends the conversation only: a code would make AOG close a channel that it still
    writes to, which ends AOG (D1-42).

    :param begin: runs what reads the client's messages meanwhile.
    """
    session = Session(service, inbound)
    reading = begin(session.read, "session")
    try:
        while (first := await session.next()) is not None:
            try:
                async with aclosing(converse(_conversation(session, first))) as answers:
                    async for answer in answers:
                        if any(end in answer.data[:256] for end in ENDS):
                            session.idle_limit = IDLE_AFTER_TASK
                        # AOG greets the client itself.
                        if not framing.is_task_started(answer.data):
                            yield Message(answer.data, "text", answer.metadata)
            except OvmsError as error:
                log.info("Session: %d %s", error.code, error.message)
                session.fail()
                yield Message(framing.session_failed(session.id, error), "text")
            except Exception:
                log.exception("Session failed")
                session.fail()
                problem = OvmsError("The session failed unexpectedly; the plugin's log has the details.")
                yield Message(framing.session_failed(session.id, problem), "text")
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
