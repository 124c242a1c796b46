"""KServe over gRPC: health and metadata; graphs of generative HTTP endpoints take no inference requests."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# Workers are started by fork and exec at once, which needs no care of gRPC's; with it, it complains about every one.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
import grpc.aio

from ovms_embedded import SERVER_NAME, SERVER_VERSION
from ovms_embedded.protos import ovms_kserve_pb2 as pb
from ovms_embedded.servable import Servable, State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from google.protobuf.message import Message

    from ovms_embedded.manager import Manager

    Context = grpc.aio.ServicerContext[Any, Any]

MESSAGE_LIMIT = 1 << 30
OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.so_reuseport", 0),  # a busy port must be an error
)
UNKNOWN = "Model with requested name is not found"
REFUSAL = "This graph serves generative HTTP endpoints; it takes no KServe inference requests. Use POST /v3/…"


class Inference:
    """The methods of ``inference.GRPCInferenceService``."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    async def ServerLive(self, _: Message, __: Context) -> pb.ServerLiveResponse:  # noqa: N802 - rpc names
        """Say that there is a server."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, _: Message, __: Context) -> pb.ServerReadyResponse:  # noqa: N802
        """Say whether every entry of the configuration was tried."""
        return pb.ServerReadyResponse(ready=self._manager.first_pass_done)

    async def ServerMetadata(self, _: Message, __: Context) -> pb.ServerMetadataResponse:  # noqa: N802
        """Say who this is."""
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=SERVER_VERSION)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:  # noqa: N802
        """Say whether a servable takes requests."""
        servable = await self._find(request.name, context)
        return pb.ModelReadyResponse(ready=servable.state is State.AVAILABLE)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:  # noqa: N802
        """Describe a servable; a graph has streams instead of tensors."""
        servable = await self._available(request.name, context)
        graph = servable.graph
        answer = pb.ModelMetadataResponse(name=servable.name, versions=["1"], platform="OpenVINO")
        for name in graph.inputs if graph else ():
            answer.inputs.add(name=name, datatype="INVALID")
        for name in graph.outputs if graph else ():
            answer.outputs.add(name=name, datatype="INVALID")
        return answer

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:  # noqa: N802
        """Refuse."""
        await self._available(request.model_name, context)
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, REFUSAL)
        raise AssertionError

    async def ModelStreamInfer(self, requests: AsyncIterator[pb.ModelInferRequest], context: Context) -> None:  # noqa: N802
        """Refuse."""
        async for request in requests:
            await self._available(request.model_name, context)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, REFUSAL)
        await context.abort(grpc.StatusCode.UNKNOWN, "Unknown error")

    async def _find(self, name: str, context: Context) -> Servable:
        servable = self._manager.find(name)
        if servable is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, UNKNOWN)
            raise AssertionError
        return servable

    async def _available(self, name: str, context: Context) -> Servable:
        servable = await self._find(name, context)
        if servable.state is State.RETIRED:
            await context.abort(grpc.StatusCode.NOT_FOUND, "Mediapipe is retired")
        if servable.state is not State.AVAILABLE:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Servable is not loaded yet")
        return servable


async def start(manager: Manager, address: str, port: int) -> grpc.aio.Server:
    """Listen and serve.

    :raises RuntimeError: the port is taken.
    """
    server = grpc.aio.server(options=OPTIONS)
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    inference = Inference(manager)
    handlers = {}
    for method in service.methods:
        request = getattr(pb, method.input_type.name)
        response = getattr(pb, method.output_type.name)
        make = grpc.stream_stream_rpc_method_handler if method.client_streaming else grpc.unary_unary_rpc_method_handler
        handlers[method.name] = make(
            getattr(inference, method.name),
            request_deserializer=request.FromString,
            response_serializer=response.SerializeToString,
        )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    server.add_insecure_port(where)
    await server.start()
    return server
