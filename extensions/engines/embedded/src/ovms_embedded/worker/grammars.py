"""Grammars are compiled beside the pipeline, so that no step waits for them.

The library compiles a grammar in the step that first needs it, and keeps it with the tokenizer. All that share the
tokenizer share the compiled grammars. So a thread with a pipeline of its own, whose model is a constant, compiles
each new one first; the library frees Python's lock meanwhile. The pipeline then finds it.

A thread cannot be stopped. What may take long is tried in a process before (``trial.py``), which ends when nobody
waits any more.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import openvino
import openvino_genai as genai
from openvino import opset15 as ops

from ovms_embedded.worker import grammar
from ovms_embedded.worker.pipe import tidy
from ovms_embedded.worker.trial import NICENESS, Ended, Trial, is_quick

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

COMPILED, REFUSED = "compiled", "refused"
"""Messages to the servable: ``[COMPILED, sender, grammar, error]``, whose error is None for one that can be used;
``[REFUSED, sender, grammar]`` for one that takes too much time or memory."""
PATIENCE = 40.0
"""Seconds that a request waits for its grammar."""
TRIAL = 15.0
"""Seconds that a grammar may take to compile."""
REST = 60.0
"""Seconds after which a thread that has nothing to do ends its process."""
THREADS = 2
"""Grammars that are compiled at a time: a slow one does not keep the next waiting."""
REMEMBERED = 1000
"""Grammars of which it is known whether they can be used."""
MODELS = ("openvino_model.xml", "openvino_language_model.xml")
Message = list[Any]


class _Held(NamedTuple):
    message: Message
    grammar: str
    until: float


class Grammars:
    """Which grammars are compiled, and the requests that wait for theirs.

    :param folder: the model's, which knows how many logits there are for a token.
    :param inbox: where the servable hears of what is compiled.
    """

    def __init__(
        self, tokenizer: genai.Tokenizer, folder: Path, inbox: queue.SimpleQueue[Message], patience: float = PATIENCE
    ) -> None:
        self._tokenizer = tokenizer
        self._folder = folder
        self._inbox = inbox
        self._patience = patience
        self._usable: dict[str, bool] = {}
        self._refused: dict[str, None] = {}
        """Grammars that take too much time or memory."""
        self._trials: dict[str, Trial] = {}
        """What is being tried, and where."""
        self._held: dict[int, _Held] = {}
        """By request, in the order of their arrival."""
        self._pending: set[str] = set()
        """Grammars that wait for a thread or are in one."""
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._threads = 0

    def usable(self, wanted: str) -> bool | None:
        """Tell whether a grammar is compiled; False = it never will be, None = it is not known yet."""
        return self._usable.get(wanted)

    def is_refused(self, wanted: str) -> bool:
        """Tell whether it is known that a grammar takes too much time or memory."""
        return wanted in self._refused

    def hold(self, number: int, message: Message, wanted: str) -> None:
        """Keep a request until its grammar is compiled."""
        self._held[number] = _Held(message, wanted, time.monotonic() + self._patience)
        if wanted in self._pending:
            return
        self._pending.add(wanted)
        self._queue.put(wanted)
        if self._threads < min(THREADS, len(self._pending)):
            self._threads += 1
            threading.Thread(target=self._compile_all, name="grammars", daemon=True).start()

    def leave(self, number: int) -> None:
        """Forget a request that nobody waits for; what only it wanted is not begun any more, or stopped."""
        held = self._held.pop(number, None)
        if held and not any(each.grammar == held.grammar for each in self._held.values()):
            self._pending.discard(held.grammar)
            if trial := self._trials.get(held.grammar):
                trial.leave()

    def settle(self, wanted: str, error: str | None) -> list[Message]:
        """Take note of a compiled grammar, and return the requests that waited for it."""
        _remember(self._usable, wanted, error is None)
        return self._release(wanted)

    def refuse(self, wanted: str) -> list[Message]:
        """Take note of a grammar that takes too much, and return the requests that waited for it."""
        _remember(self._refused, wanted, None)
        return self._release(wanted)

    def _release(self, wanted: str) -> list[Message]:
        self._pending.discard(wanted)
        numbers = [number for number, each in self._held.items() if each.grammar == wanted]
        return [self._held.pop(number).message for number in numbers]

    def pause(self) -> float | None:
        """Return the seconds until a request has waited too long; None = none waits."""
        first = next(iter(self._held.values()), None)
        return None if first is None else max(0.0, first.until - time.monotonic())

    def overdue(self) -> list[int]:
        """Return, and forget, the requests that have waited too long."""
        now = time.monotonic()
        numbers = [number for number, each in self._held.items() if each.until <= now]
        for number in numbers:
            self.leave(number)
        return numbers

    def renewed(self, tokenizer: genai.Tokenizer) -> Grammars:
        """Return a successor for another tokenizer, which has no grammars yet; requests wait on."""
        for _ in range(self._threads):
            self._queue.put(None)
        fresh = Grammars(tokenizer, self._folder, self._inbox, self._patience)
        for number, each in self._held.items():
            fresh.hold(number, each.message, each.grammar)
        return fresh

    def _compile_all(self) -> None:
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # threads that the library starts here inherit it
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        pipeline = None
        trial = Trial(self._folder, TRIAL)
        while True:
            try:
                wanted = self._queue.get(timeout=REST)
            except queue.Empty:
                trial.close()
                continue
            if wanted is None:
                trial.close()
                return
            if wanted not in self._pending:
                continue
            try:
                self._try(trial, wanted)
                pipeline = pipeline or _constant_pipeline(self._tokenizer, logits(self._folder, self._tokenizer))
                _compile(pipeline, wanted)
            except Ended:
                trial.close()
                if not trial.left:
                    self._inbox.put([REFUSED, self, wanted])
                trial = Trial(self._folder, TRIAL)
            except Exception as error:  # noqa: BLE001 - whatever the library throws at a grammar
                self._inbox.put([COMPILED, self, wanted, tidy(error)])
            else:
                self._inbox.put([COMPILED, self, wanted, None])

    def _try(self, trial: Trial, wanted: str) -> None:
        """Compile what may take long where it can be stopped.

        :raises Ended: it was stopped, or took too much.
        :raises Failed: the library does not take it.
        """
        if is_quick(wanted):
            return
        self._trials[wanted] = trial
        try:
            if wanted not in self._pending:
                trial.leave()
            trial.compile(wanted)
        finally:
            self._trials.pop(wanted, None)
        if trial.left:
            raise Ended


def _remember(known: dict[str, Any], wanted: str, value: object) -> None:
    if len(known) >= REMEMBERED:
        del known[next(iter(known))]  # what is forgotten is compiled again, which the library does in no time
    known[wanted] = value


def compiler(folder: Path) -> Callable[[str], None]:
    """Return what compiles a grammar for a model's tokenizer."""
    tokenizer = genai.Tokenizer(folder)
    return partial(_compile, _constant_pipeline(tokenizer, logits(folder, tokenizer)))


