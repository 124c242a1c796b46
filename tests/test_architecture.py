"""Who may import whom, beyond what import-linter can say of packages."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KERNEL = ROOT / "kernel" / "src" / "ovms_kernel"
EXTENSIONS = [
    each.parent
    for each in sorted(ROOT.glob("extensions/**/pyproject.toml"))
    if each.parts[-3] != "engines"  # an engine imports nothing of the kernel; import-linter says so
]
# The name that is imported, where it is not the distribution's.
MODULES = {"pyyaml": "yaml", "protobuf": "google", "grpcio": "grpc", "ruamel.yaml": "ruamel"}
MODULES |= {"grpcio-health-checking": "grpc_health"} | dict.fromkeys(
    ("opentelemetry-api", "opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"), "opentelemetry"
)
ALONE = {
    "stevedore": {"extensions.py"},
    "pluggy": {"hookspecs.py", "events.py"},
}
"""Libraries that only these files of the kernel import."""


def imports(path: Path) -> set[str]:
    """Return the dotted names that a file imports, whether at its top or within a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("folder", EXTENSIONS, ids=lambda each: f"{each.parent.name}/{each.name}")
def test_an_extension_imports_what_it_declares_and_of_ours_only_the_api(folder: Path) -> None:
    project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [each for extra in project.get("optional-dependencies", {}).values() for each in extra]
    declared = [re.split(r"[\[<>=!~; ]", each)[0] for each in project["dependencies"] + extras]
    allowed = {MODULES.get(each, each.replace("-", "_")) for each in declared} | {folder.name}
    modules = list(folder.rglob("*.py"))
    assert modules, "an extension has a module"
    for path in modules:
        for name in imports(path):
            top = name.split(".")[0]
            if (
                top in sys.stdlib_module_names
                or name.startswith("ovms_kernel.api.")
                or top in (path.stem, *path.relative_to(folder).parts)
            ):
                continue
            assert top in allowed, f"{path.name} imports {name}, which its pyproject.toml does not declare"
            assert not top.startswith("ovms_"), (
                f"{path.name} imports {name}; of the project it may import ovms_kernel.api… only"
            )


def parts_of_the_kernel() -> set[str]:
    """Return what a kernel is made of and faces are not offered."""
    [kernel] = (
        node for node in ast.parse((KERNEL / "kernel.py").read_text("utf-8")).body if isinstance(node, ast.ClassDef)
    )
    fields = (node.target for node in kernel.body if isinstance(node, ast.AnnAssign))
    return {each.id for each in fields if isinstance(each, ast.Name)} - {"live", "host"}


@pytest.mark.parametrize("folder", EXTENSIONS, ids=lambda each: f"{each.parent.name}/{each.name}")
def test_an_extension_asks_the_kernel_and_not_what_it_is_made_of(folder: Path) -> None:
    parts = parts_of_the_kernel()
    assert {"store", "ingest", "supervisor"} <= parts
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in parts:
                owner = ast.unparse(node.value)
                assert not owner.endswith("kernel"), f"{path.name}, line {node.lineno}: {owner}.{node.attr}"


@pytest.mark.parametrize(
    "path",
    [ROOT / "pyproject.toml", ROOT / "kernel" / "pyproject.toml", *sorted(ROOT.glob("extensions/**/pyproject.toml"))],
    ids=lambda each: each.parent.name,
)
def test_every_dependency_has_a_floor(path: Path) -> None:
    # Or a packager may put an extension beside a kernel that is too old for it, and only a request finds out.
    dependencies = tomllib.loads(path.read_text("utf-8"))["project"]["dependencies"]
    assert [each for each in dependencies if ">=" not in each] == []


@pytest.mark.parametrize("library", ALONE)
def test_a_library_is_known_to_its_own_file_alone(library: str) -> None:
    found = {path.name for path in KERNEL.rglob("*.py") if any(name.split(".")[0] == library for name in imports(path))}
    assert found == ALONE[library]


@pytest.mark.parametrize("path", sorted((KERNEL / "api").glob("[a-z]*.py")), ids=lambda each: each.stem)
def test_what_an_author_is_offered_is_there_and_is_what_type_checkers_take_it_for(path: Path) -> None:
    module = importlib.import_module(f"ovms_kernel.api.{path.stem}")
    imported = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
    offered = {each.asname: node.module for node in imported for each in node.names if each.asname}
    assert offered
    for name, home in offered.items():
        assert getattr(module, name) is getattr(importlib.import_module(str(home)), name)
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        _ = module.nothing_of_that_name


def test_importing_the_kernel_and_its_api_brings_in_nothing_heavy() -> None:
    names = "Route, ServiceDefinition, complete, forward, transcribe"
    code = f"import sys; from ovms_kernel.api.services import {names}; print(*filter(sys.modules.get, sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"grpc", "httpx", "openvino", "rich", "typer", "google", "numpy"} & {
        each.split(".")[0] for each in loaded
    }


def test_a_process_that_asks_the_engine_loads_no_command_line() -> None:
    code = "import sys, ovms_kernel.engine.transport, ovms_observer_metrics; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "httpx" in loaded
    assert not {"click", "pygments", "rich", "starlette", "typer"} & set(loaded)


@pytest.mark.parametrize("name", ["ovms_graph", "ovms_kserve"])
def test_the_kernel_and_the_embedded_engine_speak_of_the_same_messages(name: str) -> None:
    # Both register them in protobuf's one pool, which takes the same file twice but not two different ones.
    copies = [each.read_bytes() for each in sorted(ROOT.glob(f"[ke]*/**/protos/{name}.proto"))]
    assert len(copies) == 2
    assert copies[0] == copies[1]


def test_the_kernel_and_the_embedded_engine_know_the_same_properties() -> None:
    copies = sorted(ROOT.glob("[ke]*/**/properties.txt"))
    assert len(copies) == 2
    assert copies[0].read_bytes() == copies[1].read_bytes()


def test_the_page_on_architecture_names_files_and_functions_that_there_are() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    names = {
        path.name for folder in ("kernel", "extensions", "tests", "bench") for path in (ROOT / folder).rglob("*.py")
    }
    gone = [each for each in re.findall(r"`(?:[\w/]+/)?(\w+\.py)`", page) if each not in names]
    assert gone == []
    for name, path in re.findall(r"`([\w.]+)` in `(\w+/[\w/]+\.py)`", page):
        assert re.search(rf"\b{name.rpartition('.')[2]}\b", (ROOT / path).read_text("utf-8")), f"{path} has no {name}"


LIMITS = {ast.Module: 400, ast.ClassDef: 300, ast.FunctionDef: 45, ast.AsyncFunctionDef: 45}
"""Lines of a file, a class and a function at most: what has more has more than one job."""
SOURCES = [
    path
    for path in sorted((*KERNEL.rglob("*.py"), *ROOT.glob("extensions/**/*.py")))
    if not path.name.endswith("_pb2.py") and ".venv" not in path.parts
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda each: str(each.relative_to(ROOT)))
def test_a_file_a_class_and_a_function_have_one_job(path: Path) -> None:
    text = path.read_text("utf-8")
    tree = ast.parse(text)
    lines: dict[str, tuple[type[ast.AST], int]] = {"the file": (ast.Module, len(text.splitlines()))}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            lines[f"{node.name} in line {node.lineno}"] = (type(node), (node.end_lineno or 0) - node.lineno + 1)
    assert {name: length for name, (kind, length) in lines.items() if length > LIMITS[kind]} == {}
