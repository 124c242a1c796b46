"""Which models are unloaded for another one: a pure function over the table of what is loaded.

Nothing here waits, measures or unloads; ``residency.py`` does. Times are seconds of the monotonic clock, sizes bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from ovms_kernel.errors import OvmsError
    from ovms_kernel.values import LocalModel

HINTED_IDLE = 60.0
"""Seconds without a request after which a model that a host called unneeded is unloaded."""


class State(StrEnum):
    """Where a model is."""

    ABSENT = "absent"
    WAITING = "waiting"
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"


@dataclass(slots=True)
class Resident:
    """What is known of one model in the engine."""

    id: str
    model: LocalModel | None = None
    foreign: bool = False
    """The engine has it, but it is not installed here: it is used and otherwise left alone."""
    state: State = State.ABSENT
    bytes: int = 0
    """What it takes, or is expected to take, of its device's memory."""
    device: str = "CPU"
    users: int = 0
    """Requests that use it now."""
    last_used: float = 0.0
    loaded_at: float = 0.0
    load_seconds: float = 0.0
    """What its last load took."""
    graph: int = 0
    """When the graph was written that it was loaded with, in nanoseconds; 0 if that is not known."""
    pinned: bool = False
    """Never unloaded for another model, nor for being idle."""
    by_hand: bool = False
    """A user listed it in ``config.json``; it stays as if it were pinned."""
    hinted: bool = False
    """A host said that it may go first."""
    closing: bool = False
    """No new request is admitted, as another model waits for its memory."""
    keep: float | None = None
    """Seconds without use after which it is unloaded, infinite = never; ``None`` = as the settings say."""
    failure: OvmsError | None = None
    """Why the last load failed."""
    failed_at: float = -math.inf

    @property
    def stays(self) -> bool:
        """Whether it is unloaded only if a person asks for it."""
        return self.pinned or self.by_hand

    def is_busy(self, now: float, grace: float) -> bool:
        """Tell whether it works, or did so a moment ago.

        Between two requests of one client there is a gap; a model that is unloaded in it is loaded again at once. So a
        model stays for as long as its load took, but not longer than ``grace``.
        """
        warm = now - self.last_used < min(self.load_seconds, grace)
        return self.users > 0 or (warm and not self.hinted and not self.closing)


Table = dict[str, Resident]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model that is to be loaded."""

    id: str
    bytes: int
    device: str = "CPU"
    forced: bool = False
    """Load it whatever the memory."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What all models together may take."""

    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes by device; a device that is missing has no limit."""
    max_loaded: int = 0
    """Number of models; 0 = no limit."""
    grace: float = 0.0
    """Seconds that a model counts as in use after a request, at most; see ``Resident.is_busy``."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What has to happen before a model is loaded."""

    unload: tuple[str, ...] = ()
    """Models to unload, none of which is in use; in the order in which they go."""
    wait_for: tuple[str, ...] = ()
    """Models in use that are in the way; nothing is unloaded before they are free."""
    missing: int = 0
    """Bytes that are missing even if everything goes that may go."""
    crowded: bool = False
    """Too many models are loaded that may not go."""

    @property
    def is_ready(self) -> bool:
        """Whether the load may begin once ``unload`` is unloaded."""
        return not self.wait_for and not self.is_impossible

    @property
    def is_impossible(self) -> bool:
        """Whether waiting for requests to end would not help."""
        return self.missing > 0 or self.crowded


def plan(table: Mapping[str, Resident], wanted: Wanted, budget: Budget, now: float) -> Decision:
    """Decide what goes for a model: hints first, then the longest unused, and only as many as it needs.

    What is pinned never goes, what is in use is waited for.
    """
    if wanted.forced:
        return Decision()
    there = (each for each in table.values() if each.state in (State.LOADED, State.LOADING))
    others = [each for each in there if each.id != wanted.id and not each.foreign]
    on_device = [each for each in others if each.device == wanted.device]
    limit = budget.memory.get(wanted.device, math.inf)
    bytes_needed = max(0, sum(each.bytes for each in on_device) + wanted.bytes - limit)
    places_needed = max(0, len(others) + 1 - budget.max_loaded) if budget.max_loaded else 0

    def suffices(chosen: Collection[Resident]) -> bool:
        freed = sum(each.bytes for each in chosen if each.device == wanted.device)
        return freed >= bytes_needed and len(chosen) >= places_needed

    movable = [each for each in others if not each.stays and each.state is State.LOADED]
    order = sorted(movable, key=lambda each: (not each.hinted, each.last_used, each.id))
    idle = [each for each in order if not each.is_busy(now, budget.grace)]
    if suffices(idle):
        return Decision(unload=tuple(each.id for each in _fewest(idle, suffices)))
    busy = [each for each in order if each.is_busy(now, budget.grace)]
    loading = [each for each in others if each.state is State.LOADING and not each.stays]
    if not suffices([*idle, *busy, *loading]):
        freed = sum(each.bytes for each in movable if each.device == wanted.device)
        return Decision(missing=int(max(0, bytes_needed - freed)), crowded=len(movable) < places_needed)
    chosen = _fewest([*idle, *busy, *loading], suffices)
    free = {each.id for each in idle}
    return Decision(
        tuple(each.id for each in chosen if each.id in free), tuple(each.id for each in chosen if each.id not in free)
    )


def _fewest(order: Sequence[Resident], suffices: Callable[[Collection[Resident]], bool]) -> list[Resident]:
    """Return the first of the order that suffice together, without those that are not needed beside the others."""
    chosen: list[Resident] = []
    for each in order:
        if suffices(chosen):
            break
        chosen.append(each)
    for each in reversed(chosen.copy()):
        without = [other for other in chosen if other is not each]
        if suffices(without):
            chosen = without
    return chosen


def unload_at(resident: Resident, idle_unload: float) -> float:
    """Return when a model is unloaded if nobody uses it until then; infinite = only for another model.

    :param idle_unload: the setting for this model; 0 = never.
    """
    if resident.stays or resident.foreign:
        return math.inf
    limit = resident.keep if resident.keep is not None else (idle_unload or math.inf)
    if resident.hinted:
        limit = min(limit, HINTED_IDLE)
    return resident.last_used + limit
