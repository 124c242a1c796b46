"""The tokenize service: the tokens of texts, as the model that is named splits them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import msgspec

from ovms_kernel.api.services import Answer, BadRequest, ServiceDefinition, encode, need, present

if TYPE_CHECKING:
    from ovms_kernel.api.services import Call, Engine

TYPES = ("text_generation", "embeddings", "rerank")
"""Types of models that have a tokenizer which the engine offers."""


class TokenizeSettings(msgspec.Struct, frozen=True):
    """What can be set."""

    default_model: str = ""
    """The model of requests that name none."""


class Tokenize:
    """Answers ``tokens`` for ``text``, a text or a list of them."""

    settings_type = TokenizeSettings

    def __init__(self, settings: TokenizeSettings) -> None:
        self.definition = ServiceDefinition(
            name="tokenize",
            model_type="text_generation",
            endpoint="/v3/tokenize",
            paths=("/v1/tokenize",),
            default_model=settings.default_model,
        )

    async def invoke(self, call: Call, engine: Engine) -> Answer:
        """Return the engine's answer: ``{"tokens": […]}``."""
        fields = present(call)
        fields["text"] = need(fields, "text", (str, list), "a text, or a list of texts")
        async with AsyncExitStack() as held:
            model = await self._hold(held, call, engine)
            body = encode(fields | {"model": model})
            answer = await engine.post(self.definition.endpoint, body)
        return Answer(answer.body, model=model)

    async def _hold(self, held: AsyncExitStack, call: Call, engine: Engine) -> str:
        """Return the model, whichever of the types it has."""
        refused: BadRequest | None = None
        for kind in TYPES:
            try:
                model = engine.model(call.model, kind, default=self.definition.default_model)
                return await held.enter_async_context(model)
            except BadRequest as error:
                refused = refused or error
                if not call.model:
                    break
        assert refused  # noqa: S101 - there is a first type
        raise refused
