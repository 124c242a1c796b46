"""Every trap of AOG's has a test with its number and a place in docs/aog.md, whose requests step into none."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "aog.md").read_text("utf-8")
TRAPS = {"D1": range(1, 53), "D2": range(1, 45)}


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


def test_every_trap_of_aog_has_a_test_with_its_number_or_a_reason_why_none_can_be() -> None:
    reasoned = {int(each) for each in re.findall(r"^- D1-(\d+): \S.+\.$", PAGE, re.MULTILINE)}
    assert named("D1") | reasoned == set(TRAPS["D1"])
    assert not named("D1") & reasoned, "there is a test, so no reason is needed"
    assert named("D2") == set(TRAPS["D2"])


def test_every_trap_of_aog_stands_on_the_page() -> None:
    for kind, all_of_them in TRAPS.items():
        assert numbers(PAGE, kind) == set(all_of_them), kind


def test_d1_28_d1_52_the_requests_on_the_page_leave_out_the_size_and_name_the_model() -> None:
    requests = re.findall(r"aog/v0\.2/(\S+) --json '(\{.*?\})'", PAGE, re.DOTALL)
    assert {path for path, _ in requests} == {"service/install", "model/stream", "services/chat"}
    for path, text in requests:
        body = json.loads(text)
        assert "size" not in body, path  # for a plugin AOG would look at the disk of an empty path
        assert body.get("model_name") or body.get("model"), path  # without one AOG takes any row that is alike
