"""The list of hooks in the documentation is the list of hooks there is."""

import inspect
import re
from pathlib import Path

from ovms_kernel import hookspecs

DOCS = Path(__file__).parents[2] / "docs" / "extensions" / "observer.md"


def test_every_hook_stands_in_the_documentation_with_its_arguments() -> None:
    there_are = {
        f"{name}({', '.join(inspect.signature(function).parameters)})"
        for name, function in inspect.getmembers(hookspecs, inspect.isfunction)
        if name.startswith("ovms_")
    }
    assert set(re.findall(r"^\| `(ovms_\w+\(.*?\))`", DOCS.read_text("utf-8"), re.MULTILINE)) == there_are
