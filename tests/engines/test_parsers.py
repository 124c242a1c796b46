"""Tool calls and reasoning taken out of text: whole and streamed outputs are the same, and no other letter is lost."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovms_embedded.rest.formats import REASONING, TOOLS
from ovms_embedded.rest.harmony import HARMONY
from ovms_embedded.rest.parsers import OutputParser, Parsed, parser_for
from ovms_embedded.worker.detection import detect

THINK = ("<think>", "</think>")
PROPERTIES = {
    "zip": {"type": "string"},
    "days": {"type": "integer"},
    "sure": {"type": "boolean"},
    "note": {"type": ["string", "null"]},
    "share": {"type": "number"},
    "more": {"type": "object"},
    "list": {"type": "array"},
    "either": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    "unit": {"enum": ["C", "F", "5"]},
}
DECLARED: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "get", "parameters": {"type": "object", "properties": PROPERTIES}}}
]
WANTED = {"zip": "0815", "days": 2}
CALL = '{"name": "get", "arguments": {"zip": "0815", "days": 2}}'
CODER = "<function=get>\n<parameter=zip>\n0815\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>"
CPM = '<function name="get"><param name="zip">0815</param><param name="days"><![CDATA[2]]></param></function>'
ATEM = '<atem:function_calls>\n<atem:invoke name="get">\n<atem:parameter name="zip">0815</atem:parameter>\n'
ATEM += '<atem:parameter name="days">2</atem:parameter>\n</atem:invoke>\n</atem:function_calls>'
GPT = "<|channel|>commentary to=functions.get <|constrain|>json<|message|>" + '{"zip": "0815", "days": 2}<|call|>'
SAMPLES = [
    ("hermes3", f"See:\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call>", 2, "See:\n"),
    ("hermes3", f"<tool_call>\n{CALL}\n{CALL}\n</tool_call>\nDone.", 2, "\nDone."),
    ("hermes3", f"<tool_call>[{CALL}]", 1, ""),
    ("hermes3", f"<tool_call>\n{CALL}}}\n</tool_call>\n<tool_call>{CALL}]}}</tool_call> Ok", 2, " Ok"),
    ("hermes3", f"<tool_call>{CALL}}} is it.", 1, "} is it."),
    ("qwen3coder", f"<tool_call>\n{CODER}\n</tool_call>", 1, ""),
    ("qwen3coder", f"I write.\n\n{CODER}\n</tool_call>", 1, "I write.\n\n"),
    ("qwen3coder", f"{CODER}\n{CODER}", 2, ""),
    ("qwen3coder", "<tool_call><function=get><parameter=zip>0815<parameter=days>2</function></tool_call>", 1, ""),
    ("llama3", '<|python_tag|>{"name": "get", "parameters": {"zip": "0815", "days": 2}}', 1, ""),
    ("llama3", '{"name": "get", "parameters": {"zip": "0815", "days": 2}}\n\nDone.', 1, "\n\nDone."),
    ("llama3", f"{CALL}; {CALL}", 2, ""),
    ("phi4", f"functools[{CALL}]", 1, ""),
    ("phi4", f"functools is a module. functools[{CALL}] Yes.", 1, "functools is a module.  Yes."),
    ("mistral", f"[TOOL_CALLS] [{CALL}, {CALL}]", 2, ""),
    ("devstral", '[TOOL_CALLS]get[ARGS]{"zip": "0815", "days": 2}', 1, ""),
    ("devstral", '[TOOL_CALLS]get[CALL_ID]x1[ARGS]{"zip": "0815", "days": 2} so', 1, " so"),
    ("minicpm5", f"Well.{CPM}{CPM}", 2, "Well."),
    ("lfm2", "<|tool_call_start|>[get(zip='0815', days=2), get(zip=\"0815\", days=2)]<|tool_call_end|>Ok", 2, "Ok"),
    ("lfm2", f"<|tool_call_start|>[{CALL}]<|tool_call_end|>", 1, ""),
    ("gemma4", '<|tool_call>call:get{zip:<|"|>0815<|"|>,days:2}<tool_call|>', 1, ""),
    ("gptoss", "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant" + GPT, 1, ""),
    ("gptoss", "<|channel|>commentary<|message|>I ask.<|end|><|start|>assistant" + GPT[:-8], 1, "I ask."),
    ("onyx", f" to=self<|message|>Hm.<|eom|><|start|>assistant to=get<|message|>{ATEM}<|eom|>", 1, ""),
    ("onyx", f" to=get<|message|>{ATEM}<|eom|><|start|>assistant to=user<|message|>Fine.<|eot|>", 1, "Fine."),
]  # fmt: skip


def make(name: str, tools: list[dict[str, Any]] | None = None, reasoning: str = "") -> OutputParser:
    info = {"tool_parser": name, "reasoning_parser": reasoning or (name if name in HARMONY else "")}
    return parser_for(info, DECLARED if tools is None else tools, raw=False)


def streamed(parser: OutputParser, pieces: list[str]) -> Parsed:
    """Put the deltas of a stream together as a client does."""
    found = Parsed()
    for delta in [*(delta for piece in pieces for delta in parser.feed(piece)), *parser.end()]:
        found.content += delta.get("content", "")
        found.reasoning += delta.get("reasoning_content", "")
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(found.tool_calls)
                found.tool_calls.append({"function": call["function"] | {"arguments": ""}})
            else:
                found.tool_calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    return found


def known(parsed: Parsed) -> tuple[str, str, list[Any]]:
    return parsed.content, parsed.reasoning, [each["function"] for each in parsed.tool_calls]


@pytest.mark.parametrize(("name", "text", "count", "content"), SAMPLES)
def test_calls_are_found_wherever_the_text_is_cut(name: str, text: str, count: int, content: str) -> None:
    whole = make(name).parse(text)
    assert whole.content == content
    assert [each["function"]["name"] for each in whole.tool_calls] == ["get"] * count
    assert [json.loads(each["function"]["arguments"]) for each in whole.tool_calls] == [WANTED] * count
    assert whole.reasoning in ("", "Hm.")
    for size in (1, 2, 3, 7, 40):
        assert known(streamed(make(name), [text[at : at + size] for at in range(0, len(text), size)])) == known(whole)


PARTS = {
    "json": [CALL, '{"name": "get", "arguments": {"zip": "', '"}}', '{"name": "x"}', '{"a": [1, {}]}', "[", "]", "{}"],
    "xml": [CODER, CPM, ATEM, "<function=get>", "<function=", "<parameter=zip>", "</parameter>", "</function>"],
    "other": [GPT, "call:get{", '<|"|>', "get(", "zip='x')", "[ARGS]", "get", " to=get", " to=self", "analysis"],
    "tags": ["<think>", "<tool_call|>", "</think>", "</tool_call>", "<|tool_call_end|>", "<|channel>thought\n"],
    "ends": ["<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|eom|>", "<|constrain|>", "<channel|>"],
    "text": ["a", " ", "\n", "<", ",", "é", "🎉", "Words. ", "\\", '"', "'", "1", ":"],
}  # fmt: skip
FRAGMENTS = [*itertools.chain(*PARTS.values()), *(tag for tags in TOOLS.values() for tag in tags)]
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), max_size=14).map("".join)
NAMES = sorted({*TOOLS, *HARMONY})


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None, database=None)
@given(text=TEXTS, cuts=st.lists(st.integers(0, 300), max_size=30), thinks=st.sampled_from(["", *REASONING]))
def test_streamed_and_whole_outputs_are_the_same(name: str, text: str, cuts: list[int], thinks: str) -> None:
    whole = make(name, reasoning=thinks).parse(text)
    places = sorted({0, len(text), *(each for each in cuts if each < len(text))})
    pieces = [text[start:end] for start, end in itertools.pairwise(places)]
    assert known(streamed(make(name, reasoning=thinks), pieces)) == known(whole)
    assert known(streamed(make(name, reasoning=thinks), list(text))) == known(whole)
    for call in whole.tool_calls:
        assert isinstance(json.loads(call["function"]["arguments"]), dict)
        call["function"]["arguments"].encode()
    if not whole.tool_calls and name not in HARMONY and not thinks:
        assert whole.content == text


@pytest.mark.parametrize("name", [*NAMES, ""])
@settings(max_examples=100, deadline=None, database=None)
@given(text=st.text(st.characters(exclude_characters="<[{", exclude_categories=["Cs"])))
def test_prose_comes_back_letter_for_letter(name: str, text: str) -> None:
    for parser in (
        make(name, reasoning="qwen3"),
        make(name, [], reasoning="gemma4"),
        OutputParser(None, name, DECLARED),
    ):
        if not parser.passive:
            text = text.replace("functools", "").replace(" to=", "")
        parsed = parser.parse(text)
        assert (parsed.content, parsed.reasoning, parsed.tool_calls) == (text, "", [])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("phi4", "In Python, functools is a module; functools.lru_cache caches."),
        ("phi4", 'functools["a", "b"]'),
        ("hermes3", '<tool_call>\n{"name": "get", "arguments": {"zip": "a"}\n</tool_call>'),
        ("hermes3", "Put it between <tool_call> and </tool_call>."),
        ("hermes3", '<tool_call>{"name": "get", "arguments": {"zip": "cut sh'),
        ("hermes3", '<tool_call>{"name": "get", "arguments": [1]}</tool_call>'),
        ("hermes3", '<tool_call>{"name": "get", "arguments": {"days": NaN}}</tool_call>'),
        ("hermes3", '<tool_call>{"name": "get", "arguments": {"days": 1e999}}</tool_call>'),
        ("hermes3", "a <tool_cal"),
        ("mistral", "The token [TOOL_CALLS] marks a call."),
        ("devstral", "[TOOL_CALLS]get[ARGS]{'zip'}"),
        ("devstral", "[TOOL_CALLS] and [ARGS] are tokens."),
        ("qwen3coder", "Write <function=name> to call."),
        ("qwen3coder", "<tool_call>\n<function=get>\n<parameter=zip>\ncut sh"),
        ("qwen3coder", "<function=other>\n</function>"),
        ("llama3", '{"name": "Bob", "age": 3}'),
        ("llama3", '{"city": "Paris"} is JSON.'),
        ("minicpm5", 'Use <function name="x"></function>.'),
        ("lfm2", "<|tool_call_start|>[get(1)]<|tool_call_end|>"),
        ("lfm2", "<|tool_call_start|>[__import__('os')]<|tool_call_end|>"),
        ("gemma4", "<|tool_call>call:get{zip:<tool_call|>"),
        ("hermes3", " \n"),
    ],
)
def test_what_only_looks_like_a_call_comes_back_letter_for_letter(name: str, text: str) -> None:
    assert known(make(name).parse(text)) == (text, "", [])
    assert known(streamed(make(name), list(text))) == (text, "", [])


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("sure", "True", True), ("sure", "false", False), ("sure", "yes", "yes"),
        ("zip", "123", "123"), ("zip", "true", "true"), ("zip", "null", "null"), ("zip", '"a"', '"a"'),
        ("zip", "a\nb", "a\nb"), ("zip", "", ""), ("zip", "</tool>", "</tool>"),
        ("note", "644", "644"), ("note", "null", None), ("note", "None", "None"),
        ("days", "2", 2), ("days", "2.0", 2), ("days", "2.5", 2.5),
        ("days", "two", "two"), ("days", "007", "007"), ("days", "1e999", "1e999"),
        ("share", "2.5", 2.5), ("share", "-1e3", -1000.0), ("either", "None", None), ("either", "3", 3),
        ("more", '{"a": 1}', {"a": 1}), ("more", "{'a': True, 'b': None}", {"a": True, "b": None}),
        ("more", "[1]", "[1]"),
        ("list", "['x', 1]", ["x", 1]), ("list", '["a\nb"]', ["a\nb"]), ("unit", "5", "5"),
        ("new", "5", 5), ("new", "words", "words"), ("new", "true", True), ("new", "{'a': 1}", {"a": 1}),
    ],
)  # fmt: skip
def test_declared_types_decide(key: str, written: str, value: object) -> None:
    text = f"<tool_call>\n<function=get>\n<parameter={key}>\n{written}\n</parameter>\n</function>\n</tool_call>"
    (call,) = make("qwen3coder").parse(text).tool_calls
    assert json.loads(call["function"]["arguments"]) == {key: value}


def test_the_start_of_a_parameter_ends_the_one_before_and_other_words_do_not() -> None:
    def arguments(body: str) -> Any:
        (call,) = make("qwen3coder").parse(f"<tool_call>\n<function=get>\n{body}</function>\n</tool_call>").tool_calls
        return json.loads(call["function"]["arguments"])

    assert arguments("<parameter=zip>\na\n<parameter=note>\nb\n</parameter>\n") == {"zip": "a", "note": "b"}
    inside = "write <parameter=x> here"
    assert arguments(f"<parameter=zip>\n{inside}\n</parameter>\n") == {"zip": inside}
    assert arguments("") == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"name": "get", "arguments": {"zip": "a\nb"}}', {"zip": "a\nb"}),
        ('{"name": "get", "arguments": "{\\"zip\\": \\"a\\"}"}', {"zip": "a"}),
        ('{"name": "get"}', {}),
        ('{"name": "get", "arguments": null}', {}),
        ('{"name": "get", "arguments": {"zip": "\\ud83d"}}', {"zip": "\ufffd"}),
        ('{"name": "get", "arguments": {"zip": "</tool_call>"}}', {"zip": "</tool_call>"}),
    ],
)
def test_arguments_are_always_one_object(text: str, value: object) -> None:
    (call,) = make("hermes3").parse(f"<tool_call>{text}</tool_call>").tool_calls
    assert json.loads(call["function"]["arguments"]) == value


def test_values_of_python_and_gemma() -> None:
    (call,) = (
        make("lfm2").parse("<|tool_call_start|>[get(a=[1, {'b': None}], c=true, d=-2.5)]<|tool_call_end|>").tool_calls
    )
    assert json.loads(call["function"]["arguments"]) == {"a": [1, {"b": None}], "c": True, "d": -2.5}
    nested = '{a:[1,<|"|>x, {y}<|"|>],b:{c:true,d:null},e:<|"|>"q"<|"|>}'
    (call,) = make("gemma4").parse(f"<|tool_call>call:get{nested}<tool_call|>").tool_calls
    assert json.loads(call["function"]["arguments"]) == {"a": [1, "x, {y}"], "b": {"c": True, "d": None}, "e": '"q"'}


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("The tag <think> opens it and </think> closes it.", "", "The tag <think> opens it and </think> closes it."),
        ("\n<think>plan</think>\n\nWrite <think> first.", "plan", "\n\nWrite <think> first."),
        ("<think>never ends", "never ends", ""),
        ("<thin", "", "<thin"),
    ],
)
def test_only_what_comes_before_any_text_is_reasoning(text: str, reasoning: str, content: str) -> None:
    assert known(OutputParser(THINK).parse(text)) == (content, reasoning, [])
    assert known(streamed(OutputParser(THINK), list(text))) == (content, reasoning, [])


def test_reasoning_that_the_prompt_began() -> None:
    parser = OutputParser(THINK)
    parser.begin_thinking()
    assert known(parser.parse("I wonder <think></think>42")) == ("42", "I wonder <think>", [])


def test_messages_of_envelopes() -> None:
    text = "<|channel|>analysis<|message|>One.<|end|><|start|>assistant<|channel|>analysis<|message|>Two.<|end|>"
    text += "<|start|>assistant<|channel|>final<|message|>It is 20 °C.<|return|>"
    assert known(make("gptoss").parse(text)) == ("It is 20 °C.", "One. Two.", [])
    assert known(make("gptoss", []).parse(text)) == ("It is 20 °C.", "One. Two.", [])
    assert known(make("onyx").parse(" to=user<|message|>Send it to=admin.<|eot|>")) == ("Send it to=admin.", "", [])
    assert known(make("onyx").parse("<|message|>Plain.<|eot|>")) == ("Plain.", "", [])
    bad = "<|channel|>commentary to=functions.get<|message|>{oh}<|call|>"
    assert known(make("gptoss").parse(bad)) == (bad, "", [])


def test_parsers_need_no_tools_to_say_what_they_need() -> None:
    assert parser_for({"tool_parser": "hermes3", "reasoning_parser": ""}, [], raw=False).passive
    assert parser_for({"tool_parser": "hermes3", "reasoning_parser": "qwen3"}, DECLARED, raw=True).passive
    assert make("gptoss").needs_special_tokens
    assert make("", [], "gemma4").needs_special_tokens
    assert not make("hermes3", reasoning="qwen3").needs_special_tokens


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("<|channel|>", ("gptoss", "gptoss")),
        ("<|start|> <|message|> <|eom|> <|eot|>", ("onyx", "onyx")),
        ("<|tool_call>call:", ("gemma4", "gemma4")),
        ("<parameter= </parameter> <function= <think>", ("qwen3coder", "qwen3")),
        ("<parameter= </parameter> <function= </think>", ("qwen3coder", "qwen3")),
        ('<param name="', ("minicpm5", "minicpm5")),
        ("<|tool_call_start|> message.thinking", ("lfm2", "lfm2")),
        ("functools", ("phi4", "")),
        ("[TOOL_CALLS] [ARGS]", ("devstral", "")),
        ("[AVAILABLE_TOOLS] [/AVAILABLE_TOOLS]", ("mistral", "")),
        ("<|python_tag|>", ("llama3", "")),
        ("<tool_call> </tool_call> <think>", ("hermes3", "qwen3")),
        ("<tool_call> </tool_call> content.split('</think>')", ("hermes3", "qwen3")),
        ("<think>", ("", "qwen3")),
        ("plain", ("", "")),
    ],
)
def test_parsers_are_recognised_by_the_template(template: str, found: tuple[str, str]) -> None:
    assert detect(template) == found
