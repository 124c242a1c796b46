"""Which models are loaded how often, and how long requests wait: the real policy over generated traces.

The engine is simulated: a load takes its time and nothing else. All times run 40 times faster than they are printed.
Loads are compared with those of an offline policy that knows the future and answers the requests in their order.
"""

from __future__ import annotations

import argparse
import random
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from ovms_kernel.events import Events
from ovms_kernel.models.loader import Loader
from ovms_kernel.models.plan import Budget, State, Wanted
from ovms_kernel.models.residency import Residency
from ovms_kernel.settings import Settings
from ovms_kernel.values import LocalModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

from _smoke import SMOKE

from ovms_kernel.models.plan import Table

FASTER = 40.0
PATIENCE = 30.0
MOST = 1.5
"""Loads as a multiple of the offline policy's, at most."""


@dataclass(frozen=True)
class Step:
    """One request of a client."""

    model: str
    seconds: float
    """That its answer takes."""
    pause: float = 0.0
    """Before it."""


@dataclass(frozen=True)
class Trace:
    """What some clients ask, each one request after the other."""

    name: str
    sizes: Mapping[str, float]
    """GB by model; a load takes a second and one more for every 2 GB."""
    budget: float
    clients: Sequence[Sequence[Step]]


@dataclass
class Simulated:
    """The store, the memory and the engine."""

    trace: Trace
    table: Table = field(default_factory=dict)
    loads: int = 0
    over: int = 0
    """Moments at which more was loaded than the budget holds."""

    def models(self) -> dict[str, LocalModel]:
        now = datetime.now(UTC)
        return {name: LocalModel(name, Path("nowhere"), "any", 0, "", now) for name in self.trace.sizes}

    # As ``Store``

    def served(self) -> list[LocalModel]:
        return list(self.models().values())

    def find(self, name: str) -> LocalModel:
        return self.models()[name]

    def profile(self, name: str) -> None:
        del name

    def records(self, names: Sequence[str]) -> dict[str, Any]:
        del names
        return {}

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[None]:
        del name
        yield

    # As ``GraphWriter``

    async def refresh(self, model: LocalModel, *, device: str, forced: bool = False) -> bool:
        del model, device, forced
        return False

    # As ``Memory``

    def device_of(self, model: LocalModel) -> str:
        del model
        return "CPU"

    def wanted(self, model: LocalModel) -> Wanted:
        return Wanted(model.id, int(self.trace.sizes[model.id] * 1000))

    def budget(self, table: Table) -> Budget:
        del table
        return Budget({"CPU": int(self.trace.budget * 1000)}, grace=1.0 / FASTER)

    # As ``Servables``

    def is_running(self) -> bool:
        return False  # no other process loads anything, nor is any told

    def was_changed(self) -> bool:
        return False

    async def states(self) -> dict[str, str]:
        return {}

    async def entries(self) -> dict[str, Any]:
        return {}

    async def problem(self, name: str) -> str:
        del name
        return ""

    async def remove(self, name: str) -> bool:
        del name
        await anyio.sleep(0.2 / FASTER)
        return True

    async def add(self, model: LocalModel, *, anew: bool = False) -> None:
        del anew
        self.loads += 1
        taken = sum(each.bytes for each in self.table.values() if each.state in (State.LOADED, State.LOADING))
        self.over += taken > self.trace.budget * 1000
        await anyio.sleep((1 + self.trace.sizes[model.id] / 2) / FASTER)


async def play(trace: Trace) -> bool:
    """Play a trace, print what came of it, and tell whether it is good enough."""
    simulated: Any = Simulated(trace)
    settings = Settings(Path("nowhere"), switch_patience=PATIENCE / FASTER)
    order: list[str] = []
    waits: list[float] = []
    errors = 0

    async def connect() -> None:
        return None

    loader = Loader(settings, Events(), simulated, simulated, simulated, simulated, simulated.table)
    residency = Residency(
        settings, Events(), simulated, simulated, simulated, loader, connect=connect, engine_runs=lambda: True
    )

    async def client(steps: Sequence[Step]) -> None:
        nonlocal errors
        for step in steps:
            await anyio.sleep(step.pause / FASTER)
            order.append(step.model)
            began = time.monotonic()
            try:
                async with residency.use("any", step.model):
                    waits.append((time.monotonic() - began) * FASTER)
                    await anyio.sleep(step.seconds / FASTER)
            except Exception as error:  # noqa: BLE001 - counted and shown
                errors += 1
                print(f"  {type(error).__name__}: {error}")

    late = 0.0

    async def clock() -> None:
        """Note how late this machine is, which a wait cannot be blamed for."""
        nonlocal late
        while True:
            began = time.monotonic()
            await anyio.sleep(0.02)
            late = max(late, (time.monotonic() - began - 0.02) * FASTER)

    async with residency, anyio.create_task_group() as group:
        group.start_soon(clock)
        for steps in trace.clients:
            group.start_soon(client, steps)
        while len(waits) + errors < sum(map(len, trace.clients)):  # noqa: ASYNC110
            await anyio.sleep(0.05)
        group.cancel_scope.cancel()
    best = offline(order, trace)
    longest_request = max(step.seconds for steps in trace.clients for step in steps)
    switch = 1.2 + max(trace.sizes.values()) / 2
    bound = PATIENCE + longest_request + len(trace.sizes) * (switch + longest_request) + late * 2
    good = simulated.loads <= MOST * best and max(waits) <= bound and not errors and not simulated.over
    waits.sort()
    print(
        f"{trace.name}: {len(order)} requests, {simulated.loads} loads, offline {best} "
        f"({simulated.loads / best:.2f}, at most {MOST}); waits median {waits[len(waits) // 2]:.1f} s, "
        f"longest {waits[-1]:.1f} s (at most {bound:.0f}); {errors} errors; over the budget {simulated.over} times"
        f"{'' if good else '  <-- not good enough'}"
    )
    return good


