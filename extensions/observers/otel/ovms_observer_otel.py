"""OpenTelemetry traces: one span for each request, a child of the caller's if the caller sends its trace context.

Where spans go and what the service is called is set as for every OpenTelemetry program, by the variables of its
specification, such as ``OTEL_EXPORTER_OTLP_ENDPOINT`` and ``OTEL_SERVICE_NAME``. Attributes are of its conventions
for generative AI. No span has a prompt or an answer.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ovms_kernel.api.observers import hookimpl

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

    from ovms_kernel.api.observers import Call, Outcome

OPERATIONS = {"chat": "chat", "generate": "text_completion", "embed": "embeddings"}
"""``gen_ai.operation.name`` by service; others are called by the service's own name."""
CANCELLED = 499


class Otel:
    """Sends a span for each request.

    Nothing is sent while neither ``OTEL_EXPORTER_OTLP_ENDPOINT`` nor the one for traces is set.
    """

    def __init__(self, settings: Any) -> None:  # noqa: ANN401 - there are none of its own
        del settings
        self._spans: dict[str, Span] = {}
        wanted = any(os.environ.get(f"OTEL_EXPORTER_OTLP_{each}ENDPOINT") for each in ("", "TRACES_"))
        self._provider = _provider() if wanted else None

    @hookimpl
    async def ovms_before_request(self, call: Call) -> None:
        """Begin a span."""
        if self._provider is None:
            return
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        operation = OPERATIONS.get(call.service, call.service)
        attributes = {"gen_ai.operation.name": operation, "ovms_plugin.request.id": call.id}
        attributes |= {"gen_ai.request.model": call.model} if call.model else {}
        attributes |= {"ovms_plugin.caller": call.caller} if call.caller else {}
        self._spans[call.id] = self._provider.get_tracer("ovms-plugin").start_span(
            f"{operation} {call.model}".strip(),
            TraceContextTextMapPropagator().extract({"traceparent": call.trace}) if call.trace else None,
            SpanKind.SERVER,
            attributes,
        )

    @hookimpl
    async def ovms_request_finished(self, call: Call, outcome: Outcome) -> None:
        """End it."""
        span = self._spans.pop(call.id, None)
        if span is None:
            return
        from opentelemetry.trace import Status, StatusCode

        told: dict[str, str | float] = {"ovms_plugin.response.bytes": outcome.bytes_out}
        if outcome.model:
            told["gen_ai.response.model"] = outcome.model
        if outcome.first_byte is not None:
            told["ovms_plugin.response.first_byte"] = outcome.first_byte
        if outcome.prompt_tokens:
            told["gen_ai.usage.input_tokens"] = outcome.prompt_tokens
        if outcome.completion_tokens:
            told["gen_ai.usage.output_tokens"] = outcome.completion_tokens
        if outcome.code != 200:
            told["error.type"] = str(outcome.code)
        if outcome.code not in (200, CANCELLED):
            span.set_status(Status(StatusCode.ERROR))
        span.set_attributes(told)
        span.end()

    @hookimpl
    def ovms_kernel_stopping(self, reason: str) -> None:
        """Send what waits; in a thread of its own, as the receiver may be slow."""
        del reason
        if self._provider is not None:
            self._provider.force_flush(3000)


def _provider() -> TracerProvider:
    """Return what makes spans and sends them; its packages take a while to import, so only where they are wanted."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "ovms-plugin"}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
