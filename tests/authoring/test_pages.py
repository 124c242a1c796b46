"""The pages for authors: the blocks of each make a distribution, which is checked, installed and used as it says.

A block of TOML or Python names its file in its first line. Blocks of the kind ``sh`` run as they are, in a folder that
holds what the page supposes to be there, with a Python of its own that has what is installed here.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anyio
import pytest

from ovms_kernel.compose import compose_kernel
from ovms_kernel.settings import read_settings
from tests.conftest import FIXTURES, LEAN_PYTEST
from tests.engines.conftest import free_port
from tests.installing import BUILT_HERE

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "extensions.md", *sorted(DOCS.glob("extensions/*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INSTALLED_HERE = ("anyio", "msgspec", "ovms-embedded", "ovms-kernel", "starlette", "typer")
"""What the distributions of the pages depend on."""


class Author:
    """Somebody who follows a page in a folder, at a shell."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self._environment = folder, environment

    def write(self, blocks: list[str]) -> str:
        """Write the files of a page into a folder named as its distribution; return that name."""
        files = {re.match(r"# (\S+)\n", each)[1]: each.partition("\n")[2] for each in blocks}  # type: ignore[index]
        name = re.findall(r'^name = "(.+)"', files["pyproject.toml"], re.MULTILINE)[0]
        (self.folder / name).mkdir()
        for file, text in files.items():
            (self.folder / name / file).write_text(text, "utf-8")
        return str(name)

    def type(self, text: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run lines as a shell does, up to the first that fails."""
        return subprocess.run(
            ["sh", "-ec", text],
            cwd=self.folder,
            env=self._environment | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=110,
        )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, inference: None) -> Path:
    """A data folder with the embedded engine and two models."""
    folder = tmp_path_factory.mktemp("author") / "data"

    async def fill() -> None:
        async with compose_kernel(read_settings({}, data_dir=folder, platform="portable")) as kernel:
            await kernel.install_engine()
            await kernel.import_model(FIXTURES / "text_generation", "tiny/chat")
            await kernel.import_model(FIXTURES / "embeddings", "tiny/embeddings")

    with ThreadPoolExecutor(1) as thread:
        thread.submit(anyio.run, fill).result()  # this one may have an event loop already
    return folder


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment, which sees the packages of this one and so needs no download."""
    uv, venv = Path(sys.executable).with_name("uv"), tmp_path_factory.mktemp("venv") / "venv"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, venv], check=True, capture_output=True)
    programs = venv / Path(sys.executable).parent.name
    [site] = venv.glob("**/site-packages")
    # As a site folder, so that editable installs in it count.
    here = sysconfig.get_path("purelib")
    (site / "here.pth").write_text(f"import site; site.addsitedir({here!r})\n", "utf-8")
    for name in ("ovms-plugin", "ovms-embedded"):
        module = {"ovms-plugin": "ovms_cli"}.get(name, name.replace("-", "_"))
        (programs / name).write_text(f'#!/bin/sh\nexec "{programs}/python" -m {module} "$@"\n')
        (programs / name).chmod(0o755)
    (programs / "uv").symlink_to(uv)
    return programs


@pytest.fixture
def author(data: Path, programs: Path, tmp_path: Path) -> Author:
    own = shutil.copytree(data, tmp_path / "data.of.the.test")
    overrides = tmp_path / "overrides.txt"
    overrides.write_text("".join(f"{each}; sys_platform == 'none'\n" for each in INSTALLED_HERE))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OVMS_PLUGIN_", "PYTHON"))}
    environment = kept | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "OVMS_PLUGIN_DATA_DIR": str(own),
        "OVMS_PLUGIN_FACES__HTTP__PORT": "0",
        "OVMS_PLUGIN_PLATFORM": "portable",
        "NO_COLOR": "1",
        "UV_OVERRIDE": str(overrides),
    }
    environment |= BUILT_HERE | LEAN_PYTEST
    return Author(tmp_path, environment)


@contextmanager
def web_server(folder: Path) -> Iterator[str]:
    """Serve the files of a folder and give its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def model(kind: str, to: Path, **config: object) -> None:
    """Copy a tiny model, with other values in its config.json."""
    shutil.copytree(FIXTURES / kind, to)
    file = to / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))


@contextmanager
def supposed(page: str, folder: Path) -> Iterator[Callable[[str], str]]:
    """Put there what a page supposes, and give what has to be said otherwise here: addresses."""
    if page == "platform":
        model("embeddings", folder / "my-model")
    elif page == "graph":
        model("text_generation", folder / "my-model", architectures=["AcmeForCaptions"])
    elif page == "calculator":
        model("rerank", folder / "my-model", model_type="acme-classifier")
    elif page == "hub":
        model("embeddings", folder / "server/acme/embeddings")
        with web_server(folder / "server") as url:
            yield lambda text: text.replace("https://models.example.org", url)
        return
    elif page == "dialect":
        port = str(free_port())
        yield lambda text: f"export OVMS_PLUGIN_FACES__HTTP__PORT={port}\n{text.replace('16680', port)}"
        return
    yield lambda text: text


SHOWN = {
    "extensions": r'"choices"',
    "platform": r'"embedding"',
    "graph": r"acme/captions\b.*captions",
    "hub": r"acme/embeddings",
    "observer": r"embed: 200 after ",
    "face": r'"embedding"',
    "dialect": r"\w",
    "command": r"^\d+$",
    "calculator": r'"label": ?"(low|high)"',
}
"""What the last commands of each page show."""


@pytest.mark.needs_posix
@pytest.mark.parametrize("page", PAGES, ids=lambda each: each.stem)
def test_a_page_is_enough_to_write_check_install_and_use_an_extension(page: Path, author: Author) -> None:
    blocks = BLOCK.findall(page.read_text("utf-8"))
    name = author.write([text for kind, text in blocks if kind in ("toml", "python")])
    [typed] = [text for kind, text in blocks if kind == "sh"]
    assert {kind for kind, _ in blocks} == {"toml", "python", "sh"}, "a block that nothing runs"
    with supposed(page.stem, author.folder) as fit:
        try:
            done = author.type(fit(typed))
        finally:
            if "serve --detach" in typed:
                author.type("ovms-plugin stop || true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+ passed", done.stdout, re.MULTILINE), "its contract and its own tests"
    assert f"  loaded  {name} 1.0" in done.stdout
    used = (done.stdout + done.stderr).partition(f"  loaded  {name} 1.0")[2]
    assert re.search(SHOWN[page.stem], used, re.MULTILINE), used
