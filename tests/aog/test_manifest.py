"""plugin.yaml: what AOG must find in it, and what would make AOG stumble."""

from pathlib import Path

import pytest
import yaml

from ovms_face_aog.manifest import PROVIDER, executable, make_manifest
from ovms_kernel.api.services import ServiceDefinition

CHAT = ServiceDefinition(
    "chat",
    "text_generation",
    "/v3/chat/completions",
    default_model="a/b",
    streaming=True,
    extras={"aog": {"config_ref": "openvino:chat", "config_ref_full": "openai:chat"}},
)


def test_a_service_is_described_in_aogs_words() -> None:
    data = yaml.safe_load(make_manifest([CHAT]).as_yaml())
    assert data["provider"]["name"] == PROVIDER
    [service] = data["services"]
    assert service["config_ref"] == "openvino:chat"
    assert service["task_type"] == "text_generation"
    assert service["capabilities"] == {"support_streaming": True, "support_bidirectional": False}
    assert data["platforms"]["windows_amd64"]["executable"] == "bin/windows-amd64/ovms-plugin.exe"


def test_full_bodies_take_the_template_that_keeps_every_field() -> None:
    data = make_manifest([CHAT], bodies="full").as_dict()
    assert data["services"][0]["config_ref"] == "openai:chat"


@pytest.mark.parametrize("template", ["", "acme:paint"], ids=["none: AOG drops the plugin", "unknown: AOG panics"])
def test_a_service_that_aog_cannot_convert_for_is_left_out(template: str) -> None:
    paint = ServiceDefinition("paint", "painting", "/v3/paint", extras={"aog": {"config_ref": template}})
    assert [each.name for each in make_manifest([paint, CHAT]).services] == ["chat"]


def test_the_providers_name_is_one_that_aog_handles() -> None:
    # docs/protocols/aog.md: some paths ask whether the name contains "plugin"; the command line splits at "_".
    assert "plugin" in PROVIDER
    assert "_" not in PROVIDER


def test_the_committed_manifest_is_that_of_the_full_install(ovms_settings: object) -> None:
    from ovms_kernel.extensions import compose
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import Host

    assert isinstance(ovms_settings, Settings)
    services = compose(ovms_settings, Host("linux", "x86_64"), kinds=["services"]).services
    committed = Path(__file__).parents[2] / "plugin.yaml"
    text = make_manifest(each.definition for each in services.values()).as_yaml()
    assert committed.read_text("utf-8") == text, "run `python3 dev.py make`"


AOGS_FIELDS = {
    "": "version provider services platforms resources",
    "provider": "name display_name version type author homepage description engine_host",
    "services": "service_name task_type protocol expose_protocol endpoint auth_type default_model support_models "
    "config_ref timeout middlewares capabilities",
    "services.capabilities": "support_streaming support_bidirectional",
    "platforms.*": "executable dependencies",
    "resources": "data_dir ollama",
}
"""What AOG's Go types read of a manifest (docs/protocols/aog.md); they drop everything else without a word."""


def test_d2_40_aog_drops_nothing_of_the_committed_manifest() -> None:
    data = yaml.safe_load((Path(__file__).parents[2] / "plugin.yaml").read_text("utf-8"))
    parts = [("", data), ("provider", data["provider"]), ("resources", data["resources"])]
    parts += [("services", each) for each in data["services"]]
    parts += [("services.capabilities", each["capabilities"]) for each in data["services"]]
    parts += [("platforms.*", each) for each in data["platforms"].values()]
    for name, fields in parts:
        assert fields.keys() <= set(AOGS_FIELDS[name].split()), name


def test_every_launcher_has_a_path_of_its_own() -> None:
    assert executable("linux_amd64") == "bin/linux-amd64/ovms-plugin"
