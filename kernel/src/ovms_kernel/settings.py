"""Settings, from defaults < the face's own defaults < config file < environment, and every path of ours.

A setting is declared once, as a field of :class:`Settings`; its default, type and docstring there are all there is to
know. The config file is ``config.yaml`` in the data folder (or ``OVMS_PLUGIN_CONFIG``). In the environment a setting is
``OVMS_PLUGIN_<NAME>``, a setting of an extension ``OVMS_PLUGIN_<KIND>__<NAME>__<KEY>``, such as
``OVMS_PLUGIN_SERVICES__CHAT__DEFAULT_MODEL``.
"""

from __future__ import annotations

import difflib
import errno
import math
import os
import types
from collections.abc import Mapping  # noqa: TC003 - read at run time, the fields' types are the schema
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from ovms_kernel.errors import BadRequest, OvmsError

PREFIX = "OVMS_PLUGIN_"
ELSEWHERE = f"name another data folder with --data-dir or {PREFIX}DATA_DIR"
KINDS = ("services", "platforms", "graphs", "hubs", "observers", "faces", "dialects", "commands", "models")
"""Sections of settings that belong to extensions, and ``models``: calculator options by model id."""

Port = Annotated[int, (1, 65535)]
Count = Annotated[int, (0, math.inf)]
Seconds = Annotated[float, (0, math.inf)]
Limit = Annotated[float, (0.01, math.inf)]
"""Seconds that something may take; in none at all nothing could be done."""

MEANT = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list",
    Path: "a path",
}
"""What a setting of that type must be, in words."""
WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Settings:
    """Everything that can be set. Times are in seconds, sizes in bytes."""

    data_dir: Path
    """The folder that holds models, engines, logs and run-time state."""
    platform: str = ""
    """Name of the platform driver; empty means the one that fits this host best."""
    hub: str = "modelscope"
    """Name of the hub driver that models are pulled from."""
    engine_version: str = ""
    """Engine version to install; empty means the newest one that is known to work."""
    engine_mirrors: tuple[str, ...] = ()
    """Further places of engine archives: base URLs, local folders, or an archive here, which is used first."""
    engine_sha256: str = ""
    """SHA-256 that the engine's archive must have."""
    engine_known_digest: bool = False
    """Refuse an engine archive whose SHA-256 nobody named beforehand, instead of pinning that of the first download."""
    rest_port: Port = 16666
    """The engine's REST port; a free one is taken when it is in use."""
    grpc_port: Port = 9000
    """The engine's gRPC port; a free one is taken when it is in use."""
    start_timeout: Limit = 60.0
    """Time the engine has to answer after it was started."""
    stop_timeout: Seconds = 8.0
    """Time the engine has to stop by itself before it is killed."""
    restart_limit: Count = 5
    """How often in a row a failing engine is started again before giving up."""
    load_timeout: Limit = 600.0
    """Time a model has to load."""
    switch_patience: Seconds = 30.0
    """Time that a model in use may keep another one waiting for its memory before it admits no new request."""
    idle_unload: Seconds = 0.0
    """Time after which a model that nobody uses is unloaded; 0 = never. Per model: `idle_unload` in its section."""
    pinned: tuple[str, ...] = ()
    """Models that are never unloaded for being idle nor for another model."""
    preload: tuple[str, ...] = ()
    """Models that are loaded whenever the engine has started."""
    memory_budget: str = ""
    """Memory for all models together, such as `12GB` or `CPU=12GB,GPU=6GB`; empty = what is free, less a reserve."""
    max_loaded: Count = 0
    """Number of models that may be loaded at the same time; 0 = as many as fit."""
    staging_age: Seconds = 7 * 86400.0
    """Age at which a pull that was not finished is offered for removal."""
    hook_timeout: Limit = 5.0
    """Time one extension has for one event."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """DEBUG, INFO, WARNING or ERROR; for us, never passed to the engine."""
    disabled: tuple[str, ...] = ()
    """Extensions that are not loaded, as ``services.chat``."""
    sections: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Settings of extensions by kind and name, and of models by id."""

    def section(self, kind: str, name: str) -> Mapping[str, Any]:
        """Return the settings of one extension; empty if there are none."""
        # Names on the wire have dashes; in variables, and so perhaps in files too, they are written with underscores.
        return self.sections.get(kind, {}).get(name.replace("-", "_"), {})

    # The paths. Nothing else in the kernel joins a path to the data folder.

    @property
    def models_dir(self) -> Path:
        """Models by owner and name."""
        return self.data_dir / "models"

    @property
    def staging_dir(self) -> Path:
        """Pulls that are not published yet."""
        return self.models_dir / ".staging"

    @property
    def config_json(self) -> Path:
        """The engine's configuration file."""
        return self.models_dir / "config.json"

    @property
    def versions_dir(self) -> Path:
        """Engine versions, a folder each."""
        return self.data_dir / "engine" / "versions"

    @property
    def active_file(self) -> Path:
        """Names the active engine version."""
        return self.data_dir / "engine" / "active"

    @property
    def downloads_dir(self) -> Path:
        """Engine archives that are being fetched, and the digests they had."""
        return self.data_dir / "engine" / "downloads"

    @property
    def cache_dir(self) -> Path:
        """What the engine compiled, so that the next load is quick."""
        return self.data_dir / "engine" / "cache"

    @property
    def logs_dir(self) -> Path:
        """Logs of the engine and of the plugin."""
        return self.data_dir / "logs"

    @property
    def run_dir(self) -> Path:
        """Lock, pid, ports and API key of the running engine; for this user only."""
        return self.data_dir / "run"


