"""What is typed now and then, at a terminal of 80 columns: pulls of several, repairs, and what a shell completes."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ovms_kernel.testing.hub import FakeHub

if os.name == "nt":
    pytest.skip("pseudo-terminals of this kind are not there on Windows", allow_module_level=True)

from tests.cli.terminal import Terminal

Type = Callable[..., Terminal]


@pytest.fixture
def hub(fixtures: Path) -> Iterator[FakeHub]:
    with FakeHub() as hub:
        hub.add("tiny/chat", fixtures / "text_generation")
        hub.add("tiny/two", fixtures / "text_generation")
        yield hub


@pytest.fixture
def typed(executable: str, environment: dict[str, str], hub: FakeHub, tmp_path: Path) -> Type:
    """Type a command, with the program on the PATH and a home of the test's own."""
    environment = environment | {
        "HOME": str(tmp_path),
        "PATH": f"{Path(executable).parent}{os.pathsep}{environment['PATH']}",
        "TERM": "xterm-256color",
        "OVMS_PLUGIN_HUBS__MODELSCOPE__ENDPOINT": hub.url,
    }
    return lambda *words: Terminal(words, environment, folder=tmp_path)


def test_of_several_pulls_one_that_fails_costs_itself_alone(typed: Type) -> None:
    with typed("ovms-plugin", "pull", "tiny/chat", "tiny/none", "tiny/two") as terminal:
        assert terminal.code() == 3
        lines = terminal.shown().splitlines()
    assert lines[0] == "Pulled tiny/chat: text_generation, 1.2 MB."
    assert lines[1] == "tiny/none was not pulled."
    assert "tiny/none" in lines[2], "the cause"
    assert lines[-1].startswith("Pulled tiny/two: text_generation, ")
    assert b"tiny/chat: downloading" in terminal.raw, "a bar shows how far it is, and goes"
    assert not terminal.broken()


def test_a_list_says_at_80_columns_what_a_profile_stands_for(typed: Type, hub: FakeHub, fixtures: Path) -> None:
    name = "organisation/a-model-with-a-long-name-int4"
    hub.add(name, fixtures / "text_generation")
    for words in (f"pull --quiet {name}", f"alias small {name} --context 64"):
        with typed("ovms-plugin", *words.split()) as terminal:
            assert terminal.code() == 0, terminal.shown()
    with typed("ovms-plugin", "ls") as terminal:
        assert terminal.code() == 0
        assert terminal.shown().splitlines()[-1].split()[:3] == ["small", "profile", "of"]
        assert "organisation/a-model" in terminal.shown().splitlines()[-1]
        assert not terminal.broken()


def test_a_quiet_pull_says_only_what_goes_wrong(typed: Type) -> None:
    with typed("ovms-plugin", "pull", "--quiet", "tiny/chat", "tiny/two") as terminal:
        assert terminal.code() == 0
        assert terminal.shown() == ""
        assert terminal.raw == b"", "not even a bar that goes"
    with typed("ovms-plugin", "ls") as terminal:
        assert terminal.code() == 0
        assert [line.split()[0] for line in terminal.shown().splitlines()] == ["MODEL", "tiny/chat", "tiny/two"]
    with typed("ovms-plugin", "pull", "--quiet", "tiny/none") as terminal:
        assert terminal.code() == 3
        assert "tiny/none" in terminal.shown()


def test_doctor_sets_right_what_is_harmless_and_says_what(typed: Type, tmp_path: Path) -> None:
    key, note = tmp_path / "data" / "http" / "key", tmp_path / "data" / "run" / "http.json"
    for file, text in ((key, "sk-ovms-1\n"), (note, '{"url": "http://127.0.0.1:1", "key_file": "", "pid": 1}')):
        file.parent.mkdir(parents=True)
        file.write_text(text)
        file.chmod(0o644)
    with typed("ovms-plugin", "doctor", "--fix") as terminal:
        assert terminal.code() == 0, terminal.shown()
        told = " ".join(terminal.shown().split())
    assert "The address of a server that is gone is removed." in told
    # A path that is wider than the terminal is broken.
    assert f"Only you can read {key} now.".replace(" ", "") in told.replace(" ", "")
    assert "(portable) is installed." in told
    assert not note.exists()
    assert key.stat().st_mode & 0o777 == 0o600
    with typed("ovms-plugin", "doctor", "--fix") as terminal:
        assert terminal.code() == 0
        assert not {"removed.", "now.", "installed."} & set(terminal.shown().split()), "nothing is left to do"


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_models_aliases_services_and_settings(typed: Type) -> None:
    for words in (("pull", "-q", "tiny/chat"), ("alias", "helper", "tiny/chat")):
        with typed("ovms-plugin", *words) as terminal:
            assert terminal.code() == 0
    with typed("bash", "--norc", "-i") as shell:
        shell.type('PS1="> "; source <(ovms-plugin completion bash); echo re""ady\n')
        shell.wait_for("\nready")
        for begun, whole in (
            ("ovms-plugin unl", "ovms-plugin unload "),
            ("ovms-plugin show tiny/c", "ovms-plugin show tiny/chat "),
            ("ovms-plugin run hel", "ovms-plugin run helper "),
            ("ovms-plugin call tokeni", "ovms-plugin call tokenize "),
            ("ovms-plugin config get services.chat.def", "ovms-plugin config get services.chat.default_model "),
        ):
            shell.type(f"{begun}\t")
            shell.wait_for(f"> {whole.rstrip()}")
            shell.type("\x15")  # the line is emptied
        shell.type("exit\n")
        assert shell.code() == 0
