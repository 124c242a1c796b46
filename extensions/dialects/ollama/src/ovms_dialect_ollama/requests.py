"""Requests of Ollama's API as OpenAI's. Pure functions.

https://github.com/ollama/ollama/blob/main/docs/api.md describes the one, OpenAI's reference the other.
"""

from __future__ import annotations

import base64
import json
import math
import re
from typing import TYPE_CHECKING, Any

from ovms_kernel.api.faces import BadRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

Fields = dict[str, Any]

OPTIONS = {
    "num_predict": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
    "stop": "stop",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
"""Options that engines have too, and their names there; others set up the hardware, which is the graph's business."""
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
MOST_DIGITS = 300
"""Characters of a duration; a number with so many digits is still a double."""
IMAGES = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"), (b"BM", "bmp"))


def model_of(fields: Mapping[str, Any]) -> str:
    """Return the model that a request names, without the tag that Ollama's clients put behind it.

    :raises BadRequest: it names none.
    """
    name = fields.get("model") or fields.get("name")
    if not isinstance(name, str):
        raise BadRequest("The field model must name a model.")
    return name.removesuffix(":latest")


def chat_of(fields: Mapping[str, Any]) -> Fields:
    """Translate a request of ``/api/chat``."""
    given = fields.get("messages")
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise BadRequest("The field messages must be a list of messages, each with role and content.")
    messages: list[Fields] = []
    for each in given:
        messages.append(_message(each, messages))
    chat = _shared(fields) | _logprobs(fields) | {"messages": messages}
    if fields.get("tools"):
        chat["tools"] = fields["tools"]
    return chat


def chat_of_prompt(fields: Mapping[str, Any]) -> Fields:
    """Translate a request of ``/api/generate``, which Ollama answers with the model's chat template."""
    if fields.get("suffix"):
        raise BadRequest("The field suffix is not supported; leave it out.")
    system = [{"role": "system", "content": fields["system"]}] if fields.get("system") else []
    asked = {"role": "user", "content": fields.get("prompt"), "images": fields.get("images")}
    return _shared(fields) | _logprobs(fields) | {"messages": [*system, _message(asked, [])]}


def completion_of(fields: Mapping[str, Any]) -> Fields:
    """Translate a raw request of ``/api/generate``: the prompt goes to the model as it is."""
    completion = _shared(fields) | {"prompt": fields.get("prompt")}
    completion.pop("chat_template_kwargs", None)
    return completion


def embeddings_of(fields: Mapping[str, Any]) -> Fields:
    """Translate a request of ``/api/embed`` or ``/api/embeddings``."""
    given = fields.get("input", fields.get("prompt"))
    embeddings: Fields = {"model": model_of(fields), "input": given}
    if fields.get("dimensions"):
        embeddings["dimensions"] = fields["dimensions"]
    return embeddings


def streams(fields: Mapping[str, Any]) -> bool:
    """Tell whether the answer is to come in pieces, which it does unless told otherwise."""
    stream = fields.get("stream")
    if not isinstance(stream, bool | None):
        raise BadRequest("The field stream must be true or false.")
    return stream is not False


def keep_alive_of(fields: Mapping[str, Any]) -> float | None:
    """Return for how many seconds the model is to stay loaded, negative = for ever; ``None`` = not said.

    :raises BadRequest: it is no number of seconds and no duration such as ``5m``.
    """
    value = fields.get("keep_alive")
    if value is None or isinstance(value, bool):
        return None
    text = str(value)[:MOST_DIGITS].strip()
    sign, digits = (-1.0, text[1:]) if text.startswith("-") else (1.0, text)
    parts = DURATION.findall(digits)
    if parts and "".join(map("".join, parts)) == digits:
        return sign * sum(float(number) * UNITS[unit] for number, unit in parts)
    try:
        seconds = float(digits)
    except ValueError:
        seconds = math.nan
    if math.isfinite(seconds):
        return sign * seconds
    raise BadRequest(f"The field keep_alive must be a duration such as 5m, or seconds, not {text[:40]!r}.")


def _shared(fields: Mapping[str, Any]) -> Fields:
    options = {} if fields.get("options") is None else fields["options"]
    if not isinstance(options, dict):
        raise BadRequest("The field options must be an object.")
    made: Fields = {"model": model_of(fields)}
    made |= {OPTIONS[name]: value for name, value in options.items() if name in OPTIONS and value is not None}
    limit = made.get("max_tokens", 1)
    if not isinstance(limit, int):
        raise BadRequest("The field options.num_predict must be a whole number.")
    if limit < 1:  # -1 and -2 mean without a limit
        del made["max_tokens"]
    form = fields.get("format")
    if form == "json":
        made["response_format"] = {"type": "json_object"}
    elif isinstance(form, dict):
        made["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": form}}
    elif form:
        raise BadRequest("The field format must be json or a JSON schema.")
    if isinstance(think := fields.get("think"), bool):
        made["chat_template_kwargs"] = {"enable_thinking": think}
    return made


def _logprobs(fields: Mapping[str, Any]) -> Fields:
    return {name: fields[name] for name in ("logprobs", "top_logprobs") if fields.get("logprobs") and fields.get(name)}


def _message(given: Fields, before: list[Fields]) -> Fields:
    content = given.get("content") or ""
    images = given.get("images") or []
    if not isinstance(content, str) or not isinstance(images, list):
        raise BadRequest("A message must have a text as content, and may have a list of images in base64.")
    message: Fields = {"role": given.get("role"), "content": content}
    if images:
        parts = [{"type": "image_url", "image_url": {"url": _data_uri(each)}} for each in images]
        message["content"] = [{"type": "text", "text": content}, *parts]
    calls = given.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(each, dict) for each in calls):
        raise BadRequest("The field tool_calls must be a list of calls, each with a function.")
    if calls:
        message["tool_calls"] = [_call(each, number) for number, each in enumerate(calls)]
    if given.get("role") == "tool":
        message["tool_call_id"] = given.get("tool_call_id") or _id_of_call(given, before)
    return message


def _call(given: Fields, number: int) -> Fields:
    function = given.get("function") or {}
    if not isinstance(function, dict):
        raise BadRequest("The function of a tool call must be an object with name and arguments.")
    arguments = json.dumps(function.get("arguments") or {}, ensure_ascii=False)
    name = function.get("name")
    return {
        "id": given.get("id") or f"call_{number}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _id_of_call(given: Fields, before: list[Fields]) -> str:
    """Return the id of the call that a tool answers: Ollama's clients name the tool instead."""
    name = given.get("tool_name") or given.get("name")
    calls = [call for message in before for call in message.get("tool_calls", ())]
    found = [call["id"] for call in calls if call["function"]["name"] == name] or [call["id"] for call in calls]
    return str(found[-1]) if found else "call_0"


def _data_uri(image: Any) -> str:  # noqa: ANN401 - as the caller sent it
    if not isinstance(image, str):
        raise BadRequest("An image must be a text in base64.")
    if image.startswith("data:"):
        return image
    try:
        head = base64.b64decode(image[:16] + "=" * (-len(image[:16]) % 4))
    except ValueError:
        raise BadRequest("An image must be a text in base64.") from None
    kind = next((kind for magic, kind in IMAGES if head.startswith(magic)), "png")
    return f"data:image/{kind};base64,{image}"
