"""What keeps an extension from being used, or makes it a burden for others, in words for its report or the log."""

from __future__ import annotations

import inspect
import io
import logging
import re
import time
from contextlib import contextmanager, redirect_stdout
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ovms_kernel.drivers import DRIVER_PROTOCOLS, ConversingService, StreamingService

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ovms_kernel.values import Host

log = logging.getLogger(__name__)

SLOW = 3.0
"""Seconds after which the load of an extension is worth a warning: every command waits for it."""


@contextmanager
def watched(key: str, distribution: str) -> Iterator[None]:
    """Warn of an extension that prints or takes long while it is loaded.

    What it prints goes to the log: stdout is a command's result, or the handshake with a host.
    """
    printed, began = io.StringIO(), time.perf_counter()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        if text := " ".join(printed.getvalue().split()):
            log.warning("Extension %s of %s prints while it is loaded, and should log: %.200s", key, distribution, text)
        if (seconds := time.perf_counter() - began) > SLOW:
            log.warning("Extension %s of %s takes %.1f s to load.", key, distribution, seconds)


def made_for_another_kernel(distribution: metadata.Distribution | None) -> str:
    """Return why a distribution does not fit this kernel by its own metadata; empty if it does, or does not say."""
    text = (distribution.read_text("METADATA") or "") if distribution else ""
    ranges = re.findall(r"^Requires-Dist: ovms[-_.]kernel(?:\[.*?\])? *\(?([<>=!~][^;)\n]*)", text, re.MULTILINE)
    return next((why for each in ranges if (why := _outside(each.strip()))), "")


@cache
def _outside(wanted: str) -> str:
    version = metadata.version("ovms-kernel")
    if wanted == _own_range(version):
        return ""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        if SpecifierSet(wanted).contains(version, prereleases=True):
            return ""
    except InvalidSpecifier:
        return f"its metadata has the range {wanted} of ovms-kernel, which is not a range of versions"
    return f"made for ovms-kernel {wanted}; this is {version}"


def _own_range(version: str) -> str:
    """Return the range that the extensions of one release with this kernel have, as their metadata has it."""
    major, minor, *_ = version.split(".")
    return f"<{major}.{int(minor) + 1},>={major}.{minor}"


def flaw_of(kind: str, name: str, driver: Any, host: Host) -> str:  # noqa: ANN401 - whatever the entry point made
    """Return what keeps a driver from doing its work under its name; empty if nothing does."""
    protocols = [DRIVER_PROTOCOLS[kind]]
    if kind == "services" and (definition := getattr(driver, "definition", None)):
        protocols += [StreamingService] * definition.streaming + [ConversingService] * definition.bidirectional
    members: dict[str, inspect.Signature | None] = {}
    for protocol in protocols:
        members |= _members(protocol)
    if missing := [each for each in members if not hasattr(driver, each)]:
        return f"{type(driver).__name__} does not have all that a driver of {kind} needs: it lacks {', '.join(missing)}"
    for member, wanted in members.items():
        if wanted and not _can_be_called(getattr(driver, member), wanted):
            return f"{type(driver).__name__}.{member} cannot be called as {member}{_plain(wanted)}"
    said = {
        "services": lambda: driver.definition.name,
        "graphs": lambda: driver.model_type,
        "dialects": lambda: driver.name,
    }.get(kind, lambda: name)()
    if said != name:
        return f"it calls itself {said} and its entry point calls it {name}; give it one name"
    # All platforms are asked whenever one is chosen, so that one which cannot answer would cost the others.
    if kind == "platforms" and not isinstance(fit := driver.matches(host), int):
        return f"its matches returned {type(fit).__name__}, not a number"
    return ""


@cache
def _members(protocol: type) -> dict[str, inspect.Signature | None]:
    """Return what a protocol declares by name, with the signature of each method without ``self``."""
    found: dict[str, inspect.Signature | None] = {}
    for owner in reversed(protocol.__mro__):
        for name in (*inspect.get_annotations(owner), *vars(owner)):
            if not name.startswith("_"):
                method = vars(owner).get(name)
                found[name] = inspect.signature(method) if inspect.isfunction(method) else None
    return {
        name: signature and signature.replace(parameters=list(signature.parameters.values())[1:])
        for name, signature in found.items()
    }


def _can_be_called(method: Callable[..., Any], wanted: inspect.Signature) -> bool:
    parameters = wanted.parameters.values()
    positional = [None for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    named = {each.name: None for each in parameters if each.kind is each.KEYWORD_ONLY}
    try:
        inspect.signature(method).bind(*positional, **named)
    except TypeError:
        return False
    except ValueError:  # one that tells no signature, such as of C
        return True
    return True


def _plain(signature: inspect.Signature) -> str:
    return f"({', '.join(signature.parameters)})"
