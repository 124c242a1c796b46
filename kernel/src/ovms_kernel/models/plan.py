"""Which models are unloaded for another one: a pure function over the table of what is loaded.

Nothing here waits, measures or unloads; ``residency.py`` does. Times are seconds of the monotonic clock, sizes bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping  # noqa: TC003 - tests read the annotations
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, combinations
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from ovms_kernel.errors import OvmsError
    from ovms_kernel.values import LocalModel

WEIGHT = 0.2
"""What the latest interval between two uses of a model counts in its average."""
WEIGHED = 10
"""Models that are weighed against each other in every combination."""
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
    """Whose memory it takes; several devices may share one."""
    runs_on: str = "CPU"
    """The device that its graph names."""
    users: int = 0
    """Requests that use it now."""
    last_used: float = 0.0
    interval: float = 0.0
    """Average time from one use to the next, the latest counting most; 0 = it was used once at most."""
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
    suspect: str = ""
    """What is wrong with its answers on a device; empty if nothing is known to be."""
    failure: OvmsError | None = None
    """Why the last load failed."""
    failed_at: float = -math.inf

    @property
    def stays(self) -> bool:
        """Whether it is unloaded only if a person asks for it."""
        return self.pinned or self.by_hand

    def note_use(self, now: float) -> None:
        """Note that a request begins to use it."""
        if self.last_used and not self.users:
            gap = now - self.last_used
            self.interval = gap if not self.interval else (1 - WEIGHT) * self.interval + WEIGHT * gap

    def stays_unused(self, now: float) -> float:
        """Return for how many seconds it is probably not used: as usual, or as long as it already was not used.

        Of a model that was used once, all that is known is that it was not needed again since.
        """
        unused = now - self.last_used
        return max(self.interval, unused) if self.interval else 2 * unused

    def is_busy(self, now: float, grace: float) -> bool:
        """Tell whether it works, or did so a moment ago.

        Between two requests of one client there is a gap; a model that is unloaded in it is loaded again at once. So a
        model stays for as long as its load took, but not longer than ``grace``.
        """
        warm = now - self.last_used < min(self.load_seconds, grace)
        return self.users > 0 or (warm and not self.hinted and not self.closing)


Table = dict[str, Resident]


class Wanted(msgspec.Struct, frozen=True):
    """A model that is to be loaded."""

    id: str
    bytes: int
    device: str = "CPU"
    forced: bool = False
    """Load it whatever the memory."""
    runs_on: str = "CPU"
    measured: bool = False
    """The bytes are what an earlier load took, not an estimate."""


class Budget(msgspec.Struct, frozen=True):
    """What all models together may take."""

    memory: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Bytes by device; a device that is missing has no limit."""
    max_loaded: int = 0
    """Number of models; 0 = no limit."""
    grace: float = 0.0
    """Seconds that a model counts as in use after a request, at most; see ``Resident.is_busy``."""


class Decision(msgspec.Struct, frozen=True):
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
    """Decide what goes for a model: hints first, then what is used the least, and only as many as it needs.

    The less often a model is used, and the longer it was not, the sooner it goes. What is pinned never goes, what is in
    use is waited for.
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
    order = sorted(movable, key=lambda each: (not each.hinted, -each.stays_unused(now), each.id))
    idle = [each for each in order if not each.is_busy(now, budget.grace)]
    if suffices(idle):
        return Decision(unload=tuple(each.id for each in _needed(_cheapest(idle, suffices, now), suffices)))
    busy = [each for each in order if each.is_busy(now, budget.grace)]
    loading = [each for each in others if each.state is State.LOADING and not each.stays]
    if not suffices([*idle, *busy, *loading]):
        freed = sum(each.bytes for each in movable if each.device == wanted.device)
        return Decision(missing=int(max(0, bytes_needed - freed)), crowded=len(movable) < places_needed)
    chosen = _needed([*idle, *busy, *loading], suffices)
    free = {each.id for each in idle}
    return Decision(
        tuple(each.id for each in chosen if each.id in free), tuple(each.id for each in chosen if each.id not in free)
    )


def _cheapest(
    order: Sequence[Resident], suffices: Callable[[Collection[Resident]], bool], now: float
) -> list[Resident]:
    """Return the models that suffice together and whose loss is probably felt the latest and the least often.

    A model that will probably be used again in ten seconds costs as much as two that will in twenty. Of many models
    only the first of the order are weighed against each other.
    """
    first = list(order)
    for count in range(1, len(order)):
        if suffices(order[:count]):
            first = list(order[: max(count, WEIGHED)])
            break
    if len(first) > WEIGHED:
        return _needed(first, suffices)
    best, least = first, math.inf
    for chosen in chain.from_iterable(combinations(first, count) for count in range(len(first) + 1)):
        cost = sum(0.0 if each.hinted else 1 / (each.stays_unused(now) + 1) for each in chosen)
        if cost < least and suffices(chosen):
            best, least = list(chosen), cost
    return best


def _needed(order: Sequence[Resident], suffices: Callable[[Collection[Resident]], bool]) -> list[Resident]:
    """Return models without those that are not needed beside the others, the last of the order first."""
    chosen = list(order)
    for each in reversed(order):
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
