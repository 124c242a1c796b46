"""What is known of a model's answers, at the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovms_kernel.models.passport import Key, PassportEntry, Passports

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_passport_is_printed_exported_told_by_doctor_and_forgotten(
    here: Callable[..., Any], environment: dict[str, str], fixtures: Path
) -> None:
    here("import", str(fixtures / "rerank"), "tiny/rerank")
    assert "not been checked yet" in here("passport", "tiny/rerank").stderr
    [model] = json.loads(here("ls", "--json").stdout)
    passports = Passports(Path(environment["OVMS_PLUGIN_DATA_DIR"]) / "passports")
    passports.note(model["digest"], "tiny/rerank", PassportEntry(Key("2026.4", "CPU"), ({"scores": [0.9, 0.1]},)))
    bad = PassportEntry(Key("2026.4", "GPU", "libze 1.2"), ({"scores": [0.9, 0.1]},), "other scores (by 0.80)")
    passports.note(model["digest"], "tiny/rerank", bad)
    shown = here("passport", "tiny/rerank").stdout
    assert "as they should be" in shown
    assert "wrong: other scores (by 0.80)" in shown
    table = json.loads(here("passport", "tiny/rerank", "--json").stdout)
    assert table["digest"] == model["digest"]
    assert [each["key"]["device"] for each in table["entries"]] == ["CPU", "GPU"]
    assert table["entries"][0]["answers"] == [{"scores": [0.9, 0.1]}]
    assert "answers other scores (by 0.80) on GPU" in here("doctor").stdout
    assert "Removed the passport" in here("passport", "tiny/rerank", "--forget").stdout
    assert "answers" not in here("doctor").stdout
    assert "not installed" in here("passport", "no/such", code=3).stderr
