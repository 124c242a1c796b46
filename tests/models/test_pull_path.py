"""How many modules a pull crosses, from `ingest.pull` to its end: a reader has to know no more than these."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any

import ovms_hub_modelscope
import ovms_kernel
from ovms_kernel.values import ModelRef

KERNEL = Path(ovms_kernel.__file__).parent
MOST = 10
SHARED = ("names",)
"""Of the two packages: checks of text, which know nothing of a pull."""


OURS: ContextVar[bool] = ContextVar("ours", default=False)
"""Whether code runs for the pull, and not for another kernel that an earlier test left running."""


@contextmanager
def modules_that_run() -> Iterator[set[str]]:
    """Collect the modules of ``models`` and ``fetch`` of which a function runs, in any thread.

    What a driver calls through the api is the driver's own business, and is not counted.
    """
    found: set[str] = set()
    driver = ovms_hub_modelscope.__file__

    def is_a_drivers(frame: FrameType | None) -> bool:
        while frame is not None:
            if frame.f_code.co_filename == driver or "ovms_graph_" in frame.f_code.co_filename:
                return True
            frame = frame.f_back
        return False

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(str(KERNEL)) and frame.f_code.co_name != "<module>":
            module = Path(path).relative_to(KERNEL).with_suffix("")
            ours = module.parts[0] == "fetch" or (module.parts[0] == "models" and OURS.get())
            if ours and module.name not in SHARED and not is_a_drivers(frame):
                found.add(".".join(module.parts))

    threading.setprofile(note)  # for the threads that the pull starts
    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


async def test_a_pull_crosses_ten_modules_at_most(puller: Any, hub: Any, repo: Path) -> None:
    hub.add("me/model", repo)
    OURS.set(True)
    with modules_that_run() as crossed:
        model = await puller.ingest.pull(ModelRef("me/model"))
    assert model.model_type == "text_generation"
    assert {"models.ingest", "models.staging", "fetch.transfer"} <= crossed
    assert len(crossed) <= MOST, " ".join(sorted(crossed))
