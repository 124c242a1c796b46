"""The verbs of the command line that end without serving."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovms_embedded.cli import WrongUsage

if TYPE_CHECKING:
    import argparse

    from ovms_embedded.cli import GraphFlags


def manage(given: argparse.Namespace, flags: GraphFlags) -> str:
    """Do what the command line asks for, and return what to print.

    :raises WrongUsage: something that it needs is missing or wrong.
    :raises CommandFailed: it did not work.
    """
    if given.pull:
        from ovms_embedded.pulling import pull

        return pull(given, flags)
    if given.list_models:
        return _list(_folder(given))
    if given.add_to_config or given.remove_from_config:
        return _edit(given)
    return _configure(given, flags)


def _folder(given: argparse.Namespace) -> Path:
    named = given.model_repository_path or os.environ.get("OVMS_MODEL_REPOSITORY_PATH")
    if not named:
        raise WrongUsage("--list_models needs --model_repository_path")
    if not Path(named).is_dir():
        raise WrongUsage(f"model_repository_path {named} is not a folder")
    return Path(named)


def _list(folder: Path) -> str:
    found = sorted(path.parent.relative_to(folder).as_posix() for path in folder.rglob("graph.pbtxt"))
    return "".join(f"{line}\n" for line in (f"Available servables to serve from path: {folder}", *found))


def _edit(given: argparse.Namespace) -> str:
    verb = "add_to_config" if given.add_to_config else "remove_from_config"
    path = _config_path(given, verb)
    if not given.model_name:
        raise WrongUsage(f"--{verb} needs --model_name")
    config = _read(path)
    listed: list[dict[str, Any]] = config["model_config_list"]
    others = [each for each in listed if each.get("config", {}).get("name") != given.model_name]
    if verb == "remove_from_config":
        if len(others) == len(listed):
            raise WrongUsage(f"{path} lists no model {given.model_name}")
        _write(path, config | {"model_config_list": others})
        return f"Model {given.model_name} was removed from {path}\n"
    folder = given.model_path or (
        os.path.join(given.model_repository_path, given.model_name) if given.model_repository_path else ""  # noqa: PTH118 - as the user wrote it
    )
    if not folder:
        raise WrongUsage("--add_to_config needs --model_path or --model_repository_path")
    known: dict[str, Any] = next((each["config"] for each in listed if each not in others), {})
    entry = known | {"name": given.model_name, "base_path": str(Path(folder).absolute())}
    if given.group_name:
        entry["group_name"] = given.group_name
    _write(path, config | {"model_config_list": [*others, {"config": entry}]})
    return f"Model {given.model_name} was added to {path}\n"


def _config_path(given: argparse.Namespace, verb: str) -> Path:
    value = getattr(given, verb)
    named = given.config_path if value == "true" else value
    if not named:
        raise WrongUsage(f"--{verb} needs --config_path")
    path = Path(named)
    return path / "config.json" if path.is_dir() else path


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"model_config_list": []}
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise WrongUsage(f"{path} cannot be read as JSON: {error}") from error
    listed = found.get("model_config_list") if isinstance(found, dict) else None
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise WrongUsage(f"{path} is not a configuration: it has no list model_config_list")
    return dict(found)


def _write(path: Path, config: dict[str, Any]) -> None:
    """Replace a file at once, so that a server that watches it never reads half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            file.write(json.dumps(config, indent=4, ensure_ascii=False) + "\n")
        Path(file.name).chmod(path.stat().st_mode if path.exists() else 0o644)
        Path(file.name).replace(path)
    except OSError as error:
        raise WrongUsage(f"{path} cannot be written: {error.strerror}") from error


def _configure(given: argparse.Namespace, flags: GraphFlags) -> str:
    from ovms_embedded.calculators.discovery import find_calculators
    from ovms_embedded.graphs import GraphInvalid
    from ovms_embedded.recognition import text_for

    if not given.model_path:
        raise WrongUsage("--configure needs --model_path")
    folder = Path(given.model_path)
    if not folder.is_dir():
        raise WrongUsage(f"model_path {folder} is not a folder")
    try:
        text = text_for(folder, given.model_name or folder.name, find_calculators(), flags)
        (folder / "graph.pbtxt").write_text(text + "\n", "utf-8")
    except GraphInvalid as error:
        raise WrongUsage(str(error)) from error
    except OSError as error:
        raise WrongUsage(f"{folder / 'graph.pbtxt'} cannot be written: {error.strerror}") from error
    return f"Graph: graph.pbtxt created in: {folder}\n"
