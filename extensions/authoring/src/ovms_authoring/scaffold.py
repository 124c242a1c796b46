"""New extensions out of templates: a distribution with one module and a test."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from string import Template

from ovms_authoring.kinds import Kind
from ovms_kernel.api.commands import BadRequest

NEEDS = {Kind.dialect: ["starlette>=0.50"], Kind.command: ["typer>=0.26"], Kind.graph: []}
"""What the template of a kind imports beside the kernel and msgspec."""
NEXT = {
    Kind.service: 'Then ask it: ovms-plugin call {name} \'{{"text": "hello"}}\', or POST /v1/{name} to `serve`.',
    Kind.platform: "Then `ovms-plugin doctor` says whether it is chosen; `matches` decides.",
    Kind.graph: "Then import a model whose config.json names the architecture {class_name}Model.",
    Kind.hub: "Then `ovms-plugin pull {alias}:OWNER/NAME`; set hubs.{alias}.url first.",
    Kind.face: "Then run `python -m {module}`.",
    Kind.dialect: "Then `ovms-plugin serve` has POST /{name}/say.",
    Kind.observer: "Then it logs each request; see it with --debug.",
    Kind.command: "Then run `ovms-plugin {name}`.",
}
PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "{distribution}"
version = "0.1.0"
description = "{description}"
readme = "README.md"
requires-python = ">=3.11"
dependencies = [{dependencies}]

[project.optional-dependencies]
test = ["anyio>=4.10", "ovms-kernel[testing]"]

[project.entry-points."ovms.{kind}s"]
{entry} = "{module}:{class_name}"

[tool.hatch.build.targets.wheel]
include = ["{module}.py"]
"""
README = """\
# {distribution}

{description}.

    ovms-plugin extension install .
    ovms-plugin extension check .
"""


@dataclass(frozen=True)
class Made:
    """A distribution that was written."""

    folder: Path
    next: str
    """What to type to see it work, as a sentence."""


def write(kind: Kind, name: str, into: Path) -> Made:
    """Write a distribution ``ovms-<kind>-<name>`` into a folder of that name, or nothing at all.

    :raises BadRequest: the name is none, or the folder exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise BadRequest(f"{name!r} is not a valid extension name; use lower case, digits and single dashes.")
    distribution = f"ovms-{kind}-{name}"
    target = into / distribution
    if target.exists():
        raise BadRequest(f"{target} exists; choose another name, or another folder with --into.")
    if not into.is_dir():
        raise BadRequest(f"{into} is not a folder; create it first.")
    words = {
        "kind": kind.value,
        "name": name,
        "alias": name.replace("-", "_"),
        # Model types are Python names; everything else has dashes.
        "entry": name.replace("-", "_") if kind is Kind.graph else name,
        "module": distribution.replace("-", "_"),
        "class_name": "".join(each.capitalize() for each in name.split("-")),
        "distribution": distribution,
        "description": f"The {kind} {name} for ovms-plugin",
    }
    with tempfile.TemporaryDirectory(dir=into, prefix=".new-") as made:
        folder = Path(made) / distribution
        (folder / "tests").mkdir(parents=True)
        (folder / "pyproject.toml").write_text(
            PYPROJECT.format(**words, dependencies=", ".join(f'"{each}"' for each in _dependencies(kind))), "utf-8"
        )
        (folder / "README.md").write_text(README.format(**words), "utf-8")
        templates = resources.files("ovms_authoring") / "templates"
        for source, path in (
            (f"{kind}.py.txt", folder / f"{words['module']}.py"),
            (f"test_{kind}.py.txt", folder / "tests" / f"test_{words['module']}.py"),
        ):
            path.write_text(Template((templates / source).read_text("utf-8")).substitute(words), "utf-8")
        shutil.move(folder, target)
    return Made(target, NEXT[kind].format(**words))


def _dependencies(kind: Kind) -> list[str]:
    major, minor, *_ = metadata.version("ovms-kernel").split(".")
    kernel = f"ovms-kernel>={major}.{minor},<{major}.{int(minor) + 1}"
    return sorted([kernel, *NEEDS.get(kind, ["msgspec>=0.20"])])
