"""``responses``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ovms_embedded.rest.errors import Invalid
from ovms_embedded.rest.fields import Fields
from ovms_embedded.rest.generation import read_generation
from ovms_embedded.rest.http import Reply, Request, Stream, encode
from ovms_embedded.rest.media import read_images
from ovms_embedded.rest.messages import (
    NO_AUDIO,
    RESERVED,
    guide,
    read_grammar,
    read_messages,
    read_template_context,
    read_tools,
)
from ovms_embedded.rest.parsers import parser_for
from ovms_embedded.rest.response_events import Draft, events

if TYPE_CHECKING:
    from ovms_embedded.servable import Servable
    from ovms_embedded.workers import Worker

EFFORTS = ("low", "medium", "high")
TEXT_PARTS = ("input_text", "output_text", "text")


async def responses(request: Request, servable: Servable, worker: Worker) -> Reply | Stream:
    """Answer a responses request."""
    data = request.fields
    options = servable.graph.options if servable.graph else {}
    messages, images = read_messages({"messages": _messages(data)})
    tools, choice = read_tools(data)
    generation = read_generation(data, options, stream=request.stream, endpoint="responses")
    context = read_template_context(data)
    if _thinks(data):
        context = {"enable_thinking": True} | context
    parser = parser_for(worker.info, tools, raw=not generation.skip_special_tokens)
    grammar = read_grammar(data) or guide(worker.info["tool_parser"], tools, choice, options)
    payload = generation.payload(chat=True, grammar=grammar)
    payload["prompt"] = await servable.render(messages, tools, context)
    payload["special"] = payload["special"] or parser.needs_special_tokens
    payload["images"] = await read_images(images, request.media, worker)
    draft = Draft(request.model, int(time.time()), data.get("tools") or [], choice if choice is not None else "auto")
    call = worker.call("generate", payload)
    if request.stream:
        return Stream(events(call, draft, parser))
    try:
        result = await call.result()
    finally:
        call.close()
    if result["thinking"]:
        parser.begin_thinking()
    parsed = parser.parse(result["choices"][0]["text"])
    draft.finish(parsed, result, result["choices"][0]["finish_reason"])
    return Reply(encode(draft.response()))


def _thinks(data: dict[str, Any]) -> bool:
    reasoning = Fields(data).mapping("reasoning")
    if reasoning is None:
        return False
    effort = reasoning.get("effort")
    if effort is not None and effort not in EFFORTS:
        raise Invalid("reasoning.effort must be low, medium or high")
    return effort is not None


def _messages(data: dict[str, Any]) -> list[dict[str, Any]]:
    given = data.get("input")
    if "input" not in data:
        raise Invalid("input missing in request")
    if isinstance(given, str):
        if not given:
            raise Invalid("input cannot be empty")
        if RESERVED in given:
            raise Invalid(f"input contains restricted {RESERVED} tag")
        return [{"role": "user", "content": given}]
    if not isinstance(given, list):
        raise Invalid("input is not a string or array")
    if not given:
        raise Invalid("input array cannot be empty")
    messages: list[dict[str, Any]] = []
    reasoning = ""
    for item in given:
        if not isinstance(item, dict):
            raise Invalid("input array items must be objects")
        kind = item.get("type", "message")
        if kind == "reasoning":
            reasoning += _reasoning(item)
            continue
        message = _item(item, kind)
        if message["role"] == "assistant" and reasoning:
            message["reasoning_content"] = reasoning
            reasoning = ""
        if "tool_calls" in message and messages and "tool_calls" in messages[-1]:
            messages[-1]["tool_calls"] += message["tool_calls"]
        else:
            messages.append(message)
    if not messages:
        raise Invalid("input array holds no message")
    return messages


def _reasoning(item: dict[str, Any]) -> str:
    parts = [each for key in ("summary", "content") if isinstance(item.get(key), list) for each in item[key]]
    return "".join(str(each["text"]) for each in parts if isinstance(each, dict) and isinstance(each.get("text"), str))


def _item(item: dict[str, Any], kind: object) -> dict[str, Any]:
    if kind == "function_call":
        name, arguments, number = item.get("name"), item.get("arguments"), item.get("call_id", item.get("id"))
        if not isinstance(name, str) or not isinstance(arguments, str) or not isinstance(number, str):
            raise Invalid("function_call needs call_id or id, name and arguments")
        call = {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if kind == "function_call_output":
        output = item.get("output")
        if not isinstance(output, str):
            raise Invalid("function_call_output needs output, a string")
        message: dict[str, Any] = {"role": "tool", "content": output}
        if isinstance(item.get("call_id"), str):
            message["tool_call_id"] = item["call_id"]
        return message
    if kind != "message":
        raise Invalid("Unsupported item type in input array")
    return {"role": item.get("role"), "content": _content(item.get("content"))}


def _content(given: object) -> str | list[dict[str, Any]]:
    """Return content as chat writes it."""
    if isinstance(given, str):
        return given
    if not isinstance(given, list) or not given:
        raise Invalid("content must be a string or a non-empty array")
    return [_part(part) for part in given]


def _part(part: object) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind == "input_image":
        image = part.get("image_url")
        if isinstance(image, str):
            return {"type": "image_url", "image_url": {"url": image}}
        if isinstance(image, dict) and isinstance(image.get("url"), str):
            return {"type": "image_url", "image_url": image}
        raise Invalid("input_image needs image_url, a string or an object with url")
    if kind == "input_audio":
        raise Invalid(NO_AUDIO)
    if isinstance(part, dict) and kind == "refusal" and isinstance(part.get("refusal"), str):
        return {"type": "refusal", "refusal": part["refusal"]}
    if not isinstance(part, dict) or kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
        raise Invalid("Unsupported content type. Supported types are input_text, output_text and input_image.")
    return {"type": "text", "text": part["text"]}
