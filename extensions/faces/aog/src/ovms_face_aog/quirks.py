"""ProviderService as AOG v0.7 needs it: what its queue, its converters and its clients would otherwise trip over.

Used when AOG is the host (``AOG_VERSION`` is set) and never otherwise. Numbers such as D1-15 are those of the traps in
docs/aog.md, each of which has a test.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from contextlib import aclosing, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from ovms_face_aog import framing, payloads
from ovms_face_aog.protos import aog_provider_pb2 as pb
from ovms_face_aog.provider import Provider
from ovms_face_aog.sessions import hold_session
from ovms_kernel.api.faces import BadRequest, NotFound, OvmsError, Request, decode_request

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterator

    from ovms_face_aog.rpcs import Context
    from ovms_kernel.api.faces import KernelApi, LocalModel, Message, Progress
    from ovms_kernel.api.services import Service

log = logging.getLogger(__name__)

LOAD_LIMIT = 200.0
"""Seconds after which LoadModel returns though the load goes on: AOG's only queue stands still till then (D1-15)."""
LINGER = 0.5
"""Seconds that a pull's stream stays open after its last message, or AOG may lose that (D1-26, D1-30)."""
RECENT = 60.0
"""Seconds without a request after which a model that AOG let go of is unloaded; it counts from the *load* (D1-17)."""
VOICES = frozenset({"male", "female", "girl", "baby"})
"""What AOG's clients must name as voice, whatever the model has; its own templates drop it."""


class AogProvider(Provider):
    """Answers AOG.

    :param passed: returns the services whose bodies AOG hands on as they are, by its manifest (``--bodies full``).
    """

    def __init__(self, kernel: Awaitable[KernelApi], passed: Callable[[], Collection[str]] = frozenset) -> None:
        super().__init__(kernel)
        self._passed_by = passed
        self._passed: Collection[str] | None = None
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, OvmsError] = {}
        self._last: dict[str, str] = {}
        self._in_use: Counter[str] = Counter()
        self._used: dict[str, float] = {}
        self._let_go: dict[str, asyncio.Task[None]] = {}

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
        body, model = self._addressed(kernel, service, body)
        with self._using(model):
            answer = await super().invoke(kernel, service, body, timeout)
        if service in self.passed:
            answer = framing.with_embeddings(answer)
        return framing.reframe_answer(answer) if kernel.service(service).definition.streaming else answer

    async def stream(
        self, kernel: KernelApi, service: str, body: bytes, timeout: float | None
    ) -> AsyncGenerator[bytes, None]:
        """Yield the events that AOG understands, framed as it wants them."""
        body, model = self._addressed(kernel, service, body)

        async def framed() -> AsyncGenerator[bytes, None]:
            async with aclosing(kernel.stream(service, Request(body, timeout=timeout, caller="aog"))) as events:
                async for event in events:
                    if data := framing.reframe_event(event):
                        # Without a conversion AOG takes the prefix away and puts none before (D1-35).
                        yield b"data: " + data if service in self.passed else data

        with self._using(model):
            async with aclosing(framed()) as events:
                async for event in events:
                    yield event

    async def converse(
        self, kernel: KernelApi, service: str, inbound: AsyncIterator[Message]
    ) -> AsyncGenerator[Message, None]:
        """Hold a session that AOG never closes, and tell failures as events."""
        converse = super().converse
        session = hold_session(service, lambda messages: converse(kernel, service, messages), inbound, self._using)
        async with aclosing(session) as messages:
            async for message in messages:
                yield message

    def _addressed(self, kernel: KernelApi, service: str, body: bytes) -> tuple[bytes, str]:
        """Return a request with the model that AOG loaded for it in case it names none, and the model's id.

        :raises OvmsError: the load of that model failed, which LoadModel could not tell.
        """
        try:
            fields = decode_request(body)
        except BadRequest:
            return body, ""  # the kernel says so, too
        if isinstance(voice := fields.get("voice"), str) and voice in VOICES:
            del fields["voice"]
            body = payloads.write(fields)
        model = fields.get("model")
        if not model:
            model = self._last.get(kernel.service(service).definition.model_type)
            if model:
                body = payloads.write(fields | {"model": model})
        if not isinstance(model, str):
            return body, ""
        if failure := self._failures.pop(model, None):
            raise failure
        return body, model

    @contextmanager
    def _using(self, model: str) -> Iterator[None]:
        """Keep a model from being unloaded meanwhile."""
        self._in_use[model] += 1
        try:
            yield
        finally:
            self._in_use[model] -= 1
            self._used[model] = time.monotonic()

    # -- models ----------------------------------------------------------------------------------------------------

    async def load_model(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:
        """Load a model, but never fail and never take minutes, as both block all of AOG for good (D1-15)."""
        try:
            kernel, model = await self.kernel(), payloads.read_model(request.request_json)
            self._let_go.pop(model, None)
            # The model is another one than before: now the memory of those that were let go is wanted.
            for other in list(self._let_go):
                await self._unload(kernel, other)
            if model not in self._loads:
                self._loads[model] = self.begin(lambda: self._load(kernel, model), "LoadModel")
            await asyncio.wait([self._loads[model]], timeout=LOAD_LIMIT)
        except Exception as error:  # noqa: BLE001 - whatever it is
            self.told(error, "LoadModel")
        return pb.LoadModelResponse()

    async def _load(self, kernel: KernelApi, model: str) -> None:
        try:
            loaded = await kernel.load_model(model)
            self._failures.pop(model, None)
            self._last[loaded.model_type] = loaded.id
            self._used[model] = time.monotonic()
        except OvmsError as error:
            log.warning("LoadModel %s: %s", model, error.message)
            self._failures[model] = error
        except Exception as error:  # noqa: BLE001 - the next request says it
            self._failures[model] = self.told(error, "LoadModel")
        finally:
            del self._loads[model]

    async def unload_model(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        """Take it as a hint: AOG unloads models that are in use, and those of other engines (D1-17, D1-18)."""
        try:
            kernel = await self.kernel()
            for model in payloads.read_models(request.request_json):
                if model not in self._let_go:
                    self._let_go[model] = self.begin(partial(self._unload_later, kernel, model), "UnloadModel")
        except Exception as error:  # noqa: BLE001 - AOG believes it unloaded in any case
            self.told(error, "UnloadModel")
        return pb.UnloadModelResponse()

    async def _unload_later(self, kernel: KernelApi, model: str) -> None:
        me = asyncio.current_task()
        while self._let_go.get(model) is me:
            left = RECENT - (time.monotonic() - self._used.get(model, 0.0))
            if left <= 0 and not self._in_use[model]:
                await self._unload(kernel, model)
                return
            await asyncio.sleep(max(left, 1.0))

    async def _unload(self, kernel: KernelApi, model: str) -> None:
        if self._in_use[model]:
            return
        self._let_go.pop(model, None)
        try:
            await kernel.unload_models([model], "the host unloads it")
        except Exception as error:  # noqa: BLE001 - nobody waits for it
            self.told(error, "UnloadModel")

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
