"""What the services answer, held against the types of OpenAI's own package, strictly, over the embedded engine."""

import base64
import json
import math
from typing import Any

import numpy as np
import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from ovms_kernel.errors import BadRequest
from ovms_kernel.values import Request

from .conftest import events_in

COUNT = [{"role": "user", "content": "Count to five"}]
CHAT = {"model": "tiny/text", "messages": COUNT, "temperature": 0, "max_tokens": 60}
PROMPT = {"model": "tiny/text", "temperature": 0, "max_tokens": 5}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def ask(house):
    async def run(service, kind, **body):
        answer = json.loads((await house.invoke(service, Request(json.dumps(body).encode()))).body)
        return kind.model_validate(answer, strict=True)

    return run


@pytest.fixture
def stream(house):
    async def run(service, kind, **body):
        chunks = events_in([each async for each in house.stream(service, Request(json.dumps(body).encode()))])
        assert chunks.pop() == b"data: [DONE]\n\n"
        assert all(each.startswith(b"data: {") and each.endswith(b"}\n\n") for each in chunks)
        values = [json.loads(each[6:]) for each in chunks]
        assert len({each["id"] for each in values}) == 1
        assert len({each["object"] for each in values}) == 1
        return [kind.model_validate(complete(each), strict=True) for each in values]

    return run


def complete(event):
    """Fill in what OpenAI itself leaves null in an event of completions, against its own type."""
    for choice in event["choices"]:
        if event["object"] == "text_completion" and choice["finish_reason"] is None:
            choice["finish_reason"] = "stop"
    return event


def texts(events):
    """The text of each choice, by index."""
    found: dict[int, str] = {}
    for event in events:
        for choice in event.choices:
            piece = choice.text if hasattr(choice, "text") else choice.delta.content
            found[choice.index] = found.get(choice.index, "") + (piece or "")
    return found


def used(events):
    """The one usage of a stream, in its last event, which has no choices."""
    assert [bool(each.usage) for each in events].count(True) == 1
    assert events[-1].choices == []
    return events[-1].usage


ANSWER = "1, 2, 3, 4, 5."


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"n": 3},
        {"logprobs": True, "top_logprobs": 2},
        {"tools": [TOOL], "tool_choice": "auto"},
        {"max_tokens": None, "max_completion_tokens": 60, "stop": None, "seed": None, "response_format": None},
        {"response_format": {"type": "text"}, "seed": -1, "user": "x", "metadata": {"a": "b"}, "store": False},
        {"seed": 1 << 40, "n": 2},
        {"stream_options": {"include_usage": True}},
    ],
    ids=lambda more: "+".join(more) or "plain",
)
async def test_chat(ask, stream, more):
    answer = await ask("chat", ChatCompletion, **CHAT | more)
    n = more.get("n", 1)
    said = answer.choices[0].message.content
    assert said == ANSWER  # the tiny model's template has no place for tools
    assert [(each.index, each.message.content, each.finish_reason) for each in answer.choices] == [
        (index, said, "stop") for index in range(n)
    ]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    events = await stream("chat", ChatCompletionChunk, **CHAT | more | {"stream_options": {"include_usage": True}})
    assert texts(events) == dict.fromkeys(range(n), said)
    assert used(events) == answer.usage
    ends = [choice.index for event in events for choice in event.choices if choice.finish_reason == "stop"]
    assert sorted(ends) == list(range(n))
    if "logprobs" in more:
        for tokens in (
            answer.choices[0].logprobs.content,
            [each for event in events for c in event.choices for each in (c.logprobs and c.logprobs.content) or ()],
        ):
            assert "".join(each.token for each in tokens).startswith(ANSWER)
            assert all(each.logprob <= 0 for each in tokens)


async def test_a_stream_without_stream_options_has_no_usage(stream):
    for body in (CHAT, CHAT | {"n": 2}, CHAT | {"logprobs": True}, CHAT | {"stream_options": {"include_usage": None}}):
        assert not any(each.usage or not each.choices for each in await stream("chat", ChatCompletionChunk, **body))


async def test_several_sampled_answers_differ_and_a_seed_repeats_them(ask, stream):
    body = CHAT | {"messages": [{"role": "user", "content": "zebra"}], "temperature": 2, "n": 4, "seed": 5}
    one, two = [(await ask("chat", ChatCompletion, **body)).choices for _ in range(2)]
    assert [each.message.content for each in one] == [each.message.content for each in two]
    assert len({each.message.content for each in one}) > 1
    assert len(set(texts(await stream("chat", ChatCompletionChunk, **body)).values())) > 1


async def test_json_is_what_is_asked_for(ask, stream):
    schema = {"type": "object", "properties": {"a": {"enum": ["yes", "no"]}}, "required": ["a"]}
    for wanted in (
        {"type": "json_schema", "json_schema": {"name": "x", "schema": schema | {"additionalProperties": False}}},
        {"type": "json_object"},
    ):
        body = CHAT | {"max_tokens": 200, "response_format": wanted}
        if wanted["type"] == "json_schema":
            assert json.loads((await ask("chat", ChatCompletion, **body)).choices[0].message.content)["a"]
            assert json.loads(texts(await stream("chat", ChatCompletionChunk, **body))[0])["a"]
        else:
            assert (await ask("chat", ChatCompletion, **body)).choices[0].message.content.lstrip().startswith("{")


