"""Text classification: the model type and the service, which live in the kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovms_kernel.api.graphs import fill, graph_of
from ovms_kernel.api.services import Route, ServiceDefinition, forward, need

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.message import Message

    from ovms_kernel.api.graphs import CalculatorGraphConfig, GraphOptions, ModelFiles
    from ovms_kernel.api.services import Answer, Call, Engine


class Classification:
    model_type = "text_classification"
    settings_type = dict

    def __init__(self, section: Mapping[str, Any]) -> None:
        self._section = section

    @staticmethod
    def options() -> Message:
        from acme_classify_options import ClassifyCalculatorOptions  # type: ignore[import-not-found]

        return ClassifyCalculatorOptions()

    def recognises(self, files: ModelFiles) -> int:
        return 50 if (files.json("config.json") or {}).get("model_type") == "acme-classifier" else 0

    def build(self, files: ModelFiles, options: GraphOptions) -> CalculatorGraphConfig:
        message = self.options()
        defaults = {"models_path": "./", "labels": ["low", "high"]}
        fill(message, defaults, self._section, options.values, what=self.model_type)
        return graph_of("ClassifyCalculator", "ClassifyExecutor", message, side_packets=())


class Classify:
    def __init__(self, section: Mapping[str, Any]) -> None:
        self.definition = ServiceDefinition(
            name="classify", model_type="text_classification", endpoint="/v3/classify", paths=("/v1/classify",)
        )
        self._route = Route(self.definition, self._prepare)

    @staticmethod
    def _prepare(fields: dict[str, Any]) -> dict[str, Any]:
        need(fields, "text", str, "a text, and not empty")
        return fields

    async def invoke(self, call: Call, engine: Engine) -> Answer:
        return await forward(self._route, call, engine)
