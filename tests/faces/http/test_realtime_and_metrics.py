"""Live transcription over a websocket, metrics, and what else the address offers."""

import asyncio
import base64
import json
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from openai.types.realtime import RealtimeServerEvent
from prometheus_client.parser import text_string_to_metric_families
from pydantic import TypeAdapter

ASKED = [{"role": "user", "content": "What is OpenVINO?"}]


def pieces(path: Path) -> tuple[int, Iterator[str]]:
    """Return the rate of a recording and its events."""
    with wave.open(str(path)) as file:
        sound, rate = file.readframes(file.getnframes()), file.getframerate()
    parts = (sound[begin : begin + 6400] for begin in range(0, len(sound), 6400))
    return rate, (
        json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(part).decode()}) for part in parts
    )


async def test_a_session_transcribes_what_is_said_and_survives_a_mistake(server: Any, fixtures: Path) -> None:
    rate, sound = pieces(fixtures / "speech_to_text_samples" / "en_one_two_three.wav")
    address = server.url.replace("http", "ws") + "/v1/realtime?intent=transcription"
    transcription = {"model": "tiny/listener", "language": "en"}
    settings = {"input": {"format": {"type": "audio/pcm", "rate": rate}, "transcription": transcription}}
    told: list[dict[str, Any]] = []
    async with (
        asyncio.timeout(60),
        websockets.connect(address, additional_headers={"authorization": f"Bearer {server.key}"}, proxy=None) as socket,
    ):
        await socket.send("no JSON")
        await socket.send(json.dumps({"type": "no.such.event", "event_id": "e1"}))
        await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": "%%%"}))
        await socket.send(
            json.dumps({"type": "session.update", "session": {"type": "transcription", "audio": settings}})
        )
        for event in sound:
            await socket.send(event)
        await socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
        while "stop" not in "".join(each.get("transcript", "") for each in told):
            told.append(json.loads(await socket.recv()))
    for each in told:
        # OpenAI takes one rate of sound only, this server any.
        data = json.dumps(each).replace(f'"rate": {rate}', '"rate": 24000')
        TypeAdapter(RealtimeServerEvent).validate_json(data, strict=True)
    kinds = [each["type"] for each in told]
    assert kinds[0] == "session.created"
    assert kinds.count("error") == 3
    assert [each["error"]["event_id"] for each in told if each["type"] == "error"][1] == "e1"
    assert "session.updated" in kinds
    completed = [each for each in told if each["type"].endswith("transcription.completed")]
    assert " ".join(each["transcript"] for each in completed) == "one two three stop"
    for each in completed:
        deltas = [other["delta"] for other in told if other.get("item_id") == each["item_id"] and "delta" in other]
        assert each["transcript"].startswith("".join(deltas))


@pytest.mark.parametrize(
    ("headers", "status"), [({}, 401), ({"origin": "http://evil.example"}, 403)], ids=["no key", "foreign page"]
)
async def test_a_session_needs_what_a_request_needs(server: Any, headers: dict[str, str], status: int) -> None:
    key = {"authorization": f"Bearer {server.key}"} if headers else {}
    address = server.url.replace("http", "ws") + "/v1/realtime?intent=transcription"
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(address, additional_headers=key | headers, proxy=None)
    assert refused.value.response.status_code == status


def test_metrics_count_requests_tokens_and_models(client: httpx.Client) -> None:
    def counted() -> dict[str, float]:
        page = client.get("/metrics").text
        return {
            f"{sample.name} {' '.join(sorted(sample.labels.values()))}": sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
        }

    client.post("/v1/chat/completions", json={"model": "tiny/chat", "messages": ASKED})
    before = counted()
    client.post("/v1/chat/completions", json={"model": "tiny/chat", "messages": ASKED})
    for _ in range(3):
        client.post("/v1/chat/completions", json={"model": "invented/name", "messages": ASKED})
    after = counted()
    assert (
        after["ovms_plugin_requests_total 200 chat tiny/chat"]
        == before["ovms_plugin_requests_total 200 chat tiny/chat"] + 1
    )
    assert after["ovms_plugin_tokens_total out tiny/chat"] > before["ovms_plugin_tokens_total out tiny/chat"]
    assert after["ovms_plugin_model_loaded text_generation tiny/chat"] == 1
    assert after["ovms_plugin_requests_in_progress chat"] == 0
    assert after["ovms_plugin_engine_starts_total "] >= 1
    assert not [name for name in after if "invented" in name], "names that callers invent are no labels"


def test_the_document_lists_what_is_there(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.")
    for path, method in (
        ("/v1/chat/completions", "post"),
        ("/v1/messages", "post"),
        ("/api/chat", "post"),
        ("/metrics", "get"),
    ):
        assert method in document["paths"][path]


def test_tokens_and_voices(client: httpx.Client) -> None:
    for model in ("tiny/chat", "tiny/embeddings"):
        answer = client.post("/v1/tokenize", json={"model": model, "text": "a cat"})
        assert all(isinstance(each, int) for each in answer.json()["tokens"])
    assert client.post("/v1/tokenize", json={"model": "tiny/image", "text": "a cat"}).status_code == 400
    assert client.get("/v1/audio/voices").json()["voices"][0]["model"] == "tiny/speaker"


def test_jinas_documents_may_be_objects(client: httpx.Client) -> None:
    fields = {"model": "tiny/rerank", "query": "cat", "documents": [{"text": "a cat"}, "a car"], "top_n": 1}
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        assert len(client.post(path, json=fields | {"return_documents": True}).json()["results"]) == 1
