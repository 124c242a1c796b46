"""``completions``."""

from __future__ import annotations

import time
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ovms_embedded.rest.chat import DONE, NO_LOGPROBS, split, usage
from ovms_embedded.rest.errors import Invalid
from ovms_embedded.rest.fields import Fields
from ovms_embedded.rest.generation import Generation, read_generation
from ovms_embedded.rest.http import Reply, Request, Stream, encode

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from ovms_embedded.servable import Servable
    from ovms_embedded.workers import Call, Worker


async def completions(request: Request, servable: Servable, worker: Worker) -> Reply | Stream:
    """Answer a completions request."""
    if worker.info["vision"]:
        raise Invalid("A model that sees does not serve completions; use /v3/chat/completions or /v3/responses")
    data = request.fields
    prompt = data.get("prompt")
    if not isinstance(prompt, str):
        raise Invalid("prompt is not a string" if "prompt" in data else "prompt field is required")
    if not prompt:
        raise Invalid("prompt cannot be empty")
    options = servable.graph.options if servable.graph else {}
    generation = read_generation(data, options, stream=request.stream, endpoint="completions")
    generation.logprobs = _logprobs(data, generation)
    if Fields(data).boolean("echo"):
        generation.settings["echo"] = True
    call = worker.call("generate", generation.payload(prompt=prompt))
    if request.stream:
        return Stream(_chunks(call, request.model, generation))
    try:
        result = await call.result()
    finally:
        call.close()
    choices = [
        {
            "finish_reason": choice["finish_reason"],
            "index": index,
            "logprobs": _table(choice["logprobs"]) if "logprobs" in choice else None,
            "text": choice["text"],
        }
        for index, choice in enumerate(result["choices"])
    ]
    answer = {"choices": choices, "created": int(time.time()), "model": request.model, "object": "text_completion"}
    return Reply(encode(answer | {"usage": usage(result)}))


def _logprobs(data: dict[str, Any], generation: Generation) -> bool:
    value = data.get("logprobs")
    if value is None:
        return False
    if isinstance(value, bool) or not isinstance(value, int):
        raise Invalid("logprobs accepts integer values")
    if value != 1:
        raise Invalid("accepted logprobs value is currently 1 only")
    if generation.stream and not generation.include_logprobs:
        raise Invalid(NO_LOGPROBS)
    return True


def _table(words: list[list[Any]], begin: int = 0) -> dict[str, list[Any]]:
    """Return tokens with their probabilities.

    :param begin: characters of the tokens before them.
    """
    offsets = list(accumulate((len(token) for token, *_ in words), initial=begin))[:-1]
    return {
        "tokens": [token for token, *_ in words],
        "token_logprobs": [value for _, value, _ in words],
        "top_logprobs": [{token: value} for token, value, _ in words],
        "text_offset": offsets,
    }


async def _chunks(call: Call, model: str, generation: Generation) -> AsyncGenerator[bytes, None]:
    tail = encode({"created": int(time.time()), "model": model, "object": "text_completion.chunk"})[1:-1]
    plain = tail
    if generation.include_usage:
        tail += b',"usage":null'
    words: list[Any] = []
    """Tokens that no chunk has told of yet."""
    begin = 0

    def head() -> bytes:
        nonlocal begin
        told = encode(_table(words, begin)) if words else b"null"
        begin += sum(len(token) for token, *_ in words)
        words.clear()
        return b'data: {"choices":[{"index":0,"logprobs":' + told + b',"text":'

    end = b',"finish_reason":null}],' + tail + b"}\n\n"
    try:
        async for items in call.batches():
            text, told = split([each for each in items if not isinstance(each, bool)])
            words += told
            if text:
                yield head() + encode(text) + end
        result = await call.result()
        last = head() + b'"","finish_reason":' + encode(result["finish_reason"]) + b"}]," + tail + b"}\n\n"
        if generation.include_usage:
            last += b'data: {"choices":[],' + plain + b',"usage":' + encode(usage(result)) + b"}\n\n"
        yield last + DONE
    finally:
        call.close()
