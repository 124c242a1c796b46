"""Files as editors and shells of Windows leave them: with CRLF, and a mark of the encoding before the first line."""

import codecs
from pathlib import Path

import pytest

from ovms_embedded.calculators import read_files as described
from ovms_kernel.api.graphs import architectures_of
from ovms_kernel.api.platforms import Installation, Ports
from ovms_kernel.models.model_card import read_files
from ovms_kernel.settings import read_settings
from ovms_kernel.testing.contract import configured
from ovms_platform_remote import Remote

CONFIG = "log_level: debug # 中文\r\nservices:\r\n  chat:\r\n    default_model: 我/模型\r\n"


@pytest.mark.parametrize(
    "data",
    [
        CONFIG.encode(),
        codecs.BOM_UTF8 + CONFIG.encode(),
        CONFIG.encode("utf-16"),  # as PowerShell's `>` writes
    ],
    ids=["crlf", "mark", "utf-16"],
)
def test_a_config_file_is_read(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(data)
    settings = read_settings({}, data_dir=tmp_path)
    assert settings.log_level == "DEBUG"
    assert settings.sections["services"]["chat"]["default_model"] == "我/模型"


def test_a_model_is_described(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(codecs.BOM_UTF8 + b'{\r\n "architectures": ["Qwen2ForCausalLM"]\r\n}')
    assert architectures_of(read_files(tmp_path, "model")) == ("Qwen2ForCausalLM",)
    assert described(tmp_path, "model").architectures == ("Qwen2ForCausalLM",)


@pytest.mark.parametrize("data", [b"secret\r\n", codecs.BOM_UTF8 + b"secret\r\n"], ids=["crlf", "mark"])
def test_a_key_is_read(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(data)
    remote = configured(Remote, url="https://models.example.org", api_key_file=str(tmp_path / "key"))
    plan = remote.launch(Installation("remote", tmp_path, "remote"), Ports(1, 2))
    assert plan.endpoint.api_key == "secret"
