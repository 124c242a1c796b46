"""The generate service: OpenAI completions, whole or streamed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovms_kernel.api.services import Route, ServiceDefinition, forward, forward_stream, need, with_best_of, with_id

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from ovms_kernel.api.services import Answer, Call, Engine


class Generate:
    """Hands a prompt to the engine and its continuation back; see OpenAI's completions for the fields.

    :param section: ``default_model``, the model of requests that name none.
    """

    def __init__(self, section: Mapping[str, Any]) -> None:
        self.definition = ServiceDefinition(
            name="generate",
            model_type="text_generation",
            endpoint="/v3/completions",
            paths=("/v1/completions",),
            default_model=section.get("default_model", "OpenVINO/Qwen3-8B-int4-ov"),
            support_models=("OpenVINO/Qwen3-8B-int4-ov", "OpenVINO/Phi-3.5-mini-instruct-int4-ov"),
            streaming=True,
            # AOG's template without conversions loses the text of its /v3/completions.
            extras={"aog": {"config_ref": "openvino:generate"}},
        )
        self._route = Route(self.definition, prepare, adds=with_id("cmpl"))

    async def invoke(self, call: Call, engine: Engine) -> Answer:
        """Return the whole answer."""
        return await forward(self._route, call, engine)

    def stream(self, call: Call, engine: Engine) -> AsyncGenerator[bytes, None]:
        """Yield the answer's events as the engine sends them, with the usage chunk and ``[DONE]``."""
        return forward_stream(self._route, call, engine)


def prepare(fields: dict[str, Any]) -> dict[str, Any]:
    """Take the prompt out of a list of one, as the engine takes no lists, and give ``n`` the ``best_of`` it needs."""
    if isinstance(fields.get("prompt"), list) and len(fields["prompt"]) == 1:
        fields = fields | {"prompt": fields["prompt"][0]}
    need(fields, "prompt", str, "a text that is not empty; lists of prompts are not supported, send one request each")
    return with_best_of(fields)
