from typing import Any

import msgspec

from ovms_kernel.api.services import Answer, Call, Engine, Route, ServiceDefinition, forward, need


class ShoutSettings(msgspec.Struct, frozen=True):
    default_model: str = ""
    """The model of requests that name none."""


class Shout:
    settings_type = ShoutSettings

    def __init__(self, settings: ShoutSettings) -> None:
        self.definition = ServiceDefinition(
            name="shout",
            model_type="text_generation",
            endpoint="/v3/chat/completions",
            paths=("/v1/shout",),
            default_model=settings.default_model,
        )
        self._route = Route(self.definition, prepare)

    async def invoke(self, call: Call, engine: Engine) -> Answer:
        return await forward(self._route, call, engine)


def prepare(fields: dict[str, Any]) -> dict[str, Any]:
    text = need(fields, "text", str, "a text")
    rest = {name: value for name, value in fields.items() if name != "text"}
    return rest | {"messages": [{"role": "user", "content": text.upper()}]}
