"""What several servables need: paths, devices and properties from a graph's options, and tokenizing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovms_embedded.worker.pipe import Refused

if TYPE_CHECKING:
    import openvino
    import openvino_genai

    from ovms_embedded.worker.encoder import Tokens
    from ovms_embedded.worker.pipe import Pipe

CHARACTERS_PER_TOKEN = 64
"""No text that anybody writes has more; only blanks do."""
USUAL_CHARACTERS = 8
"""Characters of a token, of texts with long words."""
CHARACTERS = 1 << 22
LEAST_CHARACTERS = 1 << 16
"""Of any text, whatever the window: at most, and at least."""
TOKENS = 1 << 22
"""Tokens of an answer to tokenize, those that fill rows included."""
WRITTEN = re.compile("[0-9A-Za-z]")
"""What is a token of every tokenizer, or a part of one."""
SPECIALS = 64
"""Special tokens around a text, at most."""
WINDOW_KEYS = ("max_position_embeddings", "n_positions", "seq_len", "seq_length", "n_ctx", "sliding_window")
ACCELERATORS = re.compile(r"(?<!\S)(GPU|NPU)(?:\.\d+)?(?!\S)")
"""Devices that are named by themselves; AUTO and its like do without those that are not there."""


def models_path(spec: dict[str, Any], option: str = "models_path") -> Path:
    """Return the folder of the model; relative to the entry's base path.

    :raises FileNotFoundError: it does not exist.
    """
    path = Path(spec["base_path"], spec["options"][option])
    if not path.exists():
        message = f"Path to the model does not exist: {path}"
        raise FileNotFoundError(message)
    return path


def device(spec: dict[str, Any], pipe: Pipe, option: str) -> str:
    """Return the device of the graph, or the best one there is when it names none (never an NPU).

    :raises ValueError: this machine has none of that kind; the library would name one of its files.
    """
    import openvino

    named = str(spec["options"].get(option) or "").strip()
    available: list[str] = openvino.Core().available_devices
    for kind in ACCELERATORS.findall(named):
        if not any(each.startswith(kind) for each in available):
            message = f"OpenVINO finds no {kind} on this machine, only {', '.join(available)}"
            raise ValueError(message)
    if named:
        return named
    chosen = next((each for each in available if each.startswith("GPU")), "CPU")
    pipe.log("info", "serving", f"No device specified, using recommended device: {chosen}")
    return chosen


def properties(spec: dict[str, Any], device: str) -> dict[str, Any]:
    """Return what the graph's plugin_config sets, and what follows from the device.

    No compiled code is kept for a CPU: it is a second copy of the weights, written anew at each load, and reading it
    takes longer than compiling (3.6 to 7.2 s against 2.4 to 3.3 s for a model of 600 MB). And its threads are not bound
    to cores: those of each model and of the front process would wait for the same ones while others are free.
    """
    found: dict[str, Any] = dict(spec["options"]["properties"])
    if set(device.split()) == {"CPU"}:
        found.setdefault("ENABLE_CPU_PINNING", False)
    elif spec.get("cache_dir"):
        found["CACHE_DIR"] = spec["cache_dir"]
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file of a model, or nothing when it is absent or unreadable."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def window(folder: Path) -> int | None:
    """Return how many tokens a model takes, by the first key of its config.json that says so."""
    config = read_json(folder / "config.json")
    values = (config.get(key) for key in WINDOW_KEYS)
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool)), None)


def characters(window: int | None) -> int:
    """Return how many characters a text may have for a model of that window, whatever its tokens are."""
    return max(LEAST_CHARACTERS, min((window or CHARACTERS) * CHARACTERS_PER_TOKEN, CHARACTERS))


def check_length(text: str, window: int | None) -> None:
    """Refuse a text that cannot fit, before time is spent on its tokens.

    :raises Refused: it has too many characters.
    """
    if len(text) > (most := characters(window)):
        what = f"; it exceeds model max length: {window}" if window else ""
        raise Refused(f"The text has {len(text)} characters, more than the {most} that this model can take{what}")


def encode_prompt(
    tokenizer: openvino_genai.Tokenizer, text: str, window: int | None, **options: bool
) -> openvino.Tensor:
    """Return the tokens of one text, (1, tokens); of one that is too long, not more than it takes to see that.

    The tokenizer keeps Python's lock, so nothing else of the model moves meanwhile.

    :raises Refused: the text does not fit into the window.
    """
    check_length(text, window)
    usual = (window or 0) * USUAL_CHARACTERS
    if window and len(text) > usual:
        beginning: int = tokenizer.encode(text[:usual], **options).input_ids.shape[1]
        if beginning > window:
            raise Refused(f"Number of prompt tokens: more than {beginning} exceeds model max length: {window}")
    return tokenizer.encode(text, **options).input_ids


def tokenizer_of(folder: Path) -> openvino_genai.Tokenizer:
    """Return a model's tokenizer, of one thread that is bound to no core.

    Several take longer to meet than a text takes: a sentence costs 2.4 ms of processor time with two threads and 0.6
    with one, 32 passages 2.4 and 1.6. Binding takes four calls of the system for each text.
    """
    import openvino_genai

    return openvino_genai.Tokenizer(folder, INFERENCE_NUM_THREADS=1, ENABLE_CPU_PINNING=False)


def encode(tokenizer: openvino_genai.Tokenizer, texts: list[str], **options: Any) -> tuple[Tokens, Tokens]:  # noqa: ANN401 - the library's
    """Return ids and mask of texts, (texts, tokens) both.

    The library fails where no text has a token, so one that has stands behind them.
    """
    if WRITTEN.search(texts[0]):
        encoded = tokenizer.encode(texts, **options)
        return encoded.input_ids.data, encoded.attention_mask.data
    encoded = tokenizer.encode([*texts, "a"], **options)
    return encoded.input_ids.data[:-1], encoded.attention_mask.data[:-1]


def check_cut(tokenizer: openvino_genai.Tokenizer, most: int) -> None:
    """Refuse to cut texts to so few tokens that the special ones do not fit; the library would read beyond its memory.

    :raises Refused: they do not.
    """
    bare, whole = (encode(tokenizer, ["a"], add_special_tokens=each)[0].shape[1] for each in (False, True))
    if most < whole - bare:
        raise Refused(f"max_length should be at least {whole - bare}, the number of special tokens")


def tokenize(tokenizer: openvino_genai.Tokenizer, payload: dict[str, Any], window: int | None) -> list[list[int]]:
    """Return the tokens of texts as the tokenize endpoint wants them.

    :raises Refused: there would be too many, or the options do not fit.
    """
    texts: list[str] = payload["texts"]
    for text in texts:
        check_length(text, window)
    if (total := sum(map(len, texts))) > CHARACTERS:
        raise Refused(f"The texts have {total} characters in all; send {CHARACTERS} at most")
    # The library fills all rows up to the longest, and a token has a byte at least.
    longest = max(len(text.encode()) for text in texts) + SPECIALS
    if payload["pad_to_max_length"]:
        longest = payload["max_length"] or longest
        if longest * len(texts) > TOKENS:
            raise Refused(f"The answer would have {longest * len(texts)} tokens, filled up; {TOKENS} are allowed")
    elif longest * len(texts) > TOKENS and len(texts) > 1:
        return [row for text in texts for row in tokenize(tokenizer, payload | {"texts": [text]}, window)]
    arguments: dict[str, Any] = {"add_special_tokens": payload["add_special_tokens"]}
    if (most := payload["max_length"]) is not None:
        arguments |= {"max_length": most, "truncation": True}
        if payload["add_special_tokens"]:
            check_cut(tokenizer, most)
    if payload["pad_to_max_length"]:
        arguments["pad_to_max_length"] = True
    if payload["padding_side"]:
        arguments["padding_side"] = payload["padding_side"]
    try:
        ids, masks = encode(tokenizer, payload["texts"], **arguments)
    except Exception as error:
        text = f"Tokenization failed: {error}"
        raise Refused(text) from error
    rows: list[list[int]] = ids.tolist()
    if payload["pad_to_max_length"]:
        return rows
    return [
        [token for token, kept in zip(row, mask, strict=True) if kept] for row, mask in zip(rows, masks, strict=True)
    ]
