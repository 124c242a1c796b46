"""Traces, received as a collector receives them."""

import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ovms_kernel.api.observers import Call, Outcome
from ovms_observer_otel import Otel

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A server that takes OTLP; the list of spans that it was sent."""
    spans: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            spans.extend(span for each in sent.resource_spans for scope in each.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_COMPRESSION", raising=False)
    yield spans
    server.shutdown()
    server.server_close()


async def test_a_request_is_a_span_of_its_callers_trace(collector: list[Any]) -> None:
    observer = Otel(None)
    fields = {"model": "tiny/chat", "messages": [{"role": "user", "content": "swordfish"}]}
    for trace, outcome in (
        (f"00-{TRACE}-{PARENT}-01", Outcome(200, 0.5, 100, "", 0.1, "tiny/chat", 7, 9)),
        ("", Outcome(404, 0.1, 0, "Model swordfish is not installed.")),
    ):
        call = Call(f"id-{outcome.code}", "chat", "tiny/chat", fields, caller="http", trace=trace)
        await observer.ovms_before_request(call)
        await observer.ovms_request_finished(call, outcome)
    observer.ovms_kernel_stopping("the test ends")
    first, second = collector
    assert first.name == "chat tiny/chat"
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (TRACE, PARENT)
    told = {each.key: each.value for each in first.attributes}
    assert told["gen_ai.usage.output_tokens"].int_value == 9
    assert told["gen_ai.response.model"].string_value == "tiny/chat"
    assert told["ovms_plugin.request.id"].string_value == "id-200"
    assert not second.parent_span_id
    assert second.status.code == 2
    assert "swordfish" not in str(collector)


async def test_without_an_endpoint_nothing_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    observer = Otel(None)
    call = Call("id", "chat", "", {})
    await observer.ovms_before_request(call)
    await observer.ovms_request_finished(call, Outcome(200, 0.1, 1))
    observer.ovms_kernel_stopping("the test ends")
