"""``config``: what is set, set, and refused; the file keeps what else is in it."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

CONFIG = """\
# Mine.
rest_port: 5000  # not 16666

services:
  chat:
    default_model: own/model  # the small one
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "config.yaml"
    path.parent.mkdir()
    return path


@pytest.mark.parametrize(
    ("key", "typed", "stored"),
    [
        ("rest_port", "5001", 5001),
        ("idle_unload", "90.5", 90.5),
        ("pinned", "a/b, c/d", ["a/b", "c/d"]),
        ("log_level", "debug", "DEBUG"),
        ("models.OpenVINO/Qwen2.5-1.5B.pinned", "yes", True),
        ("services.speech-to-text.default_model", "own/listener", "own/listener"),
        ("graphs.text_generation.cache_size", "4", 4),
    ],
)
def test_a_setting_is_stored_as_its_type_and_read_back(
    here: Any, file: Path, key: str, typed: str, stored: Any
) -> None:
    here("config", "set", key, typed)
    kind, _, rest = key.partition(".")
    section, _, name = rest.rpartition(".")
    written = yaml.safe_load(file.read_text())
    assert (written[kind][section][name] if rest else written[kind]) == stored
    assert json.loads(here("config", "get", key, "--json").stdout) == stored
    assert f"{key} = " in here("config", "list").stdout
    here("config", "unset", key)
    assert file.read_text() == ""


def test_comments_and_order_stay(here: Any, file: Path) -> None:
    file.write_text(CONFIG)
    file.chmod(0o640)
    here("config", "set", "services.chat.default_model", "own/other")
    assert file.read_text() == CONFIG.replace("own/model", "own/other")
    assert os.name == "nt" or file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("rest_prot", "1", "rest_prot is not a setting; did you mean rest_port?"),
        ("rest_port", "abc", "In the settings, rest_port must be a whole number from 1 to 65535, not 'abc'."),
        ("servces.chat.default_model", "a/b", "did you mean services?"),
        ("services.caht.default_model", "a/b", "did you mean services.chat?"),
        ("services.chat.defualt_model", "a/b", "did you mean services.chat.default_model?"),
        ("chat.default_model", "a/b", "did you mean services.chat.default_model?"),
        ("models.own/model.pined", "yes", "did you mean models.own/model.pinned?"),
        ("models.own/model.pinned", "perhaps", "must be true or false, not 'perhaps'"),
        ("services.chat", "1", "services.chat is a section, not a setting"),
        ("data_dir", "/tmp", "name another data folder with --data-dir"),
    ],
)
def test_a_mistake_is_named_and_changes_nothing(here: Any, file: Path, key: str, value: str, told: str) -> None:
    file.write_text(CONFIG)
    assert told in here("config", "set", key, value, code=2).stderr
    assert file.read_text() == CONFIG


def test_an_option_of_an_installed_model_is_checked_by_its_calculator(here: Any, file: Path, fixtures: Path) -> None:
    here("import", str(fixtures / "text_generation"), "own/model")
    told = here("config", "set", "models.own/model.cache_sise", "4", code=2).stderr
    assert "cache_sise" in told
    assert not file.exists()
    here("config", "set", "models.own/model.cache_size", "4")
    assert yaml.safe_load(file.read_text()) == {"models": {"own/model": {"cache_size": 4}}}


def test_a_wrong_file_can_be_corrected_with_the_command(here: Any, file: Path) -> None:
    file.write_text("rest_prot: 5000\nrest_port: 5001\n")
    assert "did you mean rest_port?" in here("ls", code=2).stderr
    here("config", "unset", "rest_prot")
    here("ls")
    file.write_text("a: [\n")
    assert "line 2" in here("config", "set", "rest_port", "1", code=2).stderr
    assert here("config", "path").stdout == f"{file}\n"


def test_the_environment_is_named_where_it_wins_and_secrets_are_not_shown(
    here: Any, environment: dict[str, str], file: Path
) -> None:
    environment["OVMS_PLUGIN_REST_PORT"] = "6000"
    assert "secret" not in here("config", "set", "hubs.modelscope.token", "secret").stdout
    listed = here("config", "list").stdout.splitlines()
    assert "rest_port = 6000   (environment)" in listed
    assert "hubs.modelscope.token = (hidden)" in listed
    assert here("config", "get", "hubs.modelscope.token").stdout == "secret\n"


def test_all_settings_are_listed_with_their_meaning(here: Any) -> None:
    told = here("config", "list", "--all").stdout
    assert "rest_port = 16666\n    The engine's REST port; a free one is taken when it is in use." in told
    assert "services.chat.default_model =" in told


def test_two_at_once_lose_nothing(run: Any, file: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        for each in [threads.submit(run, "config", "set", f"models.own/{n}.pinned", "yes") for n in range(4)]:
            each.result()
    assert yaml.safe_load(file.read_text())["models"].keys() == {f"own/{n}" for n in range(4)}
    assert [each.name for each in file.parent.iterdir() if "config" in each.name] == ["config.yaml"]


@pytest.mark.needs_posix  # the editor here is a shell script
def test_an_edit_with_a_mistake_is_kept_as_a_draft(here: Any, environment: dict[str, str], file: Path) -> None:
    file.write_text(CONFIG)

    def edit(old: str, new: str, code: int) -> str:
        script = (
            f"import sys,pathlib; p=pathlib.Path(sys.argv[1]); p.write_text(p.read_text().replace({old!r},{new!r}))"
        )
        environment["EDITOR"] = f'"{sys.executable}" -c "{script}"'
        done = here("config", "edit", code=code)
        return str(done.stdout + done.stderr)

    assert "did you mean services.chat.default_model?" in edit("default_model", "defualt_model", 2)
    assert file.read_text() == CONFIG
    assert "is changed" in edit("defualt_model: own/model", "default_model: own/new", 0)
    assert file.read_text() == CONFIG.replace("own/model", "own/new")
    assert "Nothing was changed" in edit("absent", "absent", 0)
    assert [each.name for each in file.parent.iterdir()] == ["config.yaml"]
