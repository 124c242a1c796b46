"""The speech-to-text-ws service: live speech in, sentences out while they are spoken."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec

from ovms_kernel.api.services import NotSupported, ServiceDefinition, yielded

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from anyio.streams.memory import MemoryObjectSendStream

    from ovms_kernel.api.services import Answer, Call, Engine, Message

WAITING_MESSAGES = 16
"""Messages to a client that does not read; then everything before them waits too."""


DEFAULT_MODEL = "OpenVINO/whisper-base-int8-ov"


class LiveSpeechSettings(msgspec.Struct, frozen=True):
    """What can be set."""

    default_model: str = DEFAULT_MODEL
    """The model of requests that name none."""


class LiveSpeech:
    """Transcribes speech while it is spoken; ``session`` tells the protocol."""

    settings_type = LiveSpeechSettings

    def __init__(self, settings: LiveSpeechSettings) -> None:
        self.definition = ServiceDefinition(
            name="speech-to-text-ws",
            model_type="speech_to_text",
            endpoint="/v3/audio/transcriptions",
            default_model=settings.default_model,
            support_models=(DEFAULT_MODEL, "NamoLi/whisper-large-v3-ov"),
            streaming=True,
            bidirectional=True,
            extras={
                "aog": {
                    "config_ref": "openvino:speech-to-text-ws",
                    "config_ref_full": "aog:speech-to-text-ws",
                    "expose_protocol": "WEBSOCKET",
                    "timeout": -1,
                }
            },
        )

    async def invoke(self, call: Call, engine: Engine) -> Answer:  # noqa: ARG002 - the protocol's
        """Refuse: a session is not a single request."""
        raise NotSupported("speech-to-text-ws holds sessions; send a single recording to speech-to-text.")

    def stream(self, call: Call, engine: Engine) -> AsyncGenerator[bytes, None]:  # noqa: ARG002 - the protocol's
        """Refuse: a session is not a single request."""
        raise NotSupported("speech-to-text-ws holds sessions; send a single recording to speech-to-text.")

    async def converse(self, inbound: AsyncIterator[Message], engine: Engine) -> AsyncGenerator[Message, None]:
        """Answer a session's messages until it ends; leaving it frees everything that it held."""
        from ovms_service_speech_to_text_ws.session import Session

        async def run(out: MemoryObjectSendStream[Message]) -> None:
            await Session(self.definition, engine, out).run(inbound)

        async with aclosing(yielded(run, WAITING_MESSAGES)) as messages:
            async for message in messages:
                yield message
