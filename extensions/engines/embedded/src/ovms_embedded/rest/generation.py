"""Fields that chat, completions and responses share, as the text worker wants them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ovms_embedded.rest.errors import Invalid
from ovms_embedded.rest.fields import Fields, as_float

STOPS = 16
NGRAM = 3
"""Tokens that prompt lookup compares, where the request does not say."""
TREE = ("branching_factor", "tree_depth")
"""Of the drafts of an EAGLE3; 0 = one draft after the other."""
NUMBERS = (
    ("temperature", 0.0, 2.0, False),
    ("top_p", 0.0, 1.0, False),
    ("min_p", 0.0, 1.0, True),
    ("frequency_penalty", -2.0, 2.0, False),
    ("presence_penalty", -2.0, 2.0, False),
    ("repetition_penalty", None, None, False),
    ("length_penalty", None, None, False),
)


@dataclass
class Generation:
    """A checked request for text."""

    max_new_tokens: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """Attributes of openvino-genai's GenerationConfig."""
    n: int = 1
    best_of: int = 1
    stream: bool = False
    include_usage: bool = False
    include_logprobs: bool = False
    """Each piece of a stream has the probabilities of its tokens."""
    logprobs: bool = False
    skip_special_tokens: bool = True

    def payload(self, **prompt: Any) -> dict[str, Any]:  # noqa: ANN401 - parts of a message
        """Return the message to the worker."""
        return {
            "prompt": "", "chat": False, "grammar": None, "images": [],
            "max_new_tokens": self.max_new_tokens, "settings": self.settings, "n": self.n, "best_of": self.best_of,
            "stream": self.stream, "logprobs": self.logprobs, "special": not self.skip_special_tokens,
        } | prompt  # fmt: skip


def read_generation(data: dict[str, Any], options: dict[str, Any], *, stream: bool, endpoint: str) -> Generation:
    """Check the common fields.

    :param options: the graph's options, for its limits.
    :param endpoint: ``chat``, ``completions`` or ``responses``.
    """
    fields = Fields(data)
    found = Generation(stream=stream)
    _stream_options(data, found, endpoint)
    _limits(fields, found, options.get("max_tokens_limit"), endpoint)
    _ways(fields, found, options, endpoint)
    settings = found.settings
    for name, low, high, below in NUMBERS:
        if (value := fields.number(name, low, high, below=below)) is not None:
            settings[name] = value
    if (top_k := fields.integer("top_k")) is not None:
        if top_k == 0 or top_k < -1:
            raise Invalid("top_k must be -1 or greater than 0")
        settings["top_k"] = top_k
    if (seed := fields.unsigned("seed")) is not None:
        settings["rng_seed"] = seed
    if fields.boolean("ignore_eos"):
        settings["ignore_eos"] = True
    if stops := _stops(data.get("stop")):
        settings["stop_strings"] = stops
    include = fields.boolean("include_stop_str_in_output")
    if include is False and stream:
        raise Invalid("include_stop_str_in_output cannot be set to false if streaming is used")
    settings["include_stop_str_in_output"] = bool(include)
    if fields.boolean("skip_special_tokens") is False:
        found.skip_special_tokens = False
    _assistance(data, options, settings)
    _modalities(fields)
    return found


def _stream_options(data: dict[str, Any], found: Generation, endpoint: str) -> None:
    if (given := data.get("stream_options")) is None:
        return
    if endpoint == "responses":
        raise Invalid("stream_options is not supported in Responses API")
    if not found.stream:
        raise Invalid("stream_options provided, but stream not set to true")
    if not isinstance(given, dict):
        raise Invalid("stream_options is not an object")
    for name, value in given.items():
        if name not in ("include_usage", "include_logprobs"):
            raise Invalid("Found unexpected stream options. Properties accepted in stream_options: include_usage")
        if not isinstance(value, bool):
            raise Invalid(f"stream_options.{name} is not a boolean")
        setattr(found, name, value)


