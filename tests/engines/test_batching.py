"""Calls of embeddings and rerank share inferences, and stay as they would be alone."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ovms_embedded import wire

genai = pytest.importorskip("openvino_genai")

from ovms_embedded.worker.batching import serve_batches  # noqa: E402 - after the check above
from ovms_embedded.worker.embeddings import Embeddings  # noqa: E402
from ovms_embedded.worker.encoder import SHARED_TOKENS  # noqa: E402
from ovms_embedded.worker.pipe import Pipe  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEXTS = ["a cat", "the quick brown fox jumps over the lazy dog", "你好", "one two three four five", "x" * 300] * 6


class Stop(BaseException):
    """Ends the loop under test."""


class Front:
    """The front process's end of a worker that runs in a thread, and a count of what its model is given."""

    def __init__(self, folder: Path) -> None:
        source, self._sink = os.pipe()
        self._answers, self._replies = os.pipe()
        self._source = os.fdopen(source, "rb")
        self.pipe = Pipe(self._source, self._replies)
        options: dict[str, Any] = {
            "models_path": str(folder),
            "normalize_embeddings": True,
            "truncate": False,
            "pooling": "MEAN",
        }
        options["properties"] = {}
        spec = {"base_path": "/", "options": options}
        self.servable = Embeddings(spec, self.pipe)
        self.inferences: list[tuple[int, int]] = []
        self._infer, self.servable.encoder.infer = self.servable.encoder.infer, self._counted  # type: ignore[method-assign]
        self._unpacker = wire.Unpacker()
        self._inbox: list[list[Any]] = []
        self.broken = ""

    def _counted(self, rows: list[Any], firsts: list[int]) -> Any:
        self.inferences.append((len(rows), sum(map(len, rows))))
        if self.broken and any(len(row) == int(self.broken) for row in rows):
            raise RuntimeError("a row that the model does not take")
        return self._infer(rows, firsts)

    def send(self, *messages: list[Any]) -> None:
        """Write messages, as the other side reads them: a pipe of Windows holds 4 KB and no more."""
        data = b"".join(map(wire.pack, messages))
        self._sender = threading.Thread(target=os.write, args=(self._sink, data), daemon=True)
        self._sender.start()

    def run(self) -> None:
        def stop(_: int, __: dict[str, Any]) -> None:
            raise Stop

        def loop() -> None:
            with contextlib.suppress(Stop):
                serve_batches(self.pipe, self.servable.encoder, {"embed": self.servable.embed}, {"stop": stop})

        self._thread = threading.Thread(target=loop, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.send([wire.CALL, 0, "stop", {}])
        self._thread.join()
        self._sender.join()
        self._source.close()
        for each in (self._sink, self._answers, self._replies):
            os.close(each)

    def answers(self, count: int) -> dict[int, list[Any]]:
        while sum(each[0] != wire.LOG for each in self._inbox) < count:
            self._inbox += self._unpacker.feed(os.read(self._answers, 1 << 16))
        found, self._inbox = self._inbox, []
        return {each[1]: each for each in found if each[0] != wire.LOG}


@pytest.fixture
def front(fixtures: Path) -> Iterator[Front]:
    made = Front(fixtures / "embeddings")
    yield made
    made.close()


def call(number: int, *texts: str) -> list[Any]:
    return [
        wire.CALL,
        number,
        "embed",
        {"texts": list(texts), "tokens": None, "base64": False, "dimensions": None, "max_length": None},
    ]


def test_calls_that_wait_share_inferences(front: Front) -> None:
    front.send(*(call(number + 1, f"text number {number}") for number in range(32)))
    front.run()
    answers = front.answers(32).values()
    assert all(each[0] == wire.END for each in answers), next(iter(answers))
    assert [rows for rows, _ in front.inferences] == [32], "they all wait when the first inference starts"


def test_one_call_does_not_wait_for_company(front: Front) -> None:
    front.run()
    for number in range(3):
        front.send(call(number + 1, "alone"))
        front.answers(1)
    assert [rows for rows, _ in front.inferences] == [1, 1, 1]


def test_a_shared_inference_is_bounded_and_each_call_has_its_turn(front: Front) -> None:
    long = "one two three four five six seven eight nine ten " * 4
    front.send(call(1, *[long] * 100), call(2, "short"))
    front.run()
    found = front.answers(2)
    assert list(found) == [2, 1], "the short one does not wait until the long one is done"
    assert front.inferences[0][1] <= SHARED_TOKENS


def test_a_call_that_the_model_refuses_fails_alone(front: Front) -> None:
    length = len(
        front.servable.embed(
            0, {"texts": ["the bad one"], "tokens": None, "base64": False, "dimensions": None, "max_length": None}
        ).rows[0]
    )
    front.broken = str(length)
    front.send(call(1, "a"), call(2, "the bad one"), call(3, "a cat sat on the mat and on the other mats"))
    front.run()
    kinds = {number: each[0] for number, each in front.answers(3).items()}
    assert kinds == {1: wire.END, 2: wire.ERROR, 3: wire.END}


def test_a_cancelled_call_takes_no_part(front: Front) -> None:
    front.send(call(1, *["a cat"] * 50), call(2, "a dog"), [wire.CANCEL, 1])
    front.run()
    results = {number: each[2] for number, each in front.answers(2).items()}
    assert results.pop(1) is None
    assert results[2]["tokens"]
    assert [rows for rows, _ in front.inferences] == [1]


def test_vectors_are_the_same_alone_and_together(engine: Any) -> None:
    def ask(text: str) -> Any:
        answer = engine.http.post("/v3/embeddings", json={"model": "embeddings", "input": text})
        return answer.json()["data"][0]["embedding"]

    alone = [ask(text) for text in TEXTS]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ask, TEXTS))
    np.testing.assert_allclose(together, alone, atol=2e-3)


def test_ranks_are_the_same_alone_and_together(engine: Any) -> None:
    documents = ["The cat sat on the mat.", "Rust is a language.", "Dogs bark at night."]

    def ask(query: str) -> list[float]:
        answer = engine.http.post("/v3/rerank", json={"model": "rerank", "query": query, "documents": documents})
        return [each["relevance_score"] for each in sorted(answer.json()["results"], key=lambda each: each["index"])]

    queries = ["Which animal sat on the mat?", "cat", "Who barks, and when, and why does it do so every night?"] * 5
    alone = [ask(query) for query in queries]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, queries))
    np.testing.assert_allclose(together, alone, atol=2e-3)