def logits(folder: Path, tokenizer: genai.Tokenizer) -> int:
    """Return how many logits a model gives for a token, which may be more than its tokenizer has tokens."""
    path = next((folder / name for name in MODELS if (folder / name).exists()), None)
    if path is not None:
        last = openvino.Core().read_model(path).output("logits").partial_shape[-1]
        if last.is_static:
            return int(last.get_length())
    tokens: Iterable[int] = tokenizer.get_vocab().values()
    return max(tokens) + 1


def _constant_pipeline(tokenizer: genai.Tokenizer, width: int) -> genai.LLMPipeline:
    """Return a pipeline of that tokenizer whose model gives the same logits for every token."""
    inputs = []
    for name, kind, rank in (("input_ids", np.int64, 2), ("attention_mask", np.int64, 2), ("beam_idx", np.int32, 1)):
        made = ops.parameter(openvino.PartialShape([-1] * rank), kind, name=name)
        made.output(0).set_names({name})
        inputs.append(made)
    shape = ops.concat([ops.shape_of(inputs[0]), ops.constant(np.array([width], np.int64))], 0)
    result = ops.result(ops.broadcast(ops.constant(np.float32(0)), shape))
    result.output(0).set_names({"logits"})
    import tempfile  # takes as long as all of this package, and few requests have a grammar

    with tempfile.TemporaryDirectory(prefix="ovms-embedded-") as folder:
        openvino.save_model(openvino.Model([result], inputs, "constant"), Path(folder, MODELS[0]))
        return genai.LLMPipeline(folder, tokenizer, "CPU", ATTENTION_BACKEND="SDPA")


def _compile(pipeline: genai.LLMPipeline, wanted: str) -> None:
    config = genai.GenerationConfig(max_new_tokens=1, apply_chat_template=False)
    config.structured_output_config = grammar.structured_output(wanted)
    pipeline.generate(openvino.Tensor(np.array([[0]], np.int64)), config)
