"""How fast models are pulled, from a hub on this machine, as ratios to what a single connection and curl do.

Targets (issue 4): 8 parts at least 4 times one connection where the server limits each; without a limit at least 0.8 of
curl's speed, hashing included; at most 150 MB of memory for 2 GB.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

from _smoke import SMOKE, sized

FIXTURE = Path(__file__).parents[1] / "tests" / "fixtures" / "text_generation"
PULL = """
import resource, sys, time
from pathlib import Path
from typing import Self
import anyio, modelscope_hub
from ovms_kernel.testing.contract import configured
from ovms_hub_modelscope import ModelScope
from ovms_kernel.compose import compose_models
from ovms_kernel.events import Events
from ovms_kernel.extensions import compose
from ovms_kernel.settings import Settings
from ovms_kernel.values import Host, ModelRef

data, url, connections, part_size = sys.argv[1:]
settings, host = Settings(Path(data)), Host(os="linux", machine="x86_64", memory=16 << 30)
hub = configured(ModelScope, **{"endpoint": url, "connections": connections, "part_size": part_size})
drivers = compose(settings, host, kinds=("graphs",)).graphs
ingest = compose_models(settings, Events(), {"modelscope": hub}, drivers, host).ingest
hub._client()
began = time.perf_counter()
anyio.run(lambda: ingest.pull(ModelRef("me/model")))
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


class Hub:
    """The local hub as a process of its own, serving one model with weights of a given size."""

    def __init__(self, folder: Path, size: int, rate: int = 0) -> None:
        model = folder / "hub" / "me" / "model"
        if not model.exists():
            shutil.copytree(FIXTURE, model)
        block = os.urandom(1 << 20)
        with (model / "openvino_model.bin").open("wb") as file:
            for _ in range(size >> 20):
                file.write(block)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ovms_kernel.testing.hub", str(folder / "hub")],
            env=os.environ | {"FAKE_HUB_RATE": str(rate)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def pull(folder: Path, url: str, connections: int = 8, part_size: int = 16 << 20) -> tuple[float, float]:
    """Return seconds and the peak of memory in MB."""
    data = folder / "data"
    command = [sys.executable, "-c", PULL, str(data), url, str(connections), str(part_size)]
    environment = os.environ | {"MODELSCOPE_HOME": str(folder), "MODELSCOPE_CACHE": str(folder / "cache")}
    answer = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    shutil.rmtree(data)
    seconds, memory = answer.stdout.split()
    return float(seconds), float(memory)


def curl(folder: Path, url: str) -> float:
    """Return the seconds that curl takes for the weights, without a look at their digest."""
    target = folder / "curl.bin"
    source = f"{url}/api/v1/models/me/model/repo?Revision=master&FilePath=openvino_model.bin"
    began = time.perf_counter()
    subprocess.run(["curl", "-sfL", "-o", str(target), source], check=True)
    seconds = time.perf_counter() - began
    target.unlink()
    return seconds


def median(values: list[float]) -> float:
    return statistics.median(values)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repeat", type=int, default=sized(5, 1))
    options.add_argument("--quick", action="store_true", help="smaller files")
    chosen = options.parse_args()
    if SMOKE:
        small = large = huge = 4 << 20
    else:
        small, large, huge = (24 << 20, 256 << 20, 256 << 20) if chosen.quick else (48 << 20, 2 << 30, 2 << 30)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Hub(folder, small, rate=4 << 20) as hub:
            one = pull(folder, hub.url, connections=1, part_size=2 << 20)[0]
            eight = median([pull(folder, hub.url, part_size=2 << 20)[0] for _ in range(sized(3, 1))])
        print(f"limited to 4 MB/s for each connection: 8 parts are {one / eight:.1f} times one (target 4)")
        with Hub(folder, large) as hub:
            ours, theirs, ratios = [], [], []
            for _ in range(chosen.repeat):
                theirs.append(curl(folder, hub.url))
                ours.append(pull(folder, hub.url)[0])
                ratios.append(theirs[-1] / ours[-1])
        speeds = f"pull {large / median(ours) / 1e6:.0f} MB/s, curl {large / median(theirs) / 1e6:.0f} MB/s"
        print(f"not limited: {median(ratios):.2f} of curl's speed (target 0.8); {speeds}; {chosen.repeat} pairs")
        with Hub(folder, huge) as hub:
            seconds, memory = pull(folder, hub.url)
        print(f"{huge >> 20} MB: {memory:.0f} MB of memory at most (target 150), {huge / seconds / 1e6:.0f} MB/s")


if __name__ == "__main__":
    main()
