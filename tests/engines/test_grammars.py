"""Grammars: compiled beside the pipeline, once, for as long as somebody waits for them."""

from __future__ import annotations

import contextlib
import json
import queue
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

genai = pytest.importorskip("openvino_genai")

from ovms_embedded.worker import grammars, trial  # noqa: E402 - after the check above
from ovms_embedded.worker.grammars import COMPILED, Grammars, logits  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SMALL = json.dumps({"schema": {"type": "boolean"}})
SLOW = [
    json.dumps({"schema": {"type": "object", "properties": {f"{name}{i}": {"type": "string"} for i in range(400)}}})
    for name in "abc"
]
TRIED = json.dumps({"schema": {"type": "object", "patternProperties": {"^x[a-z]$": {"type": "integer"}}}})
"""Compiles in no time, in a process of its own nevertheless: a pattern may take long."""
KEYED = {f"^x{i}[a-z]{{1,50}}$": {"type": "integer"} for i in range(300)}
ENDLESS = json.dumps({"schema": {"type": "object", "patternProperties": KEYED}})
MINUTE = 60


def compiling(before: list[psutil.Process]) -> psutil.Process:
    """Wait for the process that tries a grammar, and for it to work."""
    deadline = time.monotonic() + MINUTE
    while time.monotonic() < deadline:
        for each in psutil.Process().children():
            with contextlib.suppress(psutil.Error, OSError):  # one that has ended, or begins
                new = each not in before and "ovms_embedded.worker.trial" in each.cmdline()
                if new and each.cpu_times().user > 0.3:
                    return each
        time.sleep(0.01)
    raise AssertionError


class Model:
    """A tokenizer, and what compiles for it."""

    def __init__(self, folder: Path, patience: float = MINUTE) -> None:
        self.tokenizer = genai.Tokenizer(folder)
        self.inbox: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self.grammars = Grammars(self.tokenizer, folder, self.inbox, patience)

    def compiled(self) -> tuple[str, str | None]:
        kind, sender, wanted, error = self.inbox.get(timeout=MINUTE)
        assert kind == COMPILED
        assert sender is self.grammars
        return wanted, error

    def close(self) -> None:
        """End the threads, each with its process."""
        for number in range(10):
            self.grammars.leave(number)
        self.grammars.renewed(self.tokenizer)


@pytest.fixture
def folder(fixtures: Path) -> Path:
    return fixtures / "text_generation"


@pytest.fixture
def make_model(folder: Path) -> Iterator[Callable[..., Model]]:
    made: list[Model] = []

    def make(**more: Any) -> Model:
        made.append(Model(folder, **more))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_requests_wait_for_their_grammar_and_no_other(make_model: Callable[..., Model]) -> None:
    model = make_model()
    for number, wanted in enumerate([SLOW[0], SMALL, SMALL]):
        model.grammars.hold(number, [number], wanted)
    assert model.compiled() == (SMALL, None), "a slow grammar keeps no other waiting"
    assert model.grammars.usable(SMALL) is None
    assert model.grammars.settle(SMALL, None) == [[1], [2]]
    assert model.grammars.usable(SMALL)
    assert model.compiled() == (SLOW[0], None)
    assert model.grammars.settle(SLOW[0], None) == [[0]]
    assert model.grammars.pause() is None


def test_a_compile_is_stopped_when_nobody_waits_for_it(
    make_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "TRIAL", MINUTE)  # a busy machine gives it little time
    before = psutil.Process().children()
    model = make_model()
    model.grammars.hold(1, ["first"], ENDLESS)
    model.grammars.hold(2, ["second"], ENDLESS)
    process = compiling(before)
    model.grammars.leave(1)
    assert process.is_running(), "the other request waits for it"
    model.grammars.leave(2)
    process.wait(MINUTE)
    model.grammars.hold(3, ["third"], TRIED)
    assert model.compiled() == (TRIED, None)


def test_a_compile_that_takes_too_much_is_refused(
    make_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "TRIAL", 0.5)
    model = make_model()
    model.grammars.hold(1, ["first"], ENDLESS)
    assert model.inbox.get(timeout=MINUTE) == [grammars.REFUSED, model.grammars, ENDLESS]
    assert model.grammars.refuse(ENDLESS) == [["first"]]
    assert model.grammars.is_refused(ENDLESS)


def test_only_what_may_take_long_is_tried_before() -> None:
    def quick(**inner: Any) -> bool:
        return trial.is_quick(json.dumps({"schema": inner}))

    properties = {f"p{i}": {"type": "string", "maxLength": 200} for i in range(50)}
    assert quick(type="object", properties=properties)
    assert not quick(type="object", properties={f"p{i}": {} for i in range(150)})
    assert not quick(type="string", pattern="(a{1,17}){1,17}")
    assert not quick(patternProperties={"a": {}})
    assert not trial.is_quick(TRIED)
    assert not quick(type="string", maxLength=10_000_000)
    assert not quick(enum=list(range(2000)))


def test_a_grammar_that_cannot_be_compiled_says_why_and_stays_unusable(make_model: Callable[..., Model]) -> None:
    model = make_model()
    bad = json.dumps({"schema": {"type": "nonsense"}})
    model.grammars.hold(1, ["first"], bad)
    wanted, error = model.compiled()
    assert error
    assert model.grammars.settle(wanted, error) == [["first"]]
    assert model.grammars.usable(bad) is False


def test_a_request_waits_for_so_long_and_a_grammar_that_nobody_waits_for_is_not_begun(
    make_model: Callable[..., Model],
) -> None:
    model = make_model(patience=0.01)
    for number, wanted in enumerate(SLOW[:3]):
        model.grammars.hold(number, [number], wanted)
    pause = model.grammars.pause()
    assert pause is not None
    assert pause <= 0.01
    time.sleep(0.02)
    assert model.grammars.overdue() == [0, 1, 2]
    assert model.grammars.pause() is None
    model.grammars.hold(9, [9], SMALL)
    assert model.compiled() == (SMALL, None), "the others were stopped or not begun"


def test_a_pipeline_finds_what_was_compiled_beside_it(folder: Path) -> None:
    pipeline = genai.ContinuousBatchingPipeline(folder, genai.SchedulerConfig(), "CPU", {})
    inbox: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
    compiled = Grammars(pipeline.get_tokenizer(), folder, inbox)

    def seconds(wanted: str) -> float:
        config = genai.GenerationConfig(max_new_tokens=1)
        config.structured_output_config = genai.StructuredOutputConfig(
            json_schema=json.dumps(json.loads(wanted)["schema"])
        )
        began = time.process_time()
        pipeline.generate([pipeline.get_tokenizer().encode("a").input_ids], [config])
        return time.process_time() - began

    compiled.hold(1, [], SLOW[0])
    inbox.get(timeout=MINUTE)
    found, missing = seconds(SLOW[0]), seconds(SLOW[1])
    assert found < missing / 3


def test_logits_are_counted_in_the_model_and_else_in_the_vocabulary(folder: Path, tmp_path: Path) -> None:
    tokenizer = genai.Tokenizer(folder)
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    assert logits(folder, tokenizer) == size
    assert logits(tmp_path, tokenizer) == max(tokenizer.get_vocab().values()) + 1
