"""chat, generate, embed and rerank: what the engine is asked for each way of writing a request, and what comes back."""

import json
from contextlib import aclosing
from typing import Any

import anyio
import pytest

from ovms_kernel.errors import BadRequest, EngineFailed, NotFound
from ovms_kernel.testing.contract import ServiceContract, configured
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
    answer = await ask(configured(Chat), model="llm", messages=HELLO)
    assert answer.pop("id").startswith("chatcmpl-")
    assert answer == said
    stub.answers[GENERATE] = {"choices": [{"text": " Paris."}]}
    answer = await ask(configured(Generate), model="llm", prompt="The capital of France is")
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
    assert (await configured(Embed).invoke(call(model="vectors", input="a"), engine)).body == answer


async def test_unknown_fields_pass_and_nulls_are_absent(stub, ask):
    stub.answers[CHAT] = {}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"x": None}}}]
    message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": []}
    await ask(
        configured(Chat),
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


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: object, *tools: object) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}}


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        (allowed("auto", function("b")), {"tools": [function("b")], "tool_choice": "auto"}),
        (
            allowed("required", function("b"), function("a")),
            {"tools": [function("a"), function("b")], "tool_choice": "required"},
        ),
        (allowed("auto"), {}),
        ("required", {"tools": [function("a"), function("b"), function("c")], "tool_choice": "required"}),
    ],
)
async def test_only_allowed_tools_are_offered(stub, ask, choice, sent):
    stub.answers[CHAT] = {}
    tools = [function("a"), function("b"), function("c")]
    await ask(configured(Chat), model="llm", messages=HELLO, tools=tools, tool_choice=choice)
    assert stub.requests[0].json == {"model": "llm", "messages": HELLO} | sent


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (allowed("auto", function("x")), "names x, which is not in tools"),
        (allowed("auto", 7), "names no function"),
        (allowed("required"), "a mode, auto or required, and a list"),
        (allowed(None, function("a")), "a mode, auto or required"),
        ({"type": "allowed_tools"}, "a mode, auto or required"),
    ],
)
async def test_allowed_tools_that_cannot_be_meant_are_refused(ask, choice, says):
    with pytest.raises(BadRequest, match=says):
        await ask(configured(Chat), model="llm", messages=HELLO, tools=[function("a")], tool_choice=choice)


async def test_bytes_that_need_no_change_are_not_changed(stub, engine, call):
    from msgspec.structs import replace

    stub.answers[CHAT] = {}
    raw = b'{ "messages":[{"role":"user","content":"hello"}],"temperature":1.0, "model":"llm" }'
    body = json.loads(raw)
    await configured(Chat).invoke(replace(call(**body), raw=raw), engine)
    assert stub.requests[0].body == raw


async def test_how_the_host_asks_decides_about_streaming(stub, ask, engine, call):
    stub.answers[CHAT] = {}
    await ask(configured(Chat), model="llm", messages=HELLO, stream=True, stream_options={"include_usage": True})
    assert stub.requests[-1].json == {"model": "llm", "messages": HELLO}
    options = {"include_usage": True}
    async for _ in configured(Chat).stream(call(model="llm", messages=HELLO, stream_options=options), engine):
        pass
    assert stub.requests[-1].json["stream"] is True
    assert stub.requests[-1].json["stream_options"] == options


async def test_several_answers_are_several_requests_with_seeds_of_their_own(stub, ask):
    stub.answers |= {CHAT: {"choices": [{"index": 0}], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}}
    answer = await ask(configured(Chat), model="llm", messages=HELLO, n=3, seed=(1 << 32) - 2)
    assert sorted(each.json["seed"] for each in stub.requests) == [0, (1 << 32) - 2, (1 << 32) - 1]
    assert [each["index"] for each in answer["choices"]] == [0, 1, 2]
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}


