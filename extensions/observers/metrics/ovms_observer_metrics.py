"""Prometheus metrics: counted by an observer, shown at ``/metrics`` by a dialect of the HTTP face."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from ovms_kernel.api.observers import hookimpl

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

    from ovms_kernel.api.faces import KernelApi
    from ovms_kernel.api.observers import Call, EngineExit, EngineInfo, LoadedModel, LocalModel, Outcome

PREFIX = "ovms_plugin"
SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

registry = CollectorRegistry()
"""What this process counts: the observer and the page are made apart from each other."""


def _counter(name: str, told: str, *labels: str) -> Counter:
    return Counter(name, told, labels, namespace=PREFIX, registry=registry)


def _gauge(name: str, told: str, *labels: str) -> Gauge:
    return Gauge(name, told, labels, namespace=PREFIX, registry=registry)


def _histogram(name: str, told: str, *labels: str) -> Histogram:
    return Histogram(name, told, labels, namespace=PREFIX, registry=registry, buckets=SECONDS)


requests = _counter("requests", "Requests by outcome.", "service", "model", "code")
in_progress = _gauge("requests_in_progress", "Requests that are being answered.", "service")
seconds = _histogram("request_seconds", "Time from a request to the last byte of its answer.", "service", "model")
first_byte = _histogram(
    "first_byte_seconds", "Time from a request to the first byte of its answer.", "service", "model"
)
sent = _counter("sent_bytes", "Bytes of answers.", "service")
tokens = _counter("tokens", "Tokens that answers say were read (in) and written (out).", "model", "direction")
engine_starts = _counter("engine_starts", "Times that the engine came up.")
engine_exits = _counter("engine_exits", "Times that the engine ended.", "expected")
pulls = _counter("pulls", "Models that were pulled.")
loads = _counter("model_loads", "Loads of models by result.", "model", "result")
load_seconds = _histogram("model_load_seconds", "Time that loads took.", "model")
unloads = _counter("model_unloads", "Models that were unloaded.", "model")
loaded = _gauge("model_loaded", "1 for each model that is loaded.", "model", "type")
users = _gauge("model_users", "Requests that use a model now.", "model")
suspect = Gauge(
    "ovms_model_suspect", "1 for each model that answers nonsense on a device.", ["model", "device"], registry=registry
)
memory = _gauge("model_memory_bytes", "Memory that a model takes, as far as known.", "model")


@dataclass(frozen=True, slots=True)
class _Counts:
    """What is counted of one service and model; finding it by labels each time would cost more than counting."""

    seconds: Histogram
    first_byte: Histogram
    sent: Counter
    tokens_in: Counter
    tokens_out: Counter


@cache
def _counts(service: str, model: str) -> _Counts:
    # The model answered, so that this cannot grow with names that callers invent.
    return _Counts(
        seconds.labels(service, model),
        first_byte.labels(service, model),
        sent.labels(service),
        tokens.labels(model, "in"),
        tokens.labels(model, "out"),
    )


@cache
def _requests(service: str, model: str, code: int) -> Counter:
    return requests.labels(service, model, str(code))


@cache
def _in_progress(service: str) -> Gauge:
    return in_progress.labels(service)


class Metrics:
    """Counts what happens.

    The name of a model is a label only if that model answered, so that names that callers invent cost no memory.
    """

    def __init__(self) -> None:
        self._running: set[str] = set()

    # Coroutine functions, as others run in threads of their own, which would cost more than the counting.

    @hookimpl
    async def ovms_before_request(self, call: Call) -> None:
        """Count it as being answered."""
        self._running.add(call.id)
        _in_progress(call.service).inc()

    @hookimpl
    async def ovms_request_finished(self, call: Call, outcome: Outcome) -> None:
        """Count its outcome."""
        if call.id in self._running:  # what another observer vetoed was not counted
            self._running.remove(call.id)
            _in_progress(call.service).dec()
        counts = _counts(call.service, outcome.model)
        _requests(call.service, outcome.model, outcome.code).inc()
        counts.seconds.observe(outcome.seconds)
        counts.sent.inc(outcome.bytes_out)
        if outcome.first_byte is not None:
            counts.first_byte.observe(outcome.first_byte)
        if outcome.prompt_tokens:
            counts.tokens_in.inc(outcome.prompt_tokens)
        if outcome.completion_tokens:
            counts.tokens_out.inc(outcome.completion_tokens)

    @hookimpl
    async def ovms_engine_ready(self, engine: EngineInfo) -> None:
        """Count a start."""
        del engine
        engine_starts.inc()

    @hookimpl
    async def ovms_engine_exited(self, exit: EngineExit) -> None:  # noqa: A002 - the event's own word
        """Count an end."""
        engine_exits.labels(str(exit.expected).lower()).inc()

    @hookimpl
    async def ovms_pulled(self, model: LocalModel) -> None:
        """Count a pull."""
        del model
        pulls.inc()

    @hookimpl
    async def ovms_model_ready(self, model: LoadedModel) -> None:
        """Count a load."""
        loads.labels(model.model.id, "ok").inc()
        load_seconds.labels(model.model.id).observe(model.seconds)

    @hookimpl
    async def ovms_model_suspect(self, model: LocalModel, device: str) -> None:
        """Show it until this process ends."""
        suspect.labels(model.id, device).set(1)

    @hookimpl
    async def ovms_load_failed(self, model: LocalModel) -> None:
        """Count a load that failed."""
        loads.labels(model.id, "failed").inc()

    @hookimpl
    async def ovms_unloaded(self, model: LocalModel) -> None:
        """Count it."""
        unloads.labels(model.id).inc()


class MetricsPage:
    """The dialect that shows the metrics."""

    name = "metrics"

    def routes(self, kernel: KernelApi) -> list[BaseRoute]:
        """Return ``/metrics``."""
        # The observer is in processes that serve no HTTP too.
        from starlette.responses import Response
        from starlette.routing import Route

        async def page(request: Request) -> Response:
            del request
            await _look(kernel)
            return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

        return [Route("/metrics", page, methods=["GET"])]

    def error(self, status: int, message: str, code: str) -> dict[str, Any]:
        """Return the body of an error."""
        del status
        return {"error": {"message": message, "code": code}}


async def _look(kernel: KernelApi) -> None:
    """Set the gauges of what is loaded now."""
    for gauge in (loaded, users, memory):
        gauge.clear()
    for each in await kernel.resident_models():
        if each.state == "loaded":
            loaded.labels(each.model.id, each.model.model_type).set(1)
            users.labels(each.model.id).set(each.users)
            memory.labels(each.model.id).set(each.memory)
