"""Every service through both faces for minutes or hours, while processes are killed, disks fill and clocks jump.

    python -m tests.soak.soak --minutes 60

prints what was asked, what went wrong on purpose and what came of it. It fails if a process outlives the one that is
responsible for it, a model is lost or damaged, a file is half written, an answer is wrong or without words, or a face
does not come back.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from ovms_kernel.compose import compose_kernel
from ovms_kernel.settings import read_settings
from ovms_kernel.testing.hub import FakeHub
from tests.soak import clients
from tests.soak.clients import AOG, CANCELLED, HTTP, LIMIT, Counts, ask
from tests.soak.faces import AogFace, HttpFace
from tests.soak.faults import FAKETIME, FIXTURES, ORPHAN, Faults, Orphans, Place

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path
    from typing import Any

    from tests.soak.faces import Face

SOURCES = ("text_generation", "vision_text_generation", "embeddings", "rerank", "image_generation", "speech_to_text")
MODELS = dict(zip(clients.MODELS, (*SOURCES, "text_to_speech"), strict=True))
RECOVERY = 240.0
"""Seconds after the last fault within which each kind of request is answered again."""
AT_ONCE = 2
"""Clients of each kind of request that do not wait for each other."""


def digests(models: Path) -> dict[str, str]:
    """Return a digest of the weights of every model that has to survive."""
    return {
        name: hashlib.sha256(b"".join(each.read_bytes() for each in sorted((models / name).rglob("*.bin")))).hexdigest()
        for name in MODELS
    }


async def prepare(place: Place, hub: FakeHub) -> dict[str, str]:
    """Install the engine and the tiny models, and offer one at a hub."""
    settings = read_settings({}, data_dir=place.data, platform="portable")
    async with compose_kernel(settings) as kernel:
        await kernel.install_engine()
        for model, source in MODELS.items():
            await kernel.import_model(FIXTURES / source, model)
    (place.data / "config.yaml").write_text(f"hubs: {{modelscope: {{endpoint: '{hub.url}'}}}}\n")
    return digests(settings.models_dir)


async def use(
    request: Callable[[Any], Awaitable[None]], face: Face, counts: Counts, rolls: random.Random, enough: asyncio.Event
) -> None:
    """Ask again and again, until that is enough."""
    while not enough.is_set():
        leaves = rolls.uniform(0.01, 2) if rolls.random() < CANCELLED else 0.0
        await ask(request, face, counts, leaves=leaves)
        await asyncio.sleep(rolls.uniform(0, 1))


async def recover(faces: Sequence[tuple[Face, Sequence[Any]]], counts: dict[str, Counts]) -> list[str]:
    """Ask until every kind of request is answered once; return those that are not."""
    end = time.monotonic() + RECOVERY
    waiting = [(face, request) for face, requests in faces for request in requests]
    while waiting and time.monotonic() < end:
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, end - time.monotonic())):
                for face, request in waiting:
                    before = counts[request.__name__].outcomes["answered"]
                    await ask(request, face, counts[request.__name__])
                    if counts[request.__name__].outcomes["answered"] > before:
                        waiting = [each for each in waiting if each != (face, request)]
        await asyncio.sleep(0.5)
    return [f"{face.name}: {request.__name__} is not answered any more" for face, request in waiting]


def inspect(place: Place, before: dict[str, str]) -> tuple[list[str], list[str]]:
    """Return what is lost, and what is half written, once everything has ended."""
    environment = place.environment() | {"LD_PRELOAD": ""}

    def plugin(*words: str) -> dict[str, Any] | list[Any]:
        done = subprocess.run(
            [sys.executable, "-m", "ovms_cli", *words, "--json"], env=environment, capture_output=True, check=False
        )
        return json.loads(done.stdout)

    verified = plugin("verify")
    assert isinstance(verified, dict)
    after = digests(place.data / "models")
    lost = [f"{name} is not listed" for name in before if name not in verified]
    lost += [f"the weights of {name} changed" for name in before if after[name] != before[name]]
    half = [f"{name}: {'; '.join(faults)}" for name, faults in verified.items() if faults]
    folders = [each for owner in (place.data / "models").glob("[!.]*") if owner.is_dir() for each in owner.iterdir()]
    names = ["/".join(each.parts[-2:]) for each in folders if each.is_dir() and not each.name.startswith(".")]
    half += [f"models/{each} is no model" for each in names if each not in verified]
    half += [f"{each} is left" for each in place.data.rglob("*.tmp")]
    half += [f"{each} is left" for each in place.data.rglob(".trash-*")]
    for each in (*place.data.rglob("*.json"), *place.data.rglob(".ovms-plugin.json")):
        if ".staging" not in each.parts:
            try:
                json.loads(each.read_bytes())
            except ValueError as error:
                half.append(f"{each}: {error}")
    return lost, half


def tracebacks(place: Place, log: Path) -> list[str]:
    """Return the last lines of what the logs show as unforeseen."""
    found = []
    for file in (log, *place.data.glob("logs/*.log")):
        lines = file.read_text("utf-8", "replace").splitlines()
        for at, line in enumerate(lines):
            if "Traceback (most recent" in line:
                end = next((at for at in range(at + 1, len(lines)) if lines[at][:1].strip()), len(lines) - 1)
                found.append(f"{file.name}: " + "\n    ".join(each[:300] for each in lines[max(at, end - 8) : end + 1]))
    return found


async def soak(place: Place, seconds: float, seed: int) -> bool:
    """Run it; return whether nothing went wrong that was not meant to."""
    rolls = random.Random(seed)
    counts = {request.__name__: Counts() for request in (*HTTP, *AOG)}
    orphans = Orphans()
    log = place.beside / "faces.log"
    with FakeHub(rate=4_000_000) as hub, log.open("wb") as said:
        hub.add("me/pulled", FIXTURES / "text_generation")
        before = await prepare(place, hub)
        environment = place.environment()
        http, aog = HttpFace(place.data, environment, said), AogFace(place.data, environment, said)
        faults = Faults(place, (http, aog), rolls, hub.url)
        enough = asyncio.Event()
        faces: list[tuple[Face, Sequence[Any]]] = [(http, HTTP), (aog, AOG)]
        print(f"The engine and {len(before)} models are installed.", flush=True)
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(orphans.watch())
            kept = [group.create_task(face.keep()) for face, _ in faces]
            using = [
                group.create_task(use(request, face, counts[request.__name__], rolls, enough), name=request.__name__)
                for face, requests in faces
                for request in requests
                for _ in range(AT_ONCE if request is HTTP[0] else 1)
            ]
            await asyncio.gather(http.up.wait(), aog.up.wait())
            causing = group.create_task(faults.cause(pause=min(4.0, seconds / 10)))
            await asyncio.sleep(seconds)
            causing.cancel()
            await asyncio.wait([causing])
            place.clock.write_text("+0")
            enough.set()
            _, hanging = await asyncio.wait(using, timeout=LIMIT)
            missing = [f"{each.get_name()}: no answer within {LIMIT:g} s of the last fault" for each in hanging]
            for each in hanging:
                each.cancel()
            missing += await recover(faces, counts)
            await asyncio.gather(http.stop(), aog.stop())
            await asyncio.gather(*kept)
            end = time.monotonic() + ORPHAN
            while (left := orphans.left()) and time.monotonic() < end:
                await asyncio.to_thread(orphans.look)
                await asyncio.sleep(0.2)
            watch.cancel()
    lost, half = inspect(place, before)
    wrong = [
        *faults.wrong,
        *missing,
        *http.failures,
        *aog.failures,
        *(w for each in counts.values() for w in each.wrong),
    ]
    show(counts, faults.counts, http.told + aog.told)
    print(f"serve was started {http.starts} times, the AOG plugin {aog.starts} times.")
    tell("tracebacks in logs", tracebacks(place, log))
    bad = {"orphans": [*orphans.found, *left], "lost models": lost, "half-written files": half, "unforeseen": wrong}
    for name, found in bad.items():
        tell(name, found)
    if any(bad.values()):
        print("The end of what the faces said:")
        print("\n".join(log.read_text("utf-8", "replace").splitlines()[-60:]))
    return not any(bad.values())


def show(counts: dict[str, Counts], faults: Counter[str], told: Counter[str]) -> None:
    """Print what was asked and what was broken."""
    total: Counter[str] = Counter()
    for name, each in counts.items():
        total += each.outcomes
        print(f"{name:16} {', '.join(f'{count} {what}' for what, count in each.outcomes.most_common())}")
    print(f"{'all requests':16} {', '.join(f'{count} {what}' for what, count in total.most_common())}")
    print(f"{'faults':16} {', '.join(f'{count} {what}' for what, count in faults.most_common()) or 'none'}")
    for sentence, count in told.most_common(10):
        print(f"  {count} × {sentence}")


def tell(name: str, found: Sequence[str]) -> None:
    """Print how many there are, and some of them."""
    print(f"{len(found)} {name}")
    for sentence, count in Counter(found).most_common(20):
        print(f"  {count} × {sentence}")


def main() -> int:
    """Run the soak; return the exit code."""
    parser = argparse.ArgumentParser(prog="dev.py soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="for how long faults are caused (1)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the faults' order")
    given = parser.parse_args()
    print(f"{given.minutes:g} minutes, seed {given.seed}")
    with Place() as place:
        if not place.mounted:
            print("A full disk is not tried: this user may mount no file system of its own.")
        if not FAKETIME:
            print("Clock steps are not tried: libfaketime is not installed.")
        return 0 if asyncio.run(soak(place, given.minutes * 60, given.seed)) else 1


if __name__ == "__main__":
    sys.exit(main())
