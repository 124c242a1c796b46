"""Draft models: their kind is read from their files, and decides what they take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

openvino = pytest.importorskip("openvino")

from ovms_embedded.worker import drafts  # noqa: E402 - after the check above
from ovms_embedded.worker.pipe import Refused  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path


def draft(folder: Path, **notes: Any) -> Path:
    """Write a model with what an exporter notes about it."""
    value = openvino.opset15.parameter([1], np.float32)
    model = openvino.Model([openvino.opset15.result(value)], [value], "draft")
    for name, note in notes.items():
        model.set_rt_info(note, [name])
    openvino.save_model(model, folder / "openvino_model.xml")
    return folder


def test_the_kind_is_what_the_exporter_noted(tmp_path: Path) -> None:
    assert drafts.kind_of(draft(tmp_path), eagle3=False) == drafts.PLAIN
    assert drafts.kind_of(tmp_path, eagle3=True) == drafts.EAGLE3
    assert drafts.kind_of(draft(tmp_path, eagle3_mode="True"), eagle3=False) == drafts.EAGLE3
    noted = draft(tmp_path, dflash_target_layer_ids="1,2,3", dflash_mask_token_id="7")
    assert drafts.kind_of(noted, eagle3=True) == drafts.DFLASH
    (tmp_path / drafts.HEADS).touch()
    assert drafts.kind_of(tmp_path, eagle3=False) == drafts.MTP


def test_a_draft_without_a_description_is_plain(tmp_path: Path) -> None:
    assert drafts.kind_of(tmp_path / "none.gguf", eagle3=False) == drafts.PLAIN


def test_a_tree_of_drafts_needs_an_eagle3() -> None:
    drafts.check_request({"branching_factor": 2, "tree_depth": 3}, drafts.EAGLE3)
    drafts.check_request({"branching_factor": 0, "num_assistant_tokens": 3}, drafts.PLAIN)
    with pytest.raises(Refused, match="EAGLE3"):
        drafts.check_request({"tree_depth": 3}, drafts.DFLASH)


def test_prefixes_are_not_cached_beside_drafts_that_cannot_have_it() -> None:
    kinds = [drafts.PLAIN, drafts.EAGLE3, drafts.DFLASH, drafts.MTP]
    assert [drafts.caches_prefixes(kind) for kind in kinds] == [True, True, False, False]