def _limits(fields: Fields, found: Generation, limit: int | None, endpoint: str) -> None:
    if endpoint == "responses":
        found.max_new_tokens = fields.unsigned("max_output_tokens", least=1)
        _within(found.max_new_tokens, limit, "max_output_tokens")
        return
    echo = endpoint == "completions" and fields.data.get("echo") is True
    value = fields.unsigned("max_tokens", least=0 if echo else 1, null=False)
    if value is not None and limit is not None and value >= limit:
        raise Invalid(f"max_tokens exceeds limit provided in graph config: {limit}")
    if endpoint == "chat" and (wanted := fields.unsigned("max_completion_tokens", least=1)) is not None:
        _within(wanted, limit, "max_completion_tokens")
        value = wanted
    found.max_new_tokens = value


def _within(value: int | None, limit: int | None, name: str) -> None:
    if value is not None and limit is not None and value > limit:
        raise Invalid(f"{name} exceeds limit provided in graph config: {limit}")


def _ways(fields: Fields, found: Generation, options: dict[str, Any], endpoint: str) -> None:
    if (best_of := fields.unsigned("best_of", least=1)) is not None:
        if best_of >= options["best_of_limit"]:
            raise Invalid(f"best_of value can't be greater than {options['best_of_limit']}")
        if found.stream and best_of > 1:
            raise Invalid("best_of cannot be used in streaming mode")
        found.best_of = best_of
    if (n := fields.unsigned("n", least=1)) is not None:
        if n > found.best_of:
            raise Invalid("n value cannot be greater than best_of")
        if n > 1 and endpoint == "responses" and found.stream:
            raise Invalid("n greater than 1 cannot be used in streaming mode")
        found.n = n


def _stops(value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise Invalid("stop is not a string or array of strings")
    if "" in value:
        raise Invalid("stop contains an empty string, which is everywhere; leave it out")
    if len(value) > STOPS:
        raise Invalid(f"stop array must have no more than {STOPS} strings")
    if not all(isinstance(each, str) for each in value):
        raise Invalid("stop array contains non string element")
    return value


def _assistance(data: dict[str, Any], options: dict[str, Any], settings: dict[str, Any]) -> None:
    tokens, threshold = data.get("num_assistant_tokens"), data.get("assistant_confidence_threshold")
    ngram = data.get("max_ngram_size")
    tree = {name: data.get(name) for name in TREE}
    whole = {"num_assistant_tokens": (tokens, 0), "max_ngram_size": (ngram, 1)}
    for name, (value, least) in (whole | {name: (value, 0) for name, value in tree.items()}).items():
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 31
        ):
            raise Invalid(f"{name} must be an integer of at least {least}")
    if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, (int, float))):
        raise Invalid("assistant_confidence_threshold must be a number")
    if tokens is not None and threshold is not None:
        raise Invalid(
            "num_assistant_tokens and assistant_confidence_threshold are mutually exclusive and cannot both be set"
        )
    if tokens == 0:  # a worker without drafts answers
        return
    draft = bool(options.get("draft_models_path"))
    lookup = bool(options.get("properties", {}).get("prompt_lookup"))
    if tokens is not None and (draft or lookup):
        settings["num_assistant_tokens"] = tokens
    if draft:
        if threshold is not None:
            settings["assistant_confidence_threshold"] = as_float(threshold, "assistant_confidence_threshold")
        settings |= {name: value for name, value in tree.items() if value is not None}
    if lookup:
        settings["max_ngram_size"] = ngram or NGRAM


def _modalities(fields: Fields) -> None:
    wanted = fields.data.get("modalities")
    if wanted is not None and not (isinstance(wanted, list) and all(isinstance(each, str) for each in wanted)):
        raise Invalid("modalities is not an array of strings")
    if wanted and "audio" in wanted:
        raise Invalid("Audio output needs an Omni model; this graph serves text only")
    if (audio := fields.mapping("audio")) is not None and audio.get("format", "wav") not in ("wav", "pcm16"):
        raise Invalid("audio format must be wav or pcm16")
    fields.unsigned("chunk_frames", least=1)
