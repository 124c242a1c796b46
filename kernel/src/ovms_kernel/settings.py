"""Settings, from defaults < the face's own defaults < config file < environment, and every path of the plugin.

A setting is declared once, as a field of :class:`Settings`; its default, type and docstring there are all there is to
know. The config file is ``config.yaml`` in the data folder (or ``OVMS_PLUGIN_CONFIG``). In the environment a setting is
``OVMS_PLUGIN_<NAME>``, a setting of an extension ``OVMS_PLUGIN_<KIND>__<NAME>__<KEY>``, such as
``OVMS_PLUGIN_SERVICES__CHAT__DEFAULT_MODEL``.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from ovms_kernel.aliases import AliasSettings, check_aliases
from ovms_kernel.declared import Count, Limit, NoSettings, Port, Seconds, meant, read_struct
from ovms_kernel.errors import BadRequest
from ovms_kernel.quantities import parse_budget

log = logging.getLogger(__name__)

T = TypeVar("T", bound=msgspec.Struct)

PREFIX = "OVMS_PLUGIN_"
ELSEWHERE = f"name another data folder with --data-dir or {PREFIX}DATA_DIR"
KINDS = ("services", "platforms", "graphs", "hubs", "observers", "faces", "dialects", "commands", "models")
"""Sections of settings that belong to extensions, and ``models``: calculator options by model id."""


class ModelSettings(msgspec.Struct, frozen=True):
    """What can be set for one model, beside the options of its calculator."""

    pinned: bool = False
    """The model is never unloaded for being idle nor for another model."""
    idle_unload: Seconds | None = None
    """Time after which the model is unloaded if nobody uses it; 0 = never; empty = as `idle_unload` for all models."""
    force: bool = False
    """Load the model even if its memory does not suffice."""


class Settings(msgspec.Struct, frozen=True):
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
    idle_unload: Annotated[float, msgspec.Meta(ge=-1)] = -1.0
    """Time after which an unused model is unloaded; 0 = never, -1 = 30 minutes under `serve` and else never."""
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
    aliases: Mapping[str, AliasSettings] = msgspec.field(default_factory=dict)
    """Further names of models, such as `{helper: {model: OWNER/NAME, system: Be brief.}}`; see `ovms-plugin alias`."""
    disabled: tuple[str, ...] = ()
    """Extensions that are not loaded, as ``services.chat``."""
    sections: Mapping[str, Mapping[str, Mapping[str, Any]]] = msgspec.field(default_factory=dict)
    """Settings of extensions by kind and name, and of models by id."""
    places: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Where each setting in a section was set, by its name, such as ``services.chat.default_model``."""

    def section(self, kind: str, name: str) -> Mapping[str, Any]:
        """Return the settings of one extension; empty if there are none."""
        # Names on the wire have dashes; in variables, and so perhaps in files too, they are written with underscores.
        return self.sections.get(kind, {}).get(name.replace("-", "_"), {})

    def place(self, kind: str, name: str, key: str) -> str:
        """Return where a setting in a section was set, as part of a sentence."""
        return self.places.get(f"{kind}.{name.replace('-', '_')}.{key}", "the settings")

    def read_section(self, kind: str, name: str, of: type[T], **given: Any) -> T:  # noqa: ANN401 - values of settings
        """Return the settings of one extension as the struct that declares them.

        :param given: values that win over those in the section, such as options of a command.
        :raises BadRequest: a name or value in it is wrong.
        """

        def place(key: str) -> str:
            return "the command" if key in given else self.place(kind, name, key)

        return read_struct(of, {**self.section(kind, name), **given}, place, f"{kind}.{name}.")

    def for_driver(self, driver: Any, kind: str, name: str) -> Any:  # noqa: ANN401 - any driver's class
        """Return what a driver is constructed with: what its ``settings_type`` says.

        :raises BadRequest: a setting is unknown or has a wrong value.
        """
        declared = getattr(driver, "settings_type", NoSettings)
        return dict(self.section(kind, name)) if declared is dict else self.read_section(kind, name, declared)

    def model(self, model_id: str) -> ModelSettings:
        """Return the settings of one model; the options of its calculator are not among them.

        :raises BadRequest: a value is wrong.
        """
        section = self.section("models", model_id)
        own = {name: section[name] for name in ModelSettings.__struct_fields__ if name in section}
        return read_struct(ModelSettings, own, lambda key: self.place("models", model_id, key), f"models.{model_id}.")

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
    def profiles_dir(self) -> Path:
        """Profiles by name: their graphs, and links to the files of their models."""
        return self.models_dir / ".profiles"

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
    *,
    file: Mapping[str, Any] | None = None,
    **overrides: Any,  # noqa: ANN401 - values of fields, checked below
) -> Settings:
    """Read all layers and return the settings.

    :param environment: instead of ``os.environ``.
    :param defaults: what a face puts in the place of defaults here; every other layer wins over it.
    :param file: taken instead of what the config file holds.
    :param overrides: fields that win over every layer.
    :raises BadRequest: a value has the wrong type or a key is unknown; the sentence names where it was set.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {"data_dir": default_data_dir(), **(defaults or {})}
    values["data_dir"] = overrides["data_dir"] = _chosen_folder(environment, values["data_dir"], overrides)
    config = config_file(environment, values["data_dir"])
    if file is None and environment.get(PREFIX + "CONFIG") and not config.exists():
        raise BadRequest(f"There is no config file {config}, which {PREFIX}CONFIG names; make it or unset that.")
    sections: dict[str, Any] = {}
    places: dict[str, str] = {}
    for layer, where in (
        (read_config(config), f"the config file {config}") if file is None else (file, "the settings"),
        (_from_environment(environment), "the environment"),
        (overrides, "the command"),
    ):
        found = _sections_in(layer, where)
        sections = _join(sections, found)
        places |= {
            f"{kind}.{name}.{key}": where for kind in found for name, table in found[kind].items() for key in table
        }
        read = _read_top({name: value for name, value in layer.items() if name not in KINDS}, where)
        values.update({name: getattr(read, name) for name in layer if name in TOP and layer[name] is not None})
    settings = Settings(**values, sections=sections, places=places)
    for model_id in sections.get("models", {}):
        settings.model(model_id)
    check_aliases(settings.aliases)
    parse_budget(settings.memory_budget)
    return settings


def _chosen_folder(environment: Mapping[str, str], default: Path, overrides: Mapping[str, Any]) -> Path:
    """Return the data folder.

    :raises BadRequest: it cannot be one.
    """
    named = environment.get(PREFIX + "DATA_DIR")
    chosen = Path(overrides.get("data_dir") or (Path(named).expanduser() if named else default))
    # A host may start us in any folder, so a relative one is made absolute at once.
    chosen = chosen.absolute()
    _check_folder(chosen)
    return chosen


def config_file(environment: Mapping[str, str], data_dir: Path) -> Path:
    """Return the config file, which need not exist."""
    named = environment.get(PREFIX + "CONFIG")
    return Path(named).expanduser() if named else data_dir / "config.yaml"


def _check_folder(folder: Path) -> None:
    """Refuse what cannot be a data folder; that it is not there yet is no fault.

    :raises BadRequest: it is a file, lies below one, or may not be read.
    """
    try:
        os.scandir(folder).close()
    except FileNotFoundError as error:
        # Windows says the same of what lies below a file.
        above = next((each for each in folder.absolute().parents if each.exists()), None)
        if above is not None and not above.is_dir():
            raise BadRequest(
                f"The data folder {folder} cannot be used ({above} is a file); fix that, or {ELSEWHERE}."
            ) from error
    except OSError as error:
        raise BadRequest(
            f"The data folder {folder} cannot be used ({error.strerror}); fix that, or {ELSEWHERE}."
        ) from error


def _join(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Lay one tree of tables over another."""
    both = {key: _join(lower[key], upper[key]) for key in lower.keys() & upper.keys() if isinstance(upper[key], dict)}
    return lower | upper | both


