"""chat, generate, embed and rerank: what the engine is asked for each way of writing a request, and what comes back."""

import json
from contextlib import aclosing, asynccontextmanager

import anyio
import pytest

from ovms_kernel.errors import BadRequest, EngineFailed, NotFound, TimedOut
from ovms_kernel.testing.contract import ServiceContract
from ovms_service_chat import Chat
from ovms_service_embed import Embed
from ovms_service_generate import Generate
from ovms_service_rerank import Rerank

HELLO = [{"role": "user", "content": "hello"}]
CHAT, GENERATE, RERANK = "/v3/chat/completions", "/v3/completions", "/v3/rerank"


class TestChat(ServiceContract):
    driver = Chat


class TestGenerate(ServiceContract):
    driver = Generate


class TestEmbed(ServiceContract):
    driver = Embed


class TestRerank(ServiceContract):
    driver = Rerank


async def test_an_answer_gets_id_and_model_and_keeps_everything_else(stub, ask):
    said = {"choices": [{"index": 0, "message": {"content": "你好"}}], "created": 7, "model": "theirs", "x_new": [1.5]}
    stub.answers[CHAT] = said
    answer = await ask(Chat({}), model="llm", messages=HELLO)
    assert answer.pop("id").startswith("chatcmpl-")
    assert answer == said
    stub.answers[GENERATE] = {"choices": [{"text": " Paris."}]}
    answer = await ask(Generate({}), model="llm", prompt="The capital of France is")
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "llm"


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b'{"data":[1.50, 2]}', b'{"model":"vectors","data":[1.50, 2]}'),
        (b" { } \n", b'{"model":"vectors"}'),
        (b'{"model": "theirs","a":"\\"model\\""}', b'{"model": "theirs","a":"\\"model\\""}'),
        (b'{"data":[{"model":1}]}', b'{"model":"vectors","data":[{"model":1}]}'),
        (b'{"a":"model"}', b'{"model":"vectors","a":"model"}'),
    ],
)
async def test_what_is_added_leaves_the_rest_byte_for_byte(stub, engine, call, said, answer):
    stub.answers["/v3/embeddings"] = said
    assert (await Embed({}).invoke(call(model="vectors", input="a"), engine)).body == answer


async def test_unknown_fields_pass_and_nulls_are_absent(stub, ask):
    stub.answers[CHAT] = {}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"x": None}}}]
    message = {"role": "assistant", "content": None, "tool_calls": []}
    await ask(
        Chat({}),
        model="llm",
        messages=[*HELLO, message],
        tools=tools,
        max_tokens=None,
        stream=None,
        seed=0,
        chat_template_kwargs={"enable_thinking": False},
        unheard_of={"a": 1},
    )
    assert stub.requests[0].json == {
        "model": "llm",
        "messages": [*HELLO, message],
        "tools": tools,
        "seed": 0,
        "chat_template_kwargs": {"enable_thinking": False},
        "unheard_of": {"a": 1},
    }


async def test_bytes_that_need_no_change_are_not_changed(stub, engine, call):
    from dataclasses import replace

    stub.answers[CHAT] = {}
    raw = b'{ "messages":[{"role":"user","content":"hello"}],"temperature":1.0, "model":"llm" }'
    body = json.loads(raw)
    await Chat({}).invoke(replace(call(**body), raw=raw), engine)
    assert stub.requests[0].body == raw


async def test_how_the_host_asks_decides_about_streaming(stub, ask, engine, call):
    stub.answers[CHAT] = {}
    await ask(Chat({}), model="llm", messages=HELLO, stream=True, stream_options={"include_usage": True})
    assert stub.requests[-1].json == {"model": "llm", "messages": HELLO}
    options = {"include_usage": True}
    async for _ in Chat({}).stream(call(model="llm", messages=HELLO, stream_options=options), engine):
        pass
    assert stub.requests[-1].json["stream"] is True
    assert stub.requests[-1].json["stream_options"] == options


