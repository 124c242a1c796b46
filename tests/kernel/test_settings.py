"""Settings: layers, types, and sentences that say where a mistake was made."""

import errno
import os
import re
from pathlib import Path

import pytest

from ovms_kernel.api.observers import BadRequest
from ovms_kernel.files import refused_by_system
from ovms_kernel.settings import read_settings


def test_environment_wins_over_the_file_which_wins_over_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "rest_port: 1\ngrpc_port: 2\nservices:\n  text-to-image: {default_model: file/model, steps: 3}\n"
    )
    settings = read_settings(
        {
            "OVMS_PLUGIN_DATA_DIR": str(tmp_path),
            "OVMS_PLUGIN_REST_PORT": "3",
            "OVMS_PLUGIN_DISABLED": "services.chat, hubs.modelscope",
            "OVMS_PLUGIN_SERVICES__TEXT_TO_IMAGE__DEFAULT_MODEL": "environment/model",
        }
    )
    assert (settings.rest_port, settings.grpc_port, settings.start_timeout) == (3, 2, 60.0)
    assert settings.disabled == ("services.chat", "hubs.modelscope")
    assert settings.section("services", "text-to-image") == {"default_model": "environment/model", "steps": 3}
    assert read_settings({}, data_dir=tmp_path, rest_port=9).rest_port == 9


def test_a_face_s_own_defaults_give_way_to_every_layer(tmp_path: Path) -> None:
    defaults = {"data_dir": tmp_path / "face", "rest_port": 5}
    assert read_settings({}, defaults).data_dir == tmp_path / "face"
    own = read_settings({"OVMS_PLUGIN_DATA_DIR": str(tmp_path / "own"), "OVMS_PLUGIN_REST_PORT": "6"}, defaults)
    assert (own.data_dir, own.rest_port) == (tmp_path / "own", 6)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rest_prot: 1", "rest_prot is not a setting; did you mean rest_port?"),
        ("colour: red", "colour is not a setting; see docs/settings.md"),
        ("rest_port: many", "rest_port must be a whole number from 1 to 65535, not 'many'"),
        ("rest_port: [1]", "rest_port must be a whole number from 1 to 65535, not [1]"),
        ("rest_port: 0", "rest_port must be a whole number from 1 to 65535, not 0"),
        ("rest_port: 16666.5", "not 16666.5"),
        ("rest_port: .inf", "not inf"),
        ("grpc_port: 99999", "grpc_port must be a whole number from 1 to 65535, not 99999"),
        ("load_timeout: .nan", "load_timeout must be a number from 0.01, not nan"),
        ("start_timeout: 0", "start_timeout must be a number from 0.01, not 0"),
        ("restart_limit: -3", "restart_limit must be a whole number from 0, not -3"),
        ("log_level: LOUD", "log_level must be DEBUG or INFO or WARNING or ERROR, not 'LOUD'"),
        ("engine_known_digest: perhaps", "engine_known_digest must be true or false, not 'perhaps'"),
        ("disabled: 5", "disabled must be a list, not 5"),
        ("hub: {}", "hub must be a text, not {}"),
        ("sections: {}", "sections is not a setting"),
        ("services: {5: 6}", "services must be a table of tables"),
        ("rest_port: 1\n\tgrpc_port: 2", "cannot be read (line 2: found character"),
        ("services: chat", "services must be a table of tables"),
        ("- a list", "must hold settings as `name: value` lines"),
        ("a: b: c", "cannot be read"),
        ("data_dir: /x", "cannot set data_dir"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence_that_names_the_file(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(BadRequest) as caught:
        read_settings({}, data_dir=tmp_path)
    assert sentence in caught.value.message
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


def test_a_mistake_in_the_environment_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="In the environment, load_timeout must be a number"):
        read_settings({"OVMS_PLUGIN_LOAD_TIMEOUT": "soon"}, data_dir=tmp_path)


@pytest.mark.parametrize("below", ["", "models/of/mine"])
def test_a_data_folder_that_is_a_file_is_refused_with_where_to_name_another(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / below
    with pytest.raises(BadRequest) as caught:
        read_settings({}, data_dir=folder)
    assert re.fullmatch(
        rf"The data folder {re.escape(str(folder))} cannot be used \([^()]+\); "
        "fix that, or name another data folder with --data-dir or OVMS_PLUGIN_DATA_DIR.",
        caught.value.message,
    )


def test_what_the_system_refuses_is_no_riddle(tmp_path: Path) -> None:
    remedies = {errno.EACCES: "--data-dir", errno.EROFS: "--data-dir", errno.ENOSPC: "free some space"}
    for number, remedy in remedies.items():
        told = refused_by_system(OSError(number, os.strerror(number), str(tmp_path / "models")))
        assert told
        assert told.message.startswith(f"{tmp_path / 'models'} cannot be used ({os.strerror(number)}); ")
        assert remedy in told.message
    full = refused_by_system(OSError(errno.ENOSPC, "No space left on device"))
    assert full
    assert full.message == "A file cannot be written (No space left on device); free some space on that disk."
    for other in (OSError(errno.ECONNREFUSED, "refused"), FileNotFoundError(2, "gone", "x"), ValueError("wrong")):
        assert refused_by_system(other) is None


def test_values_may_be_written_in_more_than_one_way(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "rest_port: '17000'\nload_timeout: 5\nstop_timeout: 0\nlog_level: debug\nservices: {5: {a: b}}\nplatform: 3\n"
    )
    settings = read_settings({}, data_dir=tmp_path)
    assert (settings.rest_port, settings.load_timeout, settings.stop_timeout) == (17000, 5.0, 0.0)
    assert (settings.log_level, settings.platform) == ("DEBUG", "3")
    assert settings.section("services", "5") == {"a": "b"}


def test_a_config_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    named = {"OVMS_PLUGIN_CONFIG": str(tmp_path / "mine.yaml")}
    with pytest.raises(BadRequest, match=r"There is no config file .*mine\.yaml, which OVMS_PLUGIN_CONFIG names"):
        read_settings(named, data_dir=tmp_path)
    (tmp_path / "mine.yaml").write_text("hub: other")
    assert read_settings(named, data_dir=tmp_path).hub == "other"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("REST_PROT", "OVMS_PLUGIN_REST_PORT"),
        ("REST_PORTS", "OVMS_PLUGIN_REST_PORT"),
        ("SERVICE__CHAT__DEFAULT_MODEL", "OVMS_PLUGIN_SERVICES__CHAT__DEFAULT_MODEL"),
    ],
)
def test_a_typo_in_the_environment_is_refused_with_the_variable_that_was_meant(
    tmp_path: Path, name: str, meant: str
) -> None:
    with pytest.raises(BadRequest, match=rf"OVMS_PLUGIN_{name} is not a setting; did you mean {meant}\?"):
        read_settings({f"OVMS_PLUGIN_{name}": "1"}, data_dir=tmp_path)


