"""Finding extensions and making drivers of them. The only place that knows stevedore.

A driver is an entry point of the group ``ovms.<kind>``, such as ``ovms.services``. A platform's entry point may name
the systems it is for in brackets, ``ubuntu2404 = "ovms_platform_ubuntu2404:Ubuntu2404 [linux]"``, so that it is not
even imported elsewhere.
"""

from __future__ import annotations

import difflib
import functools
import logging
from collections import defaultdict
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec.structs import replace

from ovms_kernel.blame import origin
from ovms_kernel.construction import construct
from ovms_kernel.drivers import DRIVER_PROTOCOLS, KERNEL_KINDS
from ovms_kernel.errors import BadRequest, NotFound
from ovms_kernel.examination import flaw_of, made_for_another_kernel, watched
from ovms_kernel.settings import ModelSettings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ovms_kernel.drivers import Command, Dialect, Face, GraphTemplate, Hub, Platform, Service
    from ovms_kernel.events import Events
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import Host

log = logging.getLogger(__name__)


class ExtensionReport(msgspec.Struct, frozen=True):
    """What became of one extension."""

    kind: str
    name: str
    distribution: str
    version: str
    state: Literal["loaded", "disabled", "unsuitable", "broken"]
    cause: str = ""

    @property
    def key(self) -> str:
        """Its name in settings and logs, such as ``services.chat``."""
        return f"{self.kind}.{self.name}"


class Extensions(msgspec.Struct, frozen=True):
    """The drivers by name, and a report for every extension that was found."""

    services: Mapping[str, Service] = msgspec.field(default_factory=dict)
    platforms: Mapping[str, Platform] = msgspec.field(default_factory=dict)
    graphs: Mapping[str, GraphTemplate] = msgspec.field(default_factory=dict)
    hubs: Mapping[str, Hub] = msgspec.field(default_factory=dict)
    observers: Mapping[str, object] = msgspec.field(default_factory=dict)
    faces: Mapping[str, Face] = msgspec.field(default_factory=dict)
    dialects: Mapping[str, Dialect] = msgspec.field(default_factory=dict)
    commands: Mapping[str, Command] = msgspec.field(default_factory=dict)
    reports: tuple[ExtensionReport, ...] = ()

    def service(self, name: str) -> Service:
        """Return the service of that name.

        :raises NotFound: there is none; the sentence says why, or what there is.
        """
        try:
            return self.services[name]
        except KeyError:
            for each in self.reports:
                if each.key == f"services.{name}":
                    raise NotFound(f"The service {name} is {each.state}: {each.cause.rstrip('.')}.") from None
            offered = ", ".join(sorted(self.services)) or "none"
            raise NotFound(
                f"There is no service {name!r} (installed: {offered}); install ovms-service-{name} or name another."
            ) from None

    def listeners(self) -> dict[str, object]:
        """Return every driver by key, in the fixed order of events: by kind, then by name."""
        return {
            f"{kind}.{name}": driver
            for kind in DRIVER_PROTOCOLS
            for name, driver in sorted(getattr(self, kind).items())
        }


def compose(
    settings: Settings,
    host: Host,
    *,
    kinds: Iterable[str] = KERNEL_KINDS,
    names: Iterable[str] | None = None,
    events: Events | None = None,
) -> Extensions:
    """Find, load and construct the extensions of these kinds and register them for events.

    :param names: only those of these names; ``None`` means all.

    Whatever is wrong with an extension costs that extension alone and is said in its report.

    :raises BadRequest: a setting of an extension is unknown or has a wrong value.
    """
    drivers: dict[str, dict[str, Any]] = {kind: {} for kind in DRIVER_PROTOCOLS}
    installed = metadata.entry_points()
    offered = {each: tuple(installed.select(group=each)) for each in installed.groups if each.startswith("ovms.")}
    kinds = tuple(kinds)
    reports = list(_misplaced(offered)) if names is None and set(kinds) >= set(KERNEL_KINDS) else []
    for kind in kinds:
        if names is None:
            check_names(settings, kind, (each.name for each in offered.get(f"ovms.{kind}", ())))
        wanted = [each for each in offered.get(f"ovms.{kind}", ()) if names is None or each.name in names]
        for report, entry_point in _candidates(kind, wanted, settings, host):
            driver, flaw = _driver(entry_point, report, settings, host) if entry_point else (None, "")
            reports.append(replace(report, state="broken", cause=flaw) if flaw else report)
            if entry_point and not flaw:
                drivers[kind][report.name] = driver
    if names is None and drivers["graphs"]:
        _check_models(settings, drivers["graphs"].values())
    extensions = Extensions(reports=(), **drivers)
    refused = events.register(extensions.listeners()) if events else {}
    for key in refused:
        kind, name = key.split(".", 1)
        del drivers[kind][name]
    told = [replace(each, state="broken", cause=refused[each.key]) if each.key in refused else each for each in reports]
    for each in told:
        if each.state == "broken":
            log.error("Extension %s of %s %s is left out: %s", each.key, each.distribution, each.version, each.cause)
    return replace(extensions, reports=tuple(told))