def read_config(path: Path) -> dict[str, Any]:
    """Return what a config file holds, its names and values unchecked; nothing if there is none.

    :raises BadRequest: it cannot be read, is no table, or sets ``data_dir``.
    """
    if not path.exists():
        return {}
    import yaml

    try:
        value = yaml.safe_load(path.read_bytes())  # which tells UTF-16 of Windows by its mark
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            detail = f"line {error.problem_mark.line + 1}: {error.problem}"
        else:
            detail = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise BadRequest(f"The config file {path} cannot be read ({detail}); fix or remove it.") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest(f"The config file {path} must hold settings as `name: value` lines; fix or remove it.")
    if "data_dir" in value:
        raise BadRequest(f"The config file {path} cannot set data_dir; remove that line, and {ELSEWHERE}.")
    return value


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return what is set in the environment.

    :raises BadRequest: a variable's name is nearly that of a setting. Others may be somebody else's.
    """
    values: dict[str, Any] = {}
    for key, text in environment.items():
        if not key.startswith(PREFIX) or key in OURS:
            continue
        name = key.removeprefix(PREFIX).lower()
        kind, *rest = name.split("__")
        if len(rest) > 1 and kind in KINDS:
            table = values.setdefault(kind, {}).setdefault(rest[0], {})
            for inner in rest[1:-1]:
                table = table.setdefault(inner, {})
            table[rest[-1]] = text
        elif name in TOP:
            values[name] = text
        else:
            near = difflib.get_close_matches(kind if rest else name, KINDS if rest else TOP, 1, 0.7)
            if near:
                instead = PREFIX + "__".join([near[0], *rest]).upper()
                raise BadRequest(f"In the environment, {key} is not a setting; did you mean {instead}?")
            log.debug("%s in the environment is not a setting", key)
    return values


def _sections_in(layer: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the sections in a layer by kind and name; an empty one counts as absent.

    :raises BadRequest: one is no table.
    """
    found: dict[str, Any] = {}
    for kind in KINDS:
        tables = layer.get(kind)
        if tables is None:
            continue
        if not isinstance(tables, Mapping) or not all(isinstance(each, Mapping | None) for each in tables.values()):
            raise BadRequest(
                f"In {where}, {kind} must be a table of tables, such as `{kind}: {{name: {{key: value}}}}`."
            )
        found[kind] = {str(name).replace("-", "_"): dict(table or {}) for name, table in tables.items()}
    return found


def _read_top(layer: Mapping[str, Any], where: str) -> Settings:
    """Check the settings of the kernel itself in a layer.

    :raises BadRequest: a name is unknown, or a value is wrong.
    """
    for name in layer:
        if name not in (*TOP, "data_dir"):
            raise BadRequest(f"In {where}, {name} is not a setting; {meant(name, [*TOP, *KINDS])}")
    return read_struct(Settings, {"data_dir": "", **layer}, lambda _: where)


TOP = tuple(name for name in Settings.__struct_fields__ if name not in ("data_dir", "sections", "places"))
"""The kernel's own settings that can be set in a file."""
OURS = frozenset({PREFIX + "CONFIG", PREFIX + "DATA_DIR"})
"""Variables that name the config file and the data folder, and no setting in a file."""