async def test_n_gets_the_best_of_that_the_engine_needs(stub, ask):
    stub.answers |= {CHAT: {}, GENERATE: {}}
    await ask(Chat({}), model="llm", messages=HELLO, n=3)
    assert stub.requests[-1].json["best_of"] == 3
    await ask(Generate({}), model="llm", prompt=["one"], n=2, best_of=5)
    assert (stub.requests[-1].json["prompt"], stub.requests[-1].json["best_of"]) == ("one", 5)


@pytest.mark.parametrize(("service", "body"), [(Chat, {"messages": HELLO}), (Generate, {"prompt": "x"})])
async def test_several_answers_are_not_streamed(stub, engine, call, service, body):
    """The engine would refuse best_of, which the caller never wrote."""
    with pytest.raises(BadRequest, match="leave n out"):
        await anext(service({}).stream(call(model="llm", n=2, **body), engine))
    assert not stub.requests


@pytest.mark.parametrize(
    ("service", "body", "sentence"),
    [
        (Chat, {}, "needs the field messages"),
        (Chat, {"messages": []}, "must be a list of messages"),
        (Chat, {"messages": "hello"}, "must be a list of messages"),
        (Chat, {"messages": ["hello"]}, "Message 0 must be an object"),
        (Chat, {"messages": [*HELLO, {"content": "x"}]}, "Message 1 must be"),
        (Chat, {"messages": HELLO, "n": "2"}, "field n must be a whole number"),
        (Chat, {"messages": HELLO, "n": 0}, "field n must be at least 1"),
        (Generate, {"prompt": "x", "n": 2.0}, "field n must be a whole number"),
        (Generate, {"prompt": ["a", "b"]}, "lists of prompts are not supported"),
        (Generate, {"prompt": 7}, "must be a text"),
        (Embed, {}, "needs the field input"),
        (Embed, {"input": []}, "not empty"),
        (Embed, {"input": True}, "must be a text"),
        (Rerank, {"documents": ["a"]}, "needs the field query"),
        (Rerank, {"query": "q"}, "needs the field documents"),
        (Rerank, {"query": "q", "documents": [{"title": "t"}]}, "Document 0 must be"),
        (Rerank, {"query": "q", "documents": ["a"], "top_n": 0}, "at least 1"),
        (Rerank, {"query": "q", "documents": ["a"], "top_k": "2"}, "whole number"),
        (Rerank, {"query": "q", "documents": ["a"], "return_documents": 1}, "true or false"),
    ],
)
async def test_a_wrong_request_is_refused_before_the_engine_is_asked(stub, ask, service, body, sentence):
    with pytest.raises(BadRequest, match=sentence):
        await ask(service({}), model="no such model", **body)
    assert not stub.requests


async def test_a_request_that_is_too_large(engine, call, monkeypatch):
    monkeypatch.setattr("ovms_kernel.services.MAX_BODY", 100)
    with pytest.raises(BadRequest, match="at most 100"):
        await Chat({}).invoke(call(model="llm", messages=[{"role": "user", "content": "x" * 100}]), engine)


async def test_the_model_of_a_request_that_names_none(stub, ask):
    stub.answers["/v3/embeddings"] = {"data": []}
    assert (await ask(Embed({"default_model": "vectors"}), input="a"))["model"] == "vectors"
    assert (await ask(Embed({"default_model": "not/installed"}), input="a"))["model"] == "vectors"
    with pytest.raises(BadRequest, match="is a text_generation model"):
        await ask(Embed({}), model="llm", input="a")
    with pytest.raises(NotFound, match="nobody"):
        await ask(Embed({}), model="nobody", input="a")


async def test_a_default_that_is_not_installed_is_what_the_error_names(served):
    from ovms_kernel.testing.contract import make_call

    async with served({}) as (_, engine):
        engine._models.clear()
        with pytest.raises(NotFound, match="own/default"):
            await Chat({"default_model": "own/default"}).invoke(make_call(model="", messages=HELLO), engine)


@asynccontextmanager
async def never_ready(*_, **__):
    await anyio.sleep_forever()
    yield ""


