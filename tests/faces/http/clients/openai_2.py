# /// script
# requires-python = ">=3.11"
# dependencies = ["openai>=2,<3"]
# ///
"""openai 2: the same as with openai 3."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).with_name("openai_3.py")), run_name="__main__")