def test_variables_that_resemble_no_setting_are_somebody_elses(tmp_path: Path) -> None:
    assert read_settings({"OVMS_PLUGIN_SRC": "/src", "OVMS_PLUGIN_A__B": "c"}, data_dir=tmp_path).sections == {}


def test_what_is_empty_counts_as_absent(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("rest_port:\nservices:\nhubs:\n  modelscope:\nobservers: {a: {b: }}\n")
    settings = read_settings({}, data_dir=tmp_path)
    assert settings.rest_port == 16666
    assert not settings.section("hubs", "modelscope")


def test_a_nested_key_in_the_environment(tmp_path: Path) -> None:
    settings = read_settings({"OVMS_PLUGIN_GRAPHS__EMBEDDINGS__PLUGIN_CONFIG__NUM_STREAMS": "2"}, data_dir=tmp_path)
    assert settings.section("graphs", "embeddings") == {"plugin_config": {"num_streams": "2"}}


@pytest.mark.parametrize(
    ("written", "meant"),
    [("on", True), ("Yes", True), (1, True), (True, True), ("off", False), ("0", False), ("no", False)],
)
def test_one_way_to_read_booleans(tmp_path: Path, written: object, meant: bool) -> None:
    assert read_settings({}, data_dir=tmp_path, engine_known_digest=written).engine_known_digest is meant
