"""Embeddings pooled and normalised as the graph says: the vectors that the library gives by itself."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from engines.conftest import Engine

TEXTS = ["a cat", "The quick cat sat on the mat and looked at the birds in the garden.", "birds"]
WAYS = {"cls": ("CLS", True), "last": ("LAST", True), "mean": ("MEAN", True), "long": ("MEAN", False)}
DIRECT = """
import json, sys
import openvino_genai as genai
library = genai.TextEmbeddingPipeline
for pooling, normalize in json.loads(sys.argv[2]).values():
    pooling = getattr(library.PoolingType, {"LAST": "LAST_TOKEN"}.get(pooling, pooling))
    pipeline = library(sys.argv[1], "CPU", library.Config(pooling_type=pooling, normalize=normalize))
    print(json.dumps(pipeline.embed_documents(json.loads(sys.argv[3]))))
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
