"""Commands about models, on a real data folder with the tiny models and a hub on this machine."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ovms_cli.output import read_rate
from ovms_kernel.errors import BadRequest
from ovms_kernel.testing.hub import FakeHub
from tests.gguf_files import gguf_header
from tests.processes import at_console, interrupt

CHAT = "tiny/chat"


@pytest.fixture
def hub(fixtures: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as hub:
        hub.add(CHAT, fixtures / "text_generation")
        yield hub


@pytest.fixture
def environment(environment: dict[str, str], hub: FakeHub) -> dict[str, str]:
    return environment | {"OVMS_PLUGIN_HUBS__MODELSCOPE__ENDPOINT": hub.url}


def test_a_model_comes_is_shown_and_goes(here: Any, fixtures: Path) -> None:
    assert "pull OWNER/NAME" in here("ls").stderr
    assert json.loads(here("ls", "--json").stdout) == []
    assert here("import", str(fixtures / "embeddings"), "tiny/嵌入").stdout.startswith(
        "Imported tiny/嵌入: embeddings, "
    )
    taken = json.loads(here("import", str(fixtures / "text_generation"), CHAT, "--json").stdout)
    assert (taken["id"], taken["model_type"]) == (CHAT, "text_generation")

    listed = here("ls").stdout.splitlines()
    assert listed[0].split() == ["MODEL", "TYPE", "SIZE", "WEIGHTS", "CHANGED"]
    assert [line.split()[:2] for line in listed[1:]] == [[CHAT, "text_generation"], ["tiny/嵌入", "embeddings"]]
    assert {each["id"] for each in json.loads(here("ls", "--json").stdout)} == {CHAT, "tiny/嵌入"}

    told = here("show", CHAT).stdout
    assert "openvino_model.bin" in told
    assert "HttpLLMCalculator" in told
    shown = json.loads(here("show", CHAT, "--json").stdout)
    assert shown["type"] == "text_generation"
    assert shown["size"] == taken["size"]

    usage = json.loads(here("df", "--json").stdout)
    assert usage["models"][CHAT] == taken["size"]
    assert usage["free"] > 0
    assert CHAT in here("df").stdout

    assert "deleted" in here("rm", CHAT).stdout
    assert [each["id"] for each in json.loads(here("ls", "--json").stdout)] == ["tiny/嵌入"]


def test_a_model_that_goes_names_the_aliases_that_need_it(here: Any, fixtures: Path) -> None:
    here("import", str(fixtures / "text_generation"), CHAT)
    for name in ("helper", "brief"):
        here("alias", name, CHAT)
    assert "not installed" not in here("alias").stdout
    gone = here("rm", CHAT)
    assert gone.stdout == f"{CHAT} is deleted.\n"
    assert gone.stderr == (
        "Aliases stand for it: helper, brief; pull it again, or remove one with `ovms-plugin rm helper`.\n"
    )
    assert here("alias").stdout.count(f"{CHAT} (not installed)") == 2
    assert here("rm", "helper", "brief").stdout == "The alias helper is removed.\nThe alias brief is removed.\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--device", "GPPU"), "'GPPU' is not a device; use CPU, GPU, NPU, or several such as AUTO:GPU,CPU."),
        (("--device", "AUTO:CPU,TPU"), "'AUTO:CPU,TPU' is not a device; use CPU"),
        (("--context", "4096"), f"The context 4096 is too large: {CHAT} takes 2048 tokens at most."),
        (("--context", "-1"), "aliases.mine.context must be"),
        (("--option", "cache_sise=2"), "cache_sise is not an option of text_generation models"),
        (("--option", "cache_size=much"), "cache_size of a text_generation model cannot be 'much'"),
        (("--option", "cache_size"), "--set and --option take NAME=VALUE"),
    ],
)
def test_a_profile_with_a_wrong_value_is_refused_when_it_is_made(
    here: Any, fixtures: Path, words: tuple[str, ...], told: str
) -> None:
    here("import", str(fixtures / "text_generation"), CHAT)
    refused = here("alias", "mine", CHAT, *words, code=2)
    assert told in " ".join(refused.stderr.split())
    assert json.loads(here("alias", "--json").stdout) == {}


def test_a_model_without_a_length_has_no_context(here: Any, fixtures: Path) -> None:
    here("import", str(fixtures / "text_to_speech"), "tiny/voice")
    refused = here("alias", "mine", "tiny/voice", "--context", "64", code=2).stderr
    assert (
        refused == "tiny/voice does not say how many tokens it takes, so no context can be set for it; leave it out.\n"
    )


def test_a_profile_shows_what_it_has_of_its_own(here: Any, fixtures: Path) -> None:
    here("import", str(fixtures / "text_generation"), CHAT)
    here("alias", "mine", CHAT, "--context", "64", "--option", "cache_size=2")
    row = here("ls").stdout.splitlines()[1].split()
    assert (row[0], row[-3:]) == ("mine", ["profile", "of", CHAT])
    shown = json.loads(here("show", "mine", "--json").stdout)
    assert (shown["alias"], shown["id"], shown["context"], shown["options"]) == ("mine", CHAT, 64, {"cache_size": 2})
    assert here("verify").stdout == f"{CHAT}: unchanged.\n", "its files are its model's"
    refused = here("import", str(fixtures / "text_generation"), "mine", code=2).stderr
    assert refused.startswith(f"mine is an alias of {CHAT}; `ovms-plugin alias mine --remove` removes it")


def test_damage_is_found(here: Any, fixtures: Path, tmp_path: Path) -> None:
    here("import", str(fixtures / "text_generation"), CHAT)
    assert here("verify").stdout == f"{CHAT}: unchanged.\n"
    weights = tmp_path / "data" / "models" / "tiny" / "chat" / "openvino_model.bin"
    weights.write_bytes(b"x" + weights.read_bytes()[1:])
    done = here("verify", CHAT, code=1)
    assert "openvino_model.bin" in done.stdout
    assert "again" in done.stderr
    assert "SHA-256" in json.loads(here("verify", "--json", code=1).stdout)[CHAT][0]


def test_a_pull_can_be_looked_at_before_and_told_of_after(here: Any, hub: FakeHub) -> None:
    planned = json.loads(here("pull", CHAT, "--dry-run", "--json").stdout)
    assert planned["total"] == sum(each["size"] for each in planned["files"]) > 1_000_000
    assert not planned["installed"]
    assert planned["present"] == 0
    last = here("pull", CHAT, "--dry-run").stdout.splitlines()[-1]
    assert last.startswith(f"{CHAT}: {len(planned['files'])} files, 1.2 MB; 1.2 MB are to be fetched, ")
    assert last.endswith(" are free.")
    assert hub.sent == 0
    assert here("pull", CHAT).stdout == f"Pulled {CHAT}: text_generation, 1.2 MB.\n"
    assert json.loads(here("pull", CHAT, "--json").stdout)["id"] == CHAT
    assert "already downloaded" in here("pull", CHAT, "--dry-run").stdout


def test_a_refresh_fetches_what_changed_on_the_hub(here: Any, hub: FakeHub, fixtures: Path, tmp_path: Path) -> None:
    here("pull", CHAT)
    newer = tmp_path / "newer"
    shutil.copytree(fixtures / "text_generation", newer)
    (newer / "config.json").write_text((newer / "config.json").read_text() + "\n\n")
    size = (newer / "config.json").stat().st_size
    hub.add(CHAT, newer)

    told = here("pull", CHAT, "--dry-run").stdout.splitlines()[-1]
    assert f"{size} bytes are to be fetched" in told
    assert "already downloaded" in told
    assert "--refresh" in told
    planned = json.loads(here("pull", CHAT, "--dry-run", "--json").stdout)
    assert (planned["installed"], planned["total"] - planned["present"]) == (True, size)

    before, listings = hub.sent, hub.listings
    here("pull", CHAT)
    assert (hub.sent, hub.listings) == (before, listings), "a complete copy is left as it is"
    here("pull", CHAT, "--refresh")
    assert hub.sent - before == size
    here("verify", CHAT)
    assert "all of it is already downloaded" in here("pull", CHAT, "--dry-run").stdout


def test_a_pull_has_revisions_types_and_rates(here: Any, hub: FakeHub, fixtures: Path) -> None:
    hub.add("tiny/two", fixtures / "embeddings", revision="v2")
    assert "embeddings" in here("pull", "tiny/two", "--revision", "v2", "--type", "text_generation", code=2).stderr
    began = time.monotonic()
    here("pull", "tiny/two", "--revision", "v2", "--max-rate", "300k")
    assert time.monotonic() - began > 1
    assert json.loads(here("show", "tiny/two", "--json").stdout)["revision"] == "v2"


def test_ctrl_c_in_a_pull_keeps_what_has_arrived(
    executable: str, environment: dict[str, str], here: Any, hub: FakeHub
) -> None:
    hub.rate = 50_000
    words, pipe = at_console([executable, "pull", CHAT]), subprocess.PIPE
    pulling = subprocess.Popen(words, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    while hub.sent < 100_000:
        assert pulling.poll() is None, pulling.communicate()
        time.sleep(0.02)
    interrupt(pulling)
    out, err = pulling.communicate(timeout=20)
    assert pulling.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == (
        f"Interrupted; the partial download of {CHAT} is kept. Run the same command again to resume."
    )
    unfinished = json.loads(here("df", "--json").stdout)["staging"]
    assert [each["id"] for each in unfinished] == [CHAT]
    assert "unfinished pull" in here("df").stdout
    planned = json.loads(here("pull", CHAT, "--dry-run", "--json").stdout)
    assert 0 < planned["present"] < planned["total"]

    hub.rate, before = 0, hub.sent
    here("pull", CHAT)
    assert hub.sent - before == planned["total"] - planned["present"]
    here("verify", CHAT)


def test_an_unfinished_pull_can_be_removed(
    executable: str, environment: dict[str, str], here: Any, hub: FakeHub
) -> None:
    hub.rate = 50_000
    pulling = subprocess.Popen([executable, "pull", CHAT], env=environment, stderr=subprocess.DEVNULL)
    while hub.sent < 100_000:
        assert pulling.poll() is None
        time.sleep(0.02)
    pulling.kill()
    pulling.wait()
    assert "deleted" in here("rm", CHAT).stdout
    assert json.loads(here("df", "--json").stdout)["staging"] == []


@pytest.mark.parametrize(
    "name", ["../x", "/abs/olute", "a'b", "a\nb", "x" * 300, "a/b/c", ""], ids=lambda each: repr(each)[:12]
)
@pytest.mark.parametrize("words", [["show"], ["rm"], ["pull"]], ids=" ".join)
def test_a_bad_name_is_refused_in_one_sentence(here: Any, name: str, words: list[str], tmp_path: Path) -> None:
    done = here(*words, name, code=2)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.endswith(".\n")
    assert not (tmp_path / "data" / "models").exists()


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["show", "no/such"], 3, "not installed"),
        (["rm", "no/such"], 3, "not installed"),
        (["pull", "no/such"], 3, "no/such"),
        (["pull", "qwen3:8b"], 3, "Ollama"),
        (["pull", CHAT, "--max-rate", "fast"], 2, "rate"),
        (["pull", "elsewhere:tiny/chat"], 7, "elsewhere"),
        (["import", "/no/such/folder", "my/model"], 2, "does not exist"),
        (["import", str(Path(__file__).parent), "my/model"], 2, "holds no OpenVINO model"),
        (["load", CHAT], 4, "ovms-plugin serve"),
        (["unload", CHAT], 4, "ovms-plugin serve"),
    ],
    ids=lambda each: " ".join(each[:2]) if isinstance(each, list) else "",
)
def test_what_cannot_be_done_is_said_in_one_sentence(here: Any, words: list[str], code: int, part: str) -> None:
    done = here(*words, code=code)
    assert done.stdout == ""
    assert part in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_import_says_that_a_pooling_is_a_guess_and_takes_another(run: Any, here: Any, fixtures: Path) -> None:
    done = run("import", str(fixtures / "embeddings"), "tiny/guessed")
    assert "How guessed makes one vector of its tokens is a guess (CLS)" in done.stderr
    done = run("import", str(fixtures / "embeddings"), "tiny/told", "--pooling", "mean")
    assert "guess" not in done.stderr
    assert "pooling: MEAN" in here("show", "tiny/told").stdout
    assert "CLS, LAST, MEAN" in here("import", str(fixtures / "embeddings"), "a/b", "--pooling", "MAX", code=2).stderr


def test_a_gguf_file_is_shown_with_what_its_header_says_or_refused(here: Any, tmp_path: Path) -> None:
    for name, header in (
        ("llama", gguf_header()),
        ("gemma", gguf_header("gemma3")),
        ("old", gguf_header(tensors=(6,))),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.gguf").write_bytes(header + bytes(500))
    here("import", str(tmp_path / "llama"), "tiny/llama")
    shown = json.loads(here("show", "tiny/llama", "--json").stdout)
    assert (shown["type"], shown["format"], shown["family"]) == ("text_generation", "gguf", "llama")
    assert (shown["quantization"], shown["parameter_size"]) == ("Q4_K_M", "135M")
    assert "architecture gemma3" in here("import", str(tmp_path / "gemma"), "tiny/gemma", code=2).stderr
    assert "weights of type Q5_0" in here("import", str(tmp_path / "old"), "tiny/old", code=2).stderr
    assert [each["id"] for each in json.loads(here("ls", "--json").stdout)] == ["tiny/llama"]


def test_rates_are_read_as_people_write_them() -> None:
    assert [read_rate(text) for text in ("5MB", "500k", "2.5 MiB/s", "1000")] == [5_000_000, 500_000, 2_500_000, 1000]
    for text in ("", "fast", "-1", "0", "5 apples"):
        with pytest.raises(BadRequest):
            read_rate(text)
