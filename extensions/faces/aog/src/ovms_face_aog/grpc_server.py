"""The server that answers a host's rpcs: grpc.aio's, or pygrpc-native's where it is installed, with the same methods.

pygrpc-native does HTTP/2 in Rust, outside of Python's lock, and takes about a tenth of grpc.aio's time for a call. It
hands methods whose requests are streams to a grpc.aio server behind it, over a socket of its own.
"""

from __future__ import annotations

import contextlib
import tempfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import grpc.aio
    from google.protobuf.descriptor import ServiceDescriptor

    Handlers = Mapping[str, grpc.RpcMethodHandler[Any, Any]]

OPTIONS = (
    # Images and audio exceed gRPC's 4 MiB; hosts of go-plugin have no limit either.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Otherwise a port that another plugin listens on seems to be free.
    ("grpc.so_reuseport", 0),
)


def new_server() -> grpc.aio.Server:
    """Return a server without methods and ports; add methods by ``add_registered_method_handlers``."""
    try:
        import pygrpc_native.aio
    except ImportError:
        import grpc.aio

        return grpc.aio.server(options=OPTIONS)
    server: grpc.aio.Server = pygrpc_native.aio.server(options=OPTIONS)
    return server


async def start(server: grpc.aio.Server, folder: Path | None) -> None:
    """Start a server that makes its socket, if it makes one, in a folder that outlives no plugin for long."""
    with _temporary_files_in(folder) if folder else contextlib.nullcontext():
        await server.start()


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def handlers_of(descriptor: ServiceDescriptor, methods: Mapping[str, Callable[..., Any]]) -> Handlers:
    """Return gRPC's handlers of a service whose requests are decoded before its methods see them."""
    import grpc
    from google.protobuf.message_factory import GetMessageClass

    handlers = {}
    for method in descriptor.methods:
        ways = ("stream" if method.client_streaming else "unary", "stream" if method.server_streaming else "unary")
        make = getattr(grpc, f"{ways[0]}_{ways[1]}_rpc_method_handler")
        handlers[method.name] = make(
            methods[method.name],
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
    return handlers