def _driver(
    entry_point: metadata.EntryPoint, report: ExtensionReport, settings: Settings, host: Host
) -> tuple[Any, str]:
    """Return a driver, and what is wrong with it; empty if nothing is."""
    doing = "importing"
    try:
        if misfit := made_for_another_kernel(entry_point.dist):
            return None, misfit
        with watched(report.key, report.distribution):
            make = _load(report.kind, report.name, entry_point)
            doing = "reading the settings of"
            given = settings_for(make, settings, report.kind, report.name)
            doing = "constructing"
            driver = construct(make, given)
            doing = "examining"
            return driver, flaw_of(report.kind, report.name, driver, host)
    except (Exception, SystemExit) as error:
        if doing.startswith("reading") and isinstance(error, BadRequest):
            raise
        log.debug("Extension %s does not load", report.key, exc_info=True)
        return None, " ".join(f"{doing} it failed ({type(error).__name__}: {error})".split())


def settings_for(driver: Any, settings: Settings, kind: str, name: str) -> Any:  # noqa: ANN401 - any driver's class
    """Return what a driver is constructed with, its options of a calculator checked.

    :raises BadRequest: a setting is unknown or has a wrong value.
    """
    given = settings.for_driver(driver, kind, name)
    if kind == "graphs" and isinstance(given, dict) and given and (options := getattr(driver, "options", None)):
        from ovms_kernel.models.graph import check_options

        check_options(options(), given, lambda key: settings.place(kind, name, key), f"{kind}.{name}.")
    return given


def check_names(settings: Settings, kind: str, known: Iterable[str]) -> None:
    """Look for sections of extensions that are not installed.

    :raises BadRequest: one is nearly called as one that is. Any other may be of one that was uninstalled.
    """
    names = {each.replace("-", "_"): each for each in known}
    for name, section in settings.sections.get(kind, {}).items():
        if name in names or not section:
            continue
        where = settings.places.get(f"{kind}.{name}.{next(iter(section))}", "the settings")
        if near := difflib.get_close_matches(name, names, 1, 0.75):
            raise BadRequest(
                f"In {where}, {kind}.{name} names no extension that is installed; did you mean {kind}.{names[near[0]]}?"
            )
        log.warning("%s.%s in %s names no extension that is installed; install or remove it.", kind, name, where)


def _check_models(settings: Settings, graphs: Iterable[Any]) -> None:
    """Look for options of single models that no type of model has; their own type is known when they are loaded.

    :raises BadRequest: there is one.
    """
    own = {
        name: {key: value for key, value in section.items() if key not in ModelSettings.__struct_fields__}
        for name, section in settings.sections.get("models", {}).items()
    }
    if not any(own.values()) or not all(hasattr(each, "options") for each in graphs):
        return
    from ovms_kernel.models.graph import check_model_options

    offered = [each.options() for each in graphs]
    for name, section in own.items():
        place = functools.partial(settings.place, "models", name)
        check_model_options(offered, section, place, f"models.{name}.")


def _misplaced(offered: Mapping[str, Iterable[metadata.EntryPoint]]) -> Iterator[ExtensionReport]:
    """Yield a report for what is offered in a group with our prefix that nothing looks into."""
    groups = [f"ovms.{kind}" for kind in DRIVER_PROTOCOLS]
    for group in sorted(offered.keys() - set(groups)):
        cause = f"{group} is not a kind of extension; the kinds are {', '.join(groups)}"
        for each in offered[group]:
            yield ExtensionReport(group.removeprefix("ovms."), each.name, *origin(each), "broken", cause)


def _candidates(
    kind: str, offered: Iterable[metadata.EntryPoint], settings: Settings, host: Host
) -> Iterator[tuple[ExtensionReport, metadata.EntryPoint | None]]:
    """Yield each name of a kind with its entry point, or without one if it is not to be imported."""
    found: defaultdict[str, list[metadata.EntryPoint]] = defaultdict(list)
    for entry_point in offered:
        found[entry_point.name].append(entry_point)
    for name, entry_points in sorted(found.items()):
        first = entry_points[0]
        report = ExtensionReport(kind, name, *origin(first), "loaded")
        if len(entry_points) > 1:
            owners = " and ".join(sorted(" ".join(origin(each)) for each in entry_points))
            cause = f"{owners} both offer it; uninstall one of them"
            for each in entry_points:
                yield replace(ExtensionReport(kind, name, *origin(each), "broken"), cause=cause), None
        elif report.key in settings.disabled:
            yield replace(report, state="disabled", cause="by setting"), None
        elif kind == "platforms" and first.extras and host.os not in first.extras and name != settings.platform:
            yield replace(report, state="unsuitable", cause=f"for {', '.join(first.extras)} only"), None
        else:
            yield report, first


def _load(kind: str, name: str, entry_point: metadata.EntryPoint) -> Any:  # noqa: ANN401 - a driver's class
    """Import one driver through stevedore; its errors come out as they are."""
    if kind not in KERNEL_KINDS:
        return entry_point.load()  # help lists the commands, and must not wait for stevedore
    from stevedore import NamedExtensionManager

    errors: list[BaseException] = []
    manager = NamedExtensionManager(
        f"ovms.{kind}",
        names=[name],
        on_load_failure_callback=lambda _manager, _entry_point, error: errors.append(error),
        on_missing_entrypoints_callback=lambda _names: None,
    )
    if errors:
        raise errors[0]
    try:
        return manager[name].plugin
    except KeyError:
        # stevedore remembers entry points between runs and may not know of a distribution installed a moment ago.
        return entry_point.load()
