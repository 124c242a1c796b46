"""``transcribe --live``: what is said into a microphone, or into a pipe, sentence by sentence while it is spoken."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from ovms_cli import output
from ovms_cli.asking import kernel_of
from ovms_kernel.api.commands import BadRequest, EngineFailed, Message, NotSupported

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from anyio.abc import ObjectSendStream

    from ovms_cli.session import Session

SERVICE = "speech-to-text-ws"
RATE = 16000
"""Samples a second; each is 16 bits, of one channel."""
PIECE = 3200
"""Bytes that are sent at once: a tenth of a second."""
ALIKE = "raw sound of 16 bits, one channel and 16 kHz"


async def listen(session: Session, source: str, model: str, language: str) -> None:
    """Print sentences as they are spoken, until the sound ends or Ctrl-C.

    :param source: ``-`` for raw sound or a recording on stdin, empty for the microphone.
    :raises NotSupported: there is no microphone, or nothing installed that reads it.
    """
    if source and source != "-":
        raise BadRequest(f"--live takes no file; `ovms-plugin transcribe {source}` writes down a recording.")
    parameters: dict[str, Any] = {"format": "pcm", "sample_rate": RATE}
    if language:
        parameters["language"] = language
    begin = {"task": SERVICE, "action": "run-task", "model": model, "parameters": parameters}
    async with kernel_of(session) as kernel, sound_of(source) as sound:
        send, receive = anyio.create_memory_object_stream[Message](100)
        async with (
            receive,
            anyio.create_task_group() as group,
            aclosing(kernel.converse(SERVICE, receive)) as messages,
        ):
            group.start_soon(_speak, session, begin, sound, send)
            async for message in messages:
                _tell(json.loads(message.data))
            group.cancel_scope.cancel()


async def _speak(
    session: Session, begin: dict[str, Any], sound: AsyncIterator[bytes], send: ObjectSendStream[Message]
) -> None:
    """Send the sound; Ctrl-C ends it, and what was said until then is still written."""
    async with send:
        await send.send(Message(json.dumps(begin).encode()))
        with anyio.CancelScope() as scope:
            session.on_interrupt = scope.cancel
            if sys.stderr.isatty():
                output.say("Listening; Ctrl-C ends it.")
            async for piece in sound:
                await send.send(Message(piece, "binary"))
        session.on_interrupt = None
        await send.send(Message(json.dumps(begin | {"action": "finish-task"}).encode()))


def _tell(event: dict[str, Any]) -> None:
    """Print the sentence in an event.

    :raises BadRequest: it says that the sound cannot be understood.
    :raises EngineFailed: it says that the session failed otherwise.
    """
    header = event["header"]
    if header["event"] == "task-failed":
        kind = BadRequest if header.get("error_code") == "CLIENT_ERROR" else EngineFailed
        raise kind(str(header.get("error_message") or "Listening failed; `ovms-plugin logs` has the details."))
    if header["event"] == "result-generated":
        sentence = event["payload"]["output"]["sentence"]
        text, done = str(sentence["text"]).strip(), sentence["end_time"] is not None
        if sys.stdout.isatty():
            # What is still being spoken is written again and again in one line.
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{text if done else text[-width:]}", end="\n" if done else "", flush=True)
        elif done:
            print(text, flush=True)


@asynccontextmanager
async def sound_of(source: str) -> AsyncIterator[AsyncIterator[bytes]]:
    """Give the sound in pieces."""
    if source == "-":
        yield _piped()
        return
    send, receive = anyio.create_memory_object_stream[bytes](1000)
    with send, receive, _microphone(send.send_nowait):
        yield receive


async def _piped() -> AsyncGenerator[bytes, None]:
    if sys.stdin.isatty():
        raise BadRequest(f"Nothing is piped; `transcribe --live -` reads {ALIKE}, or a recording, from stdin.")
    while piece := await anyio.to_thread.run_sync(os.read, sys.stdin.fileno(), PIECE, abandon_on_cancel=True):
        yield piece


def _microphone(heard: Any) -> Any:  # noqa: ANN401 - sounddevice has no types
    """Return the microphone, which hands over what it hears for as long as its block lasts.

    :raises NotSupported: there is none, or nothing installed that reads it.
    """
    try:
        import sounddevice  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise NotSupported(
            "A microphone needs sounddevice; install it with `pip install 'ovms-cli[microphone]'`, "
            f"or pipe {ALIKE} into `ovms-plugin transcribe --live -`."
        ) from error
    except OSError as error:
        raise NotSupported(f"{str(error).rstrip('.')}; on Debian and Ubuntu, `apt install libportaudio2`.") from error
    loop = asyncio.get_running_loop()

    def hand_over(data: Any, _frames: int, _time: Any, _status: Any) -> None:  # noqa: ANN401
        loop.call_soon_threadsafe(heard, bytes(data))

    try:
        return sounddevice.RawInputStream(
            samplerate=RATE, channels=1, dtype="int16", blocksize=PIECE // 2, callback=hand_over
        )
    except sounddevice.PortAudioError as error:
        raise NotSupported(
            f"No microphone can be opened ({error}); plug one in, or choose it in the system."
        ) from error
