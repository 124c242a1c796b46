"""Writes what all distributions of this repository share into each one's pyproject.toml, LICENSE and README.

The version, the classifiers and the bounds between our own distributions stand in the root's pyproject.toml and here
alone. `python3 dev.py make` runs this; a test finds a distribution that was changed by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tomlkit

ROOT = Path(__file__).resolve().parents[1]
SHARED: dict[str, Any] = {
    "license": "Apache-2.0",
    "license-files": ["LICENSE"],
    "requires-python": ">=3.11",
    "keywords": ["openvino", "ovms", "model-server", "inference", "openai", "aog"],
    "classifiers": [
        "Development Status :: 4 - Beta",
        "Framework :: AnyIO",
        "Intended Audience :: Developers",
        "Operating System :: MacOS",
        "Operating System :: Microsoft :: Windows",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
}
INDEX = ROOT / "extensions" / "authoring" / "src" / "ovms_authoring" / "index.json"
README = """\
# {name}

{description}.

A part of [ovms-plugin](https://pypi.org/project/ovms-plugin/), which serves AI models on your own machine through
OpenVINO Model Server. `pip install ovms-plugin` installs all of it; install this distribution by itself for a smaller
set of services, platforms or APIs.
"""


def projects() -> list[Path]:
    """Return every pyproject.toml of this repository's distributions, the root's first."""
    found = [ROOT / "kernel" / "pyproject.toml", *sorted(ROOT.glob("extensions/**/pyproject.toml"))]
    return [ROOT / "pyproject.toml", *(each for each in found if ".venv" not in each.parts)]


def bounded(dependency: str, version: str, ours: set[str]) -> str:
    """Return a dependency; one on another distribution of the project has this minor version and no later one."""
    requirement, _, marker = dependency.partition(";")
    name, _, extra = requirement.partition("[")
    name = name.split(">")[0].split("=")[0].strip()
    if name not in ours:
        return dependency
    major, minor = (int(each) for each in version.split(".")[:2])
    extras = f"[{extra.partition(']')[0]}]" if extra else ""
    return f"{name}{extras}>={major}.{minor},<{major}.{minor + 1}" + (f"; {marker.strip()}" if marker else "")


def shared(text: str, version: str, ours: set[str], *, typed: bool) -> str:
    """Return a pyproject.toml with what all have in common."""
    document = tomlkit.parse(text)
    project = document["project"]
    if project["version"] != version:
        project["version"] = version
    classifiers = [*SHARED["classifiers"], *(["Typing :: Typed"] if typed else [])]
    for name, value in (SHARED | {"classifiers": classifiers}).items():
        # What is right is left as it is, so that a second run changes nothing.
        if project.get(name) != value:
            project[name] = value
    project["classifiers"].multiline(multiline=True)
    if "authors" not in project:
        project["authors"] = tomlkit.parse('a = [{ name = "ovms-plugin contributors" }]')["a"]
    if project.get("readme") != "README.md":
        project["readme"] = "README.md"
    groups = [project.get("dependencies"), *project.get("optional-dependencies", {}).values()]
    for group in filter(None, groups):
        for number, each in enumerate(list(group)):
            if (wanted := bounded(str(each), version, ours)) != str(each):
                group[number] = wanted
    return tomlkit.dumps(document)


def wanted() -> dict[Path, str]:
    """Return every file that is made here, by path."""
    texts = {path: path.read_text("utf-8") for path in projects()}
    parsed = {path: tomlkit.parse(text)["project"] for path, text in texts.items()}
    version = str(parsed[ROOT / "pyproject.toml"]["version"])
    ours = {str(each["name"]) for each in parsed.values()}
    files: dict[Path, str] = {}
    for path, text in texts.items():
        files[path] = shared(text, version, ours, typed=any(path.parent.glob("src/*/py.typed")))
        if path.parent != ROOT:
            description = str(parsed[path]["description"]).rstrip(".")
            files[path.parent / "LICENSE"] = (ROOT / "LICENSE").read_text("utf-8")
            files[path.parent / "README.md"] = README.format(name=parsed[path]["name"], description=description)
    files[INDEX] = index(parsed)
    return files


def index(parsed: dict[Path, Any]) -> str:
    """Return the index of distributions with extensions that `ovms-plugin extension list --available` reads."""
    listed = [
        {
            "name": str(project["name"]),
            "description": str(project["description"]),
            "extensions": [
                f"{group.removeprefix('ovms.')}.{name}"
                for group, names in project.get("entry-points", {}).items()
                if group.startswith("ovms.")
                for name in names
            ],
        }
        for project in parsed.values()
    ]
    listed = sorted((each for each in listed if each["extensions"]), key=lambda each: str(each["name"]))
    return json.dumps(listed, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write what differs."""
    for path, text in wanted().items():
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
