"""Bad requests to every endpoint: no status that is not specified, no hang, no dead process.

300 to each, and 20 for each of its fields, unless the environment variable ``OVMS_FUZZ_REQUESTS`` says a number.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import random
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engines.conftest import Engine

REQUESTS = int(os.environ.get("OVMS_FUZZ_REQUESTS", "0"))
NAMED = {200, 400, 404, 412}
"""What part E names for these; 500 is only for a broken multipart body."""

JUNK: list[Any] = [
    None, True, False, 0, -1, 1, 2, 1.5, -0.5, 1e308, 2**31, 2**32, 2**64, -(2**63), "", " ", "a", "0", "-1",
    10**4000, -(10**4000),
    "1e9",
    "\x00", "😀", "￿", "x" * 3000, [], [None], [[]], [[1], ["a"]], [0], [-1], [1.5], ["a", 1], ["a", ["b"]],
    [True],
    {}, {"type": "text"}, {"name": {}}, {"role": "user"}, {"a": {"b": [2**70, {}]}}, [{"role": "user"}],
    [{"role": 1, "content": []}], [{"role": "user", "content": [{"type": "image_url"}]}],
    [{"type": "function"}], {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}},
    {"type": "json_schema"}, {"include_usage": 1}, {"effort": "max"}, "auto", "64x64", "0x0", "7x7", "99999x99999",
]  # fmt: skip
DEEP = b"[" * 200 + b"]" * 200

CHAT = "model messages stream stream_options max_tokens max_completion_tokens ignore_eos temperature top_p min_p top_k"
SAMPLING = (
    "frequency_penalty presence_penalty repetition_penalty length_penalty seed stop include_stop_str_in_output best_of"
    " n num_assistant_tokens assistant_confidence_threshold max_ngram_size skip_special_tokens modalities audio"
    " chunk_frames"
)
TOOLS = "tools tool_choice logprobs top_logprobs logit_bias response_format chat_template_kwargs user"
IMAGES = (
    "model prompt prompt_2 negative_prompt size width height n num_images_per_prompt num_inference_steps strength"
    " guidance_scale rng_seed max_sequence_length response_format lora_alphas quality stream mask"
)
ENDPOINTS: dict[str, tuple[dict[str, Any], str]] = {
    "chat/completions": (
        {"model": "text_generation", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1},
        f"{CHAT} {SAMPLING} {TOOLS}",
    ),
    "completions": (
        {"model": "text_generation", "prompt": "1, 2,", "max_tokens": 1},
        f"model prompt echo logprobs stream stream_options max_tokens temperature top_p top_k {SAMPLING}",
    ),
    "responses": (
        {"model": "text_generation", "input": "Hi", "max_output_tokens": 1},
        f"model input max_output_tokens stream stream_options reasoning temperature {SAMPLING} {TOOLS}",
    ),
    "embeddings": ({"model": "embeddings", "input": "a"}, "model input encoding_format dimensions max_length user"),
    "rerank": (
        {"model": "rerank", "query": "a", "documents": ["b"]},
        "model query documents top_n return_documents rank_fields max_chunks_per_doc",
    ),
    "tokenize": (
        {"model": "embeddings", "text": "a"},
        "model text max_length pad_to_max_length add_special_tokens padding_side",
    ),
    # Width and height of the base are refused by the library itself, so that no time is spent on pictures.
    "images/generations": ({"model": "image_generation", "prompt": "a", "size": "65x65"}, IMAGES),
    # A voice that does not exist, for the same reason.
    "audio/speech": (
        {"model": "text_to_speech", "input": "a", "voice": "nobody"},
        "model input language speed stream_format response_format",
    ),
}
FORMS = {
    "images/edits": ({"model": "image_generation", "prompt": "a", "size": "65x65", "image": b"no image"}, IMAGES),
    "audio/transcriptions": (
        {"model": "speech_to_text", "file": b"no sound"},
        "model language temperature timestamp_granularities[] stream response_format prompt",
    ),
    "audio/translations": ({"model": "speech_to_text", "file": b"no sound"}, "model language temperature stream"),
}


class Client:
    """One connection that is kept, as 20 000 new ones take longer than the requests."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def post(self, path: str, body: bytes, content_type: str = "application/json") -> tuple[int, bytes]:
        self._connection.request("POST", f"/v3/{path}", body, {"Content-Type": content_type})
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[Client]:
    made = Client(engine.port)
    yield made
    made.close()


