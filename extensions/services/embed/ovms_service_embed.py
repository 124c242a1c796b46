"""The embed service: texts to vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovms_kernel.api.services import Route, ServiceDefinition, forward, need, with_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovms_kernel.api.services import Answer, Call, Engine


class Embed:
    """Hands ``input`` (a text, a list of texts, or token lists) to the engine and its vectors back.

    :param section: ``default_model``, the model of requests that name none.
    """

    def __init__(self, section: Mapping[str, Any]) -> None:
        self.definition = ServiceDefinition(
            name="embed",
            model_type="embeddings",
            endpoint="/v3/embeddings",
            paths=("/v1/embeddings",),
            default_model=section.get("default_model", "OpenVINO/Qwen3-Embedding-0.6B-int8-ov"),
            support_models=("OpenVINO/Qwen3-Embedding-0.6B-int8-ov",),
            probe='{"input":"."}',
            extras={"aog": {"config_ref": "openvino:embed", "config_ref_full": "aog:embed"}},
        )
        self._route = Route(self.definition, prepare, adds=with_model)

    async def invoke(self, call: Call, engine: Engine) -> Answer:
        """Return the vectors."""
        return await forward(self._route, call, engine)


def prepare(fields: dict[str, Any]) -> dict[str, Any]:
    """Check that there is something to embed."""
    need(fields, "input", (str, list), "a text, a list of texts, or lists of tokens, and not empty")
    return fields
