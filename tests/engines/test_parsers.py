"""Tool calls and reasoning taken out of text, wherever the text is cut."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovms_embedded.rest.errors import Invalid
from ovms_embedded.rest.parsers import THINK, OutputParser, parser_for
from ovms_embedded.worker.detection import detect

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get",
            "parameters": {"type": "object", "properties": {"zip": {"type": "string"}, "days": {"type": "integer"}}},
        },
    }
]
WANTED = {"zip": "0815", "days": 2}
CALL = '{"name": "get", "arguments": {"zip": "0815", "days": 2}}'
SAMPLES = [
    (
        "hermes3",
        f"Let me see.\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call>",
        2,
        "Let me see.\n",
    ),
    (
        "qwen3coder",
        "<tool_call>\n<function=get>\n<parameter=zip>\n0815\n</parameter>\n<parameter=days>2</parameter></function></tool_call>",
        1,
        "",
    ),
    ("llama3", '<|python_tag|>{"name": "get", "parameters": {"zip": "0815", "days": 2}}', 1, ""),
    ("llama3", '{"name": "get", "parameters": {"zip": "0815", "days": 2}}', 1, ""),
    ("phi4", f"functools[{CALL}]", 1, ""),
    ("mistral", f"[TOOL_CALLS] [{CALL}, {CALL}]", 2, ""),
    ("devstral", '[TOOL_CALLS]get[ARGS]{"zip": "0815", "days": 2}', 1, ""),
]


@pytest.mark.parametrize(("name", "text", "count", "content"), SAMPLES)
@settings(max_examples=40, deadline=None, database=None)
@given(cuts=st.lists(st.integers(0, 200), max_size=8))
def test_calls_are_found_wherever_the_text_is_cut(
    name: str, text: str, count: int, content: str, cuts: list[int]
) -> None:
    text = "<think>Hm <b> </think>" + text if name != "llama3" else text
    thinks = name != "llama3"
    whole = OutputParser(THINK if thinks else None, name, TOOLS).parse(text)
    parser = OutputParser(THINK if thinks else None, name, TOOLS)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    deltas = [
        delta for start, end in itertools.pairwise(places) for delta in parser.feed(text[start:end])
    ] + parser.end()
    calls = [each for delta in deltas for each in delta.get("tool_calls", ())]
    assert [each["function"]["name"] for each in calls if "id" in each] == ["get"] * count
    arguments = [each["function"]["arguments"] for each in calls if "id" not in each]
    assert [json.loads(each) for each in arguments] == [WANTED] * count
    assert [json.loads(each["function"]["arguments"]) for each in whole.tool_calls] == [WANTED] * count
    assert "".join(delta.get("content", "") for delta in deltas).strip() == content.strip() == whole.content.strip()
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == ("Hm <b> " if thinks else "")


def test_what_is_no_call_stays_text() -> None:
    for text in ("a <tool_cal", "1 < 2", "<tool_call>nonsense</tool_call>", ""):
        parsed = OutputParser(None, "hermes3", TOOLS).parse(text)
        assert parsed.tool_calls == []
        assert parsed.content in (text, "nonsense")


def test_reasoning_that_the_prompt_began() -> None:
    parser = OutputParser(THINK)
    parser.begin_thinking()
    parsed = parser.parse("I wonder</think>42")
    assert (parsed.reasoning, parsed.content) == ("I wonder", "42")


def test_a_format_that_is_not_supported_is_refused_with_a_sentence() -> None:
    info = {"tool_parser": "gptoss", "reasoning_parser": ""}
    with pytest.raises(Invalid, match="gptoss is not supported"):
        parser_for(info, TOOLS, raw=False)
    assert parser_for(info, [], raw=False).passive


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("<|channel|>", ("gptoss", "gptoss")),
        ("<parameter= </parameter> <function= <think>", ("qwen3coder", "qwen3")),
        ("functools", ("phi4", "")),
        ("[TOOL_CALLS] [ARGS]", ("devstral", "")),
        ("[AVAILABLE_TOOLS] [/AVAILABLE_TOOLS]", ("mistral", "")),
        ("<|python_tag|>", ("llama3", "")),
        ("<tool_call> </tool_call> <think>", ("hermes3", "qwen3")),
        ("<think>", ("", "qwen3")),
        ("plain", ("", "")),
    ],
)
def test_parsers_are_recognised_by_the_template(template: str, found: tuple[str, str]) -> None:
    assert detect(template) == found
