"""Six models of which two fit, asked by eight callers through the services; ``OVMS_TURNS_REQUESTS`` makes it longer."""

import base64
import json
import os
import random
import statistics
import time
from typing import Any

import anyio
import pytest

from ovms_kernel.compose import compose_kernel
from ovms_kernel.hookspecs import hookimpl
from ovms_kernel.models.memory import Memory
from ovms_kernel.settings import read_settings
from ovms_kernel.values import Request

from .conftest import TINY

REQUESTS = int(os.environ.get("OVMS_TURNS_REQUESTS", "50"))
CALLERS = 8
PATIENCE = 6.0


class Watcher:
    """Notes the most memory that was taken by loaded models at the end of a load, and how long loads took."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.most, self.count, self.loads = 0, 0, []

    @hookimpl
    async def ovms_model_ready(self, model):
        loaded = self.kernel.residency.loaded()
        self.most = max(self.most, sum(each.bytes for each in loaded))
        self.count = max(self.count, len(loaded))
        self.loads.append(model.seconds)


@pytest.fixture(scope="module")
async def stocked(tmp_path_factory, fixtures, inference):
    """A data folder with six models, each of which was loaded once, so that it is known what it takes."""
    folder = tmp_path_factory.mktemp("turns") / "data"
    ports = {"rest_port": 21000 + os.getpid() % 9000, "grpc_port": 31000 + os.getpid() % 9000}
    common = {"data_dir": folder, "platform": "portable", "models": {"tiny/text": {"cache_size": 0}}} | ports
    settings = read_settings({}, **common)
    async with compose_kernel(settings) as kernel:
        await kernel.install_engine()
        for model, folder in TINY.items():
            await kernel.import_model(fixtures / folder, model)
            await kernel.load_model(model)
            await kernel.unload_models([model])
        needs = sorted(Memory(settings).wanted(each).bytes for each in await kernel.list_models())
    assert needs[0] > 10_000_000, "what a load took is measured"
    return common, sum(needs[-2:])


def requests(fixtures):
    sound = base64.b64encode((fixtures / "speech_to_text_samples" / "en_turn_on_the_light.wav").read_bytes()).decode()
    picture = {"prompt": "a cat", "size": "64x64", "num_inference_steps": 1, "seed": 1}
    return [
        ("chat", {"model": "tiny/text", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}),
        ("generate", {"model": "tiny/text", "prompt": "hi", "max_tokens": 4}),
        ("embed", {"model": "tiny/embeddings", "input": "a cat"}),
        ("rerank", {"model": "tiny/rerank", "query": "cats", "documents": ["a cat sleeps", "stocks fell"]}),
        ("speech-to-text", {"model": "tiny/listener", "audio": sound}),
        ("text-to-speech", {"model": "tiny/speaker", "input": "hello", "response_format": "wav"}),
        ("text-to-image", {"model": "tiny/image", **picture}),
    ]


@pytest.mark.timeout(max(300, REQUESTS))
async def test_many_requests_over_more_models_than_fit_are_all_answered_in_time(stocked, fixtures):
    common, budget = stocked
    settings = read_settings({}, memory_budget=str(budget), switch_patience=PATIENCE, **common)
    asked, left, waits = requests(fixtures), REQUESTS, []
    async with compose_kernel(settings) as kernel:
        watcher = Watcher(kernel)
        kernel.register("watcher", watcher)

        async def caller(seed):
            nonlocal left
            chance = random.Random(seed)
            service, body = chance.choice(asked)
            while left > 0:
                left -= 1
                if chance.random() < 0.3:  # people stay with a model for a while
                    service, body = chance.choice(asked)
                began = time.monotonic()
                answer = await kernel.invoke(service, Request(json.dumps(body).encode()))
                waits.append(time.monotonic() - began)
                assert answer.body

        async with anyio.create_task_group() as group:
            for seed in range(CALLERS):
                group.start_soon(caller, seed)
        assert all(each.users == 0 for each in kernel.residency.table.values())
        resident = await kernel.resident_models()
        assert sum(each.memory for each in resident if each.state == "loaded") <= budget
    # Each of the other models may have its turn before: its share of the patience, its load, and what runs.
    bound = 2 * PATIENCE + len(TINY) * (2 * max(watcher.loads) + 5)
    print(
        f"{len(waits)} requests, {len(watcher.loads)} loads; median {statistics.median(waits):.2f} s, "
        f"longest {max(waits):.1f} s (at most {bound:.0f}); at most {watcher.count} models, "
        f"{watcher.most / 1e6:.0f} of {budget / 1e6:.0f} MB"
    )
    assert watcher.most <= budget
    assert max(waits) <= bound


@pytest.mark.timeout(120)
async def test_models_that_fit_are_asked_in_turn_as_fast_as_one(stocked):
    common, budget = stocked
    async with compose_kernel(read_settings({}, memory_budget=str(budget), **common)) as kernel:

        async def ask(*names):
            began = time.monotonic()
            for name in names:
                kind: Any = {"tiny/embeddings": ("embed", {"input": "a cat"}), "tiny/rerank": RERANK}[name]
                await kernel.invoke(kind[0], Request(json.dumps({"model": name, **kind[1]}).encode()))
            return time.monotonic() - began

        await ask("tiny/embeddings", "tiny/rerank")
        same = min([await ask(*["tiny/rerank"] * 6) for _ in range(3)])
        turns = min([await ask(*["tiny/embeddings", "tiny/rerank"] * 3) for _ in range(3)])
        assert turns <= 2 * same + 0.05


RERANK = ("rerank", {"query": "cats", "documents": ["a cat sleeps", "stocks fell"]})
