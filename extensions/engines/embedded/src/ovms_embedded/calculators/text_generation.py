"""Text generation, with and without images."""

from ovms_embedded.calculators import Calculator, ModelFiles
from ovms_embedded.protos import ovms_graph_pb2 as pb
from ovms_embedded.rest.chat import chat
from ovms_embedded.rest.completions import completions
from ovms_embedded.rest.responses import responses

ENDPOINTS = {"chat/completions": chat, "completions": completions, "responses": responses}


def detects(files: ModelFiles) -> bool:
    """Tell whether a folder has a language model."""
    return any(
        each == "InternVLChatModel" or each.endswith(("ForCausalLM", "ForConditionalGeneration"))
        for each in files.architectures
    )


CALCULATOR = Calculator(
    name="HttpLLMCalculator",
    task="text_generation",
    options=pb.LLMCalculatorOptions,
    endpoints=ENDPOINTS,
    worker="ovms_embedded.worker.text",
    node="LLMExecutor",
    tokenizes=True,
    aliases={f"v1/{path}": path for path in ENDPOINTS},  # an old prefix, of text generation alone
    detects=detects,
    order=600,
    defaults="enable_prefix_caching: true",
)