async def test_the_best_of_several_is_chosen_by_the_engine_and_not_streamed(stub, ask, engine, call):
    stub.answers[GENERATE] = {}
    await ask(configured(Generate), model="llm", prompt=["one"], n=2, best_of=5)
    assert {name: stub.requests[-1].json[name] for name in ("prompt", "n", "best_of")} == {
        "prompt": "one",
        "n": 2,
        "best_of": 5,
    }
    with pytest.raises(BadRequest, match="leave best_of out"):
        await anext(configured(Generate).stream(call(model="llm", prompt="x", best_of=2), engine))


async def test_one_of_several_answers_that_fails_fails_the_request(stub, ask, engine, call):
    async def answer(request, reply):
        if request.json["prompt"] == "two":
            await reply.json({"error": "no room for two"}, 400)
        else:
            await anyio.sleep_forever()

    stub.answers[GENERATE] = answer
    body = {"model": "llm", "prompt": ["one", "two", "three"]}
    with anyio.fail_after(5), pytest.raises(BadRequest, match="no room for two"):
        await ask(configured(Generate), **body)
    with anyio.fail_after(5), pytest.raises(BadRequest, match="no room for two"):
        await anext(configured(Generate).stream(call(**body), engine))


async def test_leaving_a_stream_of_several_answers_stops_all_of_them(stub, engine, call):
    running = 0
    stopped = anyio.Event()

    async def answer(request, reply):
        nonlocal running
        running += 1
        await reply.events()
        await reply.piece(b'data: {"choices":[{"index":0,"text":"a"}]}\n\n')
        try:
            await anyio.sleep_forever()
        finally:
            running -= 1
            if not running:
                stopped.set()

    stub.answers[GENERATE] = answer
    async with aclosing(configured(Generate).stream(call(model="llm", prompt=["x", "y", "z"]), engine)) as chunks:
        await anext(chunks)
    with anyio.fail_after(2):
        await stopped.wait()


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
        (Chat, {"messages": HELLO, "seed": "7"}, "seed must be a whole number"),
        (Chat, {"messages": HELLO, "n": 3, "best_of": 2}, "best_of must be at least n"),
        (Generate, {"prompt": []}, "needs the field prompt"),
        (Generate, {"prompt": ["a", ""]}, "not empty"),
        (Generate, {"prompt": ["a", None]}, "must be a text"),
        (Generate, {"prompt": [7, 8]}, "as texts, not as tokens"),
        (Generate, {"prompt": [[7, 8], [9]]}, "as texts, not as tokens"),
        (Generate, {"prompt": "a", "logprobs": 6}, "between 0 and 5"),
        (Generate, {"prompt": "a", "logprobs": True}, "whole number"),
        (Embed, {"input": "a", "encoding_format": "int8"}, "float or base64"),
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
        await ask(configured(service), model="no such model", **body)
    assert not stub.requests


async def test_a_request_that_is_too_large(engine, call, monkeypatch):
    monkeypatch.setattr("ovms_kernel.services.MAX_BODY", 100)
    with pytest.raises(BadRequest, match="at most 100"):
        await configured(Chat).invoke(call(model="llm", messages=[{"role": "user", "content": "x" * 100}]), engine)


async def test_the_model_of_a_request_that_names_none(stub, ask):
    stub.answers["/v3/embeddings"] = {"data": []}
    assert (await ask(configured(Embed, default_model="vectors"), input="a"))["model"] == "vectors"
    assert (await ask(configured(Embed, default_model="not/installed"), input="a"))["model"] == "vectors"
    with pytest.raises(BadRequest, match="is a text_generation model"):
        await ask(configured(Embed), model="llm", input="a")
    with pytest.raises(NotFound, match="nobody"):
        await ask(configured(Embed), model="nobody", input="a")


async def test_a_default_that_is_not_installed_is_what_the_error_names(served):
    from ovms_kernel.testing.contract import make_call

    async with served({}) as (_, engine):
        engine._models.clear()
        with pytest.raises(NotFound, match="own/default"):
            await configured(Chat, default_model="own/default").invoke(make_call(model="", messages=HELLO), engine)