async def test_a_model_is_held_until_the_last_event_of_its_answer(stub, engine, call):
    async def answer(request, reply):
        await reply.events()
        await reply.piece(b"data: 1\n\n")
        await reply.piece(b"data: [DONE]\n\n")
        await reply.end()

    stub.answers["/v3/chat/completions"] = answer
    async with aclosing(Chat({}).stream(call(model="llm", messages=HELLO), engine)) as events:
        await anext(events)
        assert engine.held == ["llm"]
        assert [event async for event in events] == [b"data: [DONE]\n\n"]
    assert engine.held == []


async def test_time_spent_on_loading_is_taken_off_the_limit(stub, engine, call, monkeypatch):
    monkeypatch.setattr(engine, "model", never_ready)
    with pytest.raises(TimedOut, match=r"not ready within the limit of 0\.05 s"):
        await Chat({}).invoke(call(model="llm", messages=HELLO, timeout=0.05), engine)
    assert not stub.requests


async def test_a_stream_does_not_wait_for_its_model_beyond_the_limit(stub, engine, call, monkeypatch):
    monkeypatch.setattr(engine, "model", never_ready)
    with anyio.fail_after(5), pytest.raises(TimedOut, match=r"not ready within the limit of 0\.05 s"):
        await anext(Chat({}).stream(call(model="llm", messages=HELLO, timeout=0.05), engine))
    assert not stub.requests


async def test_d2_27_embeddings_are_passed_on(stub, ask):
    stub.answers["/v3/embeddings"] = {"data": [{"embedding": "AACAPw==", "index": 0}]}
    for given in ("a", ["a", "b"], [1, 2], [[1], [2, 3]]):
        answer = await ask(Embed({}), model="vectors", input=given, encoding_format="base64")
        assert stub.requests[-1].json == {"model": "vectors", "input": given, "encoding_format": "base64"}
        assert answer == {"model": "vectors", "data": [{"embedding": "AACAPw==", "index": 0}]}


async def test_d2_28_rerank_takes_both_ways_of_writing(stub, ask):
    results = [{"index": 0, "relevance_score": 0.1}, {"index": 1, "relevance_score": 0.9, "document": {"text": "b"}}]
    stub.answers[RERANK] = {"results": results}
    answer = await ask(
        Rerank({}), model="ranker", query="q", documents=[{"text": "a"}, "b"], top_k=2, return_documents=True
    )
    assert answer == {"model": "ranker", "results": results[::-1]}
    assert stub.requests[0].json == {
        "model": "ranker",
        "query": "q",
        "documents": ["a", "b"],
        "top_n": 2,
        "return_documents": True,
    }


async def test_an_answer_that_is_no_json_object(stub, ask):
    stub.answers[CHAT] = b"[1]"
    with pytest.raises(EngineFailed, match="not a JSON object"):
        await ask(Chat({}), model="llm", messages=HELLO)
    stub.answers[CHAT] = b"<html>"
    with pytest.raises(EngineFailed, match="not valid JSON"):
        await ask(Chat({}), model="llm", messages=HELLO)


async def test_a_stream_is_passed_on_byte_for_byte_as_it_arrives(stub, engine, call):
    seen = anyio.Event()
    parts = [b'data: {"a":  1}\n\n', b'data: {"choices":[],"usage":{}}\n\n', b"data: [DONE]\n\n"]

    async def answer(request, reply):
        await reply.events()
        await reply.piece(parts[0])
        await seen.wait()
        await reply.piece(parts[1] + parts[2])
        await reply.end()

    stub.answers[CHAT] = answer
    got = []
    with anyio.fail_after(3):
        async for chunk in Chat({}).stream(call(model="llm", messages=HELLO), engine):
            got.append(chunk)
            seen.set()
    assert got == parts


async def test_closing_a_stream_stops_the_engine(stub, engine, call):
    stopped = anyio.Event()

    async def answer(request, reply):
        await reply.events()
        await reply.piece(b"data: {}\n\n")
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()

    stub.answers[GENERATE] = answer
    async with aclosing(Generate({}).stream(call(model="llm", prompt="x"), engine)) as chunks:
        await anext(chunks)
    with anyio.fail_after(2):
        await stopped.wait()
