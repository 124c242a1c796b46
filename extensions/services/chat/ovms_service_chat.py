"""The chat service: OpenAI chat completions, whole or streamed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ovms_kernel.api.services import BadRequest, Completions, ServiceDefinition, complete, need, stream_completion

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from ovms_kernel.api.services import Answer, Call, Engine

PROBES = tuple(
    f'{{"messages":[{{"role":"user","content":"{each}"}}],"max_tokens":12,"temperature":0}}'
    for each in ("Count from one to ten.", "What is the capital of France?", "Write a sentence about the sea.")
)


class ChatSettings(msgspec.Struct, frozen=True):
    """What can be set."""

    default_model: str = "OpenVINO/Qwen3-8B-int4-ov"
    """The model of requests that name none."""


class Chat:
    """Answers conversations; for the fields see OpenAI's chat completions."""

    settings_type = ChatSettings

    def __init__(self, settings: ChatSettings) -> None:
        self.definition = ServiceDefinition(
            name="chat",
            model_type="text_generation",
            endpoint="/v3/chat/completions",
            paths=("/v1/chat/completions",),
            default_model=settings.default_model,
            support_models=("OpenVINO/Qwen3-8B-int4-ov", "OpenVINO/Phi-3.5-mini-instruct-int4-ov"),
            streaming=True,
            probes=PROBES,
            probe_answers="text",
            extras={"aog": {"config_ref": "openvino:chat", "config_ref_full": "openai:chat"}},
        )
        self._kind = Completions(self.definition, "chatcmpl", "chat.completion.chunk", prepare, pieces)

    async def invoke(self, call: Call, engine: Engine) -> Answer:
        """Return the whole answer."""
        return await complete(self._kind, call, engine)

    def stream(self, call: Call, engine: Engine) -> AsyncGenerator[bytes, None]:
        """Yield the answer's events as the engine sends them, with the usage event and ``[DONE]``."""
        return stream_completion(self._kind, call, engine)


def prepare(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Check the messages; see ``Completions.prepare``."""
    messages = need(fields, "messages", list, "a list of messages, each with role and content")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest(f"Message {number} must be an object with role and content.")
    return [_allowed(fields) | {"messages": [_understood(message) for message in messages]}]


def _allowed(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a request that offers only the tools that its ``tool_choice`` allows, as engines do not know that type."""
    choice = fields.get("tool_choice")
    if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
        return fields
    allowed = choice.get("allowed_tools")
    mode, tools = (allowed.get("mode"), allowed.get("tools")) if isinstance(allowed, dict) else (None, None)
    if mode not in ("auto", "required") or not isinstance(tools, list) or (mode == "required" and not tools):
        raise BadRequest("tool_choice.allowed_tools must have a mode, auto or required, and a list of tools.")
    offered = {_name(each): each for each in fields.get("tools") or () if _name(each)}
    names = [_name(each) for each in tools]
    if unknown := [name for name in names if name not in offered]:
        raise BadRequest(
            f"tool_choice.allowed_tools names {unknown[0] or 'no function'}, which is not in tools; add it there."
        )
    if not names:
        return {name: value for name, value in fields.items() if name not in ("tools", "tool_choice")}
    return fields | {"tools": [each for name, each in offered.items() if name in names], "tool_choice": mode}


def _name(tool: object) -> str:
    function = tool.get("function") if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def _understood(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message in the form that engines and chat templates know."""
    if message["role"] == "developer":  # OpenAI's newer name of it
        message = message | {"role": "system"}
    content = message.get("content")
    if isinstance(content, list) and any(_is_refusal(part) for part in content):
        parts = [{"type": "text", "text": part.get("refusal")} if _is_refusal(part) else part for part in content]
        message = message | {"content": parts}
    return message


def _is_refusal(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "refusal"


def pieces(choice: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the streamed choices of a whole one; see ``Completions.pieces``."""
    message = choice.get("message") or {}
    calls = message.get("tool_calls") or ()
    delta = {name: message[name] for name in ("content", "reasoning_content", "refusal") if message.get(name)}
    if calls:
        delta["tool_calls"] = [{"index": index} | each for index, each in enumerate(calls)]
    still = {"finish_reason": None, "logprobs": None}
    return [
        {"delta": {"role": "assistant", "content": None}} | still,
        {"delta": delta} | still | {"logprobs": choice.get("logprobs")},
        {"delta": {}} | still | {"finish_reason": choice.get("finish_reason")},
    ]
