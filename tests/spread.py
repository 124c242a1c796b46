"""How pytest-xdist spreads the suite over processes: what shares an engine stays together, and long parts go first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    import pytest

SHARING = ("tests/engines/", "tests/faces/http/", "tests/services/")
"""Folders whose files share one engine or server of the session, which a second process would start again."""
LONGEST = (
    "tests/engines/",
    "tests/faces/http/",
    "tests/test_bench.py",
    "tests/authoring/test_pages.py",
    "tests/cli/test_engine.py",
    "tests/cli/test_first_day.py",
    "tests/services/",
    "tests/aog/test_hosts.py",
    "tests/test_packaging.py",
    "tests/models/test_vetting.py",
    "tests/attack/test_fuzz.py",
    "tests/authoring/test_extension.py",
    "tests/cli/test_demo.py",
    "tests/test_docs.py",
    "tests/attack/test_fuzz_rpcs.py",
    "tests/aog/test_traps_for_real.py",
    "tests/soak/test_soak.py",
    "tests/models/test_with_engine.py",
    "tests/test_dev.py",
    "tests/cli/test_listening.py",
    "tests/aog/test_kills.py",
    "tests/cli/test_through_server.py",
    "tests/models/test_pull.py",
)
"""Parts that take longest. A long one that begins last would leave the other processes without work."""


def part_of(test: str) -> str:
    """Return the part that a test belongs to, by its id: a folder, or else its file."""
    return next((each for each in SHARING if test.startswith(each)), test.partition("::")[0])


class PartScheduling(LoadScopeScheduling):
    """Gives a process one part after another."""

    def _split_scope(self, nodeid: str) -> str:
        return part_of(nodeid)


def longest_first(items: list[pytest.Item]) -> None:
    """Sort tests so that the longest parts come first; the order is kept otherwise."""
    place = {each: at for at, each in enumerate(LONGEST)}
    items.sort(key=lambda each: place.get(part_of(each.nodeid), len(place)))