def check(status: int, body: bytes, named: set[int], wrong: object = None) -> None:
    assert status in named, (status, body, wrong)
    if status != 200:
        error = json.loads(body)
        assert list(error) == ["error"]
        assert isinstance(error["error"], str)
        assert len(error["error"]) > 10
        # What a client reads is a sentence, without a traceback and without paths of the library's build machine.
        assert "Traceback" not in error["error"]
        assert "/jenkins/" not in error["error"]


def mutations(names: str) -> Iterator[dict[str, Any]]:
    """Yield what is wrong with each request: a field is junk, and in every second request another one too.

    A field meets all of the junk before any meets it again, in an order that is always the same.
    """
    order = random.Random(names)
    fields = names.split()
    decks = {name: itertools.cycle(order.sample(JUNK, len(JUNK))) for name in fields}
    for at in range(REQUESTS or max(300, 20 * len(fields))):
        name = fields[at % len(fields)]
        also = {order.choice(fields): order.choice(JUNK)} if at // len(fields) % 2 else {}
        yield also | {name: next(decks[name])}


@pytest.mark.parametrize("path", ENDPOINTS)
def test_json_endpoints(client: Client, path: str) -> None:
    base, names = ENDPOINTS[path]
    for each in mutations(names):
        status, body = client.post(path, json.dumps(base | each).encode())
        check(status, body, NAMED, each)


@pytest.mark.parametrize("path", FORMS)
def test_form_endpoints(client: Client, path: str) -> None:
    base, names = FORMS[path]

    def form(fields: dict[str, Any]) -> bytes:
        parts = []
        for name, value in fields.items():
            for each in value if isinstance(value, list) else [value]:
                file = b'; filename="a"' if isinstance(each, bytes) else b""
                data = each if isinstance(each, bytes) else str(each).encode("utf-8", "replace")
                parts.append(
                    b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (name.encode(), file, data)
                )
        return b"".join(parts) + b"--x--\r\n"

    for each in mutations(names):
        status, body = client.post(path, form(base | each), "multipart/form-data; boundary=x")
        check(status, body, NAMED - {200}, each)


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", "application/json", 412),
        (b"{", "application/json", 412),
        (b"[]", "application/json", 412),
        (b"\xff", "application/json", 412),
        (b'{"model": NaN}', "application/json", 412),
        (b'{"model":"text_generation","messages":' + DEEP + b"}", "application/json", 412),
        (b'{"model":"text_generation","messages":' + b"[" * 100000, "application/json", 412),
        (b'{"messages":[]}', "application/json", 412),
        (b'{"model":1}', "application/json", 412),
        (b'{"model":"text_generation","stream":null}', "application/json", 412),
        (b'{"model":"nobody"}', "application/json", 404),
        (b"x", "text/plain", 404),
        (b"x", "multipart/form-data", 500),
        (b"x", "multipart/form-data; boundary=y", 500),
    ],
)
def test_bodies_that_are_no_request(client: Client, body: bytes, content_type: str, status: int) -> None:
    got, answer = client.post("chat/completions", body, content_type)
    check(got, answer, {status})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 400), ("GET", "/v2/../v1/config", 400), ("GET", "/v3/chat/completions", 406),
        ("POST", "/v2/health/live", 406), ("PUT", "/v1/config", 406), ("DELETE", "/v3/models", 406),
        ("GET", "/v2/models/nobody", 404), ("GET", "/v3/models/nobody", 500), ("OPTIONS", "/anything", 200),
        ("POST", "/v2/models/embeddings/infer", 400), ("GET", "/v2/models/embeddings/versions/2/ready", 404),
    ],
)  # fmt: skip
def test_paths_and_methods(engine: Engine, method: str, path: str, status: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=30)
    connection.request(method, path, b"{}" if method == "POST" else None)
    answer = connection.getresponse()
    assert answer.status == status
    assert status == 200 or len(json.loads(answer.read())["error"]) > 10
    connection.close()


def test_a_body_beyond_the_limit_is_refused_before_it_is_sent(engine: Engine) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=30)
    connection.putrequest("POST", "/v3/chat/completions")
    connection.putheader("Content-Length", str(2**31))
    connection.endheaders(b"{")
    assert connection.getresponse().status == 413
    connection.close()
