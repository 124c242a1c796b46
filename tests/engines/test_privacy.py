"""Nothing leaves the machine and nothing is written to the home folder while a model loads and answers."""

from __future__ import annotations

import ast
import contextlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.engines.conftest import Engine

WATCH = """
import os, sys
if any("ovms_embedded" in word for word in sys.orig_argv):
    notes = os.open(os.environ["WATCH_NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    who = "worker" if any("ovms_embedded.worker" in word for word in sys.orig_argv) else "front"

    def hook(event, arguments):
        if event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork")):
            os.write(notes, f"{who} {event} {arguments[1:]!r}\\n".encode())
        elif event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            os.write(notes, f"{who} write {arguments[0]!r}\\n".encode())

    sys.addaudithook(hook)
    os.write(notes, f"{who} begins\\n".encode())
"""
KINDS = ("text_generation", "embeddings", "speech_to_text")
ROOT = Path(__file__).parents[2]
FOLDERS = ("bench", "extensions", "kernel", "tests")
INSIDE = ROOT / "extensions/engines/embedded/src/ovms_embedded/worker"
"""Here the package itself does it."""
APART = (ROOT / "tests/fixtures", ROOT / "tests/engines/tokenizers")
"""What makes the fixtures runs by hand, in an environment without the telemetry package."""
THIRD_PARTY = ROOT / "tests/engines/classify/acme_classify_worker.py"
"""A worker imports it, after the package."""
SHUTS_OUT = "ovms_embedded.worker"


def test_a_load_sends_nothing_and_leaves_the_home_folder_alone(
    make_engine: Callable[[], Engine], graph: Callable[..., str], fixtures: Path, tmp_path: Path
) -> None:
    home, site, notes = tmp_path / "home", tmp_path / "site", tmp_path / "notes"
    home.mkdir()
    site.mkdir()
    (site / "sitecustomize.py").write_text(WATCH)
    engine = make_engine()
    for kind in KINDS:
        engine.entry(kind, graph(kind, fixtures / kind))
    engine.list(*KINDS)
    folders = {name: str(home) for name in ("HOME", "USERPROFILE", "LOCALAPPDATA", "XDG_CACHE_HOME")}
    engine.start(environment={**folders, "PYTHONPATH": str(site), "WATCH_NOTES": str(notes), "CI": ""}).ready()
    assert engine.post("/v3/completions", model="text_generation", prompt="Hi", max_tokens=3).status_code == 200
    assert engine.post("/v3/embeddings", model="embeddings", input="Hi").status_code == 200
    assert engine.stop() == 0
    seen = notes.read_text().splitlines()
    assert seen.count("worker begins") >= len(KINDS), "the hook was not in every worker"
    assert [line for line in seen if line.startswith("worker") and line != "worker begins"] == []
    assert [line for line in seen if "connect" in line or "sendto" in line] == []
    assert list(home.iterdir()) == []


def test_the_telemetry_of_openvino_cannot_be_imported_in_a_worker() -> None:
    script = """
import sys, ovms_embedded.worker, openvino_genai, openvino_tokenizers
print(sorted(name for name in sys.modules if name.startswith(("openvino.tools.ovc.", "openvino_telemetry."))))
try:
    import openvino_telemetry
except ModuleNotFoundError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "refused"]


def test_everything_else_that_imports_openvino_shuts_its_telemetry_out_first() -> None:
    """Scripts of the tests and benches import it in processes of their own, without a worker."""
    found = 0
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        if path in (Path(__file__), THIRD_PARTY) or any(map(path.is_relative_to, (INSIDE, *APART))):
            continue
        for names in imports(path.read_text("utf-8")):
            first = next((at for at, name in enumerate(names) if name.startswith("openvino")), None)
            if first is not None:
                found += 1
                assert SHUTS_OUT in names[:first], f"{path} imports OpenVINO without `import {SHUTS_OUT}` before it"
    assert found


def imports(source: str) -> Iterator[list[str]]:
    """Yield the modules that a source imports, in its order, and those of each script in its strings."""
    tree = ast.parse(source)
    yield [name for _, name in sorted(imported(tree))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "import openvino" in node.value:
            with contextlib.suppress(SyntaxError):
                yield from imports(node.value)


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, each.name) for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
