"""A newcomer copies the smallest extension and has a ninth service."""

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.installing import UV, install

ROOT = Path(__file__).parents[2]
EMBED = ROOT / "extensions" / "services" / "embed"


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on now."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(each.getsockname()[1]) for each in probes]


ASK = """
import json, sys
from pathlib import Path
import anyio
from ovms_face_aog.manifest import manifest_of
from ovms_kernel.api.faces import Request
from ovms_kernel.api.programs import compose_kernel, read_settings

async def main():
    data, model, rest, grpc = sys.argv[1:]
    settings = read_settings({}, data_dir=data, platform="portable", rest_port=rest, grpc_port=grpc)
    async with compose_kernel(settings) as kernel:
        [report] = [each for each in kernel.extensions.reports if each.name == "vectors"]
        await kernel.install_engine()
        await kernel.import_model(Path(model), "tiny/embed")
        answer = json.loads((await kernel.invoke("vectors", Request(b'{"input": "a sentence"}'))).body)
        offered = [each.name for each in manifest_of(kernel.services).services]
        size = len(answer["data"][0]["embedding"])
        print(json.dumps([report.state, report.distribution, size, "vectors" in offered]))
anyio.run(main)
"""


@pytest.mark.needs_inference
def test_a_copied_and_renamed_service_is_installed_by_pip_and_served(tmp_path: Path, fixtures: Path) -> None:
    source, site = tmp_path / "vectors", tmp_path / "site"
    source.mkdir()
    for path in (each for each in EMBED.iterdir() if each.is_file()):
        text = path.read_text("utf-8")
        # All that a newcomer has to change: the names.
        for old, new in (
            ("ovms-service-embed", "acme-service-vectors"),
            ("ovms_service_embed", "acme_service_vectors"),
            ("Embed", "Vectors"),
            ('name="embed"', 'name="vectors"'),
            ("embed =", "vectors ="),
            ("openvino:embed", ""),
            ("aog:embed", ""),
        ):
            text = text.replace(old, new)
        (source / path.name.replace("ovms_service_embed", "acme_service_vectors")).write_text(text, "utf-8")
    install(source, target=site)
    done = subprocess.run(
        [str(each) for each in (sys.executable, "-c", ASK, tmp_path / "data", fixtures / "embeddings", *free_ports(2))],
        env={"PYTHONPATH": str(site), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    state, distribution, dimensions, offered_to_aog = json.loads(done.stdout.splitlines()[-1])
    assert (state, distribution, dimensions) == ("loaded", "acme-service-vectors", 64)
    assert not offered_to_aog, "AOG has no template for it, and would panic"


NINTH = """
import os, sys
from pathlib import Path
import anyio
from ovms_kernel.api.programs import compose_kernel, read_settings, serve_companions

async def main():
    data, model, rest, grpc = sys.argv[1:]
    wanted = {"faces": {"print": {"with_test": True}}, "graphs": {"text_classification": {"labels": ["bad", "good"]}}}
    settings = read_settings({}, file=wanted, data_dir=data, platform="portable", rest_port=rest, grpc_port=grpc)
    async with compose_kernel(settings) as kernel:
        await kernel.install_engine()
        taken = await kernel.import_model(Path(model), "acme/moods")
        print(taken.model_type, flush=True)
        await serve_companions(kernel, "test")
anyio.run(main)
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Python with what is installed here and two distributions of a third party's."""
    venv = tmp_path / "venv"
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, venv], check=True, capture_output=True)
    python = venv / Path(sys.executable).parent.name / Path(sys.executable).name
    [site] = venv.glob("**/site-packages")
    # A folder alone would leave out what is installed here as editable.
    here = sysconfig.get_path("purelib")
    (site / "here.pth").write_text(f"import site; site.addsitedir({here!r})\n", "utf-8")
    for source in (ROOT / "tests/engines/classify", ROOT / "tests/faces/printing"):
        copy = shutil.copytree(source, tmp_path / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        install(copy, python=python)
    return python


@pytest.mark.needs_inference
def test_a_model_type_a_service_and_a_face_of_third_parties_answer_through_the_embedded_engine(
    python: Path, tmp_path: Path, fixtures: Path
) -> None:
    model = shutil.copytree(fixtures / "rerank", tmp_path / "model")
    config = json.loads((model / "config.json").read_text("utf-8"))
    (model / "config.json").write_text(json.dumps(config | {"model_type": "acme-classifier"}), "utf-8")
    asked = [["classify", {"text": "a cat sat on the mat"}], ["classify", {"text": 3}], ["classify", {"text": "a dog"}]]
    done = subprocess.run(
        [str(each) for each in (python, "-c", NINTH, tmp_path / "data", model, *free_ports(2))],
        input="".join(json.dumps(each) + "\n" for each in asked),
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    model_type, *lines = done.stdout.splitlines()
    assert model_type == "text_classification"
    assert lines[::2] == [f"{service} {json.dumps(fields)}" for service, fields in asked], done.stdout
    first, refused, last = lines[1::2]
    assert json.loads(first)["label"] in {"bad", "good"}, "the labels are those of the settings"
    assert refused.startswith("400 ")
    assert json.loads(last)["label"] in {"bad", "good"}


def test_the_smallest_service_is_small() -> None:
    assert len((EMBED / "ovms_service_embed.py").read_text("utf-8").splitlines()) <= 100
