"""Commands that change models while a server runs: it does the work, and they say what they say without one."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from ovms_kernel.testing.hub import FakeHub
from tests.processes import at_console, end_by_force, interrupt

CHAT = "tiny/chat"
NOWHERE = "http://127.0.0.1:9"
"""An address where nobody listens: what is pulled all the same is pulled by the server."""


@dataclass
class Served:
    """A data folder with a server, which knows another hub than the commands do."""

    executable: str
    environment: dict[str, str]
    folder: Path
    hub: FakeHub

    def run(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        command = [self.executable, *words]
        done = subprocess.run(
            command, env=self.away, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == code, f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start one command at a console where it can be interrupted."""
        return subprocess.Popen(
            at_console([self.executable, *words]), env=self.away, cwd=self.folder, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    @property
    def away(self) -> dict[str, str]:
        """The environment of commands, which know no hub."""
        return self.environment | {"OVMS_PLUGIN_HUBS__MODELSCOPE__ENDPOINT": NOWHERE}

    def serve(self) -> None:
        """Start a server in the background."""
        subprocess.run([self.executable, "serve", "-d"], env=self.environment, check=True, capture_output=True)

    @property
    def note(self) -> dict[str, Any]:
        """Where it listens."""
        found: dict[str, Any] = json.loads((self.folder / "data" / "run" / "http.json").read_text("utf-8"))
        return found

    def client(self) -> httpx.Client:
        """Return a client with the key."""
        headers = {"authorization": f"Bearer {Path(self.note['key_file']).read_text().strip()}"}
        return httpx.Client(base_url=self.note["url"], headers=headers, timeout=60, trust_env=False)

    def ids(self) -> set[str]:
        """Return the ids of the models that the server lists."""
        with self.client() as client:
            return {each["id"] for each in client.get("/v1/models").json()["data"]}


@pytest.fixture(scope="module")
def served(executable: str, fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OVMS_PLUGIN_", "AOG_"))}
    with FakeHub() as hub:
        for name in (CHAT, "tiny/slow", "tiny/other"):
            hub.add(name, fixtures / "text_generation")
        environment = kept | {
            "OVMS_PLUGIN_DATA_DIR": str(folder / "data"),
            "OVMS_PLUGIN_PLATFORM": "portable",
            "OVMS_PLUGIN_FACES__HTTP__PORT": "0",
            "OVMS_PLUGIN_HUBS__MODELSCOPE__ENDPOINT": hub.url,
        }
        served = Served(executable, environment, folder, hub)
        served.serve()
        try:
            yield served
        finally:
            subprocess.run([executable, "stop"], env=environment, check=False, capture_output=True)


def test_a_pull_goes_through_the_server_and_says_what_it_says_without(served: Served) -> None:
    assert served.run("pull", CHAT).stdout == f"Pulled {CHAT}: text_generation, 1.2 MB.\n"
    found = json.loads(served.run("pull", CHAT, "--json").stdout)
    assert (found["id"], found["model_type"]) == (CHAT, "text_generation")
    assert CHAT in served.ids()
    assert "cannot be reached" in served.run("pull", "tiny/other", "--max-rate", "5MB", code=4).stderr, (
        "a rate of its own is not the server's"
    )


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("pull", "tiny/nosuch"), 3, "tiny/nosuch"),
        (("pull", "tiny/other", "--type", "image_generation"), 2, "declared to be of type image_generation"),
        (("pull", "nosuch:tiny/other"), 7, "There is no hub 'nosuch'"),
        (("rm", "tiny/nosuch"), 3, "Model tiny/nosuch is not installed"),
        (("rm", "a//b"), 2, "has more than one slash"),
        (("pin", "tiny/nosuch"), 3, "Model tiny/nosuch is not installed"),
        (("import", "nowhere", "tiny/mine"), 2, "nowhere does not exist; give a folder"),
    ],
)
def test_what_is_wrong_is_one_sentence_with_the_code_that_it_has_without_a_server(
    served: Served, words: tuple[str, ...], code: int, told: str
) -> None:
    done = served.run(*words, code=code)
    assert told in done.stderr
    assert len([each for each in done.stderr.splitlines() if not each.startswith("Extension ")]) == 1


@pytest.mark.needs_posix  # a symbolic link, which takes a privilege on Windows
def test_an_import_names_a_folder_of_this_user_alone(served: Served, fixtures: Path) -> None:
    (served.folder / "mine").symlink_to(fixtures / "embeddings")
    told = served.run("import", "mine", "tiny/mine").stderr
    assert "How mine makes one vector of its tokens is a guess (CLS)" in told, "what the server's log says of it"
    told = served.run("import", "mine", "tiny/mine", "--pooling", "mean").stdout
    assert told.startswith("Imported tiny/mine: embeddings")
    assert "pooling: MEAN" in served.run("show", "tiny/mine").stdout
    with served.client() as client:
        asked = {"path": str(fixtures / "embeddings"), "model": "tiny/stolen"}
        for headers in ({}, {"x-ovms-control": "guess"}):
            answer = client.post("/v2/repository/import", json=asked, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_allowed")
    assert "tiny/stolen" not in served.ids()


@pytest.mark.needs_inference
def test_a_model_is_pinned_loaded_and_deleted(served: Served) -> None:
    served.run("pull", CHAT)
    assert served.run("load", CHAT).stdout == f"{CHAT} is loaded.\n"
    assert served.run("pin", CHAT).stdout == f"{CHAT} is pinned.\n"
    assert [each["pinned"] for each in json.loads(served.run("ps", "--json").stdout)] == [True]
    assert served.run("unpin", CHAT).stdout == f"{CHAT} is not pinned.\n"
    assert served.run("rm", CHAT).stdout == f"{CHAT} is deleted.\n"
    assert CHAT not in served.ids()
    assert json.loads(served.run("ps", "--json").stdout) == []


def begin(served: Served, *words: str) -> subprocess.Popen[str]:
    """Begin a pull that takes some seconds, and return when bytes of it arrive."""
    served.hub.rate = 300_000
    sent, end = served.hub.sent, time.monotonic() + 30
    process = served.start(*words)
    while served.hub.sent - sent < 100_000:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    return process


def test_ctrl_c_ends_the_pull_and_the_next_one_goes_on(served: Served) -> None:
    process = begin(served, "pull", "tiny/slow")
    interrupt(process)
    _, told = process.communicate(timeout=10)
    assert process.returncode == 130
    # Where it took long, a line of progress comes before.
    kept = "Interrupted; the partial download of tiny/slow is kept. Run the same command again to resume."
    assert told.splitlines()[-1] == kept
    staged = json.loads(served.run("df", "--json").stdout)["staging"]
    assert [each["id"] for each in staged] == ["tiny/slow"]
    served.hub.rate = 0
    before = served.hub.sent
    served.run("pull", "tiny/slow")
    assert served.hub.sent - before < 1_200_000, "what had arrived was not fetched again"


def test_a_server_that_is_killed_in_the_middle_is_one_sentence(served: Served) -> None:
    process = begin(served, "pull", "tiny/other")
    end_by_force(served.note["pid"])
    assert process.stderr
    told = process.stderr.read()
    assert process.wait(20) == 4
    process.communicate()
    # Where it took long, a line of progress comes before.
    ended = "The server ended before the pull was done; run the same command again to resume it."
    assert told.splitlines()[-1] == ended
    served.hub.rate = 0
    served.serve()
    assert served.run("pull", "tiny/other").stdout.startswith("Pulled tiny/other")
