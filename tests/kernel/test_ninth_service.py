"""A newcomer copies the smallest extension, or the one in the documentation, and has a ninth service."""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EMBED = ROOT / "extensions" / "services" / "embed"

ASK = """
import json, sys
from pathlib import Path
import anyio
from ovms_kernel.values import Request
from ovms_kernel.extensions import Extensions
from ovms_face_aog.manifest import manifest_of
from ovms_kernel.compose import compose_kernel
from ovms_kernel.kernel import Kernel
from ovms_kernel.settings import read_settings

async def main():
    settings = read_settings({}, data_dir=sys.argv[1], platform="portable", rest_port=19166, grpc_port=19190)
    async with compose_kernel(settings) as kernel:
        [report] = [each for each in kernel.extensions.reports if each.name == "vectors"]
        await kernel.install_engine()
        await kernel.import_model(Path(sys.argv[2]), "tiny/embed")
        answer = json.loads((await kernel.invoke("vectors", Request(b'{"input": "a sentence"}'))).body)
        offered = [each.name for each in manifest_of(kernel.services).services]
        size = len(answer["data"][0]["embedding"])
        print(json.dumps([report.state, report.distribution, size, "vectors" in offered]))
anyio.run(main)
"""


def test_a_copied_and_renamed_service_is_installed_by_pip_and_served(tmp_path: Path, fixtures: Path) -> None:
    source, site = tmp_path / "vectors", tmp_path / "site"
    source.mkdir()
    for path in (EMBED / "pyproject.toml", EMBED / "ovms_service_embed.py"):
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
    uv = Path(sys.executable).with_name("uv")
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--no-deps", "--target", site, source], check=True, capture_output=True
    )
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(tmp_path / "data"), str(fixtures / "embeddings")],
        env={"PYTHONPATH": str(site), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    state, distribution, dimensions, offered_to_aog = json.loads(done.stdout.splitlines()[-1])
    assert (state, distribution, dimensions) == ("loaded", "acme-service-vectors", 64)
    assert not offered_to_aog, "AOG has no template for it, and would panic"


def test_the_smallest_service_is_small() -> None:
    assert len((EMBED / "ovms_service_embed.py").read_text("utf-8").splitlines()) <= 100


def test_the_extensions_in_the_documentation_pass_the_tests_in_the_documentation(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "extensions.md").read_text("utf-8")
    [project] = re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    service, observer, tests = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    [module] = re.findall(r'^shout = "(\w+):Shout"$', project, re.MULTILINE)
    (tmp_path / f"{module}.py").write_text(service, "utf-8")
    (tmp_path / "acme_diary.py").write_text(observer, "utf-8")
    (tmp_path / "test_shout.py").write_text(tests, "utf-8")
    (tmp_path / "test_diary.py").write_text(
        "from acme_diary import Diary\n\n\n"
        "def test_it_listens(ovms_events):\n"
        "    assert not ovms_events.register({'observers.diary': Diary({})})\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert " 6 passed" in f" {done.stdout.splitlines()[-1]}", done.stdout + done.stderr