def offline(order: Sequence[str], trace: Trace) -> int:
    """Return the fewest loads with which requests can be answered in that order, by trying all that may be kept."""
    sizes = trace.sizes

    @cache
    def kept(loaded: frozenset[str], wanted: str) -> list[frozenset[str]]:
        """Return the largest sets that may be loaded once the wanted one is."""
        found: list[frozenset[str]] = []
        for count in range(len(loaded), -1, -1):
            for some in map(frozenset, combinations(sorted(loaded), count)):
                fits = sum(sizes[each] for each in some) + sizes[wanted] <= trace.budget
                if fits and not any(some < other for other in found):
                    found.append(some)
        return [each | {wanted} for each in found]

    costs: dict[frozenset[str], int] = {frozenset(): 0}
    for wanted in order:
        after: dict[frozenset[str], int] = {}
        for loaded, cost in costs.items():
            targets = [loaded] if wanted in loaded else kept(loaded, wanted)
            price = cost + (wanted not in loaded)
            for target in targets:
                after[target] = min(price, after.get(target, price))
        costs = after
    return min(costs.values())


def traces(requests: int, chance: random.Random) -> list[Trace]:
    """Return the traces, with about so many requests each."""

    def steps(count: int, models: Sequence[str], weights: Sequence[float], seconds: float, pause: float) -> list[Step]:
        chosen = chance.choices(models, weights, k=count)
        return [
            Step(each, chance.uniform(0.5, 1.5) * seconds, chance.expovariate(1 / pause) if pause else 0.0)
            for each in chosen
        ]

    rag = [Step("embed", 0.2), Step("rerank", 0.5), Step("chat", 6.0)]
    mixed = {f"m{number}": size for number, size in enumerate((0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.5, 5.0))}
    popular = [1 / (rank + 1) for rank in range(len(mixed))]
    return [
        Trace(
            "RAG, everything fits",
            {"embed": 0.6, "rerank": 0.7, "chat": 5.0},
            8.0,
            [rag * (requests // 12) for _ in range(4)],
        ),
        Trace(
            "RAG, two of three fit",
            {"embed": 1.0, "rerank": 1.2, "chat": 5.0},
            6.5,
            [[Step(each.model, each.seconds, 5.0) for each in rag] * (requests // 12) for _ in range(4)],
        ),
        Trace(
            "two chats in turn, one client",
            {"a": 5.0, "b": 5.0},
            6.0,
            [[Step("a", 3.0, 2.0), Step("b", 3.0, 2.0)] * (requests // 4)],
        ),
        Trace(
            "two chats under constant load",
            {"a": 5.0, "b": 5.0},
            6.0,
            [steps(requests // 4, [name], [1], 3.0, 0.1) for name in ("a", "b", "a", "b")],
        ),
        Trace(
            "a burst over four models",
            {"a": 2.0, "b": 3.0, "c": 3.0, "d": 4.0},
            6.0,
            [steps(max(1, requests // 60), ["a", "b", "c", "d"], [4, 2, 2, 1], 1.0, 0) for _ in range(60)],
        ),
        Trace(
            "eight models of mixed sizes",
            mixed,
            10.0,
            [steps(requests // 3, list(mixed), chance.sample(popular, 8), 2.0, 15.0) for _ in range(3)],
        ),
    ]


async def main(requests: int, at_once: int) -> bool:
    results: list[bool] = []
    limiter = anyio.Semaphore(at_once)

    async def one(trace: Trace) -> None:
        async with limiter:
            results.append(await play(trace))

    async with anyio.create_task_group() as group:
        for trace in traces(requests, random.Random(17)):
            group.start_soon(one, trace)
    return all(results)


FEW = 24
"""Requests of a smoke run, which are too few to compare loads."""


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--smoke", action="store_true", help="a few requests of each trace")
    smoke = options.parse_args().smoke or SMOKE
    # The traces disturb each other's times, which mean nothing in a smoke run.
    raise SystemExit(not anyio.run(main, FEW if smoke else 240, 6 if smoke else 1) and not smoke)
