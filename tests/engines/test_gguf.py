"""GGUF files given to the engine itself: whole ones are served, and cut ones are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ovms_embedded.worker import gguf
from tests.fixtures import make_gguf

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.engines.conftest import Engine


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    make_gguf.make(path, "Q8_0")
    return path


def test_a_file_that_is_cut_anywhere_is_refused(whole: Path, tmp_path: Path) -> None:
    gguf.check(whole)
    data = whole.read_bytes()
    path = tmp_path / "cut.gguf"
    for size in (0, 1, 4, 10, 100, 5000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(gguf.Cut, match=r"^cut\.gguf .*; get the file again$"):
            gguf.check(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "no GGUF file"),
        (b"GGUF\x09\x00\x00\x00" + bytes(64), "version 9"),
        (b"GGUF\x03\x00\x00\x00" + b"\xff" * 64, "cannot be read"),
    ],
)
def test_what_is_no_gguf_file_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=words):
        gguf.check(path)


def test_the_engine_serves_a_whole_file_and_says_what_is_wrong_with_a_cut_one(
    make_engine: Callable[[], Engine], graph: Callable[..., str], whole: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole.read_bytes()[:-4096])
    engine = make_engine().entry("whole", graph("text_generation", whole)).entry("cut", graph("text_generation", cut))
    engine.list("whole", "cut")
    engine.start().ready()
    assert engine.states() == {"whole": ("AVAILABLE", "OK"), "cut": ("LOADING", "FAILED_PRECONDITION")}
    status = engine.http.get("/v1/config").json()["cut"]["model_version_status"][0]["status"]
    assert "cut.gguf has" in status["error_message"]
    assert "get the file again" in status["error_message"]
    body = {"model": "whole", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    assert engine.post("/v3/chat/completions", **body).status_code == 200
