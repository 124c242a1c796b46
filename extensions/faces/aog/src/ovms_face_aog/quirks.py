"""ProviderService as AOG v0.7 needs it: what its queue, its converters and its clients would otherwise trip over.

Used when AOG is the host (``AOG_VERSION`` is set) and never otherwise. Numbers such as D1-15 are those of the traps in
docs/aog.md, each of which has a test.
"""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio
import msgspec

from ovms_face_aog import framing, payloads
from ovms_face_aog.protos import aog_provider_pb2 as pb
from ovms_face_aog.provider import Provider
from ovms_face_aog.sessions import hold_session
from ovms_kernel.api.faces import BadRequest, NotFound, Request, decode_request

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection

    from ovms_face_aog.rpcs import Context
    from ovms_kernel.api.faces import KernelApi, LocalModel, Message, Progress
    from ovms_kernel.api.services import Service

log = logging.getLogger(__name__)

LOAD_LIMIT = 200.0
"""Seconds after which LoadModel returns though the load goes on: AOG's only queue stands still till then (D1-15)."""
LINGER = 0.5
"""Seconds that a pull's stream stays open after its last message, or AOG may lose that (D1-26, D1-30)."""
PREFIX = re.compile(rb"^data: ", re.MULTILINE)
VOICES = frozenset({"male", "female", "girl", "baby"})
"""What AOG's clients must name as voice, whatever the model has; its own templates drop it."""


class Asked(msgspec.Struct):
    """What of a request decides whether anything has to be added to it."""

    model: object = None
    voice: object = None


class AogProvider(Provider):
    """Answers AOG.

    :param passed: returns the services whose bodies AOG hands on as they are, by its manifest (``--bodies full``).
    """

    def __init__(self, kernel: Awaitable[KernelApi], passed: Callable[[], Collection[str]] = frozenset) -> None:
        super().__init__(kernel)
        self._passed_by = passed
        self._passed: Collection[str] | None = None

    @property
    def passed(self) -> Collection[str]:
        """Services whose bodies AOG hands on as they are."""
        if self._passed is None:
            self._passed = self._passed_by()
        return self._passed

    # -- services --------------------------------------------------------------------------------------------------

    async def invoke(self, kernel: KernelApi, service: str, body: bytes, timeout: float | None) -> bytes:
        """Answer one request, with times as text."""
        # AOG may pick the row of the live service for a plain request (D1-19).
        if service not in kernel.services or kernel.service(service).definition.bidirectional:
            plain = service.removesuffix("-ws")
            service = plain if plain in kernel.services else service
        answer = await super().invoke(kernel, service, await self._addressed(kernel, service, body), timeout)
        if service in self.passed:
            answer = framing.with_embeddings(answer)
        return framing.reframe_answer(answer) if kernel.service(service).definition.streaming else answer

    async def stream(
        self, kernel: KernelApi, service: str, body: bytes, timeout: float | None
    ) -> AsyncGenerator[bytes, None]:
        """Yield the events that AOG understands, framed as it wants them."""
        body = await self._addressed(kernel, service, body)

        async with aclosing(kernel.stream(service, Request(body, timeout=timeout, caller="aog"))) as events:
            async for chunk in events:
                for data in framing.reframe_events(chunk):
                    # Without a conversion AOG takes the prefix away and puts none before (D1-35).
                    yield PREFIX.sub(b"data: data: ", data) if service in self.passed else data

    async def converse(
        self, kernel: KernelApi, service: str, inbound: AsyncIterator[Message]
    ) -> AsyncGenerator[Message, None]:
        """Hold a session that AOG never closes, and tell failures as events."""
        converse = super().converse
        session = hold_session(service, lambda messages: converse(kernel, service, messages), inbound, self.begin)
        async with aclosing(session) as messages:
            async for message in messages:
                yield message

    async def _addressed(self, kernel: KernelApi, service: str, body: bytes) -> bytes:
        """Return a request with the model that was loaded or used last in case it names none."""
        try:
            asked = msgspec.json.decode(body, type=Asked)
            if asked.model and asked.voice is None:
                return body  # nearly every request; the kernel decodes all of it
            fields = decode_request(body)
        except (BadRequest, msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            return body  # the kernel says what is wrong with it
        if isinstance(voice := fields.get("voice"), str) and voice in VOICES:
            del fields["voice"]
            body = payloads.write(fields)
        if not fields.get("model"):
            wanted = kernel.service(service).definition.model_type
            resident = [each for each in await kernel.resident_models() if each.model.model_type == wanted]
            if resident:
                latest = max(resident, key=lambda each: each.last_used)
                body = payloads.write(fields | {"model": latest.model.id})
        return body

    # -- models ----------------------------------------------------------------------------------------------------

    async def load_model(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:
        """Load a model, but never fail and never take minutes, as both block all of AOG for good (D1-15).

        A load that takes longer goes on; why one fails is the answer to the next request.
        """
        try:
            kernel, model = await self.kernel(), payloads.read_model(request.request_json)
            with anyio.move_on_after(LOAD_LIMIT) as limit:
                await kernel.load_model(model)
            if limit.cancelled_caught:
                log.info("LoadModel: %s is still loading after %g s", model, LOAD_LIMIT)
        except Exception as error:  # noqa: BLE001 - whatever it is
            self.told(error, "LoadModel")
        return pb.LoadModelResponse()

    async def unload_model(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        """Take it as a hint: AOG unloads models that are in use, and those of other engines (D1-17, D1-18)."""
        try:
            kernel = await self.kernel()
            await kernel.unload_models(payloads.read_models(request.request_json), hint=True)
        except Exception as error:  # noqa: BLE001 - AOG believes it unloaded in any case
            self.told(error, "UnloadModel")
        return pb.UnloadModelResponse()

    async def delete_model(self, request: pb.DeleteModelRequest, context: Context) -> pb.DeleteModelResponse:
        """Remove a model; AOG keeps its own entry for ever if one that is gone already were an error."""
        try:
            return await super().delete_model(request, context)
        except NotFound:
            return pb.DeleteModelResponse()

    async def pull(
        self, kernel: KernelApi, model: str, model_type: str, report: Callable[[Progress], None]
    ) -> LocalModel:
        """Pull a model; AOG asks for models of Ollama's if its user named none."""
        if ":" in model and "/" not in model:
            known = {name for each in kernel.services.values() for name in _models_of(each, model_type)}
            known_names = ", ".join(sorted(known)) or "OpenVINO/Qwen3-8B-int4-ov"
            raise NotFound(
                f"{model} is a name of Ollama's, whose models OpenVINO cannot run; name one such as {known_names}."
            )
        try:
            return await super().pull(kernel, model, model_type, report)
        except BadRequest as error:
            log.warning("PullModel %s: %s", model, error.message)
            raise

    async def pull_model_stream(self, request: pb.PullModelStreamRequest, context: Context) -> None:
        """Pull a model; errors are data, as AOG swallows codes here and would say "downloading" for ever (D1-26)."""
        try:
            await super().pull_model_stream(request, context)
        except Exception as error:  # noqa: BLE001 - told as data
            known = self.told(error, "PullModelStream")
            await context.write(pb.PullModelStreamResponse(data=framing.pull_failed(known.code, known.message)))
        await asyncio.sleep(LINGER)

    async def leave(self, pulling: asyncio.Task[None]) -> None:
        """Go on: AOG withdraws a pull when its client closes a window; the next one joins or finds it done."""


def _models_of(service: Service, model_type: str) -> tuple[str, ...]:
    definition = service.definition
    fits = not model_type or definition.model_type == model_type
    return (definition.default_model,) if fits and definition.default_model else ()
