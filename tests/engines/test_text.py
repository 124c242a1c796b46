"""Text generation beyond what the openai client asks for: parameters, cancellation, overload, errors."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import httpx

    from tests.engines.conftest import Engine

PREFIX = (
    "Mediapipe execution failed. MP status - INVALID_ARGUMENT: CalculatorGraph::Run() failed: \n"
    'Calculator::Process() for node "Executor" failed: '
)
CHAT = "/v3/chat/completions"


def chat(engine: Engine, question: str = "Count to five", **fields: Any) -> httpx.Response:
    asked = {"model": "text_generation", "temperature": 0, "messages": [{"role": "user", "content": question}]}
    return engine.post(CHAT, **asked | fields)


def content(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def test_answers_have_the_shape_of_ovms(engine: Engine) -> None:
    answer = chat(engine).json()
    assert set(answer) == {"choices", "created", "model", "object", "usage"}
    assert answer["choices"] == [
        {
            "finish_reason": "stop",
            "index": 0,
            "logprobs": None,
            "message": {"content": "1, 2, 3, 4, 5.", "role": "assistant", "tool_calls": []},
        }
    ]
    for prefix in ("/v1/", "/v3/v1/"):
        asked = {"model": "text_generation", "prompt": "The capital of France is", "temperature": 0}
        assert engine.post(f"{prefix}completions", **asked).json()["choices"][0]["text"] == " Paris."


def test_frames_of_a_stream(engine: Engine) -> None:
    answer = chat(engine, stream=True)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    *frames, end = answer.text.split("\n\n")
    assert end == ""
    assert frames[-1] == "data: [DONE]"
    chunks = [json.loads(each.removeprefix("data: ")) for each in frames[:-1]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert all(each["object"] == "chat.completion.chunk" and "usage" not in each for each in chunks)
    assert "".join(each["choices"][0]["delta"].get("content") or "" for each in chunks) == "1, 2, 3, 4, 5."


def test_parameters_do_what_they_say(engine: Engine) -> None:
    assert content(chat(engine, stop="3")) == "1, 2, "
    assert content(chat(engine, stop=["4", "3"], include_stop_str_in_output=True)) == "1, 2, 3"
    cut = chat(engine, max_completion_tokens=5, max_tokens=1).json()
    assert (cut["choices"][0]["finish_reason"], cut["usage"]["completion_tokens"]) == ("length", 5)
    assert chat(engine, ignore_eos=True, max_tokens=60).json()["usage"]["completion_tokens"] == 60
    # Past the end of its answer the tiny model is sure of nothing, so every draw shows.
    loose = {"temperature": 2.0, "top_k": -1, "ignore_eos": True, "max_tokens": 60}
    hot = [content(chat(engine, "How do I bake a cake?", seed=seed, **loose)) for seed in (1, 1, 2, 3, 4)]
    assert hot[0] == hot[1]
    assert len(set(hot)) > 1
    free = [content(chat(engine, "How do I bake a cake?", **loose)) for _ in range(5)]
    assert len(set(free)) > 1
    beams = chat(engine, n=2, best_of=3).json()["choices"]
    assert [each["index"] for each in beams] == [0, 1]
    assert beams[0]["message"]["content"] == "1, 2, 3, 4, 5."
    (first, *_) = chat(engine, logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert (first["token"], first["bytes"]) == ("1", [49])
    assert -1 < first["logprob"] < 0
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert json.loads(content(chat(engine, response_format=form, max_tokens=1000)))["a"] in (1, 2)
    # A schema that cannot be used is dropped, and harms nobody.
    bad = {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}
    assert content(chat(engine, response_format=bad)) == "1, 2, 3, 4, 5."
    bare = chat(engine, chat_template_kwargs={"add_generation_prompt": False}, max_tokens=5).json()
    assert bare["usage"]["prompt_tokens"] < cut["usage"]["prompt_tokens"]
    raw = content(chat(engine, skip_special_tokens=False))
    assert raw.startswith("1, 2, 3, 4, 5.")


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"min_p": 1}, "min_p"),
        ({"n": 2}, "best_of"),
        ({"best_of": 20}, "best_of"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ""}, "empty string"),
        ({"stream": True, "logprobs": True}, "logprobs"),
        ({"stream": True, "include_stop_str_in_output": False}, "include_stop_str_in_output"),
        ({"stream_options": {"include_usage": True}}, "stream"),
        ({"tool_choice": "never"}, "tool_choice"),
        ({"messages": []}, "empty"),
        ({"max_tokens": 5000}, "exceeds model max length"),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, "exceeds model max length"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "text input"),
    ],
)
def test_refusals_carry_the_calculators_prefix(engine: Engine, fields: dict[str, Any], part: str) -> None:
    answer = chat(engine, **fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error.startswith(PREFIX)
    assert part in error.removeprefix(PREFIX)


def test_the_wrong_graph_for_a_path(engine: Engine) -> None:
    answer = engine.post(CHAT, model="embeddings", messages=[])
    assert answer.status_code == 400
    assert "/v3/embeddings" in answer.json()["error"]


def test_limits_of_the_other_graphs(engine: Engine) -> None:
    long = engine.post("/v3/embeddings", model="embeddings", input="cat " * 600)
    assert long.status_code == 400
    assert "longer than allowed 512" in long.json()["error"]
    tokens = engine.post("/v3/tokenize", model="embeddings", text="a kitten").json()["tokens"]
    one, other = (engine.post("/v3/embeddings", model="embeddings", input=each).json() for each in ("a kitten", tokens))
    assert one == other
    assert one["usage"] == {"prompt_tokens": len(tokens), "total_tokens": len(tokens)}
    ask = {"model": "rerank", "query": "What is OpenVINO?"}
    assert engine.post("/v3/rerank", **ask, documents=["x"] * 51).status_code == 400
    buried = "The cat sat on the mat. " * 200 + "OpenVINO is a toolkit for running AI models on Intel hardware."
    documents = ["Bananas are yellow.", buried, "The cat sat on the mat."]
    ranked = engine.post("/v3/rerank", **ask, documents=documents, top_n=2, return_documents=True).json()["results"]
    assert ranked[0]["index"] == 1
    assert len(ranked) == 2
    assert ranked[0]["document"]["text"] == buried
    assert 1 >= ranked[0]["relevance_score"] > ranked[1]["relevance_score"] >= 0


def test_tokens_beyond_the_vocabulary_are_refused(engine: Engine, fixtures: Path) -> None:
    size = json.loads((fixtures / "embeddings" / "config.json").read_text())["vocab_size"]

    def embed(tokens: Any) -> httpx.Response:
        return engine.post("/v3/embeddings", model="embeddings", input=tokens)

    assert embed([size - 1]).status_code == 200
    for tokens, wrong in (([size], size), ([[5], [5, 100257]], 100257), ([2147483647], 2147483647)):
        answer = embed(tokens)
        assert answer.status_code == 400
        assert f"Token {wrong} is not in the vocabulary of this model, which has {size}" in answer.json()["error"]


def test_vectors_are_as_short_as_the_client_asks(engine: Engine) -> None:
    def embed(**fields: Any) -> httpx.Response:
        return engine.post("/v3/embeddings", model="embeddings", input=["a cat", "a dog"], **fields)

    whole = embed().json()["data"][1]["embedding"]
    short = embed(dimensions=16).json()["data"][1]["embedding"]
    assert len(short) == 16
    assert sum(each * each for each in short) == pytest.approx(1, abs=1e-5)
    assert short[0] / short[5] == pytest.approx(whole[0] / whole[5], rel=1e-3)
    assert embed(dimensions=len(whole)).json()["data"][1]["embedding"] == whole
    assert len(embed(dimensions=16, encoding_format="base64").json()["data"][0]["embedding"]) == 88
    for wrong in (len(whole) + 1, 0, -1, "8", 1.5, True):
        answer = embed(dimensions=wrong)
        assert answer.status_code == 400
        assert "dimensions" in answer.json()["error"]


def test_texts_are_cut_to_the_tokens_that_the_client_asks_for(engine: Engine) -> None:
    def embed(given: Any, **fields: Any) -> httpx.Response:
        return engine.post("/v3/embeddings", model="embeddings", input=given, **fields)

    long = "the cat sat on the mat and looked at the birds " * 200
    assert embed(long).status_code == 400, "it is longer than the model's window"
    answers = [embed(text, max_length=8) for text in (long, " ".join(long.split()[:40]))]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert [answer.json()["usage"]["prompt_tokens"] for answer in answers] == [8, 8]
    assert answers[0].json()["data"] == answers[1].json()["data"]
    assert embed([[7, 8, 9, 10]], max_length=3).json()["usage"]["prompt_tokens"] == 3
    for wrong in (0, -1, "8", 1.5, True, 1 << 31):
        answer = embed("a", max_length=wrong)
        assert answer.status_code == 400
        assert "max_length" in answer.json()["error"]
    assert "special tokens" in embed("a", max_length=1).json()["error"]


@pytest.mark.parametrize("cut", ["cat \\ud83d", "\\ude00 cat", "\\ud83d\\ud83d\\ude00"])
def test_half_a_character_is_replaced(engine: Engine, cut: str) -> None:
    headers = {"content-type": "application/json"}
    for path, body in (
        (
            CHAT,
            f'{{"model": "text_generation", "max_tokens": 3, "messages": [{{"role": "user", "content": "{cut}"}}]}}',
        ),
        ("/v3/embeddings", f'{{"model": "embeddings", "input": "{cut}"}}'),
        ("/v3/tokenize", f'{{"model": "embeddings", "text": "{cut}"}}'),
    ):
        assert engine.http.post(path, content=body.encode(), headers=headers).status_code == 200


def test_tokens_fit_into_a_length_or_are_refused(engine: Engine) -> None:
    def tokenize(**fields: Any) -> httpx.Response:
        return engine.post("/v3/tokenize", model="embeddings", **fields)

    assert len(tokenize(text="a kitten", max_length=2).json()["tokens"]) == 2
    assert len(tokenize(text="a kitten", max_length=1, add_special_tokens=False).json()["tokens"]) == 1
    short = tokenize(text="a kitten", max_length=1)  # the library crashes where special tokens do not fit
    assert short.status_code == 400
    assert "at least 2" in short.json()["error"]
    assert tokenize(text="", add_special_tokens=False).json() == {"tokens": []}
    assert tokenize(text=["", "a"], add_special_tokens=False).json()["tokens"][0] == []


def test_huge_batches_are_cut_and_give_the_same(engine: Engine) -> None:
    texts = [f"cat number {number} " * (1 + number % 20) for number in range(600)]
    wanted = {number: engine.post("/v3/embeddings", model="embeddings", input=texts[number]) for number in (0, 19, 599)}
    answer = engine.post("/v3/embeddings", model="embeddings", input=texts).json()
    assert [each["index"] for each in answer["data"]] == list(range(600))
    for number, one in wanted.items():
        assert answer["data"][number]["embedding"] == pytest.approx(one.json()["data"][0]["embedding"], abs=1e-4)


def test_a_thousand_clients_that_drop_leave_nothing_running(engine: Engine) -> None:
    body = json.dumps(
        {
            "model": "text_generation", "prompt": "1, 2, 3,", "stream": True, "ignore_eos": True, "max_tokens": 2000,
            "temperature": 0,
        }
    ).encode()  # fmt: skip
    head = "POST /v3/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"

    async def drop(number: int, gate: asyncio.Semaphore) -> None:
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
            writer.write(head.encode() + body[: -1 if number % 5 == 0 else None])
            if number % 5 == 1:
                await writer.drain()
            elif number % 5 > 1:
                await reader.read(1 + 200 * (number % 5))
            writer.transport.abort()

    async def run() -> None:
        gate = asyncio.Semaphore(50)
        await asyncio.gather(*(drop(number, gate) for number in range(1000)))

    asyncio.run(run())
    assert engine.wait_until_idle("text_generation") < 5
    began = time.monotonic()
    assert content(chat(engine)) == "1, 2, 3, 4, 5."
    assert time.monotonic() - began < 2


def test_a_closed_connection_frees_its_slot(
    make_engine: Callable[[], Engine], graph: Callable[..., str], fixtures: Path
) -> None:
    engine = make_engine()
    engine.entry("llm", graph("text_generation", fixtures / "text_generation", "max_num_seqs: 1"))
    engine.list("llm")
    engine.start("--metrics_enable").ready()
    endless = {"model": "llm", "prompt": "1, 2, 3,", "ignore_eos": True, "max_tokens": 2000, "temperature": 0}
    short = {"model": "llm", "prompt": "The capital of France is", "temperature": 0}
    with engine.http.stream("POST", "/v3/completions", json=endless | {"stream": True}) as answer:
        next(answer.iter_lines())
    began = time.monotonic()
    assert engine.post("/v3/completions", **short).json()["choices"][0]["text"] == " Paris."
    freed = time.monotonic() - began
    began = time.monotonic()
    engine.post("/v3/completions", **endless)
    assert freed < (time.monotonic() - began) / 2
    # A unary client that goes away frees its slot, too.
    with socket.create_connection(("127.0.0.1", engine.port)) as client:
        body = json.dumps(endless).encode()
        client.sendall(b"POST /v3/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n")
        client.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        while not engine.running("llm"):
            pass
    assert engine.wait_until_idle("llm") < 1


def test_a_full_queue_answers_503_with_retry_after(
    make_engine: Callable[[], Engine], graph: Callable[..., str], fixtures: Path
) -> None:
    engine = make_engine()
    engine.entry("llm", graph("text_generation", fixtures / "text_generation", "max_num_seqs: 1"))
    engine.list("llm")
    engine.start().ready()
    ask = {"model": "llm", "prompt": "1, 2, 3,", "ignore_eos": True, "max_tokens": 300, "temperature": 0}
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda _: engine.post("/v3/completions", **ask), range(100)))
    refused = [each for each in answers if each.status_code == 503]
    assert 0 < len(refused) < 40
    assert all(each.headers["retry-after"] == "1" and each.json()["error"] for each in refused)
    assert all(each.status_code == 200 for each in answers if each not in refused)


def test_the_live_probe_answers_under_load(engine: Engine, fixtures: Path) -> None:
    sample = (fixtures / "speech_to_text_samples" / "en_one_two_three.wav").read_bytes()
    work: list[Callable[[], httpx.Response]] = [
        lambda: chat(engine, "Count to fifty", ignore_eos=True, max_tokens=1500),
        lambda: chat(engine, "Count to fifty", ignore_eos=True, max_tokens=1500, stream=True),
        lambda: engine.post("/v3/embeddings", model="embeddings", input=["cat " * 300] * 64),
        lambda: engine.post("/v3/rerank", model="rerank", query="cat", documents=["cat " * 200] * 40),
        lambda: engine.post("/v3/images/generations", model="image_generation", prompt="cat", num_inference_steps=20),
        lambda: engine.post("/v3/audio/speech", model="text_to_speech", input="Hello"),
        lambda: engine.http.post(
            "/v3/audio/transcriptions", data={"model": "speech_to_text"}, files={"file": ("a.wav", sample)}
        ),
    ]
    waits: list[float] = []
    with ThreadPoolExecutor(2 * len(work)) as pool:
        running = [pool.submit(each) for each in work * 2]
        while not all(each.done() for each in running):
            answer = engine.http.get("/v2/health/live")
            assert answer.status_code == 200
            waits.append(answer.elapsed.total_seconds())
    assert all(each.result().status_code == 200 for each in running)
    # A probe that waits for a request's work would take about as long as that.
    assert max(waits) < max(each.result().elapsed.total_seconds() for each in running) / 4


def test_the_api_key_guards_generation_only(
    make_engine: Callable[[], Engine], graph: Callable[..., str], fixtures: Path
) -> None:
    engine = make_engine().entry("embed", graph("embeddings", fixtures / "embeddings"))
    engine.list("embed")
    key = engine.folder / "key"
    key.write_text("secret \nnot this line\n")
    engine.start("--api_key_file", str(key), "--allowed_origins", "http://here,http://there").ready()

    def ask(**headers: str) -> httpx.Response:
        return engine.http.post("/v3/embeddings", json={"model": "embed", "input": "a"}, headers=headers)

    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "bearer secret"}):
        assert ask(**headers).status_code == 500
        assert "api-key" in ask(**headers).json()["error"]
    assert ask(authorization="Bearer secret").status_code == 200
    assert engine.http.get("/v1/config").status_code == 200
    here = engine.http.get("/v1/config", headers={"Origin": "http://here"})
    assert here.headers["access-control-allow-origin"] == "http://here"
    assert "access-control-allow-origin" not in engine.http.get("/v1/config", headers={"Origin": "http://evil"}).headers
    assert not [line for line in engine.log if "secret" in line]


def test_assisted_generation_gives_the_same_answers(
    make_engine: Callable[[], Engine], graph: Callable[..., str], fixtures: Path
) -> None:
    engine = make_engine()
    model = fixtures / "text_generation"
    engine.entry("draft", graph("text_generation", model, f'draft_models_path: "{model}" draft_device: "CPU"'))
    engine.entry("lookup", graph("text_generation", model, "plugin_config: '{\"prompt_lookup\": true}'"))
    engine.list("draft", "lookup")
    engine.start().ready()
    for name, fields in (
        ("draft", {"num_assistant_tokens": 3}),
        ("draft", {"assistant_confidence_threshold": 0.4}),
        ("lookup", {"num_assistant_tokens": 3, "max_ngram_size": 2}),
        ("draft", {}),
        ("draft", {"num_assistant_tokens": 0}),
        ("lookup", {}),
    ):
        assert content(chat(engine, model=name, **fields)) == "1, 2, 3, 4, 5."
        streamed = chat(engine, model=name, stream=True, **fields).text
        assert '"content":"1' in streamed
    assert chat(engine, model="draft", num_assistant_tokens=-1).status_code == 400
    assert chat(engine, model="draft", tree_depth="deep").status_code == 400
    refused = chat(engine, model="draft", branching_factor=2, tree_depth=3)
    assert refused.status_code == 400
    assert "need an EAGLE3 draft model; the one of this graph is plain" in refused.json()["error"]


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [json.loads(each.removeprefix("data: ")) for each in answer.text.split("\n\n") if each.startswith("data: {")]


@pytest.mark.parametrize("model", ["text_generation", "tools"])
def test_streamed_probabilities_are_those_of_the_whole_answer(engine: Engine, model: str) -> None:
    asked = {"model": model, "logprobs": True, "max_tokens": 40}
    whole = chat(engine, "What is OpenVINO?", **asked).json()["choices"][0]
    choices = [
        choice
        for event in events(
            chat(engine, "What is OpenVINO?", **asked, stream=True, stream_options={"include_logprobs": True})
        )
        for choice in event["choices"]
    ]
    assert "".join(each["delta"].get("content") or "" for each in choices) == whole["message"]["content"]
    told = [each["logprobs"]["content"] for each in choices if each["logprobs"]]
    assert [word for words in told for word in words] == whole["logprobs"]["content"]
    assert len(told) > 1, "each chunk tells of its own tokens"
    text = b"".join(bytes(word["bytes"]) for word in whole["logprobs"]["content"]).decode()
    assert text.startswith(whole["message"]["content"])


def test_streamed_probabilities_of_a_completion(engine: Engine) -> None:
    asked = {"model": "text_generation", "prompt": "Count to five", "temperature": 0, "logprobs": 1, "max_tokens": 20}
    whole = engine.post("/v3/completions", **asked).json()["choices"][0]
    stream = engine.post("/v3/completions", **asked, stream=True, stream_options={"include_logprobs": True})
    tables = [each["choices"][0]["logprobs"] for each in events(stream) if each["choices"][0]["logprobs"]]
    for name, values in whole["logprobs"].items():
        assert [each for table in tables for each in table[name]] == values
    plain = engine.post("/v3/completions", **asked, stream=True)
    assert plain.status_code == 400, "as OVMS"
    assert "logprobs are not supported in streaming mode" in plain.json()["error"]
