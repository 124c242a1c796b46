"""Settings that hold at once when the config file changes."""

import os
from pathlib import Path

import pytest

from ovms_kernel.live_settings import LiveSettings
from ovms_kernel.settings import Settings, read_settings


def write(file: Path, text: str) -> None:
    """Replace the file as every command does, which no two readings take for the same."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in os.environ:
        if name.startswith("OVMS_PLUGIN_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr("ovms_kernel.file_watch.PERIOD", 0.0)
    return tmp_path / "config.yaml"


def started(file: Path) -> tuple[Settings, LiveSettings]:
    settings = read_settings(data_dir=file.parent)
    return settings, LiveSettings(settings)


def test_what_is_live_follows_the_file_and_the_rest_stays_as_it_was_at_the_start(file: Path) -> None:
    write(file, "rest_port: 1111\nmodels: {own/m: {pinned: true, max_num_seqs: 4}}\n")
    settings, live = started(file)
    assert live.now() is settings, "nothing is read as long as nothing changes"
    write(
        file,
        "rest_port: 2222\nidle_unload: 5\nmemory_budget: 4GB\nhub: hf\nhubs: {hf: {token: new}}\n"
        "aliases: {brief: {model: own/m}}\n"
        "models: {own/m: {idle_unload: 7, max_num_seqs: 8}, own/new: {pinned: true}}\n",
    )
    now = live.now()
    assert (now.rest_port, now.idle_unload, now.aliases["brief"].model) == (1111, 5.0, "own/m")
    assert (now.model("own/m").pinned, now.model("own/m").idle_unload, now.model("own/new").pinned) == (
        False,
        7.0,
        True,
    )
    assert (now.memory_budget, now.hub, now.section("hubs", "hf")) == ("4GB", "hf", {"token": "new"})
    assert now.section("models", "own/m")["max_num_seqs"] == 8, "for its next load"
    file.unlink()
    assert live.now().aliases == {}


def test_a_file_with_a_mistake_changes_nothing_and_is_told_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(file, "aliases: {brief: {model: own/m}}\n")
    settings, live = started(file)
    write(file, "aliases: {brief: {modle: own/m}}\n")
    assert live.now() is live.now() is settings
    assert [each.message for each in caplog.records if "did you mean aliases.brief.model" in each.message]
    assert len(caplog.records) == 1
    write(file, "aliases: {other: {model: own/m}}\n")
    assert [*live.now().aliases] == ["other"]
