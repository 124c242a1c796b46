"""The host is who started the launcher, whatever lies between it and the plugin's interpreter."""

import os
import subprocess
import sys

PLUGIN = """
import os, subprocess, sys
if os.environ.pop("LAUNCHES", ""):  # as python.exe of a virtual environment does on Windows
    sys.exit(subprocess.run([sys.executable, *sys.orig_argv[1:]]).returncode)
from ovms_face_aog.launched import find_host
print(find_host().pid)
"""


def test_a_launcher_is_not_the_host() -> None:
    for launches in ("1", ""):
        words = [sys.executable, "-c", PLUGIN, "word"]
        environment = os.environ | {"LAUNCHES": launches}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        assert int(done.stdout) == os.getpid()
