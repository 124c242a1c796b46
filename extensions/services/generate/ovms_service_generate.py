"""The generate service: OpenAI completions, whole or streamed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ovms_kernel.api.services import BadRequest, Completions, ServiceDefinition, check, complete, stream_completion

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from ovms_kernel.api.services import Answer, Call, Engine

MOST_LOGPROBS = 5
"""OpenAI's limit; the engine knows the token that it chose and no alternatives."""


class GenerateSettings(msgspec.Struct, frozen=True):
    """What can be set."""

    default_model: str = "OpenVINO/Qwen3-8B-int4-ov"
    """The model of requests that name none."""


class Generate:
    """Continues prompts; for the fields see OpenAI's completions."""

    settings_type = GenerateSettings

    def __init__(self, settings: GenerateSettings) -> None:
        self.definition = ServiceDefinition(
            name="generate",
            model_type="text_generation",
            endpoint="/v3/completions",
            paths=("/v1/completions",),
            default_model=settings.default_model,
            support_models=("OpenVINO/Qwen3-8B-int4-ov", "OpenVINO/Phi-3.5-mini-instruct-int4-ov"),
            streaming=True,
            # AOG's template without conversions loses the text of its /v3/completions.
            extras={"aog": {"config_ref": "openvino:generate"}},
        )
        self._kind = Completions(self.definition, "cmpl", "text_completion", prepare, pieces)

    async def invoke(self, call: Call, engine: Engine) -> Answer:
        """Return the whole answer."""
        return await complete(self._kind, call, engine)

    def stream(self, call: Call, engine: Engine) -> AsyncGenerator[bytes, None]:
        """Yield the answer's events as the engine sends them, with the usage event and ``[DONE]``."""
        return stream_completion(self._kind, call, engine)


def prepare(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a request for each prompt; see ``Completions.prepare``."""
    given = fields.get("prompt")
    prompts = given if isinstance(given, list) else [given]
    if given is None or not prompts:
        raise BadRequest("The request needs the field prompt: a text, or a list of texts.")
    if any(_is_number(each) or (isinstance(each, list) and all(map(_is_number, each))) for each in prompts):
        raise BadRequest("The engine takes prompts as texts, not as tokens; send the text.")
    if not all(isinstance(each, str) and each for each in prompts):
        raise BadRequest("The field prompt must be a text that is not empty, or a list of such texts.")
    if fields.get("suffix"):
        raise BadRequest(
            "The field suffix is not supported: the engine writes at the end of a text only; leave it out."
        )
    if (logprobs := check(fields, "logprobs", int, "a whole number")) is not None:
        if not 0 <= logprobs <= MOST_LOGPROBS:
            raise BadRequest(f"The field logprobs must be between 0 and {MOST_LOGPROBS}.")
        fields = fields | {"logprobs": 1}
    if "max_completion_tokens" in fields:
        limit = fields["max_completion_tokens"]
        fields = {name: value for name, value in fields.items() if name != "max_completion_tokens"}
        fields.setdefault("max_tokens", limit)
    return [fields | {"prompt": each} for each in prompts]


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def pieces(choice: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the streamed choices of a whole one; see ``Completions.pieces``."""
    return [
        {"text": choice.get("text") or "", "logprobs": choice.get("logprobs"), "finish_reason": None},
        {"text": "", "logprobs": None, "finish_reason": choice.get("finish_reason")},
    ]
