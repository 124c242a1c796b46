"""``chat/completions``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ovms_embedded.rest.errors import Invalid
from ovms_embedded.rest.fields import Fields
from ovms_embedded.rest.generation import Generation, read_generation
from ovms_embedded.rest.http import Reply, Request, Stream, encode
from ovms_embedded.rest.media import read_images
from ovms_embedded.rest.messages import guide, read_grammar, read_messages, read_template_context, read_tools
from ovms_embedded.rest.parsers import OutputParser, parser_for

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from ovms_embedded.servable import Servable
    from ovms_embedded.workers import Call, Worker

DONE = b"data: [DONE]\n\n"
NO_LOGPROBS = "logprobs are not supported in streaming mode."
"""As OVMS has it; a client that knows better sends ``stream_options: {"include_logprobs": true}``."""


async def chat(request: Request, servable: Servable, worker: Worker) -> Reply | Stream:
    """Answer a chat request."""
    data = request.fields
    options = servable.graph.options if servable.graph else {}
    messages, images = read_messages(data)
    tools, choice = read_tools(data)
    generation = read_generation(data, options, stream=request.stream, endpoint="chat")
    generation.logprobs = read_logprobs(data, generation)
    payload = generation.payload(chat=True, grammar=read_grammar(data))
    payload["prompt"] = await servable.render(messages, tools, read_template_context(data))
    payload["images"] = await read_images(images, request.media, worker)

    def new_parser() -> OutputParser:
        return parser_for(worker.info, tools, raw=not generation.skip_special_tokens)

    parser = new_parser()
    payload["grammar"] = payload["grammar"] or guide(worker.info["tool_parser"], tools, choice, options)
    payload["special"] = payload["special"] or parser.needs_special_tokens
    call = worker.call("generate", payload)
    if request.stream:
        return Stream(_chunks(call, request.model, generation, parser))
    try:
        result = await call.result()
    finally:
        call.close()
    return Reply(encode(_answer(result, request.model, new_parser)))


def read_logprobs(data: dict[str, Any], generation: Generation) -> bool:
    """Return whether probabilities are wanted."""
    wanted = bool(Fields(data).boolean("logprobs"))
    if wanted and generation.stream and not generation.include_logprobs:
        raise Invalid(NO_LOGPROBS)
    return wanted


def usage(result: dict[str, Any]) -> dict[str, int]:
    """Return the token counts of a result."""
    prompt, completion = result["prompt_tokens"], result["completion_tokens"]
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def finish_reason(cause: str, *, calls: bool) -> str:
    """Return why an output ended: the engine's own cause, of which a stop behind calls is theirs."""
    return "tool_calls" if calls and cause == "stop" else cause


def _answer(result: dict[str, Any], model: str, new_parser: Callable[[], OutputParser]) -> dict[str, Any]:
    choices = []
    for index, choice in enumerate(result["choices"]):
        parser = new_parser()
        if result["thinking"]:
            parser.begin_thinking()
        parsed = parser.parse(choice["text"])
        message: dict[str, Any] = {"content": parsed.content, "role": "assistant", "tool_calls": parsed.tool_calls}
        if parsed.reasoning:
            message["reasoning_content"] = parsed.reasoning
        reason = finish_reason(choice["finish_reason"], calls=bool(parsed.tool_calls))
        logprobs = choice.get("logprobs")
        choices.append(
            {
                "finish_reason": reason,
                "index": index,
                "logprobs": None if logprobs is None else _logprobs(logprobs),
                "message": message,
            }
        )
    return {
        "choices": choices,
        "created": int(time.time()),
        "model": model,
        "object": "chat.completion",
        "usage": usage(result),
    }


def _logprobs(words: list[list[Any]]) -> dict[str, Any]:
    return {
        "content": [
            {"token": text, "logprob": value, "bytes": list(written), "top_logprobs": []}
            for text, value, written in words
        ]
    }


def split(items: list[Any]) -> tuple[str, list[Any]]:
    """Return the text of what arrived together, and its tokens where their probabilities are wanted."""
    if len(items) == 1 and isinstance(items[0], str):
        return items[0], []
    pieces: list[list[Any]] = [[each, []] if isinstance(each, str) else each for each in items]
    return "".join(text for text, _ in pieces), [word for _, words in pieces for word in words]


async def _chunks(call: Call, model: str, generation: Generation, parser: OutputParser) -> AsyncGenerator[bytes, None]:
    tail = encode({"created": int(time.time()), "model": model, "object": "chat.completion.chunk"})[1:-1]
    if generation.include_usage:
        tail += b',"usage":null'
    words: list[Any] = []
    """Tokens that no chunk has told of yet."""

    def head() -> bytes:
        told = encode(_logprobs(words)) if words else b"null"
        words.clear()
        return b'data: {"choices":[{"index":0,"logprobs":' + told + b',"delta":'

    open_end = b',"finish_reason":null}],' + tail + b"}\n\n"
    content_end = b"}" + open_end
    try:
        called_tools = False
        async for items in call.batches():
            if isinstance(items[0], bool):
                # The prompt is accepted: the handshake, which also brings the client its status.
                if items.pop(0):
                    parser.begin_thinking()
                yield head() + b'{"role":"assistant","content":null}' + open_end
            text, told = split(items)
            words += told
            if parser.passive:
                if text:
                    yield head() + b'{"content":' + encode(text) + content_end
                continue
            for delta in parser.feed(text):
                called_tools = called_tools or "tool_calls" in delta
                yield head() + encode(delta) + open_end
        result = await call.result()
        for delta in () if parser.passive else parser.end():
            called_tools = called_tools or "tool_calls" in delta
            yield head() + encode(delta) + open_end
        reason = finish_reason(result["finish_reason"], calls=called_tools)
        last = head() + b'{},"finish_reason":' + encode(reason) + b"}]," + tail + b"}\n\n"
        if generation.include_usage:
            bare = tail.removesuffix(b',"usage":null')
            last += b'data: {"choices":[],' + bare + b',"usage":' + encode(usage(result)) + b"}\n\n"
        yield last + DONE
    finally:
        call.close()
