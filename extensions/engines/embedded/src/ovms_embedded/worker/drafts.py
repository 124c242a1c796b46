"""Draft models: what kind one is, as its files say, and what follows from it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ovms_embedded.worker.pipe import Refused

if TYPE_CHECKING:
    from pathlib import Path

PLAIN, EAGLE3, DFLASH, MTP = "plain", "EAGLE3", "DFlash", "MTP"
HEADS = "openvino_mtp_model.xml"
"""The heads of a model that predict several tokens (MTP) lie in its own folder; draft_models_path is ``"."`` then."""
MODE = re.compile(rb'<(dflash|eagle3)_mode value="(?i:yes|true|1)"')
"""What the end of a draft's openvino_model.xml has, where its exporter writes what the model is for."""
END = 1 << 16
"""Bytes of a model's description that are looked through from its end."""
TREE = ("branching_factor", "tree_depth")
THRESHOLD = "assistant_confidence_threshold"
TOKENS = "num_assistant_tokens"
DEFAULT = 5
"""Drafted tokens where neither the request nor the model's generation_config.json says a number."""


def kind_of(folder: Path, *, eagle3: bool) -> str:
    """Return the kind of a draft model; openvino-genai tells it by the same marks.

    :param eagle3: the graph says that it is an EAGLE3 (``draft_eagle3_mode``).
    """
    if (folder / HEADS).exists():
        return MTP
    try:
        with (folder / "openvino_model.xml").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - END))
            end = file.read()
    except OSError:  # such as a GGUF
        end = b""
    modes = {found[1] for found in MODE.finditer(end)}
    if b"dflash" in modes:
        return DFLASH
    return EAGLE3 if eagle3 or modes else PLAIN


def caches_prefixes(kind: str) -> bool:
    """Tell whether the library takes prefix caching together with such a draft."""
    return kind not in (DFLASH, MTP)


def is_greedy(kind: str) -> bool:
    """Tell whether the library only takes the likeliest token with such a draft, whatever a request says."""
    return kind in (EAGLE3, DFLASH, MTP)


def takes_one(kind: str) -> bool:
    """Tell whether the library takes one request at a time with such a draft."""
    return kind == DFLASH


def check_request(payload: dict[str, Any], kind: str) -> None:
    """Refuse what the library cannot do with a draft; it would fail in the middle, and every other request with it.

    :raises Refused: this draft cannot do that.
    """
    settings = payload["settings"]
    if kind != EAGLE3 and any(settings.get(name) for name in TREE):
        raise Refused(f"{' and '.join(TREE)} need an EAGLE3 draft model; the one of this graph is {kind or 'none'}")
    if kind in (DFLASH, MTP) and settings.get(THRESHOLD):
        raise Refused(f"{kind} drafts take no {THRESHOLD}; use {TOKENS}")
    if is_greedy(kind) and payload["best_of"] > 1:
        raise Refused(f"{kind} drafts work without beam search only; leave best_of and n out, or send {TOKENS}: 0")


def without_tree(settings: dict[str, Any], device: str) -> dict[str, Any]:
    """Return settings without the tree of drafts where the library gives wrong answers with it.

    On a CPU, openvino-genai 2026.4.1 keeps the wrong branch of a tree in its cache once an answer is long: another text
    than without a draft. The tree matters to speed alone, so drafting goes on without it.
    """
    if device.startswith("CPU") and settings.get(TREE[0], 0) > 1:
        return {name: value for name, value in settings.items() if name not in TREE}
    return settings


def amount(settings: dict[str, Any], defaults: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return how much is drafted: as the request says, else the model's generation_config.json, else five tokens.

    The library wants either a number or a threshold.

    :param kind: of the draft; ``""`` for prompt lookup.
    """
    for given in (settings, defaults):
        if given.get(TOKENS):
            return {TOKENS: given[TOKENS]}
        if kind in (PLAIN, EAGLE3) and given.get(THRESHOLD):
            return {THRESHOLD: given[THRESHOLD]}
    return {TOKENS: DEFAULT}
