"""The manifests for Kubernetes keep the schemas of its versions, and belong together."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

FOLDER = Path(__file__).parents[1] / "packaging" / "kubernetes"


def manifests() -> dict[str, Any]:
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    return {name: yaml.safe_load((FOLDER / name).read_text()) for name in listed}


@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("name", manifests())
def test_a_manifest_keeps_the_schema(name: str, version: str) -> None:
    kubernetes_validate.validate(manifests()[name], version, strict=True)


def test_what_is_named_is_there() -> None:
    found = {each["kind"]: each for each in manifests().values()}
    pod = found["Deployment"]["spec"]["template"]
    assert found["Service"]["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]
    [container] = pod["spec"]["containers"]
    volumes = {each["name"] for each in pod["spec"]["volumes"]}
    assert {each["name"] for each in container["volumeMounts"]} == volumes
    [image] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["images"]
    assert container["image"] == image["name"]


def test_a_wrong_field_would_be_found() -> None:
    wrong = manifests()["service.yaml"]
    wrong["spec"]["selectr"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="selectr"):
        kubernetes_validate.validate(wrong, "1.31", strict=True)
