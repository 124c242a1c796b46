"""The chat service: OpenAI chat completions, whole or streamed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovms_kernel.api.services import (
    BadRequest,
    Route,
    ServiceDefinition,
    forward,
    forward_stream,
    need,
    with_best_of,
    with_id,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from ovms_kernel.api.services import Answer, Call, Engine


class Chat:
    """Hands a conversation to the engine and its answer back; see ``spec`` of OpenAI's chat completions for the fields.

    :param section: ``default_model``, the model of requests that name none.
    """

    def __init__(self, section: Mapping[str, Any]) -> None:
        self.definition = ServiceDefinition(
            name="chat",
            model_type="text_generation",
            endpoint="/v3/chat/completions",
            paths=("/v1/chat/completions",),
            default_model=section.get("default_model", "OpenVINO/Qwen3-8B-int4-ov"),
            support_models=("OpenVINO/Qwen3-8B-int4-ov", "OpenVINO/Phi-3.5-mini-instruct-int4-ov"),
            streaming=True,
            probe='{"messages":[{"role":"user","content":"."}],"max_tokens":1}',
            extras={"aog": {"config_ref": "openvino:chat", "config_ref_full": "openai:chat"}},
        )
        self._route = Route(self.definition, prepare, adds=with_id("chatcmpl"))

    async def invoke(self, call: Call, engine: Engine) -> Answer:
        """Return the whole answer."""
        return await forward(self._route, call, engine)

    def stream(self, call: Call, engine: Engine) -> AsyncGenerator[bytes, None]:
        """Yield the answer's events as the engine sends them, with the usage chunk and ``[DONE]``."""
        return forward_stream(self._route, call, engine)


def prepare(fields: dict[str, Any]) -> dict[str, Any]:
    """Check the messages, and give ``n`` the ``best_of`` that the engine needs with it."""
    for number, message in enumerate(need(fields, "messages", list, "a list of messages, each with role and content")):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest(f"Message {number} must be an object with role and content.")
    return with_best_of(fields)
