"""Calls that share inferences: whatever waits joins the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ovms_embedded import wire
from ovms_embedded.worker.encoder import INFERENCE, SHARED_TOKENS, TOKENS_AT_ONCE, batches
from ovms_embedded.worker.pipe import failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from ovms_embedded.worker.encoder import Encoder, Tokens
    from ovms_embedded.worker.pipe import Pipe

    Operations = dict[str, Callable[[int, dict[str, Any]], Any]]

POOL = 4096
"""Texts that are considered for the next inference."""


class Work(NamedTuple):
    """What a call needs of the model."""

    rows: list[Tokens]
    """The tokens of each text."""
    finish: Callable[[NDArray[np.float32]], Any]
    """Makes the call's result of what the model gives for each text."""
    first: int = 0
    """Where the texts are pairs, how many tokens each has before those of its second text."""


class _Job:
    """A call under way."""

    def __init__(self, number: int, operation: str, work: Work) -> None:
        self.number = number
        self.operation = operation
        self.work = work
        self.found: dict[int, NDArray[np.float32]] = {}
        self.waiting = list(range(len(work.rows)))
        """Texts that the model has not seen yet."""
        self.alone = False
        """An inference with others failed; its texts share none any more."""


def serve_batches(
    pipe: Pipe, encoder: Encoder, prepare: dict[str, Callable[[int, dict[str, Any]], Work]], others: Operations
) -> None:
    """Answer calls for ever. Each inference takes texts of one call in turn, and whatever of the others fits to them.

    Nothing waits for company: an inference starts as soon as the one before has ended.

    :param prepare: by operation, what a call needs of the model.
    :param others: operations that do without it.
    """
    jobs: dict[int, _Job] = {}
    while True:
        message = pipe.arrived() if jobs else pipe.receive()
        while message is not None:
            _take(pipe, jobs, message, prepare, others)
            message = pipe.arrived()
        if jobs:
            _infer(pipe, jobs, encoder)


def _take(
    pipe: Pipe,
    jobs: dict[int, _Job],
    message: list[Any],
    prepare: dict[str, Callable[[int, dict[str, Any]], Work]],
    others: Operations,
) -> None:
    number = message[1]
    if message[0] == wire.CANCEL:
        pipe.cancelled.discard(number)
        jobs.pop(number, None)
        return
    _, _, operation, payload = message
    if number in pipe.cancelled:
        pipe.send([wire.END, number, None])
        return
    try:
        if operation in prepare:
            jobs[number] = _Job(number, operation, prepare[operation](number, payload))
        else:
            pipe.send([wire.END, number, others[operation](number, payload)])
    except Exception as error:  # noqa: BLE001 - whatever the library throws belongs to this call alone
        pipe.send(failure(pipe, number, operation, error))


def _infer(pipe: Pipe, jobs: dict[int, _Job], encoder: Encoder) -> None:
    chosen = _choose(list(jobs.values()))
    members = {job.number: job for job, _ in chosen}
    try:
        found = encoder.infer([job.work.rows[at] for job, at in chosen], [job.work.first for job, _ in chosen])
    except Exception as error:  # noqa: BLE001 - whose fault it is shows when each goes on alone
        for job in members.values():
            job.alone = True
            if len(members) == 1:
                del jobs[job.number]
                pipe.send(failure(pipe, job.number, job.operation, error))
        return
    for (job, at), row in zip(chosen, found, strict=True):
        job.found[at] = row
    first = next(iter(jobs))
    jobs[first] = jobs.pop(first)  # the next inference is another call's turn
    for job in members.values():
        job.waiting = [at for at in job.waiting if at not in job.found]
        if not job.waiting:
            del jobs[job.number]
            pipe.send(_end(pipe, job))


def _end(pipe: Pipe, job: _Job) -> list[Any]:
    try:
        vectors = np.array([job.found[at] for at in range(len(job.work.rows))])
        return [wire.END, job.number, job.work.finish(vectors)]
    except Exception as error:  # noqa: BLE001 - whatever it is belongs to this call alone
        return failure(pipe, job.number, job.operation, error)


def _choose(jobs: list[_Job]) -> list[tuple[_Job, int]]:
    """Return the texts of the next inference: those that fit best to the first text of the call whose turn it is."""
    turn = jobs[0]
    if len(jobs) == 1 and len(turn.waiting) == 1:
        return [(turn, turn.waiting[0])]
    company = [] if turn.alone else [job for job in jobs[1:] if not job.alone]
    pool = [(job, at) for job in (turn, *company) for at in job.waiting[:POOL]][:POOL]
    sizes = np.array([len(job.work.rows[at]) for job, at in pool])
    most = SHARED_TOKENS if company else TOKENS_AT_ONCE
    return next([pool[at] for at in batch] for batch in batches(sizes, INFERENCE, most) if 0 in batch)
