"""``config.json``: its schema, and the graphs that it lists."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovms_embedded.cli import GraphFlags

if TYPE_CHECKING:
    from ovms_embedded.cli import Settings

PATHS = ("base_path", "graph_path", "subconfig")
ROOT_KEYS = {
    "model_config_list": list,
    "mediapipe_config_list": list,
    "pipeline_config_list": list,
    "custom_node_library_config_list": list,
    "custom_loader_config_list": list,
    "monitoring": dict,
}
MODEL_KEYS = {
    "name", *PATHS, "target_device", "plugin_config", "nireq", "batch_size", "shape", "layout", "mean", "scale",
    "color_format", "precision", "model_version_policy", "allow_cache", "custom_loader_options", "group_name",
}  # fmt: skip


class ConfigError(Exception):
    """The file as a whole cannot be used; nothing changes.

    :param status: the HTTP status that ``POST /v1/config/reload`` answers with.
    """

    def __init__(self, text: str, status: int = 412) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Entry:
    """A graph that the file lists."""

    name: str
    base_path: str
    """Ends with a separator."""
    graph_path: str
    recognise: bool = False
    """Without a graph file, find out from the model what its graph would be."""
    flags: GraphFlags = field(default_factory=GraphFlags)
    """What the command line says of the graph; if it does, the folder's own is not read."""
    group: str = ""
    """Its ``group_name``; models of the group ``permanent`` are never unloaded for being idle."""
    problem: str = ""
    """Why this entry cannot be served whatever its graph says, or nothing."""


@dataclass(frozen=True)
class Config:
    """What the file says."""

    entries: tuple[Entry, ...]
    digest: str
    metrics: dict[str, Any] | None = None
    duplicate: str = ""
    """A model name that two entries of ``model_config_list`` have, which makes a reload fail."""


def read_config(path: Path) -> Config:
    """Return what a configuration file says.

    :raises ConfigError: it is missing, no JSON, or does not fit the schema.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        text = "Config file not found or cannot open."
        raise ConfigError(text, 500) from error
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    try:
        root = json.loads(content)
    except (ValueError, RecursionError) as error:
        text = f"Configuration file is not a valid JSON file. Error: {error}"
        raise ConfigError(text) from error
    _check(root)
    folder = path.parent.absolute()
    entries = [_entry(each, folder) for each in root.get("mediapipe_config_list", ())]
    names: set[str] = set()
    duplicate = ""
    for item in root["model_config_list"]:
        config = item["config"]
        entry = _entry(config, folder)
        if config["name"] in names:
            duplicate = config["name"]
            continue
        names.add(config["name"])
        if not Path(entry.graph_path).exists() and "graph_path" not in config:
            nested = Path(entry.base_path) / "1" / "graph.pbtxt"
            problem = "" if nested.exists() else (
                "The embedded engine serves graphs only: there is no graph.pbtxt in " + entry.base_path
            )  # fmt: skip
            path_there = str(nested) if nested.exists() else entry.graph_path
            entry = replace(entry, graph_path=path_there, problem=problem)
        entries.append(entry)
    return Config(_unique(entries), digest, root.get("monitoring", {}).get("metrics"), duplicate)


def single(settings: Settings) -> Config:
    """Return the configuration of a start with ``--model_name`` and ``--model_path``."""
    base = str((settings.model_path or Path()).absolute()).rstrip("/" + os.sep) + "/"
    return Config((Entry(settings.model_name, base, base + "graph.pbtxt", recognise=True, flags=settings.graph),), "")


def _unique(entries: list[Entry]) -> tuple[Entry, ...]:
    found: dict[str, Entry] = {}
    for entry in entries:
        found.setdefault(entry.name, entry)  # of two graphs with one name the first wins
    return tuple(found.values())


def _entry(config: dict[str, Any], folder: Path) -> Entry:
    base = str(folder / (config.get("base_path") or config["name"]))
    base = base.rstrip("/" + os.sep) + "/"
    graph = config.get("graph_path") or "graph.pbtxt"
    path = os.path.join(base, graph)  # noqa: PTH118 - keeps what the file says, as OVMS does
    return Entry(config["name"], base, path, group=config.get("group_name", ""))


def _fail(what: str) -> None:
    text = f"JSON schema parse error: {what}. Configuration file is not in valid configuration format"
    raise ConfigError(text)


def _check(root: object) -> None:
    if not isinstance(root, dict):
        _fail("the root is not an object")
        return
    for key, value in root.items():
        if key not in ROOT_KEYS:
            _fail(f"unknown key {key}")
        if not isinstance(value, ROOT_KEYS[key]):
            _fail(f"{key} has the wrong type")
    if "model_config_list" not in root:
        _fail("model_config_list is missing")
    for item in root["model_config_list"]:
        if not isinstance(item, dict) or set(item) != {"config"}:
            _fail("an item of model_config_list is not {config}")
        _check_entry(item["config"], MODEL_KEYS)
    for item in root.get("mediapipe_config_list", ()):
        _check_entry(item, {"name", "group_name", *PATHS})
    _check_monitoring(root.get("monitoring"))


def _check_entry(config: object, known: set[str]) -> None:
    if not isinstance(config, dict):
        _fail("an entry is not an object")
        return
    for key, value in config.items():
        if key not in known:
            _fail(f"unknown key {key}")
        if key in ("name", "target_device", "group_name", *PATHS) and not isinstance(value, str):
            _fail(f"{key} is not a string")
    if "name" not in config:
        _fail("an entry has no name")


def _check_monitoring(monitoring: dict[str, Any] | None) -> None:
    if monitoring is None:
        return
    metrics = monitoring.get("metrics")
    listed = metrics.get("metrics_list", []) if isinstance(metrics, dict) else None
    if (
        set(monitoring) != {"metrics"}
        or not isinstance(metrics, dict)
        or not set(metrics) <= {"enable", "metrics_list"}
        or not isinstance(metrics.get("enable"), bool)
        or not isinstance(listed, list)
        or not all(isinstance(each, str) for each in listed)
    ):
        _fail("monitoring is not {metrics: {enable, metrics_list}}")
