"""A text generation graph's options as openvino-genai knows them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import openvino_genai as genai

from ovms_embedded.worker import common, drafts, gguf
from ovms_embedded.worker.pipe import Refused

if TYPE_CHECKING:
    from pathlib import Path

    from ovms_embedded.worker.pipe import Pipe

UNLIMITED = 1 << 30
"""Tokens; stands for "until it ends by itself" where neither the request, the graph nor the model says a number."""
ALL_TOKENS = (1 << 64) - 1
DEFAULT_TOP_K = 40
DRAFT_OPTIONS = ("max_num_batched_tokens", "cache_size", "max_num_seqs", "dynamic_split_fuse")


def build(spec: dict[str, Any], folder: Path, device: str, draft: str, pipe: Pipe) -> genai.ContinuousBatchingPipeline:
    """Load the model.

    :param draft: the kind of the draft model, or nothing.
    :param folder: the model's, or its GGUF file.
    :raises ValueError: a GGUF file is cut, or the options contradict the model or ask for what is not there.
    """
    options = spec["options"]
    if folder.suffix == ".gguf":
        gguf.check(folder)
    _check_kind(options["pipeline_type"], folder, device)
    properties = common.properties(spec, device)
    scheduler = _scheduler(options)
    if draft:
        properties["draft_model"] = _draft(spec, device, draft)
        if scheduler.enable_prefix_caching and not drafts.caches_prefixes(draft):
            scheduler.enable_prefix_caching = False
            pipe.log("info", "llm_executor", f"Prefix caching is off: {draft} does not work with it")
    elif given := [name for name in options if name.startswith("draft_") and name != "draft_eagle3_mode"]:
        message = f"{given[0]} is set but draft_models_path is not"
        raise ValueError(message)
    return genai.ContinuousBatchingPipeline(folder, scheduler, device, properties)


def draft_kind(spec: dict[str, Any]) -> str:
    """Return the kind of the graph's draft model, or nothing if it has none.

    :raises FileNotFoundError: it does not exist.
    """
    options = spec["options"]
    if not options.get("draft_models_path"):
        return ""
    folder = common.models_path(spec, "draft_models_path")
    return drafts.kind_of(folder, eagle3=bool(options.get("draft_eagle3_mode")))


def sees(folder: Path) -> bool:
    """Tell whether a model takes images beside text."""
    parts = ("openvino_text_embeddings_model.xml", "openvino_vision_embeddings_model.bin")
    return all((folder / part).exists() for part in parts)


def _check_kind(kind: str, folder: Path, device: str) -> None:
    vision = sees(folder)
    if kind == "OMNI" or (vision and (folder / "openvino_talker_model.xml").exists()):
        message = "Models that hear and speak (Omni) need the OVMS of Intel."
        raise ValueError(message)
    if kind != "AUTO" and kind.startswith("VLM") != vision:
        message = f"pipeline_type {kind} does not fit the model folder, which is of a {'VLM' if vision else 'LM'}."
        raise ValueError(message)
    if device == "NPU":
        message = "The stateful pipeline that an NPU needs is not part of the embedded engine; use CPU or GPU."
        raise ValueError(message)


def _scheduler(options: dict[str, Any]) -> genai.SchedulerConfig:
    scheduler = genai.SchedulerConfig()
    for name in (*DRAFT_OPTIONS, "enable_prefix_caching", "cache_interval_multiplier"):
        if options.get(name) is not None:
            setattr(scheduler, name, options[name])
    if eviction := options.get("cache_eviction_config"):
        crush = eviction.get("kv_crush_config") or {}
        scheduler.use_cache_eviction = True
        scheduler.cache_eviction_config = genai.CacheEvictionConfig(
            start_size=eviction["start_size"],
            recent_size=eviction["recent_size"],
            max_cache_size=eviction["max_cache_size"],
            aggregation_mode=getattr(genai.AggregationMode, eviction["aggregation_mode"]),
            apply_rotation=eviction["apply_rotation"],
            snapkv_window_size=eviction["snapkv_window_size"],
            kvcrush_config=genai.KVCrushConfig(
                budget=crush.get("budget", 0),
                anchor_point_mode=getattr(genai.KVCrushAnchorPointMode, crush.get("anchor_point_mode", "RANDOM")),
                rng_seed=crush.get("rng_seed", 0),
            ),
        )
    if sparse := options.get("sparse_attention_config"):
        scheduler.use_sparse_attention = True
        config = genai.SparseAttentionConfig(mode=getattr(genai.SparseAttentionMode, sparse["mode"]))
        for name, value in sparse.items():
            if name != "mode":
                setattr(config, name, value)
        scheduler.sparse_attention_config = config
    return scheduler


def _draft(spec: dict[str, Any], device: str, kind: str) -> Any:  # noqa: ANN401 - an opaque property of the library
    options = spec["options"]
    folder = common.models_path(spec, "draft_models_path")
    named = {name: options.get(f"draft_{name}", options.get(name)) for name in DRAFT_OPTIONS}
    device = options.get("draft_device") or device
    properties = common.properties(spec, device)
    if kind == drafts.EAGLE3:
        properties["eagle3_mode"] = True
    return genai.draft_model(folder, device, scheduler_config=_scheduler(named), **properties)


def generation_config(
    config: genai.GenerationConfig,
    payload: dict[str, Any],
    options: dict[str, Any],
    length: int,
    window: int | None,
    *,
    greedy: bool,
) -> genai.GenerationConfig:
    """Lay a request over the defaults that come from the model's generation_config.json.

    :param length: tokens of the prompt.
    :param window: tokens that the model takes in all.
    :param greedy: take the likeliest token, whatever the request says.
    :raises Refused: the prompt, or what may follow it, does not fit.
    """
    config.max_new_tokens = _most_tokens(payload["max_new_tokens"], options, length, window)
    config.num_assistant_tokens, config.assistant_confidence_threshold = None, 0.0
    settings: dict[str, Any] = dict(payload["settings"])
    if stop := settings.pop("stop_strings", None):
        config.stop_strings = set(stop)
        config.include_stop_str_in_output = payload["stream"] or bool(settings.get("include_stop_str_in_output"))
    settings.pop("include_stop_str_in_output", None)
    beams = payload["best_of"]
    temperature = settings.pop("temperature", config.temperature)
    top_k = settings.pop("top_k", None)
    for name, value in settings.items():
        setattr(config, name, value)
    config.do_sample = temperature > 0 and beams == 1 and not greedy
    if config.do_sample:
        config.temperature = temperature
        if "rng_seed" not in settings:
            config.rng_seed = random.getrandbits(32)  # the library's own default is the same for every request
        if top_k is not None:
            config.top_k = ALL_TOKENS if top_k == -1 else top_k
        elif config.top_k == ALL_TOKENS:
            config.top_k = DEFAULT_TOP_K
    elif beams > 1:
        config.num_beams = beams
        config.num_beam_groups = 1
        config.num_return_sequences = payload["n"]
    config.logprobs = 1 if payload["logprobs"] else 0
    config.apply_chat_template = False
    return config


def _most_tokens(wanted: int | None, options: dict[str, Any], length: int, window: int | None) -> int:
    """Return how many tokens may follow a prompt; the parameters are those of :func:`generation_config`.

    :raises Refused: the prompt, or what is wanted after it, does not fit.
    """
    if window is not None and length >= window:
        text = f"Number of prompt tokens: {length} exceeds model max length: {window}"
        raise Refused(text)
    if window is not None and wanted is not None and length + wanted > window:
        text = f"Number of prompt tokens: {length} + max tokens value: {wanted} exceeds model max length: {window}"
        raise Refused(text)
    if wanted is None:
        wanted = options.get("max_tokens_limit") or UNLIMITED
        if window is not None:
            wanted = min(wanted, window - length)
    return wanted
