"""Chat templates of some seventy real model families, in sixteen situations, against a bare jinja2.

The templates are not ours to copy: they come out of a package at test time, once for each user of this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
import pytest
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ovms_embedded.rest.messages import read_messages, read_template_context, read_tools
from ovms_embedded.worker.chat_template import ChatTemplate, Unrenderable

PACKAGE = "llama-cpp-python==0.3.36"
DIGEST = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
INSIDE = "vendor/llama.cpp/models/templates/"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
NEEDLE = "probe_needle_xK9m"
NATIVE = ('"{}": "', '"{}":"', "<parameter={}>", '<atem:parameter name="{}">', '<param name="{}">', "{}:<|", "{}=")
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": 'Where <exactly>, "é"'},
        "days": {"type": "integer"},
        "scale": {"type": "number", "default": 2.5},
        "more": {"type": "object", "properties": {"x": {"type": ["string", "null"]}}},
    },
    "required": ["city"],
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "The weather of <a> city", "parameters": SCHEMA},
    }
]
ARGUMENTS = '{"city": "Zürich", "days": 2, "scale": 2.5, "more": {"x": null}}'


def say(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content} | more


def call(arguments: str = ARGUMENTS, number: str = "abcdefgh1") -> dict[str, Any]:
    return {"id": number, "type": "function", "function": {"name": "weather", "arguments": arguments}}


def result(content: str, number: str = "abcdefgh1") -> dict[str, Any]:
    return say("tool", content, tool_call_id=number, name="weather")


USER, SYSTEM = say("user", "How is the <weather>?"), say("system", "Be brief & kind.")
SITUATIONS: dict[str, dict[str, Any]] = {
    "user": {"messages": [USER]},
    "system": {"messages": [SYSTEM, USER]},
    "several turns": {"messages": [SYSTEM, USER, say("assistant", "Fine."), say("user", "'Sure'?")]},
    "no prompt": {
        "messages": [USER, say("assistant", "Fine.")],
        "chat_template_kwargs": {"add_generation_prompt": False},
    },
    "thinks": {"messages": [USER], "chat_template_kwargs": {"enable_thinking": True}},
    "does not think": {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False}},
    "tools": {"messages": [USER], "tools": TOOLS},
    "system, tools": {"messages": [SYSTEM, USER], "tools": TOOLS},
    "call": {"messages": [USER, say("assistant", "", tool_calls=[call()]), result('{"t": 20}')], "tools": TOOLS},
    "null": {"messages": [USER, say("assistant", None, tool_calls=[call()]), result("20")], "tools": TOOLS},
    "words, call": {
        "messages": [
            USER,
            say("assistant", "I look.", tool_calls=[call()]),
            result("20"),
            say("assistant", "20."),
            USER,
        ],
        "tools": TOOLS,
    },
    "two calls": {
        "messages": [
            USER,
            say("assistant", "", tool_calls=[call(), call('{"city": "Rome"}', "abcdefgh2")]),
            result("1"),
            result("2", "abcdefgh2"),
        ],
        "tools": TOOLS,
    },
    "reasoning": {"messages": [USER, say("assistant", "Fine.", reasoning_content="Is it?"), USER]},
    "reasoning, call": {
        "messages": [USER, say("assistant", "", reasoning_content="Hm.", tool_calls=[call()]), result("20")],
        "tools": TOOLS,
    },
    "parts": {"messages": [say("user", [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}])]},
    "no latin": {"messages": [say("user", "Grüße, 你好 🎉 "), say("assistant", "é"), USER], "tools": TOOLS},
}


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "ovms-plugin-tests", DIGEST[:16])
    if not cache.exists():
        download(cache)
    return {path.stem: path.read_text("utf-8") for path in sorted(cache.glob("*.jinja"))}


def download(cache: Path) -> None:
    """Fetch the package, and keep its templates."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    requirement = cache.parent / f"{os.getpid()}.txt"
    folder = cache.parent / str(os.getpid())
    requirement.write_text(f"{PACKAGE} --hash=sha256:{DIGEST}\n")
    options = ["--no-deps", "--no-binary", "llama-cpp-python", "--dest", str(folder), "-r", str(requirement)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    requirement.unlink()
    if done.returncode:
        pytest.skip(f"{PACKAGE} cannot be downloaded: {done.stderr.strip()[-200:]}")
    (archive,) = folder.iterdir()
    kept = folder / "kept"
    kept.mkdir()
    with tarfile.open(archive) as package:
        for member in package:
            if INSIDE in member.name and member.name.endswith(".jinja") and (data := package.extractfile(member)):
                (kept / PurePosixPath(member.name).name).write_bytes(data.read())
    archive.unlink()
    kept.rename(cache)
    folder.rmdir()


class Generation(Extension):
    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("inner"), [], [], body).set_lineno(line)

    def inner(self, caller: Any) -> Any:
        return caller()


