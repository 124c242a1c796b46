"""The engine's gRPC as far as it is needed: whether it lives."""

import socket

import grpc
import grpc.aio
import pytest

from ovms_kernel.engine.client import EngineClient
from ovms_kernel.engine.protos import ovms_kserve_pb2 as kserve
from ovms_kernel.values import Endpoint


@pytest.fixture
async def served():
    said = {"live": False}

    async def live(request, context):
        return kserve.ServerLiveResponse(live=said["live"])

    server = grpc.aio.server()
    methods = {
        "ServerLive": grpc.unary_unary_rpc_method_handler(
            live,
            request_deserializer=kserve.ServerLiveRequest.FromString,
            response_serializer=kserve.ServerLiveResponse.SerializeToString,
        )
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield said, f"127.0.0.1:{port}"
    await server.stop(None)


async def test_what_grpc_says(served):
    said, target = served
    client = EngineClient(Endpoint("http://127.0.0.1:1", target))
    assert not await client.grpc_live()
    said["live"] = True
    assert await client.grpc_live()
    await client.aclose()


async def test_a_grpc_that_is_not_there_or_not_offered():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        client = EngineClient(Endpoint("http://127.0.0.1:1", f"127.0.0.1:{free.getsockname()[1]}"))
        assert not await client.grpc_live()
        await client.aclose()
    assert await EngineClient(Endpoint("http://127.0.0.1:1", "")).grpc_live()
