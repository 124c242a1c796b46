"""``completions``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ovms_embedded.rest.chat import DONE, usage
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
    generation.logprobs = _logprobs(data, stream=request.stream)
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


def _logprobs(data: dict[str, Any], *, stream: bool) -> bool:
    value = data.get("logprobs")
    if value is None:
        return False
    if isinstance(value, bool) or not isinstance(value, int):
        raise Invalid("logprobs accepts integer values")
    if value != 1:
        raise Invalid("accepted logprobs value is currently 1 only")
    if stream:
        raise Invalid("logprobs are not supported in streaming mode.")
    return True


def _table(pairs: list[tuple[str, float]]) -> dict[str, list[Any]]:
    offsets: list[int] = []
    position = 0
    for token, _ in pairs:
        offsets.append(position)
        position += len(token)
    return {
        "tokens": [token for token, _ in pairs],
        "token_logprobs": [value for _, value in pairs],
        "top_logprobs": [{token: value} for token, value in pairs],
        "text_offset": offsets,
    }


async def _chunks(call: Call, model: str, generation: Generation) -> AsyncGenerator[bytes, None]:
    tail = encode({"created": int(time.time()), "model": model, "object": "text_completion.chunk"})[1:-1]
    plain = tail
    if generation.include_usage:
        tail += b',"usage":null'
    head = b'data: {"choices":[{"index":0,"logprobs":null,"text":'
    end = b',"finish_reason":null}],' + tail + b"}\n\n"
    try:
        async for items in call.batches():
            if text := "".join(each for each in items if isinstance(each, str)):
                yield head + encode(text) + end
        result = await call.result()
        last = head + b'"","finish_reason":' + encode(result["finish_reason"]) + b"}]," + tail + b"}\n\n"
        if generation.include_usage:
            last += b'data: {"choices":[],' + plain + b',"usage":' + encode(usage(result)) + b"}\n\n"
        yield last + DONE
    finally:
        call.close()
