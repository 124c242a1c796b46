"""AOG's ``ProviderService`` over the kernel, a few lines for each rpc, as any host of it expects.

What only AOG itself needs is in :mod:`ovms_face_aog.quirks`.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, NoReturn, Self

from ovms_face_aog import payloads, rpcs
from ovms_face_aog.manifest import manifest_of
from ovms_face_aog.protos import aog_provider_pb2 as pb
from ovms_face_aog.pulling import Pulling
from ovms_face_aog.settings import AogSettings
from ovms_face_aog.shapes import invoke_shaped
from ovms_kernel.api.faces import BadRequest, Message, NotSupported, Request

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
    from types import TracebackType

    from ovms_face_aog.grpc_server import Handlers
    from ovms_face_aog.rpcs import Context
    from ovms_kernel.api.faces import Answer, KernelApi, LocalModel, OvmsError, Progress

log = logging.getLogger(__name__)

MODES = {"": "", "auto": "", "daemon": "", "standard": "", "cpu": "CPU", "gpu": "GPU"}
"""The modes of StartEngine and the device that each means for models that name none; AOG sends daemon or standard."""
SERVICE = "protocol.ProviderService"
"""The full name of AOG's service."""
PROGRESS_PERIOD = 0.1
"""Seconds between two reports of a pull."""


