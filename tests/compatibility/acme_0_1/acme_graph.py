from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ovms_kernel.api.graphs import GraphOptions, ModelFiles, architectures_of, default_device, fill, graph_of

if TYPE_CHECKING:
    from ovms_kernel.api.graphs import CalculatorGraphConfig


class Captions:
    model_type = "captions"
    settings_type = dict  # options of the calculator for all models of the type

    def __init__(self, section: Mapping[str, Any]) -> None:
        self._section = section

    def recognises(self, files: ModelFiles) -> int:
        return 50 if "AcmeForCaptions" in architectures_of(files) else 0

    def build(self, files: ModelFiles, options: GraphOptions) -> "CalculatorGraphConfig":
        from ovms_kernel.api.graphs import LLMCalculatorOptions  # here, as it brings protobuf with it

        message = LLMCalculatorOptions()
        defaults = {"models_path": "./", "device": default_device(options.host)}
        fill(message, defaults, self._section, options.values, what=self.model_type)
        return graph_of(
            "HttpLLMCalculator",
            "CaptionsExecutor",
            message,
            side_packets=("LLM_NODE_RESOURCES:llm",),
            loopback=True,
        )
