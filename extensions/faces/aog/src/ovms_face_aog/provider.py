"""AOG's ``ProviderService`` over the kernel, a few lines for each rpc, as any host of it expects.

What only AOG itself needs is in :mod:`ovms_face_aog.habits`. Here and nowhere else errors become codes: gRPC's own
status stays OK, the answer carries ``code`` and ``message``.
"""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any, cast

from ovms_face_aog import payloads
from ovms_face_aog.goplugin import Undecodable, handler_of
from ovms_face_aog.manifest import manifest_of
from ovms_face_aog.shapes import invoke_shaped
from ovms_kernel.errors import BadRequest, NotSupported, OvmsError
from ovms_kernel.settings import refused_by_system
from ovms_kernel.values import Message, Progress, Request

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
    from pathlib import Path

    import grpc

    from ovms_kernel.api.faces import KernelApi
    from ovms_kernel.values import Answer, LocalModel

log = logging.getLogger(__name__)

Fields = dict[str, Any]
"""What a message of an answer is made of, by field."""

MODES = {"": "", "auto": "", "daemon": "", "standard": "", "cpu": "CPU", "gpu": "GPU"}
"""The modes of StartEngine and the device that each means for models that name none; AOG sends daemon or standard."""

PROGRESS_PERIOD = 0.1
"""Seconds between two reports of a pull."""


