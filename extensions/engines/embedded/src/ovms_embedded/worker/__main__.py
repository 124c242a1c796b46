"""The worker's start: take the pipe, load the graph, answer calls until the front process goes away."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from importlib import import_module

from ovms_embedded import wire
from ovms_embedded.worker.pipe import Pipe, tidy


def _die_with_the_front_process() -> None:
    # A closed pipe says so too, but a thread of ours cannot hear it while the library holds Python's lock.
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() == 1:
            os._exit(0)


def main() -> None:
    """Run a worker; the pipe is standard input and what was standard output."""
    _die_with_the_front_process()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        # They reach the whole process group; the front process decides how this one ends.
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    sys.setswitchinterval(0.0005)
    sink = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no message
    pipe = Pipe(sys.stdin.buffer, sink)
    with contextlib.suppress(ImportError):  # a graph that needs the library says so when it loads
        import_module("openvino_genai")
    spec = pipe.receive()[1]
    try:
        servable = import_module(spec["worker"]).load(spec, pipe)
    except Exception as error:  # noqa: BLE001 - the front process reports it, whatever it is
        pipe.send([wire.FAILED, tidy(error)])
        os._exit(1)
    pipe.send([wire.READY, servable.info])
    servable.run()


if __name__ == "__main__":
    main()
