# /// script
# requires-python = ">=3.11"
# dependencies = ["llm>=0.27"]
# ///
"""The program llm, set up as `ovms-plugin connect llm` says."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ANSWER = "OpenVINO is an open source toolkit for running AI models fast on Intel CPUs, GPUs and NPUs."
with tempfile.TemporaryDirectory() as folder:
    os.environ["LLM_USER_PATH"] = folder
    Path(folder, "extra-openai-models.yaml").write_text(os.environ["SNIPPET_LLM"])

    def llm(*words: str) -> str:
        return subprocess.run([sys.executable, "-m", "llm", *words], check=True, capture_output=True, text=True).stdout

    llm("keys", "set", "ovms", "--value", os.environ["KEY"])
    for words in ((), ("--no-stream",)):
        assert llm("-m", "ovms", "What is OpenVINO?", *words).strip() == ANSWER
