"""Several engines that somebody else runs, as one: each request goes to one that serves its model and has least to do.

A request that got no byte of an answer is sent to the next engine, as inference changes nothing: at worst two engines
work on it. One whose answer has begun breaks off with its engine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import msgspec
from msgspec.structs import replace

from ovms_kernel.engine.client import EngineClient, NotLoadedYet, NotServed
from ovms_kernel.errors import OvmsError, TimedOut, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from ovms_kernel.values import Answer, Endpoint, Upload

T = TypeVar("T")

REST = 5.0
"""Seconds for which an engine that failed is asked only if no other can be."""
ELSEWHERE = (Unavailable, NotServed, NotLoadedYet)
"""Errors after which the next engine may answer."""


class _Asked(msgspec.Struct):
    model: object = None


@dataclass(eq=False)
class _Member:
    client: EngineClient
    running: int = 0
    """Requests that it works on."""
    failed_at: float = -REST
    lacks: set[str] = field(default_factory=set)
    """Models that it does not serve."""


def connect_to(endpoint: Endpoint) -> EngineClient:
    """Return the connections to an endpoint, or to all of it and its others."""
    return EngineGroup(endpoint) if endpoint.others else EngineClient(endpoint)


class EngineGroup(EngineClient):
    """Connections to several endpoints; see :class:`EngineClient`."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self._members = [
            _Member(EngineClient(replace(endpoint, rest=rest, grpc="", others=())))
            for rest in (endpoint.rest, *endpoint.others)
        ]

    async def aclose(self) -> None:
        """Close all connections."""
        for each in self._members:
            await each.client.aclose()

    # -- requests of services --------------------------------------------------------------------------------------

    async def post(self, path: str, body: bytes, *, content_type: str = "application/json") -> Answer:
        """Send one request and return the whole answer."""
        return await self._sent(_model_in(body), lambda each: each.client.post(path, body, content_type=content_type))

    async def upload(self, path: str, fields: Mapping[str, str | list[str]], files: Mapping[str, Upload]) -> Answer:
        """Send one multipart request and return the whole answer."""
        return await self._sent(str(fields.get("model", "")), lambda each: each.client.upload(path, fields, files))

    async def stream(
        self, path: str, body: bytes, *, content_type: str = "application/json"
    ) -> AsyncGenerator[bytes, None]:
        """Send one request and yield its events as they arrive."""

        async def send(member: _Member) -> tuple[_Member, AsyncGenerator[bytes, None], bytes | None]:
            events = member.client.stream(path, body, content_type=content_type)
            return member, events, await anext(events, None)

        member, events, first = await self._sent(_model_in(body), send)
        member.running += 1
        try:
            if first is not None:
                yield first
            async for event in events:
                yield event
        finally:
            member.running -= 1
            await events.aclose()

    async def _sent(self, model: str, send: Callable[[_Member], Awaitable[T]]) -> T:
        left, error = list(self._members), None
        while left:
            member = min(left, key=partial(_preference, model, time.monotonic()))
            left.remove(member)
            member.running += 1
            try:
                return await send(member)
            except ELSEWHERE as failed:
                # What is wrong with an engine that was asked first says more than that others lack the model.
                error = error if isinstance(failed, NotServed) and error else failed
                if isinstance(failed, NotServed):
                    member.lacks.add(model)
                elif not isinstance(failed, NotLoadedYet):
                    member.failed_at = time.monotonic()
            finally:
                member.running -= 1
        raise error or Unavailable("No engine is named.")

    # -- health and models -----------------------------------------------------------------------------------------

    async def live(self) -> bool:
        """Tell whether one of them answers."""
        return True in await self._all(lambda each: each.client.live())

    async def server_ready(self) -> bool:
        """Tell whether one of them has looked at its whole configuration."""
        return True in await self._all(lambda each: each.client.server_ready())

    async def model_ready(self, name: str) -> bool:
        """Tell whether one of them serves a model.

        :raises OvmsError: none of those that answer serves it, and another one cannot be asked.
        """

        async def ask(member: _Member) -> bool:
            ready = await member.client.model_ready(name)
            (member.lacks.discard if ready else member.lacks.add)(name)
            return ready

        answers = await self._all(ask)
        for each in answers:
            if isinstance(each, OvmsError) and True not in answers:
                raise each
        return True in answers

    async def config(self) -> dict[str, Any]:
        """Return what they say of every servable; of one that several have, what the first says that serves it."""
        answers = await self._all(lambda each: each.client.config())
        found: dict[str, Any] = {}
        for answer in answers:
            if not isinstance(answer, OvmsError):
                found |= {name: entry for name, entry in answer.items() if name not in found or _serves(entry)}
        failures = [each for each in answers if isinstance(each, OvmsError)]
        if len(failures) == len(answers):
            raise failures[0]
        return found

    async def reload(self) -> dict[str, Any]:
        """Make all of them read their configuration again."""
        for each in self._members:
            await each.client.reload()
        return await self.config()

    async def grpc_live(self) -> bool:
        """Return true, as REST tells."""
        return True

    async def _all(self, ask: Callable[[_Member], Awaitable[T]]) -> list[T | OvmsError]:
        """Return the answer of each, or why it cannot be asked."""
        answers: dict[int, T | OvmsError] = {}

        async def one(number: int, member: _Member) -> None:
            try:
                answers[number] = await ask(member)
            except (Unavailable, TimedOut) as error:
                answers[number] = error

        async with anyio.create_task_group() as group:
            for number, each in enumerate(self._members):
                group.start_soon(one, number, each)
        return [answers[number] for number in sorted(answers)]


def _preference(model: str, now: float, member: _Member) -> tuple[bool, bool, int]:
    """Return what sorts engines for a request, the best first."""
    return now - member.failed_at < REST, model in member.lacks, member.running


def _model_in(body: bytes) -> str:
    try:
        model = msgspec.json.decode(body, type=_Asked).model
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""  # the engine says what is wrong with it
    return model if isinstance(model, str) else ""


def _serves(entry: object) -> bool:
    versions = entry.get("model_version_status") if isinstance(entry, dict) else None
    return any(each.get("state") == "AVAILABLE" for each in versions or () if isinstance(each, dict))
