"""Draft models: what kind one is, as its files say, and what follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovms_embedded.worker.pipe import Refused

if TYPE_CHECKING:
    from pathlib import Path

PLAIN, EAGLE3, DFLASH, MTP = "plain", "EAGLE3", "DFlash", "MTP"
HEADS = "openvino_mtp_model.xml"
"""The heads of a model that predict several tokens (MTP) lie in its own folder; draft_models_path is ``"."`` then."""
NOTES = {b"<dflash_target_layer_ids": DFLASH, b"<eagle3_mode": EAGLE3}
"""What the end of a draft's openvino_model.xml has, where its exporter writes what the model is for."""
END = 1 << 16
"""Bytes of a model's description that are looked through from its end."""
TREE = ("branching_factor", "tree_depth")


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
    found = next((kind for mark, kind in NOTES.items() if mark in end), PLAIN)
    return EAGLE3 if eagle3 and found == PLAIN else found


def caches_prefixes(kind: str) -> bool:
    """Tell whether the library takes prefix caching together with such a draft."""
    return kind not in (DFLASH, MTP)


def check_request(settings: dict[str, Any], kind: str) -> None:
    """Refuse a tree of drafts where the draft model makes none.

    :raises Refused: this draft does not.
    """
    if kind != EAGLE3 and any(settings.get(name) for name in TREE):
        raise Refused(f"{' and '.join(TREE)} need an EAGLE3 draft model; the one of this graph is {kind}")
