"""A generation step that throws leaves the library's pipeline unusable; the worker must make a new one."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
import json, os, queue, sys
from ovms_embedded import wire
from ovms_embedded.rest.generation import Generation
from ovms_embedded.worker import text

class Stopped(BaseException):
    pass

class Pipe:
    '''A pipe without a process at its other end: what comes is written down already, what goes out is printed.'''
    def __init__(self, messages):
        self.inbox, self.cancelled, self.ended = queue.SimpleQueue(), set(), 0
        for each in messages:
            self.inbox.put(each)
    def listen(self):
        pass
    def log(self, level, logger, line):
        self.send([wire.LOG, level, logger, line])
    def send(self, message):
        print(json.dumps(message), flush=True)
        self.ended += message[0] in (wire.END, wire.ERROR)
        if message[0] == wire.ERROR and message[1] == 2:
            self.inbox.put([wire.CALL, 3, "generate", good])
        if self.ended == 3:
            raise Stopped

settings = Generation(20, {"temperature": 0.0})
good = settings.payload(prompt="The capital of France is")
bad = json.dumps({"schema": {"type": "nonsense"}})
pipe = Pipe([[wire.CALL, 1, "generate", good], [wire.CALL, 2, "generate", good | {"grammar": bad}]])
options = {
    "models_path": sys.argv[1], "pipeline_type": "AUTO", "device": "CPU", "max_num_seqs": 8,
    "max_num_batched_tokens": 256, "cache_size": 0, "dynamic_split_fuse": True, "enable_prefix_caching": False,
    "properties": {},
}
servable = text.load({"options": options, "base_path": "/", "cache_dir": None}, pipe)
servable.grammars.settle(bad, None)  # a schema that passes the trial and fails later all the same
try:
    servable.run()
except Stopped:
    os._exit(0)
"""


def test_a_step_that_fails_costs_what_runs_and_nothing_more(fixtures: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(fixtures / "text_generation")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert [message[1:3] for message in messages if message[0] == 8] == [[1, "INTERNAL"], [2, "INTERNAL"]]
    (answer,) = [message for message in messages if message[0] == 7]
    assert answer[1] == 3
    assert answer[2]["choices"][0]["text"] == " Paris."
    assert any("made anew" in str(message) for message in messages)