def compiled(source: str) -> jinja2.Template | None:
    """Return a template of jinja2, set up as transformers does; None if jinja2 does not take it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, ensure_ascii=False, **more: json.dumps(
        value, ensure_ascii=ensure_ascii, **more
    )
    environment.filters["from_json"] = json.loads
    environment.globals["strftime_now"] = lambda form: "today"

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(source)
    except jinja2.TemplateError:
        return None


def reference(template: jinja2.Template, asked: dict[str, Any], *, objects: bool, thinking: bool) -> str | None:
    """Return what jinja2 makes of a request; None if the template refuses it."""
    messages = json.loads(json.dumps(asked["messages"]))
    for each in messages:
        if isinstance(each["content"], list):
            each["content"] = "\n".join(part["text"] for part in each["content"])
        if thinking and "reasoning_content" in each:
            each["thinking"] = each["reasoning_content"]
        for one in each.get("tool_calls", ()) if objects else ():
            one["function"]["arguments"] = json.loads(one["function"]["arguments"])
    more = {"tools": asked["tools"]} if "tools" in asked else {}
    kwargs = asked.get("chat_template_kwargs", {})
    try:
        return template.render({"add_generation_prompt": True, "messages": messages} | TOKENS | more | kwargs)
    except Exception:
        return None


def wants_objects(template: jinja2.Template) -> bool:
    """Tell whether past arguments must be objects, by OVMS's probe."""
    outputs = []
    for arguments in (json.dumps({NEEDLE: "val"}, separators=(",", ":")), {NEEDLE: "val"}):
        one = {"id": "call_0_ab", "type": "function", "function": {"name": "probe_fn", "arguments": arguments}}
        messages = [say("user", "Hello"), say("assistant", "", tool_calls=[one])]
        try:
            outputs.append(template.render({"messages": messages, "add_generation_prompt": True} | TOKENS))
        except Exception:
            outputs.append("")
    return '"tool_calls": [' not in "".join(outputs) and any(form.format(NEEDLE) in outputs[1] for form in NATIVE)


def ours(template: ChatTemplate, asked: dict[str, Any]) -> str | None:
    try:
        return template.render(read_messages(asked)[0], read_tools(asked)[0], read_template_context(asked))
    except Unrenderable:
        return None


@pytest.mark.timeout(240)  # the first time, it waits for the download
def test_real_templates_say_what_jinja2_says(sources: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovms_embedded.worker.chat_template._now", lambda form: "today")
    assert len(sources) >= 40
    rendered = 0
    different: list[str] = []
    for family, source in sources.items():
        template = compiled(source)
        assert template
        mine = ChatTemplate(source, TOKENS)
        kind = {"objects": wants_objects(template), "thinking": "message.thinking" in source}
        for situation, asked in SITUATIONS.items():
            if (wanted := reference(template, asked, **kind)) is None:
                continue
            rendered += 1
            if ours(mine, asked) != wanted:
                different.append(f"{family}: {situation}")
    print(f"{rendered - len(different)} of {rendered} renderings of {len(sources)} templates are equal")
    assert rendered > 0.75 * len(sources) * len(SITUATIONS)
    assert len(different) <= 0.01 * rendered, different


def test_families_that_the_library_could_not_render(sources: dict[str, str]) -> None:
    """The library's own renderer showed these models JSON where a call is, or did not parse their templates."""
    prompt = ours(ChatTemplate(sources["Qwen3-Coder"], TOKENS), SITUATIONS["call"])
    assert prompt
    assert "<tool_call>\n<function=weather>\n<parameter=city>\nZürich\n</parameter>" in prompt
    assert "<parameter=scale>\n2.5\n</parameter>" in prompt
    for family in ("GLM-4.6", "StepFun3.5-Flash", "Kimi-K3", "tencent-Hy3", "Cohere2MoE"):
        assert ours(ChatTemplate(sources[family], TOKENS), SITUATIONS["user"])


@pytest.mark.parametrize("family", ["Qwen3-Coder", "Qwen-Qwen3-0.6B"])
def test_a_tool_conversation_has_as_many_tokens_as_jinja2_makes(
    sources: dict[str, str], make_engine: Any, graph: Any, fixtures: Path, tmp_path: Path, family: str
) -> None:
    """The library's own renderer made 1343 tokens of such a conversation of Qwen3-Coder's where jinja2 makes 1267."""
    model = shutil.copytree(fixtures / "text_generation", tmp_path / "model")
    (model / "chat_template.jinja").write_text(sources[family], "utf-8")
    engine = make_engine()
    engine.entry("m", graph("text_generation", model))
    engine.list("m")
    engine.start().ready()
    template = compiled(sources[family])
    assert template
    for situation in ("tools", "call", "two calls", "reasoning, call"):
        asked = SITUATIONS[situation]
        wanted = reference(template, asked, objects=wants_objects(template), thinking=False)
        assert wanted
        tokens = engine.post("/v3/tokenize", model="m", text=wanted, add_special_tokens=False).json()["tokens"]
        answer = engine.post("/v3/chat/completions", model="m", max_tokens=1, temperature=0, **asked)
        assert answer.json()["usage"]["prompt_tokens"] == len(tokens), situation
