"""Embeddings pooled and normalised as the graph says: the vectors that the library gives by itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.engines.conftest import Engine

SENTENCE = "The quick cat sat on the mat and looked at the birds in the garden."
TEXTS = ["a cat", SENTENCE, "birds", " ".join([SENTENCE] * 5), "birds in a garden"]
"""Of such different lengths that they are not all filled up to the longest."""
WAYS = {"cls": ("CLS", True), "last": ("LAST", True), "mean": ("MEAN", True), "long": ("MEAN", False)}
DIRECT = """
import json, sys
import ovms_embedded.worker
import openvino_genai as genai
library = genai.TextEmbeddingPipeline
for pooling, normalize in json.loads(sys.argv[2]).values():
    pooling = getattr(library.PoolingType, {"LAST": "LAST_TOKEN"}.get(pooling, pooling))
    pipeline = library(sys.argv[1], "CPU", library.Config(pooling_type=pooling, normalize=normalize))
    print(json.dumps(pipeline.embed_documents(json.loads(sys.argv[3]))))
"""

SHORTENED = """
import json, os, pathlib, sys
import ovms_embedded.worker
import openvino
old, new, window = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
model = openvino.Core().read_model(old / "openvino_model.xml")
model.reshape({port.get_any_name(): [-1, (1, window)] for port in model.inputs})
openvino.save_model(model, new / "openvino_model.xml")
config = json.loads((old / "config.json").read_text())
del config["max_position_embeddings"]
(new / "config.json").write_text(json.dumps(config | json.loads(sys.argv[4])))
os._exit(0)
"""


def test_vectors_are_the_librarys(make_engine: Callable[[], Engine], graph: Callable[..., str], fixtures: Path) -> None:
    model = fixtures / "embeddings"
    command = [sys.executable, "-c", DIRECT, str(model), json.dumps(WAYS), json.dumps(TEXTS)]
    direct = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    engine = make_engine()
    for name, (pooling, normalize) in WAYS.items():
        options = f"pooling: {pooling} normalize_embeddings: {str(normalize).lower()}"
        engine.entry(name, graph("embeddings", model, options))
    engine.list(*WAYS)
    engine.start().ready()
    for name, wanted in zip(WAYS, map(json.loads, direct), strict=True):
        answer = engine.post("/v3/embeddings", model=name, input=TEXTS).json()
        for one, other in zip(answer["data"], wanted, strict=True):
            assert one["embedding"] == pytest.approx(other, abs=1e-4), name
        assert answer["data"][0]["embedding"] != pytest.approx(answer["data"][1]["embedding"], abs=1e-2)
    old = engine.post("/v3/v1/embeddings", model="mean", input=TEXTS)
    assert (old.status_code, "Wrong endpoint" in old.json()["error"]) == (400, True), "of text generation alone"


def test_no_text_is_filled_beyond_the_window(
    make_engine: Callable[[], Engine], graph: Callable[..., str], fixtures: Path, tmp_path: Path
) -> None:
    window = 20  # and no multiple of what texts are filled to
    engine = make_engine()
    for name, known in (("known", {"max_position_embeddings": window}), ("unknown", {})):
        shutil.copytree(fixtures / "embeddings", tmp_path / name)
        command = [sys.executable, "-c", SHORTENED, str(fixtures / "embeddings"), str(tmp_path / name)]
        subprocess.run([*command, str(window), json.dumps(known)], check=True)
        engine.entry(name, graph("embeddings", tmp_path / name, "pooling: MEAN"))
    engine.list("known", "unknown")
    engine.start().ready()
    text = next(
        text
        for text in (" ".join(["cat"] * count) for count in range(window))
        if len(engine.post("/v3/tokenize", model="known", text=text, add_special_tokens=True).json()["tokens"]) > 16
    )
    answers = [engine.post("/v3/embeddings", model=name, input=text) for name in ("known", "unknown")]
    one, other = (answer.json()["data"][0]["embedding"] for answer in answers)
    assert one == pytest.approx(other, abs=1e-4)
