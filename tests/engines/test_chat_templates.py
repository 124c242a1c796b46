"""Chat templates: rendered as Hugging Face and OVMS render them, and bounded, because they come with a model."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from ovms_embedded.worker.chat_template import ChatTemplate, Unrenderable
from ovms_embedded.worker.templates import find

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import httpx

    from tests.engines.conftest import Engine

CHAT = "/v3/chat/completions"
HI: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
ENDLESS = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4
CALLS = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ ARGUMENTS }};{% endfor %}{% endfor %}"
MARK = "{% for m in messages %}{{ m.content }}{% endfor %} "


def render(source: str, messages: list[dict[str, Any]] = HI, tools: list[Any] | None = None, **context: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}).render(messages, tools, context)


def past(arguments: object) -> list[dict[str, Any]]:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [*HI, {"role": "assistant", "content": None, "tool_calls": [call]}]


def test_what_templates_of_hugging_face_use() -> None:
    assert render("{{ {'b': 'é<', 'a': 2.5} | tojson }}") == '{"b": "é<", "a": 2.5}'
    assert render("{{ {'b': 'é'} | tojson(ensure_ascii=True, separators=(',', ':')) }}") == '{"b":"\\u00e9"}'
    assert render("{{ ('[1, {}]' | from_json)[1] }}") == "{}"
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("  {% if true %}\nx\n  {% endif %}\n{{ bos_token }}{{ eos_token }}") == "x\n<s></s>"
    assert render("{% generation %}said{% endgeneration %}.") == "said."
    assert render("{{ strftime_now('%Y') }}") == time.strftime("%Y")
    assert render("{{ 'more' if add_generation_prompt }}") == "more"
    assert render("{{ tools is defined }}{{ enable_thinking }}", enable_thinking=False) == "FalseFalse"
    with pytest.raises(Unrenderable, match="only users speak"):
        render("{{ raise_exception('only users speak') }}")


def test_arguments_of_past_calls_stay_text_unless_the_template_wants_objects() -> None:
    as_text = CALLS.replace("ARGUMENTS", "c.function.arguments")
    as_json = CALLS.replace("ARGUMENTS", "c.function.arguments | tojson")
    as_items = CALLS.replace("ARGUMENTS", "c.function.arguments | items | map('join', '=') | join(',')")
    assert render(as_text, past('{"a":  1}')) == '{"a":  1};'
    assert render(as_json, past('{"a":  1}')) == '{"a": 1};'
    assert render(as_items, past('{"a": 1}')) == "a=1;"
    for broken in ('{"x": ', "not json", "{'a': 1}"):
        assert render(as_text, past(broken)) == f"{broken};"
        assert render(as_items, past(broken)) == f"arguments={broken};"
    for nothing in ("", "null"):
        assert render(as_items, past(nothing)) == ";"


def test_null_content_goes_on_and_is_empty_where_a_template_cannot_take_it() -> None:
    silent = [*HI, {"role": "assistant", "content": None}]
    assert render("{{ messages[1].content is none }}", silent) == "True"
    assert render("{{ messages[1].content + '.' }}", silent) == "."


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("{% for x in range(10**9) %}{% endfor %}", "ange too big"),
        ("{{ 'a' * 10**10 }}", "repeats"),
        ("{{ [1] * 10**10 }}", "repeats"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "too deeply"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ 9 ** 99999999 }}", "too many digits"),
    ],
)
def test_one_operation_cannot_fill_the_memory_or_leave_the_sandbox(source: str, part: str) -> None:
    with pytest.raises(Unrenderable, match=part):
        render(source)


@pytest.mark.parametrize("source", ["{% for %}", "{{ " + "(" * 100_000, "{% if 1 %}" * 3000 + "{% endif %}" * 3000])
def test_a_template_that_cannot_be_compiled_says_so(source: str) -> None:
    with pytest.raises(Unrenderable):
        ChatTemplate(source, {})


class Tokenizer:
    def get_original_chat_template(self) -> str:
        return "own"

    def get_bos_token(self) -> str:
        return "<s>"

    get_eos_token = get_bos_token


def test_where_templates_are_found(tmp_path: Path) -> None:
    def found() -> tuple[str, str]:
        spec = find(tmp_path, Tokenizer())
        return spec["template"], spec["tool_template"]

    assert found() == ("own", "")
    listed = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": listed}))
    assert found() == ("own", "t")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("file")
    (tmp_path / "chat_template.jinja").write_text("jinja")
    assert found() == ("jinja", "file")


@pytest.fixture(scope="module")
def templates(
    tmp_path_factory: pytest.TempPathFactory,
    fixtures: Path,
    graph: Callable[..., str],
    engine_in: type[Engine],
    inference: None,
) -> Iterator[Engine]:
    """An engine with one model under several templates."""
    folder = tmp_path_factory.mktemp("templates")
    engine = engine_in(folder)
    sources = {
        "hostile": "{% if messages[0].content == 'bad' %}" + ENDLESS + "{% endif %}" + MARK,
        "greedy": "{% set x = 'a'.center(10 ** 9) %}{% for i in range(9) %}{% set x = x + x %}{% endfor %}" + MARK,
        "broken": "{% for %}",
        "forgetful": MARK,
        "list": MARK,
    }
    for name, source in sources.items():
        model = folder / name / "model"
        model.mkdir(parents=True)
        shutil.copytree(fixtures / "text_generation", model, dirs_exist_ok=True)
        (model / "chat_template.jinja").write_text(source)
        engine.entry(name, graph("text_generation", "./model", 'tool_parser: "hermes3"' if name == "forgetful" else ""))
    extra = folder / "list" / "model" / "additional_chat_templates"
    extra.mkdir()
    (extra / "tool_use.jinja").write_text(MARK + "{{ tools[0].function.name }} " * 20)
    engine.list(*sources)
    try:
        engine.start("--metrics_enable").ready()
        yield engine
        assert engine.stop() == 0
    finally:
        engine.close()


def ask(engine: Engine, model: str, content: str = "Hi", **fields: Any) -> httpx.Response:
    messages = [{"role": "user", "content": content}]
    return engine.post(CHAT, **{"model": model, "temperature": 0, "max_tokens": 3, "messages": messages} | fields)


def test_nobody_waits_for_a_template_that_never_ends(templates: Engine) -> None:
    assert ask(templates, "hostile").status_code == 200
    with ThreadPoolExecutor(2) as pool:
        bad = [pool.submit(ask, templates, "hostile", "bad") for _ in range(2)]
        began = time.monotonic()
        while not any(each.done() for each in bad):
            for model in ("hostile", "list"):
                assert ask(templates, model).status_code == 200
        assert time.monotonic() - began < 8
    for each in bad:
        assert each.result().status_code == 400
        assert "longer than 3 seconds" in each.result().json()["error"]
    assert ask(templates, "hostile").status_code == 200


def renderers(engine: Engine) -> list[psutil.Process]:
    """Return the processes that render templates."""
    assert engine.process
    children = psutil.Process(engine.process.pid).children()
    return [each for each in children if "ovms_embedded.worker.renderer" in each.cmdline()]


def kill(processes: list[psutil.Process]) -> None:
    for each in processes:
        each.kill()
    psutil.wait_procs(processes)


def test_a_renderer_that_was_killed_is_replaced(templates: Engine) -> None:
    assert ask(templates, "list").status_code == 200
    for _ in range(2):
        kill(renderers(templates))
        answer = ask(templates, "list")
        assert answer.status_code == 200, answer.text
    kill(renderers(templates))
    with ThreadPoolExecutor(1) as pool:
        answered = pool.submit(ask, templates, "list")
        while not (started := renderers(templates)):
            assert not answered.done()
        kill(started)
        assert answered.result().status_code == 200, answered.result().text


def test_a_template_cannot_take_the_memory(templates: Engine) -> None:
    answer = ask(templates, "greedy")
    assert answer.status_code == 400
    assert "too much memory" in answer.json()["error"]


def test_templates_that_cannot_serve_are_reported_at_load(templates: Engine) -> None:
    def problem(model: str) -> str | None:
        found: str | None = templates.http.get(f"/v2/models/{model}").json()["chat_template"]["problem"]
        return found

    assert problem("list") is None
    assert "line 1" in str(problem("broken"))
    assert "tool calls" in str(problem("forgetful"))
    for model in ("broken", "forgetful"):
        assert any(model in line and str(problem(model)) in line for line in templates.log)
    answer = ask(templates, "broken")
    assert answer.status_code == 400
    assert "Failed to apply chat template: line 1" in answer.json()["error"]
    prompt = {"model": "broken", "prompt": "The capital of France is", "temperature": 0}
    assert templates.post("/v3/completions", **prompt).json()["choices"][0]["text"] == " Paris."


def test_requests_with_tools_have_their_own_template(templates: Engine) -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}]
    plain = ask(templates, "list").json()["usage"]["prompt_tokens"]
    assert ask(templates, "list", tools=tools).json()["usage"]["prompt_tokens"] > plain + 10


@pytest.mark.parametrize(
    ("context", "part"), [({"messages": []}, "messages"), ({"add_generation_prompt": 1}, "true or false")]
)
def test_variables_that_a_request_cannot_set(engine: Engine, context: dict[str, Any], part: str) -> None:
    answer = ask(engine, "text_generation", chat_template_kwargs=context)
    assert answer.status_code == 400
    assert part in answer.json()["error"]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "I cannot."}]},
        {"role": "assistant", "content": None, "refusal": "I cannot."},
        {"role": "assistant", "content": [{"type": "text", "text": "I"}, {"type": "refusal", "refusal": " cannot."}]},
    ],
)
def test_a_refusal_in_the_history_is_text(engine: Engine, message: dict[str, Any]) -> None:
    answer = ask(engine, "text_generation", messages=[*HI, message, *HI])
    silent = ask(engine, "text_generation", messages=[*HI, {"role": "assistant", "content": ""}, *HI])
    assert answer.status_code == 200
    assert answer.json()["usage"]["prompt_tokens"] > silent.json()["usage"]["prompt_tokens"]


def test_a_refusal_in_the_input_of_responses_is_text(engine: Engine) -> None:
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "I cannot."}]}
    asked = {"model": "text_generation", "max_output_tokens": 3, "temperature": 0}
    answer = engine.post("/v3/responses", input=[*HI, refusal, *HI], **asked)
    assert answer.status_code == 200
    assert (
        answer.json()["usage"]["input_tokens"]
        > engine.post("/v3/responses", input=[*HI, *HI], **asked).json()["usage"]["input_tokens"]
    )


@pytest.mark.parametrize("arguments", ['{"x": ', "not json", '{"a": 1}{"b": 2}', "{'a': 1}", '{"a": NaN,}', ""])
def test_broken_arguments_in_the_history_do_not_end_the_conversation(engine: Engine, arguments: str) -> None:
    answer = ask(engine, "text_generation", messages=[*past(arguments), {"role": "tool", "content": "bad"}, *HI])
    assert answer.status_code == 200
