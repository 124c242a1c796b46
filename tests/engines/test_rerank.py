"""Rerank: the scores that the library gives by itself, whatever the length of query and documents."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.engines.conftest import Engine

QUERY = "What is OpenVINO?"
DOCUMENTS = [
    "Bananas are yellow.",
    "OpenVINO is a toolkit for running AI models on Intel hardware.",
    "",
    "The cat sat.",
]
LIBRARY = """
import json, sys
import ovms_embedded.worker
import openvino_genai as genai
pipeline = genai.TextRerankPipeline(sys.argv[1], "CPU", genai.TextRerankPipeline.Config(top_n=100))
print(json.dumps(pipeline.rerank(sys.argv[2], json.loads(sys.argv[3]))))
"""
WITHOUT_SPECIALS = """
import os, sys
import ovms_embedded.worker
import openvino
import openvino_tokenizers
from pathlib import Path
core = openvino.Core()
core.add_extension(next(map(str, Path(openvino_tokenizers.__file__).parent.glob("lib/*openvino_tokenizers*"))))
model = core.read_model(sys.argv[1])
(node,) = (node for node in model.get_ops() if node.get_type_name() == "CombineSegments")
names = [node.input_value(at).get_node().get_type_name() for at in range(0, len(node.inputs()) - 1, 3)]
text = 3 * next(number for number, name in enumerate(names) if name != "Constant")
for at in range(3):
    for target in node.output(at).get_target_inputs():
        target.replace_source_output(node.input_value(text + at))
openvino.save_model(model, sys.argv[2])
os._exit(0)
"""
YES_AND_NO = """
import json, sys
import numpy as np
import ovms_embedded.worker
import openvino
import openvino_genai as genai
tokenizer = genai.Tokenizer(sys.argv[1])
words = tokenizer.get_vocab()
request = openvino.Core().compile_model(f"{sys.argv[1]}/openvino_model.xml", "CPU").create_infer_request()
scores = []
for document in json.loads(sys.argv[3]):
    texts = [text for text in (sys.argv[2], document) if text]
    ids = np.concatenate([tokenizer.encode(text).input_ids.data for text in texts], axis=1)
    places = np.arange(ids.shape[1])[None]
    beam = np.zeros(1, np.int32)
    request.reset_state()
    request.infer({"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": places, "beam_idx": beam})
    last = request.get_output_tensor(0).data[0, -1]
    scores.append(float(1 / (1 + np.exp(last[words[b"no"]] - last[words[b"yes"]]))))