async def test_developer_messages_and_refusals_are_understood(ask):
    history = [
        {"role": "developer", "content": "You are a helpful assistant."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "I cannot."}]},
        *COUNT,
    ]
    assert (await ask("chat", ChatCompletion, **CHAT | {"messages": history})).choices[0].message.content


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("logprobs", [None, 0, 5])
async def test_lists_of_prompts(ask, stream, n, logprobs):
    prompts = ["The capital of France is", "The capital of Germany is", "The capital of France is"]
    body = PROMPT | {"prompt": prompts, "n": n, "logprobs": logprobs}
    answer = await ask("generate", Completion, **body)
    alone = [await ask("generate", Completion, **PROMPT, prompt=each) for each in prompts]
    wanted = [each.choices[0].text for each in alone for _ in range(n)]
    assert [each.text for each in answer.choices] == wanted
    assert wanted[0].strip().startswith("Paris")
    assert [each.index for each in answer.choices] == list(range(3 * n))
    assert answer.usage.prompt_tokens == sum(each.usage.prompt_tokens for each in alone)
    assert answer.usage.completion_tokens == n * sum(each.usage.completion_tokens for each in alone)
    assert all((each.logprobs is None) == (logprobs is None) for each in answer.choices)
    events = await stream("generate", Completion, **body, stream_options={"include_usage": True})
    assert texts(events) == dict(enumerate(wanted))
    assert used(events) == answer.usage
    assert not texts(events).keys() - set(range(3 * n))


async def test_more_answers_than_one_request_can_have(ask):
    with pytest.raises(BadRequest, match="at most 128 answers, not 130"):
        await ask("generate", Completion, **PROMPT, prompt=["a"] * 130)
    with pytest.raises(BadRequest, match="at most 128"):
        await ask("chat", ChatCompletion, **CHAT, n=129)


async def test_many_answers_at_once(ask):
    answer = await ask("generate", Completion, **PROMPT, prompt=["The capital of France is"] * 20, n=2)
    assert [each.index for each in answer.choices] == list(range(40))
    assert {each.text for each in answer.choices} == {answer.choices[0].text}


@pytest.mark.parametrize("given", ["a cat", ["a cat", "a dog"], [5, 6], [[5, 6], [7]]])
@pytest.mark.parametrize("dimensions", [None, 16])
async def test_embeddings(ask, given, dimensions):
    body = {"model": "tiny/embeddings", "input": given, "dimensions": dimensions, "user": "x"}
    answer = await ask("embed", CreateEmbeddingResponse, **body, encoding_format="float")
    assert [each.index for each in answer.data] == list(range(len(answer.data)))
    full = await ask("embed", CreateEmbeddingResponse, **body | {"dimensions": None})
    for each, whole in zip(answer.data, full.data, strict=True):
        wanted = np.array(whole.embedding[:dimensions])
        assert math.hypot(*each.embedding) == pytest.approx(1, abs=1e-4)
        assert each.embedding == pytest.approx(list(wanted / np.linalg.norm(wanted)), abs=1e-6)


async def test_embeddings_in_base64_have_the_same_numbers(house, ask):
    body = {"model": "tiny/embeddings", "input": ["a cat"], "dimensions": 8}
    floats = (await ask("embed", CreateEmbeddingResponse, **body)).data[0].embedding
    raw = await house.invoke("embed", Request(json.dumps(body | {"encoding_format": "base64"}).encode()))
    packed = np.frombuffer(base64.b64decode(json.loads(raw.body)["data"][0]["embedding"]), "<f4")
    assert packed.tolist() == pytest.approx(floats, abs=1e-6)


@pytest.mark.parametrize("dimensions", [65, 0, -1, "8", 1.5, True])
async def test_dimensions_that_the_model_does_not_have(ask, dimensions):
    with pytest.raises(BadRequest, match="dimensions"):
        await ask("embed", CreateEmbeddingResponse, model="tiny/embeddings", input="x", dimensions=dimensions)


async def test_rerank_as_jina_and_cohere_ask(house):
    documents = ["Bread is baked in an oven.", {"text": "Paris is the capital of France.", "page": 7}]
    for more in ({"top_n": 2}, {"query": {"text": "What is the capital of France?"}}):
        body = {"model": "tiny/rerank", "query": "What is the capital of France?", "documents": documents} | more
        answer = json.loads(
            (await house.invoke("rerank", Request(json.dumps(body | {"return_documents": True}).encode()))).body
        )
        assert answer["id"].startswith("rerank-")
        assert answer["model"] == "tiny/rerank"
        assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 10
        assert [each["index"] for each in answer["results"]] == [1, 0]
        assert [each["document"] for each in answer["results"]] == [documents[1], {"text": documents[0]}]
        scores = [each["relevance_score"] for each in answer["results"]]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= each <= 1 for each in scores)
    ranked: dict[str, Any] = {
        "model": "tiny/rerank",
        "query": "What is the capital of France?",
        "rank_fields": ["title"],
    }
    body = ranked | {"documents": [{"title": "oven", "text": "x"}, {"title": "Paris is the capital of France."}]}
    answer = json.loads((await house.invoke("rerank", Request(json.dumps(body).encode()))).body)
    assert answer["results"][0].keys() == {"index", "relevance_score"}
