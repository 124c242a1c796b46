"""Which graph a model folder calls for, for a start with ``--model_path`` and no graph.pbtxt (spec G)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ovms_embedded.graphs import Graph, GraphInvalid, parse_graph

if TYPE_CHECKING:
    from pathlib import Path

GRAPHS = {
    "text_generation": ("HttpLLMCalculator", "LLMCalculatorOptions", "LLMExecutor", "enable_prefix_caching: true"),
    "embeddings": ("EmbeddingsCalculatorOV", "EmbeddingsCalculatorOVOptions", "EmbeddingsExecutor", ""),
    "rerank": ("RerankCalculatorOV", "RerankCalculatorOVOptions", "RerankExecutor", ""),
    "image_generation": ("ImageGenCalculator", "ImageGenCalculatorOptions", "ImageGenExecutor", ""),
    "speech2text": ("S2tCalculator", "S2tCalculatorOptions", "S2tExecutor", ""),
    "text2speech": ("T2sCalculator", "T2sCalculatorOptions", "T2sExecutor", ""),
}
TEXT = """input_stream: "HTTP_REQUEST_PAYLOAD:input" output_stream: "HTTP_RESPONSE_PAYLOAD:output"
node {{ name: "{node}" calculator: "{calculator}"
  input_stream: "LOOPBACK:loopback" input_stream: "HTTP_REQUEST_PAYLOAD:input"
  output_stream: "LOOPBACK:loopback" output_stream: "HTTP_RESPONSE_PAYLOAD:output"
  node_options {{ [type.googleapis.com/mediapipe.{options}] {{ models_path: "./" {extra} }} }} }}"""
SPEECH = {"SpeechT5ForTextToSpeech", "ParlerTTSForConditionalGeneration"}
RECOGNISERS = {"WhisperForConditionalGeneration", "Qwen3ASRForConditionalGeneration"}
PARTS = {"CLIPTextModel", "UNet2DConditionModel", "AutoencoderKL"}
NO_EMBEDDINGS = {"CLIPTextModel", "InternVLChatModel", "UNet2DConditionModel"}


def recognise(folder: Path, name: str) -> Graph:
    """Return the graph for a model folder.

    :raises GraphInvalid: what is in it is not known.
    """
    task = _task(
        _read(folder / "config.json"), _read(folder / "modules.json"), _read(folder / "model_index.json"), name
    )
    if not task:
        message = f"There is no graph.pbtxt in {folder}, and the model in it is not recognised."
        raise GraphInvalid(message)
    calculator, options, node, extra = GRAPHS[task]
    return parse_graph(TEXT.format(node=node, calculator=calculator, options=options, extra=extra).encode())


def _read(path: Path) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _task(config: Any, modules: Any, index: Any, name: str) -> str:  # noqa: ANN401 - rules, first hit wins
    config = config if isinstance(config, dict) else {}
    listed = config.get("architectures")
    kinds = [each for each in listed if isinstance(each, str)] if isinstance(listed, list) else []
    types = [str(each.get("type")) for each in modules if isinstance(each, dict)] if isinstance(modules, list) else []
    lowered = name.lower()
    guess = not types and "Qwen3ForCausalLM" in kinds
    if any(each in RECOGNISERS or each.startswith("SeamlessM4T") for each in kinds):
        return "speech2text"
    kokoro = "architectures" in config and listed is None and "n_mels" in config
    if kokoro or any(each in SPEECH or each.endswith("ForTextToSpeech") for each in kinds):
        return "text2speech"
    scores = any("LogitScore" in each or "CrossEncoder" in each for each in types)
    if scores or any(each.endswith("ForSequenceClassification") for each in kinds) or (guess and "rerank" in lowered):
        return "rerank"
    pipeline = str(index.get("_class_name")) if isinstance(index, dict) else ""
    if "StableDiffusion" in pipeline or "Flux" in pipeline:
        return "image_generation"
    if any(each in PARTS or each.endswith("Transformer2DModel") for each in kinds):
        return "image_generation"
    if any("Pooling" in each for each in types) or (guess and "embed" in lowered):
        return "embeddings"
    if any(each.endswith("Model") and each not in NO_EMBEDDINGS for each in kinds):
        return "embeddings"
    if any(each == "InternVLChatModel" or each.endswith(("ForCausalLM", "ForConditionalGeneration")) for each in kinds):
        return "text_generation"
    return ""
