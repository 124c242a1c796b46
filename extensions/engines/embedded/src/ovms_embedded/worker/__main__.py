"""The worker's start: take the pipe, load the graph, answer calls until the front process goes away."""

from __future__ import annotations

import contextlib
import os
import sys
from importlib import import_module

from ovms_embedded import wire
from ovms_embedded.garbage import collect_rarely
from ovms_embedded.worker.pipe import tidy
from ovms_embedded.worker.process import open_pipe


def main() -> None:
    """Run a worker."""
    pipe = open_pipe()
    sys.setswitchinterval(0.0005)
    with contextlib.suppress(ImportError):  # a graph that needs the library says so when it loads
        import_module("openvino_genai")
    spec = pipe.receive()[1]
    try:
        servable = import_module(spec["worker"]).load(spec, pipe)
    except Exception as error:  # noqa: BLE001 - the front process reports it, whatever it is
        pipe.send([wire.FAILED, tidy(error)])
        os._exit(1)
    collect_rarely()
    pipe.send([wire.READY, servable.info])
    servable.run()


if __name__ == "__main__":
    main()
