"""AOG's ProviderService over the kernel: a few lines for each rpc, and the only place that turns errors into codes.

An expected failure is a code and a sentence with gRPC's status OK; gRPC's own status is left to cancels and deadlines
(aog-plugin.md B8). Under AOG, its habits are met here; see ``habits.py``.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

import anyio
from google.protobuf import message_factory

from ovms_kernel.aog import habits, payloads
from ovms_kernel.aog.goplugin import handlers_of
from ovms_kernel.aog.protos import aog_provider_pb2 as pb
from ovms_kernel.errors import NotFound, NotSupported, OvmsError, TimedOut
from ovms_kernel.values import Message, Progress

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

    import grpc

    from ovms_kernel.kernel import Kernel

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["ProviderService"]
OK = 200
MARGIN = 1.0
"""Seconds before the caller's deadline at which our own sentence is sent, so that it wins over a bare status."""
REMOTE_ONLY = "This provider runs on this machine and takes no credentials."


class Provider:
    """The methods of ProviderService, by their names.

    :param kernel: the kernel, once it is composed; its error is every rpc's answer if it cannot be.
    :param under_aog: whether AOG is the host.
    """

    def __init__(self, kernel: asyncio.Future[Kernel], *, under_aog: bool) -> None:
        self._composed = kernel
        self._under_aog = under_aog

    def handler(self) -> grpc.GenericRpcHandler:
        """Return gRPC's handlers of the whole service."""
        return handlers_of(SERVICE, {each.name: self._guarded(each) for each in SERVICE.methods})

    # -- service invocation ----------------------------------------------------------------------------------------

    async def InvokeService(self, request: Any, context: Any) -> dict[str, Any]:
        """Answer one request."""
        kernel = await self._kernel()
        name = request.service_name
        if self._under_aog and name == "speech-to-text-ws":
            name = "speech-to-text"  # AOG may pick the other row of its table for a plain request (D1-19)
        answer = await kernel.invoke(name, request.request_data, timeout=_time_left(context))
        return {"response_data": habits.reframe_answer(answer) if self._under_aog else answer}

    async def InvokeServiceStream(self, request: Any, context: Any) -> AsyncIterator[dict[str, Any]]:
        """Answer one request piece by piece."""
        kernel = await self._kernel()
        chunks = kernel.stream(request.service_name, request.request_data, timeout=_time_left(context))
        async with aclosing(chunks):  # type: ignore[type-var]
            async for chunk in chunks:
                data = habits.reframe_event(chunk) if self._under_aog else chunk
                if data:
                    yield {"chunk_data": data}
        yield {"is_final": True}

    async def InvokeServiceBidi(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[dict[str, Any]]:
        """Hold a session."""
        kernel = await self._kernel()
        first = await anext(aiter(requests), None)
        if first is None:
            return
        task = first.metadata.get("ws_conn_id", "")
        messages = kernel.converse(first.service_name, self._inbound(first, requests))
        try:
            async with aclosing(messages):  # type: ignore[type-var]
                async for each in messages:
                    if not (self._under_aog and habits.is_task_started(each.data)):
                        yield {"data": each.data, "message_type": each.kind, "metadata": dict(each.metadata)}
        except OvmsError as error:
            if not self._under_aog:
                raise
            yield {"data": habits.session_failed(task, error), "message_type": "text"}

    async def _inbound(self, first: Any, requests: AsyncIterator[Any]) -> AsyncIterator[Message]:
        """Yield a session's messages; under AOG, which never closes one, until nothing came for long."""
        request = first
        while request is not None:
            kind = "binary" if request.message_type == "binary" else "text"
            yield Message(request.data, kind, dict(request.metadata))  # type: ignore[arg-type]
            request = None
            with anyio.move_on_after(habits.SESSION_IDLE if self._under_aog else None):
                request = await anext(requests, None)

    # -- the engine ------------------------------------------------------------------------------------------------

    async def GetManifest(self, request: Any, context: Any) -> dict[str, Any]:
        """Return ``plugin.yaml`` as JSON."""
        return {"manifest_json": payloads.write((await self._kernel()).manifest().as_dict())}

    async def HealthCheck(self, request: Any, context: Any) -> dict[str, Any]:
        """Return OK if the engine answers now."""
        await (await self._kernel()).health()
        return {}

    async def GetOperateStatus(self, request: Any, context: Any) -> dict[str, Any]:
        """Return 1, or 0 while the engine is being installed, so that AOG leaves it alone."""
        return {"status": (await self._kernel()).operate_status}

    async def SetOperateStatus(self, request: Any, context: Any) -> dict[str, Any]:
        """Set what the above returns."""
        (await self._kernel()).operate_status = request.status
        return {}

    async def CheckEngine(self, request: Any, context: Any) -> dict[str, Any]:
        """Return whether an engine is installed."""
        return {"installed": await (await self._kernel()).check_engine()}

    async def InstallEngine(self, request: Any, context: Any) -> dict[str, Any]:
        """Install an engine, or find that it is."""
        await (await self._kernel()).install_engine()
        return {}

    async def InitEnv(self, request: Any, context: Any) -> dict[str, Any]:
        """Make the folders and files that the engine needs."""
        await (await self._kernel()).init_environment()
        return {}

    async def StartEngine(self, request: Any, context: Any) -> dict[str, Any]:
        """Begin to start the engine; AOG's own start waits for this answer, so it does not wait for the engine."""
        await (await self._kernel()).start_engine(request.mode)
        return {}

    async def StopEngine(self, request: Any, context: Any) -> dict[str, Any]:
        """Stop the engine."""
        await (await self._kernel()).stop_engine("the host asked for it")
        return {}

    async def UpgradeEngine(self, request: Any, context: Any) -> dict[str, Any]:
        """Bring the engine to the version that the settings want; AOG asks after every start (D1-11)."""
        await (await self._kernel()).upgrade_engine()
        return {}

    async def GetConfig(self, request: Any, context: Any) -> dict[str, Any]:
        """Return AOG's EngineRecommendConfig."""
        return {"config_json": payloads.write((await self._kernel()).engine_config())}

    async def GetVersion(self, request: Any, context: Any) -> dict[str, Any]:
        """Return the engine's version."""
        return {"response_json": payloads.write({"version": await (await self._kernel()).engine_version()})}

    # -- credentials -----------------------------------------------------------------------------------------------

    async def SetAuth(self, request: Any, context: Any) -> dict[str, Any]:
        """Refuse; only remote providers have credentials."""
        raise NotSupported(REMOTE_ONLY)

    ValidateAuth = RefreshAuth = SetAuth

    # -- models ----------------------------------------------------------------------------------------------------

    async def PullModel(self, request: Any, context: Any) -> dict[str, Any]:
        """Fetch a model and return when it is here."""
        kernel = await self._kernel()
        wanted = payloads.read_request(request.request_json)
        model = payloads.read_model(request.request_json)
        await kernel.pull_model(model, model_type=_model_type(kernel, wanted))
        return {"response_json": payloads.write({"status": "success"})}

    async def PullModelStream(self, request: Any, context: Any) -> AsyncIterator[dict[str, Any]]:
        """Fetch a model and tell how far it is."""
        try:
            async with aclosing(self._pull(request)) as reports:
                async for report in reports:
                    yield {"data": payloads.write_progress(report)}
        except OvmsError as error:
            if not self._under_aog:
                raise
            yield {"data": habits.pull_failed(error)}
        if self._under_aog:
            await asyncio.sleep(habits.LINGER)

    async def _pull(self, request: Any) -> AsyncGenerator[Progress]:
        kernel = await self._kernel()
        model = payloads.read_model(request.request_json)
        model_type = _model_type(kernel, payloads.read_request(request.request_json))
        # Only the newest report matters: a host that reads slowly must not hold up the download.
        newest: asyncio.Queue[Progress] = asyncio.Queue(maxsize=1)

        def report(progress: Progress) -> None:
            if progress.status != "success":
                with suppress(asyncio.QueueEmpty):
                    newest.get_nowait()
                newest.put_nowait(progress)

        pull = asyncio.create_task(kernel.pull_model(model, model_type=model_type, report=report))
        try:
            while not pull.done():
                waiting = asyncio.create_task(newest.get())
                await asyncio.wait({pull, waiting}, return_when=asyncio.FIRST_COMPLETED)
                if waiting.done():
                    yield waiting.result()
                else:
                    waiting.cancel()
            found = pull.result()
            yield Progress("success", found.size, found.size, found.id, found.digest)
        finally:
            pull.cancel()
            with suppress(asyncio.CancelledError, OvmsError):
                await pull

    async def DeleteModel(self, request: Any, context: Any) -> dict[str, Any]:
        """Remove a model; one that is not there is removed already."""
        model = payloads.read_model(request.request_json)
        with suppress(NotFound):
            await (await self._kernel()).delete_model(model)
        return {}

    async def ListModels(self, request: Any, context: Any) -> dict[str, Any]:
        """Return the models on disk."""
        return {"response_json": payloads.write_models(await (await self._kernel()).list_models())}

    async def GetRunningModels(self, request: Any, context: Any) -> dict[str, Any]:
        """Return the models that the engine serves."""
        return {"response_json": payloads.write_models(await (await self._kernel()).running_models())}

    async def LoadModel(self, request: Any, context: Any) -> dict[str, Any]:
        """Make the engine serve a model.

        Under AOG it neither fails nor lasts, as either blocks all of AOG for minutes (D1-15): a load that takes longer
        goes on, and what it failed of is told by the next request for that model.
        """
        model = payloads.read_model(request.request_json)
        kernel = await self._kernel()
        if not self._under_aog:
            await kernel.load_model(model)
            return {}
        try:
            with anyio.move_on_after(habits.LOAD_LIMIT):
                await kernel.load_model(model)
        except OvmsError as error:
            log.error("LoadModel %s: %s", model, error.message)
        return {}

    async def UnloadModel(self, request: Any, context: Any) -> dict[str, Any]:
        """Make the engine let go of models; from AOG it is a hint that never fails (D1-17, D1-18)."""
        models = payloads.read_models(request.request_json)
        try:
            await (await self._kernel()).unload_models(models)
        except OvmsError as error:
            if not self._under_aog:
                raise
            log.warning("UnloadModel %s: %s", models, error.message)
        return {}

    # -- around all of them ----------------------------------------------------------------------------------------

    async def _kernel(self) -> Kernel:
        return await asyncio.shield(self._composed)

    def _guarded(self, method: Any) -> Callable[..., Any]:
        """Return a method that answers with a code whatever happens, and with messages instead of dictionaries."""
        function = getattr(self, method.name)
        response = message_factory.GetMessageClass(method.output_type)
        fields = response.DESCRIPTOR.fields_by_name

        def success(values: Mapping[str, Any]) -> Any:
            return response(**({"code": OK} if "code" in fields else {}), **values)

        def failure(error: Exception) -> Any:
            if not isinstance(error, OvmsError):
                log.error("%s failed", method.name, exc_info=error)
                error = OvmsError(
                    f"{method.name} failed unexpectedly ({type(error).__name__}); the plugin's log says why."
                )
            else:
                log.info("%s: %d %s", method.name, error.code, error.message)
            return response(code=error.code, message=error.message) if "code" in fields else response()

        async def unary(request: Any, context: Any) -> Any:
            try:
                return success(await function(request, context))
            except Exception as error:  # noqa: BLE001 - a host must get an answer
                return failure(error)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                async with aclosing(function(request, context)) as answers:
                    async for each in answers:
                        yield success(each)
            except Exception as error:  # noqa: BLE001 - likewise
                yield failure(error)

        return stream if method.server_streaming else unary


def _time_left(context: Any) -> float | None:
    """Return the seconds that the caller gives us, less what our own sentence needs to win; ``None`` = no limit."""
    left = context.time_remaining()
    if left is None:
        return None
    if left <= 0:
        raise TimedOut("The caller's deadline had passed before the request arrived.")
    return float(max(left - MARGIN, left / 2))


def _model_type(kernel: Kernel, request: Mapping[str, Any]) -> str:
    """Return the model type that a pull declares; AOG gives the name of the service that it pulls for."""
    declared = str(request.get("model_type") or "")
    if service := kernel.extensions.services.get(declared):
        return service.definition.model_type
    return declared
