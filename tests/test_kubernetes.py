"""The manifests for Kubernetes keep the schemas of its versions, and belong together."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "packaging" / "kubernetes"
KSERVE = "kserve==0.21.0"
"""KServe's own types, which its project generates from its API."""


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


@pytest.fixture(scope="module")
def kserve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of KServe's types."""
    folder = tmp_path_factory.mktemp("kserve")
    command = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet", "--no-deps", KSERVE]
    # They are read and not imported, so any Python will do.
    subprocess.run([*command, "--python-version", "3.11", "--target", str(folder)], check=True, capture_output=True)
    return folder / "kserve" / "models"


def test_the_service_of_kserve_keeps_its_types(kserve: Path) -> None:
    page = (ROOT / "docs" / "cluster.md").read_text("utf-8")
    [text] = re.findall(r"^```yaml\n(apiVersion: serving.kserve.*?)^```$", page, re.MULTILINE | re.DOTALL)
    service = yaml.safe_load(text)
    wrong = list(misfits(kserve, "V1beta1InferenceService", service, "InferenceService"))
    assert wrong == []
    containers = service["spec"]["predictor"]["containers"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": containers}}
    kubernetes_validate.validate(pod, "1.31", strict=True)
    service["spec"]["predictor"]["minReplica"] = 0
    service["spec"]["predictor"]["maxReplicas"] = "8"
    assert list(misfits(kserve, "V1beta1InferenceService", service, "InferenceService")) == [
        "InferenceService.spec.predictor.maxReplicas is no int",
        "InferenceService.spec.predictor.minReplica is not there",
    ]


def misfits(models: Path, name: str, value: Any, place: str) -> list[str]:
    """Return what of a value a type does not have, or has otherwise; types of Kubernetes itself pass."""
    plain = {"str": str, "int": int, "bool": bool, "float": float, "object": object}
    if name in plain:
        return [] if isinstance(value, plain[name]) else [f"{place} is no {name}"]
    if inner := re.fullmatch(r"list\[(.*)\]", name):
        return [
            each for number, one in enumerate(value) for each in misfits(models, inner[1], one, f"{place}[{number}]")
        ]
    file = models / f"{re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', name).lower()}.py"
    if not file.exists():
        return []
    [kind] = [each for each in ast.parse(file.read_text()).body if isinstance(each, ast.ClassDef)]
    assigned = {getattr(each.targets[0], "id", ""): each.value for each in kind.body if isinstance(each, ast.Assign)}
    types, keys = (ast.literal_eval(assigned[each]) for each in ("openapi_types", "attribute_map"))
    known = {key: types[attribute] for attribute, key in keys.items()}
    return sorted(
        each
        for key, one in value.items()
        for each in (
            misfits(models, known[key], one, f"{place}.{key}") if key in known else [f"{place}.{key} is not there"]
        )
    )
