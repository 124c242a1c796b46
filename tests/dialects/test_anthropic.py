"""Anthropic's API as chat completions and back; nothing here needs a server."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from ovms_dialect_anthropic import answers, requests
from ovms_kernel.api.faces import BadRequest

ASKED = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]}


def events(*chunks: dict[str, Any], thoughts: bool = False, stops: Sequence[str] = ()) -> list[dict[str, Any]]:
    made = answers.Events("m", thoughts=thoughts, stops=stops)
    data = b"".join([*(each for chunk in chunks for each in made.chunk(chunk)), *made.end()])
    return [json.loads(line[6:]) for line in data.decode().splitlines() if line.startswith("data: ")]


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"model": "m", "choices": [{"delta": delta, "finish_reason": finish}]}


def test_a_request_in_full() -> None:
    fields = {
        "model": "m",
        "max_tokens": 20,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "stop_sequences": ["END"],
        "temperature": 0.5,
        "top_k": None,
        "metadata": {"user_id": "u"},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "tools": [
            {"name": "look", "description": "d", "input_schema": {"type": "object"}},
            {"type": "web_search_20250305", "name": "web_search"},
        ],
        "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": True},
        "messages": [
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "火"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "a cat"}]},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                    {"type": "text", "text": "And this?"},
                ],
            },
        ],
    }
    assert requests.to_chat(fields) == {
        "model": "m",
        "max_tokens": 20,
        "temperature": 0.5,
        "stop": ["END"],
        "include_stop_str_in_output": True,
        "chat_template_kwargs": {"enable_thinking": True},
        "tools": [
            {"type": "function", "function": {"name": "look", "description": "d", "parameters": {"type": "object"}}}
        ],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "parallel_tool_calls": False,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "content": "I look.",
                "tool_calls": [
                    {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"at": "火"}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "t1", "content": "a cat"},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                    {"type": "text", "text": "And this?"},
                ],
            },
        ],
    }


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": ["hi"]}, "Message 0"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "Message 0"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "url"}}]}]}, "document"),
        ({"system": 5}, "system"),
        ({"tools": "look"}, "tools"),
        ({"tools": [{"name": "a"}], "tool_choice": {"type": "maybe"}}, "tool_choice"),
    ],
)
def test_what_has_no_meaning_is_refused(changed: dict[str, Any], part: str) -> None:
    with pytest.raises(BadRequest, match=part):
        requests.to_chat(ASKED | changed)


def test_an_answer_with_thoughts_text_and_calls() -> None:
    call = {"id": "c", "function": {"name": "look", "arguments": '{"at": 1}'}}
    message = {"reasoning_content": "hm", "content": "I look.", "tool_calls": [call]}
    chat: dict[str, Any] = {"model": "m", "choices": [{"message": message, "finish_reason": "tool_calls"}]}
    chat["usage"] = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 5}}
    made = answers.from_chat(chat, thoughts=True)
    assert [each["type"] for each in made["content"]] == ["thinking", "text", "tool_use"]
    assert made["content"][2]["input"] == {"at": 1}
    assert made["stop_reason"] == "tool_use"
    assert made["usage"]["input_tokens"] + made["usage"]["cache_read_input_tokens"] == 7
    assert [each["type"] for each in answers.from_chat(chat, thoughts=False)["content"]] == ["text", "tool_use"]


@pytest.mark.parametrize(
    ("text", "shown", "stop"),
    [
        ("One, two. END of", "One, two. ", "END"),
        ("One, two. EN", "One, two. EN", None),
        ("STOP", "", "STOP"),
        ("a STOP b END", "a ", "STOP"),
        ("", "", None),
    ],
)
def test_the_text_that_ended_an_answer_is_named_and_not_shown(text: str, shown: str, stop: str | None) -> None:
    stops, reason = ["END", "STOP"], "stop_sequence" if stop else "end_turn"
    whole = answers.from_chat(
        {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}, thoughts=False, stops=stops
    )
    assert "".join(each["text"] for each in whole["content"]) == shown
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, stop)
    for size in range(1, len(text) + 1):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        made = events(*(chunk(content=each) for each in pieces), chunk("stop"), stops=stops)
        assert "".join(each["delta"].get("text", "") for each in made if each["type"] == "content_block_delta") == shown
        assert made[-2]["delta"] == {"stop_reason": reason, "stop_sequence": stop}


def test_the_events_of_thoughts_text_and_two_calls_come_in_blocks() -> None:
    made = events(
        chunk(role="assistant", content=None),
        chunk(reasoning_content="hm"),
        chunk(content="I "),
        chunk(content="look."),
        chunk(tool_calls=[{"index": 0, "id": "a", "function": {"name": "look", "arguments": ""}}]),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"at":1}'}}]),
        chunk(tool_calls=[{"index": 1, "id": "b", "function": {"name": "look", "arguments": "{}"}}]),
        chunk("tool_calls"),
        {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 9}},
        thoughts=True,
    )
    assert [each["type"] for each in made if "delta" not in each] == [
        "message_start",
        *["content_block_start", "content_block_stop"] * 4,
        "message_stop",
    ]
    assert [each["index"] for each in made if each["type"] == "content_block_start"] == [0, 1, 2, 3]
    deltas = [each["delta"] for each in made if each["type"] == "content_block_delta"]
    assert "".join(each.get("text", "") for each in deltas) == "I look."
    assert "".join(each.get("partial_json", "") for each in deltas) == '{"at":1}{}'
    assert made[-2]["delta"]["stop_reason"] == "tool_use"
    assert made[-2]["usage"]["output_tokens"] == 9


def test_an_error_has_anthropics_type() -> None:
    assert answers.error_of(404, "no")["error"] == {"type": "not_found_error", "message": "no"}
    assert answers.error_of(503, "full")["error"]["type"] == "overloaded_error"
    assert answers.error_of(500, "oh")["error"]["type"] == "api_error"