class Provider:
    """Answers the rpcs once the kernel is composed; until then they wait.

    An async context manager, which owns the tasks that outlive the rpc that began them.

    :param kernel: without it every rpc is answered with the error that it raises.
    """

    def __init__(self, kernel: Awaitable[KernelApi]) -> None:
        self._awaited = kernel
        self._composing: asyncio.Future[KernelApi] | None = None
        self._kernel: KernelApi | None = None
        self._operate_status = 1
        """1 = normal, 0 = busy installing."""
        self.tasks = asyncio.TaskGroup()
        self._working: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        await self.tasks.__aexit__(kind, error, trace)

    def begin(self, work: Callable[[], Awaitable[object]], where: str) -> asyncio.Task[None]:
        """Do something that goes on when the rpc that began it has ended; its errors are logged."""

        async def guarded() -> None:
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - nobody waits for it
                self.told(error, where)

        task = self.tasks.create_task(guarded())
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        return task

    async def stop(self) -> None:
        """Cancel what goes on, and return when it has ended."""
        working = set(self._working)
        for each in working:
            each.cancel()
        if working:
            await asyncio.wait(working)

    async def kernel(self) -> KernelApi:
        """Return the kernel; a caller that gives up takes nothing with it."""
        if self._kernel is None:
            if self._composing is None:
                # No group may hold it, as it would cancel all that goes on when the kernel cannot be composed.
                self._composing = asyncio.ensure_future(self._awaited)  # noqa: TID251
            self._kernel = await asyncio.shield(self._composing)
        return self._kernel

    def told(self, error: BaseException, where: str) -> OvmsError:
        """Return an error as code and sentence; see :func:`ovms_face_aog.rpcs.told`."""
        return rpcs.told(error, where, self._kernel.settings.logs_dir / "plugin.log" if self._kernel else None)

    # -- services --------------------------------------------------------------------------------------------------

    async def invoke_service(self, request: pb.InvokeServiceRequest, context: Context) -> pb.InvokeServiceResponse:
        """Answer one request."""
        answer = await self.invoke(await self.kernel(), request.service_name, request.request_data, time_left(context))
        return pb.InvokeServiceResponse(response_data=answer)

    async def invoke_service_stream(self, request: pb.InvokeServiceRequest, context: Context) -> None:
        """Answer one request piece by piece; events that have arrived already share a message.

        While a host does not read, further ones arrive; beyond some, the engine has to wait.
        """
        events = self.stream(await self.kernel(), request.service_name, request.request_data, time_left(context))
        async with aclosing(events):
            async for data in events:
                await context.write(pb.InvokeServiceStreamResponse(chunk_data=data))
        await context.write(pb.InvokeServiceStreamResponse(is_final=True))

    async def invoke_service_bidi(
        self, requests: AsyncIterator[pb.InvokeServiceBidiRequest], context: Context
    ) -> AsyncGenerator[pb.InvokeServiceBidiResponse, None]:
        """Hold a session of messages; the first of them names the service."""
        del context
        kernel = await self.kernel()
        first = await anext(aiter(requests), None)
        if first is None:
            return

        async def inbound() -> AsyncGenerator[Message, None]:
            yield _message(first)
            async for request in requests:
                yield _message(request)

        async with aclosing(self.converse(kernel, first.service_name, inbound())) as messages:
            async for message in messages:
                yield pb.InvokeServiceBidiResponse(
                    data=message.data, message_type=message.kind, metadata=message.metadata
                )

    async def invoke(self, kernel: KernelApi, service: str, body: bytes, timeout: float | None) -> bytes:
        """Answer one request with one JSON object."""

        async def ask(asked: bytes) -> Answer:
            return await kernel.invoke(service, Request(asked, timeout=timeout, caller="aog", local_files=True))

        return await invoke_shaped(
            service, body, kernel.settings.read_section("faces", "aog", AogSettings).output_dir, ask
        )

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

    async def get_manifest(self, request: pb.GetManifestRequest, context: Context) -> pb.GetManifestResponse:
        """Return what ``plugin.yaml`` says, as JSON."""
        manifest = manifest_of((await self.kernel()).services)
        return pb.GetManifestResponse(manifest_json=payloads.write(manifest.as_dict()))

    async def health_check(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:
        """Return whether the engine answers."""
        await (await self.kernel()).health()
        return pb.HealthCheckResponse()

    async def get_operate_status(
        self, request: pb.GetOperateStatusRequest, context: Context
    ) -> pb.GetOperateStatusResponse:
        """Return whether the engine may be looked after (1) or is being installed (0)."""
        return pb.GetOperateStatusResponse(status=self._operate_status)

    async def set_operate_status(
        self, request: pb.SetOperateStatusRequest, context: Context
    ) -> pb.SetOperateStatusResponse:
        """Set what ``GetOperateStatus`` returns."""
        self._operate_status = request.status
        return pb.SetOperateStatusResponse()

    @contextmanager
    def _installing(self) -> Iterator[None]:
        """Have the host leave the engine alone meanwhile."""
        self._operate_status = 0
        try:
            yield
        finally:
            self._operate_status = 1

    async def start_engine(self, request: pb.StartEngineRequest, context: Context) -> pb.StartEngineResponse:
        """Begin to start the engine."""
        if request.mode not in MODES:
            raise BadRequest(
                f"{request.mode!r} is not a mode of the engine; use one of {', '.join(filter(None, MODES))}."
            )
        await (await self.kernel()).start_engine(MODES[request.mode])
        return pb.StartEngineResponse()

    async def stop_engine(self, request: pb.StopEngineRequest, context: Context) -> pb.StopEngineResponse:
        """Stop the engine."""
        await (await self.kernel()).stop_engine("the host asked for it")
        return pb.StopEngineResponse()

    async def get_config(self, request: pb.GetConfigRequest, context: Context) -> pb.GetConfigResponse:
        """Return where the engine is."""
        kernel = await self.kernel()
        return pb.GetConfigResponse(
            config_json=payloads.write_config(await kernel.engine_status(), kernel.settings, kernel.host)
        )

    async def check_engine(self, request: pb.CheckEngineRequest, context: Context) -> pb.CheckEngineResponse:
        """Return whether an engine is installed."""
        return pb.CheckEngineResponse(installed=await (await self.kernel()).check_engine())

    async def install_engine(self, request: pb.InstallEngineRequest, context: Context) -> pb.InstallEngineResponse:
        """Install the engine; the field ``cover`` is set by no host, and what is up to date stays."""
        kernel = await self.kernel()
        with self._installing():
            await kernel.install_engine()
        return pb.InstallEngineResponse()

    async def init_env(self, request: pb.InitEnvRequest, context: Context) -> pb.InitEnvResponse:
        """Make the folders and the engine's configuration."""
        await (await self.kernel()).init_environment()
        return pb.InitEnvResponse()

    async def upgrade_engine(self, request: pb.UpgradeEngineRequest, context: Context) -> pb.UpgradeEngineResponse:
        """Bring the engine to the version that the settings ask for; up to date means that nothing happens."""
        kernel = await self.kernel()
        with self._installing():
            await kernel.upgrade_engine()
        return pb.UpgradeEngineResponse()

    async def get_version(self, request: pb.GetVersionRequest, context: Context) -> pb.GetVersionResponse:
        """Return the engine's version."""
        version = await (await self.kernel()).engine_version()
        return pb.GetVersionResponse(response_json=payloads.write({"version": version}))

    # -- models ----------------------------------------------------------------------------------------------------

    async def pull_model(self, request: pb.PullModelRequest, context: Context) -> pb.PullModelResponse:
        """Pull a model and answer when it is here."""
        kernel = await self.kernel()
        model, model_type = payloads.read_pull(request.request_json, kernel.services)
        await self.pull(kernel, model, model_type, lambda _: None)
        return pb.PullModelResponse(response_json=payloads.write({"status": "success"}))

    async def pull_model_stream(self, request: pb.PullModelStreamRequest, context: Context) -> None:
        """Pull a model and report on it; the work never waits for the host to read."""
        kernel = await self.kernel()
        model, model_type = payloads.read_pull(request.request_json, kernel.services)
        pulling = Pulling()
        task = self.begin(lambda: pulling.run(self.pull(kernel, model, model_type, pulling.report)), "PullModelStream")
        try:
            while not task.done():
                if (progress := pulling.news()) is not None:
                    await context.write(pb.PullModelStreamResponse(data=payloads.write_progress(progress)))
                await asyncio.wait([task], timeout=PROGRESS_PERIOD)
        finally:
            await self.leave(task)
        await context.write(pb.PullModelStreamResponse(data=payloads.write_progress(pulling.done())))

    async def pull(
        self, kernel: KernelApi, model: str, model_type: str, report: Callable[[Progress], None]
    ) -> LocalModel:
        """Pull a model."""
        return await kernel.pull_model(model, model_type=model_type, report=report)

    async def leave(self, pulling: asyncio.Task[None]) -> None:
        """Do what is right with a pull that nobody listens to any more."""
        if not pulling.done():
            pulling.cancel()
            await asyncio.wait([pulling])

    async def delete_model(self, request: pb.DeleteModelRequest, context: Context) -> pb.DeleteModelResponse:
        """Remove a model from disk."""
        await (await self.kernel()).delete_model(payloads.read_model(request.request_json))
        return pb.DeleteModelResponse()

    async def list_models(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """List the models on disk."""
        return pb.ListModelsResponse(response_json=payloads.write_models(await (await self.kernel()).list_models()))

    async def get_running_models(
        self, request: pb.GetRunningModelsRequest, context: Context
    ) -> pb.GetRunningModelsResponse:
        """List the models that the engine serves."""
        models = await (await self.kernel()).running_models()
        return pb.GetRunningModelsResponse(response_json=payloads.write_models(models))

    async def load_model(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:
        """Make the engine serve a model."""
        await (await self.kernel()).load_model(payloads.read_model(request.request_json))
        return pb.LoadModelResponse()

    async def unload_model(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        """Unload models."""
        await (await self.kernel()).unload_models(payloads.read_models(request.request_json))
        return pb.UnloadModelResponse()

    # -- what only providers of remote services have ---------------------------------------------------------------

    async def no_credentials(
        self, request: pb.SetAuthRequest | pb.ValidateAuthRequest | pb.RefreshAuthRequest, context: Context
    ) -> NoReturn:
        """Refuse credentials: the engine is local and its key is the kernel's of."""
        raise NotSupported("This plugin runs its engine on this machine and takes no credentials; leave them out.")


def rpc_handlers(of: Provider) -> Handlers:
    """Return gRPC's handlers of all rpcs of a provider."""
    make = rpcs.Rpcs(of.told)
    unary, stream, session = make.unary, make.stream, make.session
    return {
        "GetManifest": unary(pb.GetManifestRequest, pb.GetManifestResponse, of.get_manifest),
        "InvokeService": unary(pb.InvokeServiceRequest, pb.InvokeServiceResponse, of.invoke_service),
        "InvokeServiceStream": stream(
            pb.InvokeServiceRequest, pb.InvokeServiceStreamResponse, of.invoke_service_stream
        ),
        "InvokeServiceBidi": session(pb.InvokeServiceBidiRequest, pb.InvokeServiceBidiResponse, of.invoke_service_bidi),
        "HealthCheck": unary(pb.HealthCheckRequest, pb.HealthCheckResponse, of.health_check),
        "GetOperateStatus": unary(pb.GetOperateStatusRequest, pb.GetOperateStatusResponse, of.get_operate_status),
        "SetOperateStatus": unary(pb.SetOperateStatusRequest, pb.SetOperateStatusResponse, of.set_operate_status),
        "SetAuth": unary(pb.SetAuthRequest, pb.SetAuthResponse, of.no_credentials),
        "ValidateAuth": unary(pb.ValidateAuthRequest, pb.ValidateAuthResponse, of.no_credentials),
        "RefreshAuth": unary(pb.RefreshAuthRequest, pb.RefreshAuthResponse, of.no_credentials),
        "StartEngine": unary(pb.StartEngineRequest, pb.StartEngineResponse, of.start_engine),
        "StopEngine": unary(pb.StopEngineRequest, pb.StopEngineResponse, of.stop_engine),
        "GetConfig": unary(pb.GetConfigRequest, pb.GetConfigResponse, of.get_config),
        "CheckEngine": unary(pb.CheckEngineRequest, pb.CheckEngineResponse, of.check_engine),
        "InstallEngine": unary(pb.InstallEngineRequest, pb.InstallEngineResponse, of.install_engine),
        "InitEnv": unary(pb.InitEnvRequest, pb.InitEnvResponse, of.init_env),
        "UpgradeEngine": unary(pb.UpgradeEngineRequest, pb.UpgradeEngineResponse, of.upgrade_engine),
        "PullModel": unary(pb.PullModelRequest, pb.PullModelResponse, of.pull_model),
        "PullModelStream": stream(pb.PullModelStreamRequest, pb.PullModelStreamResponse, of.pull_model_stream),
        "DeleteModel": unary(pb.DeleteModelRequest, pb.DeleteModelResponse, of.delete_model),
        "ListModels": unary(pb.ListModelsRequest, pb.ListModelsResponse, of.list_models),
        "LoadModel": unary(pb.LoadModelRequest, pb.LoadModelResponse, of.load_model),
        "UnloadModel": unary(pb.UnloadModelRequest, pb.UnloadModelResponse, of.unload_model),
        "GetRunningModels": unary(pb.GetRunningModelsRequest, pb.GetRunningModelsResponse, of.get_running_models),
        "GetVersion": unary(pb.GetVersionRequest, pb.GetVersionResponse, of.get_version),
    }


FOREVER = 1e9
"""Seconds that nobody waits."""


def time_left(context: Context) -> float | None:
    """Return the seconds that the caller gave, less what our own words about their end take to arrive."""
    left = context.time_remaining()
    # A call without a limit has none with grpc.aio, and 292 billion years with pygrpc-native.
    return None if left is None or left > FOREVER else max(0.0, left - min(1.0, left * 0.2))


def _message(request: pb.InvokeServiceBidiRequest) -> Message:
    text = request.message_type == "text" or (not request.message_type and request.data[:1] == b"{")
    return Message(request.data, "text" if text else "binary", dict(request.metadata))
