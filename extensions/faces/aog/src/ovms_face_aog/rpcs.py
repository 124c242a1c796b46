"""From an rpc's bytes to a typed method and back; here and nowhere else errors become codes.

gRPC's own status stays OK: an answer carries ``code`` and ``message``, as AOG's SDK reads them.
"""

from __future__ import annotations

import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from ovms_kernel.api.faces import BadRequest, OvmsError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
    from pathlib import Path

log = logging.getLogger(__name__)

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Rpcs:
    """Makes gRPC's handlers of typed methods.

    :param told: turns an error, and where it happened, into code and sentence.
    """

    def __init__(self, told: Callable[[BaseException, str], OvmsError]) -> None:
        self._told = told

    def unary(
        self, request: type[Q], answer: type[A], method: Callable[[Q, Context], Awaitable[A]]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler of an rpc that takes and returns one message."""
        has_code = "code" in answer.DESCRIPTOR.fields_by_name

        async def call(raw: bytes, context: Context) -> Message:
            try:
                return await method(_parse(request, raw), context)
            except Exception as error:  # noqa: BLE001 - the last frame
                return self._failed(answer, error, method.__name__) if has_code else answer()

        return grpc.unary_unary_rpc_method_handler(call, None, _write)

    def stream(
        self, request: type[Q], answer: type[A], method: Callable[[Q, Context], Awaitable[None]]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler of an rpc that takes one message and writes its answers to the context."""

        async def call(raw: bytes, context: Context) -> None:
            try:
                await method(_parse(request, raw), context)
            except Exception as error:  # noqa: BLE001 - the last frame
                await context.write(self._failed(answer, error, method.__name__))

        return grpc.unary_stream_rpc_method_handler(call, None, _write)

    def session(
        self, request: type[Q], answer: type[A], method: Callable[[AsyncIterator[Q], Context], AsyncGenerator[A, None]]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler of an rpc of which both sides stream."""

        async def parsed(raw: AsyncIterator[bytes]) -> AsyncGenerator[Q, None]:
            async for each in raw:
                yield _parse(request, each)

        async def call(raw: AsyncIterator[bytes], context: Context) -> None:
            try:
                async with aclosing(method(parsed(raw), context)) as answers:
                    async for each in answers:
                        await context.write(each)
            except Exception as error:  # noqa: BLE001 - the last frame
                await context.write(self._failed(answer, error, method.__name__))

        return grpc.stream_stream_rpc_method_handler(call, None, _write)

    def _failed(self, answer: type[A], error: Exception, where: str) -> A:
        known = self._told(error, where)
        failed: Any = answer
        return failed(code=known.code, message=known.message)  # type: ignore[no-any-return]


def told(error: BaseException, where: str, log_file: Path | None = None) -> OvmsError:
    """Return an error as code and sentence, logged; the traceback of one that nobody foresaw goes to the log.

    :param log_file: what a user is pointed to then.
    """
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    from ovms_kernel.api.faces import blame, refused_by_system  # not before the handshake, which a host waits for

    known = error if isinstance(error, OvmsError) else refused_by_system(error)
    if known is not None:
        log.info("%s: %d %s", where, known.code, known.message)
        return known
    log.error("%s failed", where, exc_info=error)
    return OvmsError(f"{blame(error)} ({type(error).__name__}); the log {log_file or 'of the plugin'} has the details.")


def _parse(message: type[Q], raw: bytes) -> Q:
    try:
        return message.FromString(raw)
    except DecodeError as error:
        raise BadRequest("The request is not the protobuf message that this rpc takes.") from error


def _write(message: Message) -> bytes:
    return message.SerializeToString()
