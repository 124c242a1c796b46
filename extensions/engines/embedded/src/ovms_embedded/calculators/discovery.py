"""Finding the installed calculators."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING

from ovms_embedded import log
from ovms_embedded.calculators import GROUP, Calculator

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

OWN = "ovms-embedded"


@dataclass(frozen=True)
class Calculators:
    """The calculators of this installation."""

    known: dict[str, Calculator] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    """Why a calculator cannot be used, by its name."""

    def in_order(self) -> list[Calculator]:
        """Return the calculators in the order in which they are asked about a folder."""
        return sorted(self.known.values(), key=lambda each: each.order)


def find_calculators() -> Calculators:
    """Load the calculators of every installed distribution; one that cannot be loaded is logged and left out.

    Of two with the same name, the engine's own wins, then the first by the name of its distribution.
    """
    found = Calculators()
    for entry in sorted(metadata.entry_points(group=GROUP), key=_precedence):
        try:
            calculator = _load(entry, found)
        except Exception as error:  # noqa: BLE001 - whatever a third party's module throws costs that calculator alone
            reason = f"Calculator {entry.name} of {_distribution(entry)} is left out: {type(error).__name__}: {error}"
            log.serving.error("%s", reason)
            if entry.name not in found.known:
                found.broken[entry.name] = reason
        else:
            found.known[entry.name] = calculator
            found.broken.pop(entry.name, None)
    return found


def _precedence(entry: EntryPoint) -> tuple[bool, str, str]:
    return _distribution(entry) != OWN, _distribution(entry), entry.name


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "an unknown distribution"


def _load(entry: EntryPoint, found: Calculators) -> Calculator:
    if entry.name in found.known:
        message = "another distribution offers a calculator of this name"
        raise ValueError(message)
    loaded = entry.load()
    if not isinstance(loaded, Calculator):
        message = f"{entry.value} is no Calculator but of type {type(loaded).__name__}"
        raise TypeError(message)
    if loaded.name != entry.name:
        message = f"the entry point's name differs from the calculator's, {loaded.name}"
        raise ValueError(message)
    if "models_path" not in loaded.options.DESCRIPTOR.fields_by_name:
        message = f"{loaded.options.DESCRIPTOR.full_name} has no field models_path"
        raise ValueError(message)
    return loaded