def default_data_dir() -> Path:
    """Return the platform's folder for user data."""
    import platformdirs

    return platformdirs.user_data_path("ovms-plugin", appauthor=False)


def read_settings(
    environment: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    **overrides: Any,  # noqa: ANN401 - values of fields, checked below
) -> Settings:
    """Read all layers and return the settings.

    :param environment: instead of ``os.environ``.
    :param defaults: what a face puts in the place of defaults here; every other layer wins over it.
    :param overrides: fields that win over every layer.
    :raises BadRequest: a value has the wrong type or a key is unknown; the sentence names where it was set.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {"data_dir": default_data_dir(), **(defaults or {})}
    if chosen := environment.get(PREFIX + "DATA_DIR"):
        values["data_dir"] = Path(chosen).expanduser()
    if "data_dir" in overrides:
        values["data_dir"] = Path(overrides["data_dir"])
    # A host may start us in any folder, so a relative one is made absolute at once.
    values["data_dir"] = overrides["data_dir"] = Path(values["data_dir"]).absolute()
    _check_folder(values["data_dir"])
    named = environment.get(PREFIX + "CONFIG")
    config = Path(named).expanduser() if named else values["data_dir"] / "config.yaml"
    if named and not config.exists():
        raise BadRequest(f"There is no config file {config}, which {PREFIX}CONFIG names; make it or unset that.")
    for layer, where in (
        (_read_file(config), f"the config file {config}"),
        (_from_environment(environment), "the environment"),
        (overrides, "the command"),
    ):
        checked = _check(layer, where)
        checked["sections"] = _join(values.get("sections", {}), checked.get("sections", {}))
        values.update(checked)
    return Settings(**values)


def _check_folder(folder: Path) -> None:
    """Refuse what cannot be a data folder; that it is not there yet is no fault.

    :raises BadRequest: it is a file, lies below one, or may not be read.
    """
    try:
        os.scandir(folder).close()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise BadRequest(
            f"The data folder {folder} cannot be used ({error.strerror}); mend that, or {ELSEWHERE}."
        ) from error


def refused_by_system(error: BaseException) -> OvmsError | None:
    """Return an error of the system that a user can mend as one that says how; ``None`` if it is of another kind."""
    if not isinstance(error, OSError):
        return None
    where = f"{os.fsdecode(error.filename)} cannot be used" if isinstance(error.filename, str | bytes) else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OvmsError(f"{where or 'A file cannot be written'} ({error.strerror}); make room on that disk.")
    if where and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        return OvmsError(f"{where} ({error.strerror}); mend that, or {ELSEWHERE}.")
    return None


def _join(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Lay one tree of tables over another."""
    both = {key: _join(lower[key], upper[key]) for key in lower.keys() & upper.keys() if isinstance(upper[key], dict)}
    return lower | upper | both


