"""KServe over gRPC, and the metrics page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest

from ovms_embedded.metrics import Metrics
from ovms_embedded.protos import ovms_kserve_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.engines.conftest import Engine


@pytest.fixture(scope="module")
def call(engine: Engine) -> Iterator[Callable[..., Any]]:
    with grpc.insecure_channel(f"127.0.0.1:{engine.grpc_port}") as channel:

        def made(method: str, **fields: Any) -> Any:
            described = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name[method]
            request = getattr(pb, described.input_type.name)
            response = getattr(pb, described.output_type.name)
            path = f"/inference.GRPCInferenceService/{method}"
            options = {"request_serializer": request.SerializeToString, "response_deserializer": response.FromString}
            if described.client_streaming:
                return list(channel.stream_stream(path, **options)(iter([request(**fields)]), timeout=20))
            return channel.unary_unary(path, **options)(request(**fields), timeout=20)

        yield made


def test_health_and_metadata(call: Callable[..., Any]) -> None:
    assert call("ServerLive").live
    assert call("ServerReady").ready
    assert call("ServerMetadata").name == "OpenVINO Model Server"
    assert call("ModelReady", name="embeddings").ready
    described = call("ModelMetadata", name="text_generation")
    assert (described.platform, list(described.versions)) == ("OpenVINO", ["1"])
    assert [(each.name, each.datatype) for each in described.inputs] == [("input", "INVALID")]


@pytest.mark.parametrize(
    ("method", "fields", "code"),
    [
        ("ModelReady", {"name": "nobody"}, grpc.StatusCode.NOT_FOUND),
        ("ModelMetadata", {"name": "nobody"}, grpc.StatusCode.NOT_FOUND),
        ("ModelInfer", {"model_name": "nobody"}, grpc.StatusCode.NOT_FOUND),
        ("ModelInfer", {"model_name": "embeddings"}, grpc.StatusCode.INVALID_ARGUMENT),
        ("ModelStreamInfer", {"model_name": "embeddings"}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_refusals(call: Callable[..., Any], method: str, fields: dict[str, str], code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(method, **fields)
    assert caught.value.code() is code


def test_failed_and_retired_graphs(
    make_engine: Callable[[], Engine], graph: Callable[..., str], fixtures: Path
) -> None:
    engine = make_engine().entry("bad", graph("embeddings", "nowhere"))
    engine.list("bad")
    engine.start().ready()
    with grpc.insecure_channel(f"127.0.0.1:{engine.grpc_port}") as channel:
        ready = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelReady",
            request_serializer=pb.ModelReadyRequest.SerializeToString,
            response_deserializer=pb.ModelReadyResponse.FromString,
        )
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        assert ready(pb.ModelReadyRequest(name="bad"), timeout=20).ready is False
        with pytest.raises(grpc.RpcError) as caught:
            infer(pb.ModelInferRequest(model_name="bad"), timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        engine.list()
        engine.http.post("/v1/config/reload")
        with pytest.raises(grpc.RpcError) as caught:
            infer(pb.ModelInferRequest(model_name="bad"), timeout=20)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert engine.http.get("/metrics").status_code == 400


def test_metrics_count_requests(engine: Engine) -> None:
    def value(line: str) -> int:
        found = [each for each in engine.http.get("/metrics").text.splitlines() if each.startswith(line)]
        return int(found[0].rsplit(" ", 1)[1]) if found else 0

    labels = '{api="V3",interface="REST",method="Unary",name="embeddings"}'
    success, fail = value(f"ovms_requests_success{labels}"), value(f"ovms_requests_fail{labels}")
    assert engine.post("/v3/embeddings", model="embeddings", input="a").status_code == 200
    assert engine.post("/v3/embeddings", model="embeddings", input=[]).status_code == 400
    assert value(f"ovms_requests_success{labels}") == success + 1
    assert value(f"ovms_requests_fail{labels}") == fail + 1
    times = [
        value(f"ovms_{name}_us_count{labels}") for name in ("request_time", "inference_time", "wait_for_infer_req_time")
    ]
    assert times[0] >= 2
    assert times == [times[0]] * 3
    taken = [value(f"ovms_{name}_us_sum{labels}") for name in ("inference_time", "request_time")]
    assert 0 < taken[0] <= taken[1]
    assert value('ovms_streams{name="embeddings"}') == 1
    assert engine.http.get("/metrics").headers["content-type"] == "text/plain"


def test_a_page_of_metrics_has_what_is_named_in_prometheus_format() -> None:
    metrics = Metrics(["ovms_infer_req_active", "ovms_inference_time_us", "ovms_responses"])
    metrics.set("ovms_infer_req_active", 'name="m"', 3)
    metrics.set("ovms_streams", 'name="m"', 1)
    for seconds in (0.00001, 0.000011, 9.0):
        metrics.time("ovms_inference_time_us", 'name="m"', seconds)
    lines = metrics.text().splitlines()
    assert "# TYPE ovms_infer_req_active gauge" in lines
    assert 'ovms_infer_req_active{name="m"} 3' in lines
    assert "# TYPE ovms_inference_time_us histogram" in lines
    buckets = [int(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("ovms_inference_time_us_bucket")]
    assert (buckets[:2], buckets[-2:], len(buckets)) == ([1, 2], [2, 3], 20)
    assert 'ovms_inference_time_us_sum{name="m"} 9000021' in lines
    assert not [line for line in lines if "ovms_streams" in line or "ovms_responses" in line]