print(json.dumps(list(enumerate(scores))))
"""


def directly(script: str, model: Path) -> dict[int, float]:
    """Return the score of every document, from a process of its own."""
    command = [sys.executable, "-c", script, str(model), QUERY, json.dumps(DOCUMENTS)]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def ranked(engine: Engine, model: str, query: str, documents: list[str]) -> dict[int, float]:
    answer = engine.post("/v3/rerank", model=model, query=query, documents=documents)
    assert answer.status_code == 200, answer.text
    found = {each["index"]: each["relevance_score"] for each in answer.json()["results"]}
    assert list(found.values()) == sorted(found.values(), reverse=True)
    return found


@pytest.fixture
def serve(make_engine: Callable[[], Engine], graph: Callable[..., str]) -> Callable[..., Engine]:
    def serve(**models: tuple[Path, str]) -> Engine:
        engine = make_engine()
        for name, (path, options) in models.items():
            engine.entry(name, graph("rerank", path, options))
        engine.list(*models)
        return engine.start().ready()

    return serve


def test_scores_are_the_librarys(serve: Callable[..., Engine], fixtures: Path) -> None:
    engine = serve(r=(fixtures / "rerank", ""))
    found = ranked(engine, "r", QUERY, DOCUMENTS)
    assert found == pytest.approx(directly(LIBRARY, fixtures / "rerank"), abs=1e-2)
    assert max(found, key=lambda index: found[index]) == 1


def test_a_tokenizer_without_special_tokens_does_as_well(
    serve: Callable[..., Engine], fixtures: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(fixtures / "rerank", bare)
    tokenizer = "openvino_tokenizer.xml"
    command = [sys.executable, "-c", WITHOUT_SPECIALS, str(fixtures / "rerank" / tokenizer), str(bare / tokenizer)]
    subprocess.run(command, check=True)
    engine = serve(r=(fixtures / "rerank", ""), bare=(bare, ""))
    assert ranked(engine, "bare", QUERY, DOCUMENTS) == ranked(engine, "r", QUERY, DOCUMENTS)


def test_a_query_may_be_longer_than_the_documents(serve: Callable[..., Engine], fixtures: Path) -> None:
    engine = serve(r=(fixtures / "rerank", ""))
    query = "Which of these animals sat on the mat in the garden near the house by the river yesterday?"
    documents = ["cat", "dog", "", "\t", "fish", "cow"] * 5
    assert engine.process
    (worker,) = psutil.Process(engine.process.pid).children()
    found = ranked(engine, "r", query, documents)
    alone = {document: ranked(engine, "r", query, [document])[0] for document in set(documents)}
    assert found == pytest.approx({index: alone[each] for index, each in enumerate(documents)}, abs=1e-2)
    assert len(ranked(engine, "r", "", [""])) == 1
    assert worker.is_running()


def test_a_language_model_is_asked_for_yes_or_no(serve: Callable[..., Engine], fixtures: Path, tmp_path: Path) -> None:
    plain = fixtures / "text_generation"
    taught = tmp_path / "taught"
    shutil.copytree(plain, taught)
    # The vocabulary that the library tells is one string: two tokens get the names that a reranker's have.
    vocabulary = taught / "openvino_detokenizer.bin"
    words = vocabulary.read_bytes()
    for old, new in ((b" fhatit", b" fyesit"), (b" isreou", b" isnoou")):
        assert words.count(old) == 1
        words = words.replace(old, new)
    vocabulary.write_bytes(words)
    engine = serve(taught=(taught, ""), plain=(plain, ""))
    assert ranked(engine, "taught", QUERY, DOCUMENTS) == pytest.approx(directly(YES_AND_NO, taught), abs=1e-2)
    assert engine.states()["plain"] == ("LOADING", "FAILED_PRECONDITION")
    status: dict[str, Any] = engine.http.get("/v1/config").json()["plain"]["model_version_status"][0]["status"]
    assert status["error_message"].startswith("The model cannot rerank:")


def test_a_long_query_is_cut_to_half_of_the_window(serve: Callable[..., Engine], fixtures: Path) -> None:
    engine = serve(
        r=(fixtures / "rerank", "max_position_embeddings: 40"),
        small=(fixtures / "rerank", "max_position_embeddings: 6"),
    )
    assert engine.states()["small"] == ("LOADING", "FAILED_PRECONDITION")
    words = "cat " * 20
    tokens = engine.post("/v3/tokenize", model="r", text=words).json()["tokens"]
    assert len(tokens) == 20, "special tokens would be counted twice"
    wanted = ranked(engine, "r", words, DOCUMENTS)
    assert ranked(engine, "r", words + "bananas and hardware " * 50, DOCUMENTS) == pytest.approx(wanted, abs=1e-6)


def test_a_closed_connection_ends_a_long_call(serve: Callable[..., Engine], fixtures: Path) -> None:
    engine = serve(r=(fixtures / "rerank", "max_allowed_chunks: 10000"))
    ask = {"model": "r", "query": QUERY, "documents": ["The cat sat on the mat. " * 60] * 300}
    began = time.monotonic()
    assert engine.post("/v3/rerank", **ask).status_code == 200
    whole = time.monotonic() - began
    with pytest.raises(httpx.ReadTimeout):
        engine.http.post("/v3/rerank", json=ask, timeout=whole / 4)
    began = time.monotonic()
    ranked(engine, "r", QUERY, DOCUMENTS)
    assert time.monotonic() - began < whole / 3


def test_one_huge_text_does_not_make_its_neighbours_huge(
    make_engine: Callable[[], Engine], graph: Callable[..., str], fixtures: Path
) -> None:
    engine = make_engine()
    engine.entry("r", graph("rerank", fixtures / "rerank", "max_allowed_chunks: 10000"))
    engine.entry("e", graph("embeddings", fixtures / "embeddings"))
    engine.list("r", "e")
    engine.start().ready()
    texts = [*(f"cat number {number}" for number in range(2000)), "cat " * 50_000]
    refused = engine.post("/v3/embeddings", model="e", input=texts)
    assert refused.status_code == 400
    assert "max length: 512" in refused.json()["error"]
    assert len(ranked(engine, "r", QUERY, texts)) == len(texts)
    assert engine.process
    for worker in psutil.Process(engine.process.pid).children():
        # All texts padded to the longest were 3 GB of tokens.
        assert worker.memory_info().rss < 1e9
