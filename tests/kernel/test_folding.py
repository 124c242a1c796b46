"""Text in lines of a terminal."""

import pytest

from ovms_kernel.folding import folded


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("Type it behind, such as `ovms-plugin ls --json`.", ["Type it behind, such as", "`ovms-plugin ls --json`."]),
        ("`one two three four five six seven`", ["`one two three four", "five six seven`"]),
        ("a `b` c `d e` f", ["a `b` c `d e` f"]),
        ("an apostrophe ` alone breaks as others do", ["an apostrophe ` alone", "breaks as others do"]),
        ("see /home/someone/a/very/long/path.log", ["see", "/home/someone/a/very/long/path.log"]),
    ],
)
def test_lines_break_between_words_and_not_within_a_command(text: str, lines: list[str]) -> None:
    assert folded(text, 24 if "Type" in text else 23) == lines
