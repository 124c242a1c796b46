"""Requests with something else in the place of each value: a dialect refuses them in a sentence or understands them."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ovms_dialect_anthropic import requests as anthropic
from ovms_dialect_ollama import requests as ollama
from ovms_face_http import responses
from ovms_kernel.api.faces import BadRequest

JUNK: tuple[Any, ...] = (
    None,
    5,
    -1,
    1.5,
    True,
    "",
    "x",
    [],
    [5],
    [None],
    [[]],
    {},
    {"a": 1},
    [{}],
    [{"type": "x"}],
    [{"type": "text"}],
)
CALL = {"function": {"name": "look", "arguments": {"at": 1}}}
OLLAMA = {
    "model": "m",
    "messages": [
        {"role": "user", "content": "Hi", "images": ["iVBORw0KGgo="]},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "a cat", "tool_name": "look"},
    ],
    "options": {"num_predict": 5, "stop": ["x"]},
    "format": "json",
    "tools": [{"type": "function", "function": {"name": "look"}}],
    "think": True,
    "logprobs": True,
    "top_logprobs": 2,
    "keep_alive": "5m",
    "stream": True,
}
PROMPT = {"model": "m", "prompt": "Hi", "system": "x", "images": ["iVBORw0KGgo="], "input": "x", "dimensions": 4}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
ANTHROPIC = {
    "model": "m",
    "max_tokens": 5,
    "system": [{"type": "text", "text": "x"}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, IMAGE]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "look", "input": {"at": 1}}]},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "x"}]}],
        },
    ],
    "tools": [{"name": "look", "description": "x", "input_schema": {"type": "object"}}],
    "tool_choice": {"type": "tool", "name": "look"},
    "thinking": {"type": "enabled"},
    "output_config": {"format": {"type": "json_schema", "schema": {}}},
    "stop_sequences": ["x"],
}
RESPONSES = {
    "model": "m",
    "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
        {"role": "user", "content": [{"type": "input_image", "image_url": "data:x"}]},
        {"type": "function_call", "call_id": "a", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "x"},
    ],
    "instructions": "x",
    "tools": [{"type": "function", "name": "look", "parameters": {}}],
    "tool_choice": {"type": "function", "name": "look"},
    "text": {"format": {"type": "json_schema", "name": "x", "schema": {}}},
    "include": ["message.output_text.logprobs"],
    "reasoning": {"effort": "low"},
    "metadata": {"a": "b"},
    "max_output_tokens": 4,
    "store": True,
}


def replaced(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the value with each part of it replaced by junk, and where."""

    def places(inner: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        for key in inner if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ():
            yield (*path, key)
            yield from places(inner[key], (*path, key))

    for place in places(value, ()):
        for junk in JUNK:
            made = copy.deepcopy(value)
            target = made
            for key in place[:-1]:
                target = target[key]
            target[place[-1]] = junk
            yield f"{place} = {junk!r}", made


@pytest.mark.parametrize(
    ("translate", "fields"),
    [
        (ollama.chat_of, OLLAMA),
        (ollama.keep_alive_of, OLLAMA),
        (ollama.streams, OLLAMA),
        (ollama.model_of, OLLAMA),
        (ollama.chat_of_prompt, PROMPT),
        (ollama.completion_of, PROMPT),
        (ollama.embeddings_of, PROMPT),
        (anthropic.to_chat, ANTHROPIC),
        (anthropic.thinking, ANTHROPIC),
        (lambda fields: responses.to_chat(fields, []), RESPONSES),
    ],
)
def test_anything_else_is_refused_or_understood(translate: Callable[[Any], Any], fields: dict[str, Any]) -> None:
    translate(fields)
    wrong = []
    for where, made in replaced(fields):
        try:
            translate(made)
        except BadRequest:
            continue
        except Exception as error:
            wrong.append(f"{where}: {error!r}")
    assert not wrong, "\n".join(wrong)
