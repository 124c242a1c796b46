"""Chat templates as Hugging Face and OVMS render them: jinja2 in a sandbox that changes nothing.

A template comes with a model and is not trusted. The sandbox keeps it away from Python; ``renderer.py`` bounds the time
and the memory that it takes.
"""

from __future__ import annotations

import contextlib
import copy
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, Never

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jinja2.parser import Parser
    from jinja2.runtime import Context

LONGEST = 1 << 24
"""Characters of a prompt, and items of a repeated string or list; a window of a million tokens takes a fourth."""
DIGITS = 1 << 16
"""Bits of a power."""
NEEDLE = "probe_needle_xK9m"
HELLO = {"role": "user", "content": "Hello"}
NATIVE = ('"{}": "', '"{}":"', "<parameter={}>", '<atem:parameter name="{}">', '<param name="{}">', "{}:<|", "{}=")
"""How the name of an argument stands in a call that is rendered as such, and not as a string within a string."""


class Unrenderable(Exception):
    """The template refuses the request or cannot render it, with a sentence for the client."""


class _Generation(Extension):
    """``{% generation %}``, by which training marks what the assistant said; here its body is what it stands for."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """Return a call with the tag's body, so that variables set within it end with it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with Hugging Face's functions and filters, and ``from_json``, which OVMS adds."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters["tojson"] = _to_json
        self.filters["from_json"] = json.loads
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = _now

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401 - a template's
        """Calculate, unless one operation would fill the memory."""
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, (str, list, tuple)) and isinstance(times, int) and len(many) * times > LONGEST:
                    text = f"it repeats something to more than {LONGEST} items"
                    raise SecurityError(text)
        elif isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > DIGITS:
            text = "it calculates a power of too many digits"
            raise SecurityError(text)
        return super().call_binop(context, operator, left, right)


def _to_json(
    value: Any,  # noqa: ANN401 - any JSON value
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - as templates call it
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """Return JSON text. Unlike jinja2's own, it escapes nothing for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> Never:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005 - the prompt's reader wants local time


class ChatTemplate:
    """One template, and what it wants of the messages.

    :param source: its text.
    :param tokens: ``bos_token`` and ``eos_token``.
    :raises Unrenderable: jinja2 cannot compile it.
    """

    def __init__(self, source: str, tokens: dict[str, str]) -> None:
        try:
            self._template = _Environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            text = f"line {error.lineno}: {error.message}"
            raise Unrenderable(text) from error
        except (RecursionError, SyntaxError, MemoryError, ValueError) as error:
            text = f"it cannot be compiled: {error or type(error).__name__}"
            raise Unrenderable(text) from error
        self._tokens = tokens
        self._copies_reasoning = "message.thinking" in source
        self.object_arguments, self.drops_tool_calls = self._probe()

    def render(self, messages: list[dict[str, Any]], tools: list[Any] | None, context: dict[str, Any]) -> str:
        """Return the prompt.

        :param context: ``chat_template_kwargs``.
        :raises Unrenderable: the template refuses the request, or fails.
        """
        failure: Unrenderable | None = None
        for variant in self._variants(messages):
            try:
                return self._render(variant, tools, context)
            except Unrenderable as error:
                failure = failure or error
        raise failure or AssertionError

    def _variants(self, messages: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        """Yield the messages as the template wants them; then what helps a template that fails on them."""
        messages = copy.deepcopy(messages)
        broken: list[dict[str, Any]] = []
        for message in messages:
            if self._copies_reasoning and "reasoning_content" in message:
                message["thinking"] = message["reasoning_content"]
            if self.object_arguments:
                broken += _parse_arguments(message)
        yield messages
        silent = [each for each in messages if each.get("content") is None]
        for message in silent:
            message["content"] = ""
        if silent:
            yield messages
        for function in broken:
            function["arguments"] = {"arguments": function["arguments"]} if function["arguments"] else {}
        if broken:
            yield messages

    def _render(self, messages: list[dict[str, Any]], tools: list[Any] | None, context: dict[str, Any]) -> str:
        variables: dict[str, Any] = {"add_generation_prompt": True} | context | self._tokens | {"messages": messages}
        if tools:
            variables["tools"] = tools
        try:
            text = self._template.render(variables)
        except RecursionError as error:
            problem = "it calls itself too deeply"
            raise Unrenderable(problem) from error
        except MemoryError as error:
            problem = "it takes too much memory"
            raise Unrenderable(problem) from error
        except Exception as error:  # a template can raise anything
            raise Unrenderable(str(error) or type(error).__name__) from error
        if len(text) > LONGEST:
            problem = f"it writes more than {LONGEST} characters"
            raise Unrenderable(problem)
        return text

    def _probe(self) -> tuple[bool, bool]:
        """Return whether past calls' arguments must be objects, and whether past calls are dropped or dumped."""
        text, as_object = (self._try_call(form) for form in (json.dumps({NEEDLE: "val"}), {NEEDLE: "val"}))
        known = [each for each in (text, as_object) if each is not None]
        if any('"tool_calls": [' in each for each in known):  # the message as JSON, which the model does not know
            return False, True
        dropped = bool(known) and not any(NEEDLE in each for each in known)
        return as_object is not None and _native(as_object), dropped

    def _try_call(self, arguments: object) -> str | None:
        call = {"id": "call_0_ab", "type": "function", "function": {"name": "probe_fn", "arguments": arguments}}
        try:
            return self._render([HELLO, {"role": "assistant", "content": "", "tool_calls": [call]}], None, {})
        except Unrenderable:
            return None


def _parse_arguments(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Make objects of the arguments of calls, and yield the functions for which that cannot be done."""
    for call in message.get("tool_calls", ()):
        function = call["function"]
        if isinstance(function["arguments"], str):
            with contextlib.suppress(ValueError, RecursionError):
                function["arguments"] = json.loads(function["arguments"])
        if not isinstance(function["arguments"], dict):
            yield function


def _native(text: str) -> bool:
    return any(form.format(NEEDLE) in text for form in NATIVE)