class Provider:
    """Answers the rpcs once the kernel is composed; until then they wait."""

    def __init__(self) -> None:
        self.passed: Collection[str] = ()
        """Services whose bodies the host hands on as they are, by the manifest that it reads (``--bodies full``)."""
        self.section: Mapping[str, Any] = {}
        """The face's settings, ``faces.aog``."""
        self._composed: asyncio.Future[KernelApi] = asyncio.get_running_loop().create_future()
        self._log_file: Path | None = None
        self._operate_status = 1
        """1 = normal, 0 = busy installing."""
        self._tasks: set[asyncio.Task[Any]] = set()

    def use(self, kernel: KernelApi, log_file: Path | None = None) -> None:
        """Begin to answer.

        :param log_file: what a user is pointed to when something unforeseen happens.
        """
        self._log_file = log_file
        self._composed.set_result(kernel)

    def fail(self, error: OvmsError) -> None:
        """Answer everything with this error, as there is no kernel."""
        self._composed.set_exception(error)
        self._composed.exception()  # nobody need ask for it

    async def kernel(self) -> KernelApi:
        """Return the kernel; a caller that gives up takes nothing with it."""
        return await asyncio.shield(self._composed)

    def handler(self) -> grpc.GenericRpcHandler:
        """Return gRPC's handler of all rpcs."""
        from google.protobuf.message_factory import GetMessageClass

        from ovms_face_aog.protos import aog_provider_pb2

        descriptor = aog_provider_pb2.DESCRIPTOR.services_by_name["ProviderService"]
        methods = {}
        for method in descriptor.methods:
            implementation = getattr(self, re.sub(r"\B([A-Z])", r"_\1", method.name).lower())
            guard = self._guard_stream if method.server_streaming else self._guard
            methods[method.name] = guard(implementation, GetMessageClass(method.output_type))
        return cast("grpc.GenericRpcHandler", handler_of(descriptor, methods, lenient=True))

    # -- errors become codes ---------------------------------------------------------------------------------------

    def _guard(self, method: Callable[..., Awaitable[Fields]], response: Any) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, context: Any) -> Any:
            try:
                return response(**await method(_decoded(request), context))
            except Exception as error:  # noqa: BLE001 - the last frame of ours
                problem = self.problem(error, method.__name__)
                return response(**problem) if "code" in response.DESCRIPTOR.fields_by_name else response()

        return call

    def _guard_stream(
        self,
        method: Callable[..., AsyncGenerator[Fields, None]],
        response: Any,
    ) -> Callable[..., AsyncGenerator[Any, None]]:
        async def call(request: Any, context: Any) -> AsyncGenerator[Any, None]:
            try:
                async with aclosing(method(_decoded(request), context)) as answers:
                    async for fields in answers:
                        yield response(**fields)
            except Exception as error:  # noqa: BLE001 - the last frame of ours
                yield response(**self.problem(error, method.__name__))

        return call

    def problem(self, error: Exception, where: str) -> Fields:
        """Return code and message for an error; the traceback of one that nobody foresaw goes to the log."""
        if isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
            return self.problem(error.exceptions[0], where)
        error = refused_by_system(error) or error
        if isinstance(error, OvmsError):
            log.info("%s: %d %s", where, error.code, error.message)
            return {"code": error.code, "message": error.message}
        from ovms_kernel.extensions import blame

        log.error("%s failed", where, exc_info=error)
        more = f"the log {self._log_file} tells more" if self._log_file else "the log tells more"
        return {"code": 500, "message": f"{blame(error)} ({type(error).__name__}); {more}."}

    # -- services --------------------------------------------------------------------------------------------------

    async def invoke_service(self, request: Any, context: Any) -> Fields:
        """Answer one request."""
        answer = await self.invoke(await self.kernel(), request.service_name, request.request_data, time_left(context))
        return {"response_data": answer}

    async def invoke_service_stream(self, request: Any, context: Any) -> AsyncGenerator[Fields, None]:
        """Answer one request piece by piece."""
        kernel = await self.kernel()
        stream = self.stream(kernel, request.service_name, request.request_data, time_left(context))
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                yield {"chunk_data": chunk}
        yield {"is_final": True}

    async def invoke_service_bidi(self, requests: AsyncIterator[Any], context: Any) -> AsyncGenerator[Fields, None]:
        """Hold a session of messages; the first of them names the service."""
        del context
        kernel = await self.kernel()
        first = await anext(requests, None)
        if first is None:
            return

        async def inbound() -> AsyncGenerator[Message, None]:
            yield _message(first)
            async for request in requests:
                yield _message(request)

        async with aclosing(self.converse(kernel, _decoded(first).service_name, inbound())) as messages:
            async for message in messages:
                yield {"data": message.data, "message_type": message.kind, "metadata": message.metadata}

    async def invoke(self, kernel: KernelApi, service: str, body: bytes, timeout: float | None) -> bytes:
        """Answer one request with one JSON object."""

        async def ask(asked: bytes) -> Answer:
            return await kernel.invoke(service, Request(asked, timeout=timeout, caller="aog", local_files=True))

        return await invoke_shaped(service, body, self.section, ask)

    def stream(
        self, kernel: KernelApi, service: str, body: bytes, timeout: float | None
    ) -> AsyncGenerator[bytes, None]:
        """Yield the server-sent events of one request."""
        return kernel.stream(service, Request(body, timeout=timeout, caller="aog"))

    def converse(
        self, kernel: KernelApi, service: str, inbound: AsyncIterator[Message]
    ) -> AsyncGenerator[Message, None]:
        """Yield what is answered in a session."""
        return kernel.converse(service, inbound)

    # -- the engine ------------------------------------------------------------------------------------------------

    async def get_manifest(self, request: Any, context: Any) -> Fields:
        """Tell what ``plugin.yaml`` tells."""
        return {"manifest_json": payloads.write(manifest_of((await self.kernel()).services).as_dict())}

    async def health_check(self, request: Any, context: Any) -> Fields:
        """Tell whether the engine answers."""
        await (await self.kernel()).health()
        return {}

    async def get_operate_status(self, request: Any, context: Any) -> Fields:
        """Tell whether the engine may be looked after (1) or is being installed (0)."""
        return {"status": self._operate_status}

    async def set_operate_status(self, request: Any, context: Any) -> Fields:
        """Set what ``GetOperateStatus`` tells."""
        self._operate_status = request.status
        return {}

    @contextmanager
    def _installing(self) -> Iterator[None]:
        """Have the host leave the engine alone meanwhile."""
        self._operate_status = 0
        try:
            yield
        finally:
            self._operate_status = 1

    async def start_engine(self, request: Any, context: Any) -> Fields:
        """Begin to start the engine."""
        if request.mode not in MODES:
            raise BadRequest(f"{request.mode!r} is no mode of the engine; use one of {', '.join(filter(None, MODES))}.")
        await (await self.kernel()).start_engine(MODES[request.mode])
        return {}

    async def stop_engine(self, request: Any, context: Any) -> Fields:
        """Stop the engine."""
        await (await self.kernel()).stop_engine("the host asked for it")
        return {}

    async def get_config(self, request: Any, context: Any) -> Fields:
        """Tell where the engine is."""
        kernel = await self.kernel()
        return {"config_json": payloads.write_config(await kernel.engine_status(), kernel.settings, kernel.host)}

    async def check_engine(self, request: Any, context: Any) -> Fields:
        """Tell whether an engine is installed."""
        return {"installed": await (await self.kernel()).check_engine()}

    async def install_engine(self, request: Any, context: Any) -> Fields:
        """Install the engine; the field ``cover`` is set by no host, and what is up to date stays."""
        kernel = await self.kernel()
        with self._installing():
            await kernel.install_engine()
        return {}

    async def init_env(self, request: Any, context: Any) -> Fields:
        """Make the folders and the engine's configuration."""
        await (await self.kernel()).init_environment()
        return {}

    async def upgrade_engine(self, request: Any, context: Any) -> Fields:
        """Bring the engine to the version that the settings ask for; up to date means that nothing happens."""
        kernel = await self.kernel()
        with self._installing():
            await kernel.upgrade_engine()
        return {}

    async def get_version(self, request: Any, context: Any) -> Fields:
        """Tell the engine's version."""
        return {"response_json": payloads.write({"version": await (await self.kernel()).engine_version()})}

    # -- models ----------------------------------------------------------------------------------------------------

    async def pull_model(self, request: Any, context: Any) -> Fields:
        """Pull a model and answer when it is here."""
        kernel, (model, model_type) = await self.kernel(), _pull_request(request, await self.kernel())
        await self.pull(kernel, model, model_type, lambda _: None)
        return {"response_json": payloads.write({"status": "success"})}

    async def pull_model_stream(self, request: Any, context: Any) -> AsyncGenerator[Fields, None]:
        """Pull a model and report on it; the work never waits for the host to read."""
        kernel, (model, model_type) = await self.kernel(), _pull_request(request, await self.kernel())
        latest = Progress("starting")

        def report(progress: Progress) -> None:
            nonlocal latest
            latest = progress

        pulling = asyncio.create_task(self.pull(kernel, model, model_type, report))
        told: Progress | None = None
        try:
            while not pulling.done():
                # That the library says success is not yet that the pull returned.
                if latest is not told and latest.status != "success":
                    told = latest
                    yield {"data": payloads.write_progress(told)}
                await asyncio.wait([pulling], timeout=PROGRESS_PERIOD)
        finally:
            await self.leave(pulling)
        done = pulling.result()
        yield {"data": payloads.write_progress(Progress("success", done.size, done.size, digest=done.digest))}

    async def pull(
        self, kernel: KernelApi, model: str, model_type: str, report: Callable[[Progress], None]
    ) -> LocalModel:
        """Pull a model."""
        return await kernel.pull_model(model, model_type=model_type, report=report)

    async def leave(self, pulling: asyncio.Task[Any]) -> None:
        """Do what is right with a pull that nobody listens to any more."""
        if not pulling.done():
            pulling.cancel()
            await asyncio.wait([pulling])

    async def delete_model(self, request: Any, context: Any) -> Fields:
        """Remove a model from disk."""
        await (await self.kernel()).delete_model(payloads.read_model(request.request_json))
        return {}

    async def list_models(self, request: Any, context: Any) -> Fields:
        """List the models on disk."""
        return {"response_json": payloads.write_models(await (await self.kernel()).list_models())}

    async def get_running_models(self, request: Any, context: Any) -> Fields:
        """List the models that the engine serves."""
        return {"response_json": payloads.write_models(await (await self.kernel()).running_models())}

    async def load_model(self, request: Any, context: Any) -> Fields:
        """Make the engine serve a model."""
        await (await self.kernel()).load_model(payloads.read_model(request.request_json))
        return {}

    async def unload_model(self, request: Any, context: Any) -> Fields:
        """Make the engine let go of models."""
        await (await self.kernel()).unload_models(payloads.read_models(request.request_json))
        return {}

    # -- what only providers of remote services have ---------------------------------------------------------------

    async def set_auth(self, request: Any, context: Any) -> Fields:
        """Refuse credentials: the engine is local and its key is our own."""
        raise NotSupported("This plugin runs its engine on this machine and takes no credentials; leave them out.")

    validate_auth = refresh_auth = set_auth


def time_left(context: Any) -> float | None:
    """Return the seconds that the caller gave, less what our own words about their end take to arrive."""
    left = context.time_remaining()
    return None if left is None else max(0.0, left - min(1.0, left * 0.2))


def _decoded(request: Any) -> Any:
    if request is Undecodable:
        raise BadRequest("The request is not the protobuf message that this rpc takes.")
    return request


def _message(request: Any) -> Message:
    _decoded(request)
    text = request.message_type == "text" or (not request.message_type and request.data[:1] == b"{")
    return Message(request.data, "text" if text else "binary", dict(request.metadata))


def _pull_request(request: Any, kernel: KernelApi) -> tuple[str, str]:
    fields = payloads.read_request(request.request_json)
    model_type = fields.get("model_type") or ""
    if not isinstance(model_type, str):
        raise BadRequest("The field model_type must be a text.")
    # AOG puts the service's name there.
    if service := kernel.services.get(model_type):
        model_type = service.definition.model_type
    return payloads.read_model(request.request_json), model_type