async def test_a_model_is_held_until_the_last_event_of_its_answer(stub, engine, call):
    seen = anyio.Event()

    async def answer(request, reply):
        await reply.events()
        await reply.piece(b"data: 1\n\n")
        await seen.wait()
        await reply.piece(b"data: [DONE]\n\n")
        await reply.end()

    stub.answers["/v3/chat/completions"] = answer
    async with aclosing(configured(Chat).stream(call(model="llm", messages=HELLO), engine)) as events:
        await anext(events)
        assert engine.held == ["llm"]
        seen.set()
        assert [event async for event in events] == [b"data: [DONE]\n\n"]
    assert engine.held == []


async def test_d2_27_embeddings_are_passed_on(stub, ask):
    stub.answers["/v3/embeddings"] = {"data": [{"embedding": "AACAPw==", "index": 0}]}
    for given in ("a", ["a", "b"], [1, 2], [[1], [2, 3]]):
        answer = await ask(configured(Embed), model="vectors", input=given, encoding_format="base64")
        assert stub.requests[-1].json == {"model": "vectors", "input": given, "encoding_format": "base64"}
        assert answer == {"model": "vectors", "data": [{"embedding": "AACAPw==", "index": 0}]}


async def test_d2_28_rerank_takes_both_ways_of_writing(stub, ask):
    results = [{"index": 0, "relevance_score": 0.1}, {"index": 1, "relevance_score": 0.9}]
    stub.answers[RERANK] = {"results": results}
    answer = await ask(
        configured(Rerank), model="ranker", query="q", documents=[{"text": "a"}, "b"], top_k=2, return_documents=True
    )
    assert answer.pop("id").startswith("rerank-")
    assert answer == {
        "model": "ranker",
        "results": [
            {"index": 1, "relevance_score": 0.9, "document": {"text": "b"}},
            {"index": 0, "relevance_score": 0.1, "document": {"text": "a"}},
        ],
        "usage": {"prompt_tokens": 0, "total_tokens": 0},  # this engine cannot tell
    }
    assert stub.requests[0].json == {"model": "ranker", "query": "q", "documents": ["a", "b"], "top_n": 2}


async def test_an_answer_that_is_no_json_object(stub, ask):
    stub.answers[CHAT] = b"[1]"
    with pytest.raises(EngineFailed, match="not a JSON object"):
        await ask(configured(Chat), model="llm", messages=HELLO)
    stub.answers[CHAT] = b"<html>"
    with pytest.raises(EngineFailed, match="not valid JSON"):
        await ask(configured(Chat), model="llm", messages=HELLO)


async def test_a_stream_gets_its_id_and_is_passed_on_byte_for_byte_as_it_arrives(stub, engine, call):
    seen = anyio.Event()
    parts = [b'data: {"model":"m","a":  1}\n\n', b'data: {"choices":[],"usage":{}}\n\n', b"data: [DONE]\n\n"]

    async def answer(request, reply):
        await reply.events()
        await reply.piece(parts[0])
        await seen.wait()
        await reply.piece(parts[1] + parts[2])
        await reply.end()

    stub.answers[CHAT] = answer
    got = []
    with anyio.fail_after(3):
        async for chunk in configured(Chat).stream(call(model="llm", messages=HELLO), engine):
            got.append(chunk)
            seen.set()
    identity = json.loads(got[0][6:])["id"].encode()
    assert got[0].endswith(b"\n\n")
    assert b"".join(got) == b"".join(parts).replace(b"data: {", b'data: {"id":"' + identity + b'",')


async def test_an_engine_that_gives_ids_keeps_its_own(stub, engine, call):
    async def answer(request, reply):
        await reply.events()
        await reply.piece(b'data: {"id":"x","model":"m","object":"text_completion.chunk"}\n\ndata: [DONE]\n\n')
        await reply.end()

    stub.answers[GENERATE] = answer
    got = [each async for each in configured(Generate).stream(call(model="llm", prompt="x"), engine)]
    assert b"".join(got) == b'data: {"id":"x","model":"m","object":"text_completion"}\n\ndata: [DONE]\n\n'


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
    async with aclosing(configured(Generate).stream(call(model="llm", prompt="x"), engine)) as chunks:
        await anext(chunks)
    with anyio.fail_after(2):
        await stopped.wait()
