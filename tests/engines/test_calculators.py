"""A third party's calculator, installed from a distribution of its own, beside the engine's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.installing import install

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = Path(__file__).with_name("classify")
GRAPH = """
input_stream: "HTTP_REQUEST_PAYLOAD:input"
output_stream: "HTTP_RESPONSE_PAYLOAD:output"
node: {
    name: "Executor"
    calculator: "%s"
    input_stream: "HTTP_REQUEST_PAYLOAD:input"
    output_stream: "HTTP_RESPONSE_PAYLOAD:output"
    node_options: { [type.googleapis.com/%s]: { models_path: "%s" labels: "bad" labels: "good" } }
}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the distribution is installed."""
    folder = tmp_path_factory.mktemp("site")
    source = shutil.copytree(SOURCE, tmp_path_factory.mktemp("source") / "classify")
    install(source, target=folder)
    return folder


def test_a_ninth_model_type_is_served_from_a_distribution_of_its_own(
    site: Path, fixtures: Path, make_engine: Callable[[], Any], graph: Callable[..., str]
) -> None:
    engine = make_engine()
    options = "acme.ClassifyCalculatorOptions"
    engine.entry("moods", GRAPH % ("ClassifyCalculator", options, fixtures / "rerank"))
    engine.entry("broken", GRAPH % ("BrokenCalculator", "acme.BrokenOptions", fixtures / "rerank"))
    engine.entry("vectors", graph("embeddings", fixtures / "embeddings"))
    engine.entry("talks", graph("text_generation", fixtures / "text_generation"))
    engine.list("moods", "broken", "vectors", "talks")
    engine.start(environment={"PYTHONPATH": str(site)}).ready()

    answer = engine.post("/v3/classify", model="moods", text="a cat sat on the mat")
    assert answer.status_code == 200
    assert answer.json()["label"] in {"bad", "good"}
    assert len(engine.post("/v3/tokenize", model="moods", text="a cat").json()["tokens"]) > 1
    refused = engine.post("/v3/classify", model="moods", text="")
    assert (refused.status_code, "text is empty" in refused.text) == (400, True)
    wrong = engine.post("/v3/embeddings", model="moods", input="a")
    assert "Allowed endpoints: /v3/classify" in wrong.text

    # The one that cannot be imported costs itself alone, and both the log and the state name it.
    states = engine.states()
    assert states.pop("broken") == ("LOADING", "FAILED_PRECONDITION")
    assert set(states.values()) == {("AVAILABLE", "OK")}
    assert engine.post("/v3/embeddings", model="vectors", input="a").status_code == 200
    cause = engine.http.get("/v1/config").json()["broken"]["model_version_status"][0]["status"]["error_message"]
    said = "Calculator BrokenCalculator of acme-classify is left out: ModuleNotFoundError"
    assert cause.startswith(said)
    assert any(said in line for line in engine.log)

    # A third party cannot take the place of one of the engine's own calculators.
    assert any("HttpLLMCalculator of acme-classify is left out" in line for line in engine.log)
    chat = engine.post("/v3/chat/completions", model="talks", messages=[{"role": "user", "content": "Hi"}])
    assert chat.status_code == 200


def test_a_folder_without_a_graph_is_detected_by_a_third_partys_rule(
    site: Path, fixtures: Path, tmp_path: Path, make_engine: Callable[[], Any]
) -> None:
    folder = shutil.copytree(fixtures / "rerank", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "acme-classifier"}))
    engine = make_engine()
    engine.start_single("moods", folder, environment={"PYTHONPATH": str(site)}).ready()
    answer = engine.post("/v3/classify", model="moods", text="a cat sat on the mat")
    assert answer.json()["label"] in {"low", "high"}


def test_without_the_distribution_its_graph_names_the_missing_calculator(
    fixtures: Path, make_engine: Callable[[], Any]
) -> None:
    engine = make_engine()
    engine.entry("moods", GRAPH % ("ClassifyCalculator", "acme.ClassifyCalculatorOptions", fixtures / "rerank"))
    engine.list("moods")
    engine.start().wait_for_line('failed to load: Unable to find Calculator "ClassifyCalculator"')