def _read_file(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    import yaml

    try:
        value = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            detail = f"line {error.problem_mark.line + 1}: {error.problem}"
        else:
            detail = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise BadRequest(f"The config file {path} cannot be read ({detail}); mend or remove it.") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest(f"The config file {path} must hold settings as `name: value` lines; mend or remove it.")
    if "data_dir" in value:
        raise BadRequest(f"The config file {path} cannot set data_dir; remove that line, and {ELSEWHERE}.")
    return value


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    known = {each.name for each in fields(Settings)} - {"data_dir", "sections"}
    values: dict[str, Any] = {}
    for key, text in environment.items():
        if not key.startswith(PREFIX):
            continue
        name = key.removeprefix(PREFIX).lower()
        kind, *rest = name.split("__")
        if len(rest) == 2 and kind in KINDS:
            values.setdefault(kind, {}).setdefault(rest[0], {})[rest[1]] = text
        elif name in known:
            values[name] = text
    return values


def _check(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Convert each value to the type of its field; gather the sections of extensions."""
    hints = get_type_hints(Settings, include_extras=True)
    checked: dict[str, Any] = {}
    sections: dict[str, Any] = {}
    for name, value in values.items():
        if name in KINDS:
            if not isinstance(value, dict) or not all(isinstance(each, dict) for each in value.values()):
                raise BadRequest(
                    f"In {where}, {name} must be a table of tables, such as `{name}: {{name: {{key: value}}}}`."
                )
            sections[name] = {str(each).replace("-", "_"): table for each, table in value.items()}
        elif name in hints and name != "sections":
            checked[name] = _convert(value, hints[name], name, where)
        else:
            known = [*(hints.keys() - {"sections", "data_dir"}), *KINDS]
            near = difflib.get_close_matches(str(name), known, 1)
            instead = f"did you mean {near[0]}?" if near else "see docs/settings.md for those there are."
            raise BadRequest(f"In {where}, {name} is not a setting; {instead}")
    if sections:
        checked["sections"] = sections
    return checked


def _convert(value: Any, wanted: Any, name: str, where: str) -> Any:  # noqa: ANN401 - any value to any type
    least, most = -math.inf, math.inf
    if get_origin(wanted) is Annotated:
        wanted, (least, most) = get_args(wanted)
    kind = get_origin(wanted) or wanted
    try:
        if kind is tuple and not isinstance(value, dict):
            parts = value.split(",") if isinstance(value, str) else value
            return tuple(str(part).strip() for part in parts if str(part).strip())
        if kind is bool:
            return WORDS[str(value).lower()]
        if kind is Literal and str(value).upper() in get_args(wanted):
            return str(value).upper()
        if kind in (int, float, str, Path) and not isinstance(value, (bool, dict, list, types.NoneType)):
            converted = kind(value)
            if kind in (str, Path) or (least <= converted <= most and converted == float(value)):
                return converted
    except (KeyError, OverflowError, TypeError, ValueError):
        pass
    what = " or ".join(get_args(wanted)) if kind is Literal else MEANT[kind]
    if least > -math.inf:
        what += f" from {least:g}" + (f" to {most:g}" if most < math.inf else "")
    raise BadRequest(f"In {where}, {name} must be {what}, not {value!r}.")
