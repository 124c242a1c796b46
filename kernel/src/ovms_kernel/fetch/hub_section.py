"""The settings that every hub has: where it is, who asks, which files, and how fast."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from ovms_kernel.errors import BadRequest
from ovms_kernel.fetch.transfer import Pace

if TYPE_CHECKING:
    from collections.abc import Mapping

NUMBERS: dict[str, float] = {
    "connections": 8,
    "part_size": 16 << 20,
    "max_rate": 0,
    "stall_timeout": 30.0,
    "retries": 5,
    "retry_delay": 0.5,
}
TEXTS = ("endpoint", "token", "proxy", "ca_file")
PATTERNS = ("allow_patterns", "ignore_patterns")


@dataclass(frozen=True, slots=True)
class HubSection:
    """A hub's section of the settings."""

    endpoint: str
    """A mirror; empty = the hub itself."""
    token: str
    proxy: str
    """Empty = the environment's."""
    ca_file: str
    allow: tuple[str, ...]
    """Shell patterns of the files to fetch; empty = all."""
    ignore: tuple[str, ...]
    pace: Pace

    def is_wanted(self, path: str) -> bool:
        """Tell whether the patterns let a file through."""
        allowed = not self.allow or any(fnmatch(path, each) for each in self.allow)
        return allowed and not any(fnmatch(path, each) for each in self.ignore)


def read_hub_section(section: Mapping[str, Any], hub: str) -> HubSection:
    """Return the section of a hub, checked.

    :raises BadRequest: it has an unknown setting or a wrong value.
    """
    if unknown := section.keys() - {*NUMBERS, *TEXTS, *PATTERNS}:
        offered = ", ".join(sorted([*NUMBERS, *TEXTS, *PATTERNS]))
        raise BadRequest(f"{min(unknown)} is not a setting of hubs.{hub}; there are {offered}.")
    numbers = {name: _number(f"hubs.{hub}.{name}", section.get(name, each), each) for name, each in NUMBERS.items()}
    return HubSection(
        endpoint=str(section.get("endpoint") or ""),
        token=str(section.get("token") or ""),
        proxy=str(section.get("proxy") or ""),
        ca_file=str(section.get("ca_file") or ""),
        allow=_patterns(section.get("allow_patterns")),
        ignore=_patterns(section.get("ignore_patterns")),
        pace=Pace(
            connections=int(numbers["connections"]),
            part_size=int(numbers["part_size"]),
            max_rate=int(numbers["max_rate"]),
            stall=numbers["stall_timeout"],
            retries=int(numbers["retries"]),
            retry_delay=numbers["retry_delay"],
        ),
    )


def _number(name: str, value: Any, default: float) -> float:  # noqa: ANN401 - whatever a setting holds
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1
    if number < 0 or (number < 1 and name.endswith(("connections", "part_size"))):
        raise BadRequest(f"{name} must be a number, such as {default}, not {value!r}.")
    return number


def _patterns(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - whatever a setting holds
    parts = value.split(",") if isinstance(value, str) else value or ()
    return tuple(str(part).strip() for part in parts if str(part).strip())
