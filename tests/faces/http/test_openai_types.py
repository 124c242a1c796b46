"""Every kind of answer, strictly against the types of OpenAI's own package: plain answers, every event, every error."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types import Completion, CreateEmbeddingResponse, ImagesResponse, Model
from openai.types.audio import Transcription, TranscriptionStreamEvent, TranscriptionVerbose, Translation
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.shared import ErrorObject
from pydantic import TypeAdapter

ASKED = [{"role": "user", "content": "What is OpenVINO?"}]
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]
UNFINISHED, FINISHED = '"finish_reason":null', '"finish_reason":"stop"'
SMALL = {"size": "64x64", "num_inference_steps": 2}
PLAIN = [
    (ChatCompletion, "chat/completions", {"model": "tiny/chat", "messages": ASKED}),
    (ChatCompletion, "chat/completions", {"model": "tiny/chat", "messages": ASKED, "n": 2, "logprobs": True}),
    (ChatCompletion, "chat/completions", {"model": "tiny/chat", "messages": ASKED, "max_completion_tokens": 3}),
    (ChatCompletion, "chat/completions", {"model": "tiny/chat", "messages": ASKED, "tools": TOOLS}),
    (Completion, "completions", {"model": "tiny/chat", "prompt": ["The capital of France is", "Count"]}),
    (Response, "responses", {"model": "tiny/chat", "input": "What is OpenVINO?", "instructions": "Be brief."}),
    (Response, "responses", {"model": "tiny/chat", "input": "What is OpenVINO?", "max_output_tokens": 3}),
    (CreateEmbeddingResponse, "embeddings", {"model": "tiny/embeddings", "input": ["one", "two"]}),
    (ImagesResponse, "images/generations", {"model": "tiny/image", "prompt": "a cat", "n": 2} | SMALL),
]
STREAMED = [
    (ChatCompletionChunk, "chat/completions", {"model": "tiny/chat", "messages": ASKED}),
    (
        ChatCompletionChunk,
        "chat/completions",
        {"model": "tiny/chat", "messages": ASKED, "logprobs": True, "stream_options": {"include_usage": True}},
    ),
    (ChatCompletionChunk, "chat/completions", {"model": "tiny/chat", "messages": ASKED, "n": 2}),
    (Completion, "completions", {"model": "tiny/chat", "prompt": ["The capital of France is", "Count"]}),
    (ResponseStreamEvent, "responses", {"model": "tiny/chat", "input": "What is OpenVINO?"}),
    (ResponseStreamEvent, "responses", {"model": "tiny/chat", "input": "What is OpenVINO?", "max_output_tokens": 3}),
]


def valid(kind: Any, text: str) -> Any:
    return TypeAdapter(kind).validate_json(text, strict=True)


def events_of(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if line.startswith("data:") and (data := line.removeprefix("data:").strip()) != "[DONE]":
            yield data


@pytest.mark.parametrize(("kind", "path", "fields"), PLAIN)
def test_a_plain_answer(client: httpx.Client, kind: Any, path: str, fields: dict[str, Any]) -> None:
    answer = client.post(f"/v1/{path}", json=fields)
    assert answer.status_code == 200, answer.text
    made = valid(kind, answer.text)
    if isinstance(made, Response) and "max_output_tokens" in fields:
        assert made.incomplete_details
        assert (made.status, made.incomplete_details.reason) == ("incomplete", "max_output_tokens")


@pytest.mark.parametrize(("kind", "path", "fields"), STREAMED)
def test_every_event_of_a_stream(client: httpx.Client, kind: Any, path: str, fields: dict[str, Any]) -> None:
    answer = client.post(f"/v1/{path}", json=fields | {"stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    # OpenAI's own completions have no reason to finish before they do, against the package's type.
    made = [
        valid(kind, data.replace(UNFINISHED, FINISHED) if kind is Completion else data)
        for data in events_of(answer.text)
    ]
    assert len(made) > 3
    if path == "responses":
        assert [each.sequence_number for each in made] == list(range(len(made)))
        assert made[-1].type == ("response.incomplete" if "max_output_tokens" in fields else "response.completed")
    else:
        assert len({each.id for each in made}) == 1


@pytest.mark.parametrize(
    ("path", "form", "kind"),
    [
        ("transcriptions", {}, Transcription),
        ("transcriptions", {"response_format": "verbose_json"}, TranscriptionVerbose),
        ("translations", {}, Translation),
        ("transcriptions", {"stream": "true"}, TranscriptionStreamEvent),
    ],
)  # fmt: skip
def test_what_is_heard(client: httpx.Client, fixtures: Path, path: str, form: dict[str, str], kind: Any) -> None:
    sound = (fixtures / "speech_to_text_samples" / "en_one_two_three.wav").read_bytes()
    fields = {"model": "tiny/listener", "language": "en"} | form
    answer = client.post(f"/v1/audio/{path}", data=fields, files={"file": ("a.wav", sound, "audio/wav")})
    assert answer.status_code == 200, answer.text
    if "stream" in form:
        assert [valid(kind, data) for data in events_of(answer.text)][-1].text
    else:
        assert valid(kind, answer.text).text


def test_a_list_of_models(client: httpx.Client) -> None:
    for each in client.get("/v1/models").json()["data"]:
        valid(Model, json.dumps(each))


@pytest.mark.parametrize(
    ("method", "path", "fields"),
    [
        ("POST", "/v1/chat/completions", {"model": "no/such", "messages": ASKED}),
        ("POST", "/v1/chat/completions", {"model": "tiny/chat"}),
        ("POST", "/v1/responses", {"model": "tiny/chat"}),
        ("POST", "/v1/responses", {"model": "tiny/chat", "input": "x", "previous_response_id": "resp_none"}),
        ("POST", "/v1/responses", {"model": "tiny/chat", "input": "x", "background": True}),
        ("GET", "/v1/models/no/such", None),
        ("GET", "/v1/responses/resp_none", None),
        ("GET", "/v1/responses/resp_none/input_items", None),
        ("POST", "/v1/completions", {"model": "tiny/chat", "prompt": "a", "suffix": "b"}),
        ("POST", "/v1/moderations", {"input": "x"}),
    ],
)
def test_an_error(client: httpx.Client, method: str, path: str, fields: Any) -> None:
    answer = client.request(method, path, json=fields)
    assert answer.status_code in (400, 404)
    valid(ErrorObject, json.dumps(answer.json()["error"]))


def test_a_conversation_goes_on_and_belongs_to_its_key(client: httpx.Client) -> None:
    first = client.post("/v1/responses", json={"model": "tiny/chat", "input": "My name is Alice."}).json()
    assert client.get(f"/v1/responses/{first['id']}").json() == first
    fields = {"model": "tiny/chat", "input": "What is OpenVINO?", "previous_response_id": first["id"]}
    second = client.post("/v1/responses", json=fields).json()
    assert second["usage"]["input_tokens"] > first["usage"]["total_tokens"], "the model saw what was said before"
    assert client.delete(f"/v1/responses/{first['id']}").json()["deleted"] is True
    assert client.post("/v1/responses", json=fields).status_code == 404
    unkept = client.post("/v1/responses", json={"model": "tiny/chat", "input": "x", "store": False}).json()
    assert client.get(f"/v1/responses/{unkept['id']}").status_code == 404


def test_what_no_model_here_can_do_is_skipped_with_a_warning(client: httpx.Client) -> None:
    fields = {
        "model": "tiny/chat",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "What is OpenVINO?"}]}],
        "tools": [{"type": "web_search"}, {"type": "namespace", "name": "x", "tools": []}],
        "tool_choice": "auto",
    }
    answer = client.post("/v1/responses", json=fields)
    assert answer.status_code == 200
    assert "web_search" in answer.headers["warning"]
    assert "namespace" in answer.headers["warning"]


def test_allowed_tools_are_those_of_the_request(client: httpx.Client) -> None:
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "one"}]}
    tools = [{"type": "function", "name": name, "parameters": {"type": "object"}} for name in ("one", "two")]
    fields = {"model": "tiny/chat", "input": "Hi", "max_output_tokens": 1, "tool_choice": choice}
    assert client.post("/v1/responses", json=fields | {"tools": tools}).status_code == 200
    refused = client.post("/v1/responses", json=fields | {"tools": tools[1:]})
    assert refused.status_code == 400
    assert "one, which is not in tools" in refused.json()["error"]["message"]


def test_the_form_of_an_answer_is_kept(client: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"color": {"enum": ["red", "green"]}}, "required": ["color"]}
    form = {"type": "json_schema", "name": "choice", "schema": schema}
    answer = client.post("/v1/responses", json={"model": "tiny/chat", "input": "Choose.", "text": {"format": form}})
    made = valid(Response, answer.text)
    assert json.loads(made.output_text)["color"] in ("red", "green")
