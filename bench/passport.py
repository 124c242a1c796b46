"""What a model's passport adds to a load of it, once it is known.

Target (issue 18): at most 5 % more load time. Measured is the CPU time of this process and the wall time of a load of
each tiny model, with the device chosen as the kernel does it and without, in turn and in changing order; medians of the
differences of pairs.
"""

import statistics
import tempfile
import time
from pathlib import Path

import anyio
from _smoke import sized

from ovms_kernel.compose import compose_kernel
from ovms_kernel.models.loader import as_usual
from ovms_kernel.settings import read_settings

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
TYPES = sized(("text_generation", "embeddings", "rerank", "text_to_speech"), ("embeddings",))
ROUNDS = sized(20, 2)


async def main(folder: Path) -> None:
    """Load and unload, with and without."""
    async with compose_kernel(read_settings({}, data_dir=folder / "data", platform="portable")) as kernel:
        await kernel.install_engine()
        loader = kernel.residency._loader
        vetted = loader._place
        for kind in TYPES:
            model = await kernel.import_model(FIXTURES / kind, f"tiny/{kind}")
            await kernel.load_model(model.id)
            took: dict[str, list[tuple[float, float]]] = {"without": [], "with": []}
            pair = [("without", as_usual), ("with", vetted)]
            for _ in range(ROUNDS):
                pair.reverse()  # the second of two loads may find the engine busier, or warmer
                for name, place in pair:
                    loader._place = place
                    await kernel.unload_models([model.id])
                    began, work = time.perf_counter(), time.process_time()
                    await kernel.load_model(model.id)
                    took[name].append((time.perf_counter() - began, time.process_time() - work))
            usual = statistics.median(wall for wall, _ in took["without"]) * 1000
            more = [
                [(there[at] - here[at]) * 1000 for here, there in zip(took["without"], took["with"], strict=True)]
                for at in (0, 1)
            ]
            (low, wall, high), work = statistics.quantiles(more[0], n=4), statistics.median(more[1])
            print(
                f"{kind:16} {usual:7.1f} ms without, {wall:+6.1f} ms with a passport ({100 * wall / usual:+.1f} %, "
                f"quartiles {low:+.0f} and {high:+.0f} ms); {work:+.1f} ms of this process's CPU time"
            )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        anyio.run(main, Path(temporary))
