"""A go-plugin whose InvokeService does nothing: what an rpc costs with the server that the plugin uses."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health_pb2

from ovms_face_aog.grpc_server import new_server, start
from ovms_face_aog.protos import aog_provider_pb2

ANSWER: bytes = aog_provider_pb2.InvokeServiceResponse(response_data=b'{"choices":[]}').SerializeToString()


async def invoke(_request: bytes, _context: object) -> bytes:
    return ANSWER


async def check(_request: bytes, _context: object) -> bytes:
    return bytes(health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString())


async def main() -> None:
    ended = asyncio.Event()

    async def shut_down(_request: bytes, _context: object) -> bytes:
        ended.set()
        return b""

    methods: dict[str, dict[str, Any]] = {
        "protocol.ProviderService": {"InvokeService": invoke},
        "grpc.health.v1.Health": {"Check": check},
        "plugin.GRPCController": {"Shutdown": shut_down},
    }
    server = new_server()
    for service, each in methods.items():
        handlers: dict[str, Any] = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in each.items()}
        server.add_registered_method_handlers(service, handlers)
    with tempfile.TemporaryDirectory(prefix="ovms-") as folder:
        server.add_insecure_port(f"unix:{folder}/grpc")
        await start(server, Path(folder))
        os.write(1, f"1|1|unix|{folder}/grpc|grpc|\n".encode())
        await ended.wait()
        await server.stop(0.2)


if __name__ == "__main__":
    uvloop.run(main())
