"""The verbs of the command line that end without serving, and the flags that make a graph."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def run(*words: str | Path) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "ovms_embedded", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_models_are_added_listed_and_removed(tmp_path: Path, fixtures: Path) -> None:
    config = tmp_path / "config.json"
    model = shutil.copytree(fixtures / "embeddings", tmp_path / "models" / "me" / "words")
    assert run("--configure", "--model_path", model)[0] == 0
    assert "EmbeddingsCalculatorOV" in (model / "graph.pbtxt").read_text()
    code, said, _ = run("--list_models", "--model_repository_path", tmp_path / "models")
    assert (code, said.splitlines()[1:]) == (0, ["me/words"])

    add = ("--add_to_config", "--config_path", config, "--model_name", "words", "--model_path", model)
    assert run(*add)[0] == 0
    config.write_text(json.dumps(json.loads(config.read_text()) | {"monitoring": {"metrics": {"enable": True}}}))
    assert run(*add, "--group_name", "permanent")[0] == 0
    written = json.loads(config.read_text())
    assert written["model_config_list"] == [
        {"config": {"name": "words", "base_path": str(model), "group_name": "permanent"}}
    ]
    assert written["monitoring"] == {"metrics": {"enable": True}}, "what it does not know stays"

    assert run("--remove_from_config", config, "--model_name", "words")[0] == 0
    assert json.loads(config.read_text())["model_config_list"] == []
    code, _, error = run("--remove_from_config", config, "--model_name", "words")
    assert (code, error) == (64, f"error parsing options - {config} lists no model words\n")


def test_a_broken_configuration_stays_as_it_is(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text("{")
    code, _, error = run("--add_to_config", "--config_path", config, "--model_name", "a", "--model_path", "b")
    assert (code, "cannot be read as JSON" in error, config.read_text()) == (64, True, "{")


def test_flags_make_the_graph(make_engine: Callable[[], Any], fixtures: Path) -> None:
    engine = make_engine()
    flags = ("--task", "embeddings", "--target_device", "CPU", "--disable_input_count_validation")
    engine.start_single("words", fixtures / "embeddings", *flags).ready()
    assert engine.post("/v3/embeddings", model="words", input="a").status_code == 200


def test_a_wrong_task_names_the_right_ones(fixtures: Path) -> None:
    words = ("--rest_port", "1", "--model_name", "x", "--model_path", fixtures / "embeddings")
    code, said, _ = run(*words[:1], "18999", *words[2:], "--task", "poetry")
    assert code == 1
    assert "There is no task poetry; use one of embeddings, image_generation" in said
    code, _, error = run(*words, "--config_path", "c.json", "--task", "embeddings")
    assert (code, "for a start with model_path" in error) == (64, True)
