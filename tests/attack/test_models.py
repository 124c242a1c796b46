"""Libraries that lie beside a model are never loaded."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.engines.conftest import Engine, write_graph

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("libopenvino_tokenizers.so", "openvino_tokenizers.dll", "libopenvino_tokenizers.dylib", "libopenvino.so")


@pytest.mark.needs_inference
def test_a_library_beside_a_model_is_not_loaded(tmp_path: Path, fixtures: Path) -> None:
    """Whatever opened one of these, which are no libraries, would fail to load the model."""
    model = tmp_path / "words"
    shutil.copytree(fixtures / "embeddings", model)
    for name in NAMES:
        (model / name).write_bytes(b"\x7fELF, but no library")
    (model / "graph.pbtxt").write_text(write_graph("embeddings", "./"), "utf-8")
    engine = Engine(tmp_path)
    engine.list("words")
    try:
        engine.start().ready()
        assert engine.states() == {"words": ("AVAILABLE", "OK")}
        assert engine.post("/v3/embeddings", model="words", input="a").status_code == 200
        assert engine.stop() == 0
    finally:
        engine.close()
