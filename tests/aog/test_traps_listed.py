"""Every trap of AOG's has a test with its number, or docs/aog.md says where it belongs."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def numbers(text: str, kind: str) -> set[int]:
    """Return the numbers in text such as ``D1-3, D1-7 to D1-9``."""
    found = {int(each) for each in re.findall(rf"\b{kind}-(\d+)", text)}
    for first, last in re.findall(rf"\b{kind}-(\d+) to {kind}-(\d+)", text):
        found |= set(range(int(first), int(last) + 1))
    return found


def named(kind: str) -> set[int]:
    """Return the numbers in the names of tests."""
    text = "\n".join(each.read_text("utf-8") for each in (ROOT / "tests").glob("*/test_*.py"))
    names = " ".join(re.findall(r"def (test_\w+)", text))
    return {int(each) for each in re.findall(rf"{kind.lower()}_(\d+)(?=_)", names)}


def test_every_trap_of_aog_is_accounted_for() -> None:
    elsewhere = (ROOT / "docs" / "aog.md").read_text("utf-8").partition("Not ours to mend")[2]
    for kind, count in (("D1", 52), ("D2", 44)):
        known = named(kind) | numbers(elsewhere, kind)
        assert set(range(1, count + 1)) - known == set(), kind
        both = named(kind) & numbers(elsewhere, kind)
        assert not both, f"{kind} is listed although it has a test: {both}"
