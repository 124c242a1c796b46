"""The command line itself: what process this is, help, wrong words, exit codes."""

import ctypes
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer

from ovms_cli.app import make_app
from ovms_cli.app import run as run_here
from ovms_cli.output import progress, say
from ovms_kernel import errors
from ovms_kernel.api.commands import EXIT_CODES, report
from ovms_kernel.testing.contract import configured
from ovms_kernel.values import Progress, Request


def commands() -> Iterator[list[str]]:
    """Yield the words of every command."""
    app: Any = typer.main.get_command(make_app())
    for name, command in app.commands.items():
        yield [name]
        yield from ([name, inner] for inner in getattr(command, "commands", {}))


COMMANDS = list(commands())


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here([*words, "--help"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"Usage: ovms-plugin {' '.join(words)} ")
    assert not re.search(r"\[\[|\.\.\..\.\.\.", told.splitlines()[0]), "what is optional or repeated is marked once"
    assert words in (["config"], ["engine"], ["extension"], ["key"], ["service"]) or (
        "--data-dir" in told and "--debug" in told
    )


def test_help_names_every_command_and_cuts_no_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(["--help"]) == 0
    told = capsys.readouterr().out
    assert not [words[0] for words in COMMANDS if f"\n  {words[0]} " not in told]
    assert "..." not in told.split("Commands:")[1]


def test_the_version_is_that_of_the_installed_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(["--version"]) == 0
    assert capsys.readouterr().out == f"ovms-plugin {version('ovms-cli')}\n"


ALWAYS_LEFT = {"grpc", "httpx", "jinja2", "openvino", "prometheus_client", "pydantic", "starlette", "uvicorn"}
"""Libraries that belong to requests, to the server and to the engine."""
LEFT_BY_READERS = ALWAYS_LEFT | {"rich.console", "stevedore", "ovms_kernel.kernel"}
"""What a command does without that reads what is on disk."""
LEFT_WITHOUT_WAITING = LEFT_BY_READERS | {"asyncio", "pluggy", "importlib.metadata", "ovms_cli.asking"}
"""What a command does without that starts, awaits and asks nothing."""


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("--help", LEFT_BY_READERS | {"asyncio", "anyio", "msgspec", "ovms_kernel.files"}),
        ("ls", LEFT_WITHOUT_WAITING),
        ("show tiny/chat", LEFT_WITHOUT_WAITING),
        ("verify", LEFT_BY_READERS - {"rich.console"}),
        ("df", LEFT_BY_READERS | {"asyncio"}),
        ("alias", LEFT_BY_READERS),
        ("alias other tiny/chat", LEFT_BY_READERS),
        ("config list", LEFT_BY_READERS | {"asyncio"}),
        ("config get rest_port", LEFT_BY_READERS | {"asyncio"}),
        ("engine ls", LEFT_BY_READERS),
        ("ps", ALWAYS_LEFT),
        ("status", ALWAYS_LEFT),
    ],
)
def test_a_command_imports_only_what_it_needs(
    words: str, left: set[str], here: Any, environment: dict[str, str], fixtures: Path
) -> None:
    here("import", str(fixtures / "text_generation"), "tiny/chat")
    code = f"import sys; from ovms_cli.app import run; run({words.split()}); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert not left & set(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_without_words_it_says_what_it_is_and_fails_as_go_plugins_do(run: Any) -> None:
    done = run(code=1)
    assert done.stdout == ""
    assert "pull" in done.stderr
    assert "A host such as AOG starts this program by itself" in done.stderr.splitlines()[-1]


def test_a_host_starts_a_plugin_that_imports_no_terminal(environment: dict[str, str]) -> None:
    # A cookie of another host: the plugin refuses it at once, after everything that decides was imported.
    code = (
        "import sys, atexit; sys.argv = ['ovms-plugin'];"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr));"
        "from ovms_cli.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env=environment | {"AOG_PLUGIN": "another-host"},
        timeout=30,
    )
    modules = set(done.stderr.split())
    assert "ovms_face_aog.serve" in modules
    assert not {"typer", "rich", "ovms_cli.app"} & modules


def test_a_shell_can_complete_commands(run: Any) -> None:
    done = run(_OVMS_PLUGIN_COMPLETE="complete_bash", COMP_WORDS="ovms-plugin unl", COMP_CWORD="1")
    assert done.stdout.split() == ["unload"]


def test_ctrl_c_while_it_is_still_loading_is_no_traceback() -> None:
    code = (
        "import signal, sys; sys.argv = ['ovms-plugin', 'ls'];"
        "import ovms_cli.app as app; app.run = lambda words: signal.raise_signal(signal.SIGINT);"
        "from ovms_cli.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "Interrupted; nothing was begun.\n")


def test_with_words_it_is_a_command_even_if_a_host_set_its_cookie(run: Any) -> None:
    assert "Usage:" in run("--help", AOG_PLUGIN="aog-provider-plugin-v1").stdout


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["lss"], "did you mean 'ls'?"),
        (["pull"], "MODEL"),
        (["ls", "--nonsense"], "--nonsense"),
        (["ls", "superfluous"], "superfluous"),
        (["logs", "-n", "many"], "--lines"),
        (["manifest", "--bodies", "half"], "--bodies"),
    ],
    ids=" ".join,
)
def test_wrong_words_are_told_and_end_with_2(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert part in told.err.splitlines()[-1]


@pytest.mark.parametrize("error", [each for each in vars(errors).values() if isinstance(each, type)])
def test_every_error_has_an_exit_code_and_one_sentence(error: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code = report(ExceptionGroup("in a task", [error("No good; do this.")]))
    assert capsys.readouterr().err == "No good; do this.\n"
    assert code == EXIT_CODES.get(error.code, 1) != 0


def test_what_the_system_refuses_is_one_sentence_and_a_traceback_only_if_asked(
    run: Any, tmp_path: Path, fixtures: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "models").write_text("in the way")
    source = str(fixtures / "embeddings")
    [brief] = run("import", source, "a/b", code=1).stderr.splitlines()
    assert str(tmp_path / "data" / "models") in brief
    assert "; " in brief, "what to do"
    assert "Traceback" in run("import", source, "a/b", "--debug", code=1).stderr


def _obey_permissions() -> None:
    """Give up what lets root write anywhere (prctl's PR_CAPBSET_DROP of CAP_DAC_OVERRIDE); others have it not."""
    ctypes.CDLL(None).prctl(24, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="how root gives up its rights is Linux's own")
@pytest.mark.parametrize("words", ["engine install", "doctor"])
def test_a_data_folder_that_cannot_be_written_is_said(
    executable: str, environment: dict[str, str], tmp_path: Path, words: str
) -> None:
    tmp_path.chmod(0o555)
    command = [executable, *words.split()]
    done = subprocess.run(
        command, env=environment, check=False, capture_output=True, text=True, preexec_fn=_obey_permissions
    )
    assert done.returncode == 1
    assert str(tmp_path) in done.stdout + done.stderr
    assert "or name another data folder with --data-dir or OVMS_PLUGIN_DATA_DIR." in done.stdout + done.stderr
    assert "happened" not in done.stderr


@pytest.mark.parametrize(
    ("variables", "part"),
    [
        ({"OVMS_PLUGIN_REST_PORT": "many"}, "rest_port must be a whole number"),
        ({"OVMS_PLUGIN_PLATFORM": "beos"}, "beos"),
    ],
    ids=["type", "name"],
)
def test_a_wrong_setting_is_told_in_one_sentence(
    here: Any, environment: dict[str, str], variables: dict[str, str], part: str
) -> None:
    environment.update(variables)
    done = here("engine", "install", code=2 if part.startswith("rest") else 7)
    assert part in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_notice_is_one_write_so_that_two_threads_cannot_mix_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    class Terminal(io.StringIO):
        def write(self, text: str) -> int:
            if text:
                written.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stderr", Terminal())
    say("The engine is ready.")
    assert written == ["The engine is ready.\n"]


def show_progress(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in ({"FORCE_COLOR": "1", "TERM": "xterm"} | variables).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("ovms_cli.output.PLAIN_STEP", 0.0)
    monkeypatch.setattr("ovms_cli.output.QUICK", 0.0)
    with progress("OpenVINO/DeepSeek-R1-Distill-Qwen-14B-int4-ov") as report:
        report(Progress("downloading", 3_500_000_000, 8_600_000_000))


@pytest.mark.parametrize("columns", ["80", "50"])
def test_a_narrow_terminal_shows_the_numbers_of_a_pull_whole(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], columns: str
) -> None:
    show_progress(monkeypatch, COLUMNS=columns)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capfd.readouterr().err)
    assert re.search(r"OpenVINO/D[^\n]*… .* 3\.5/8\.6 GB", shown), shown


def test_a_terminal_that_cannot_move_its_cursor_is_told_in_lines(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    show_progress(monkeypatch, TERM="dumb")
    assert "int4-ov: downloading, 3.5 GB of 8.6 GB" in capfd.readouterr().err


@pytest.mark.needs_posix  # a shell that closes a stream is POSIX
def test_a_closed_stdout_is_no_reason_to_fail(executable: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["sh", "-c", f"'{executable}' ls >&-"], env=environment, check=False, stderr=subprocess.PIPE, text=True
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


@pytest.mark.needs_posix  # writes to a device that is always full
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device here that is always full")
def test_output_that_cannot_be_written_is_no_success(executable: str, environment: dict[str, str]) -> None:
    environment.pop("PYTHONUNBUFFERED", None)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [executable, "manifest"], env=environment, check=False, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (1, "The output could not be written (No space left on device).\n")


@pytest.mark.needs_posix  # words of a command are text on Windows
@pytest.mark.parametrize("words", [("chat",), ("call", "chat")], ids=" ".join)
def test_what_is_no_text_is_refused_in_a_sentence(
    executable: str, environment: dict[str, str], words: tuple[str, ...]
) -> None:
    for last, piped in (("-", b"\xff"), (b"\xff", b"")):
        done = subprocess.run(
            [executable, *words, last], env=environment, check=False, input=piped, capture_output=True
        )
        assert done.returncode == 2
        assert b"it is not UTF-8 (invalid start byte at byte 0)" in done.stderr


def test_sound_is_not_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from ovms_cli.services import check_terminal, content_type_of
    from ovms_service_text_to_speech import TextToSpeech

    kind = content_type_of(configured(TextToSpeech), Request(b'{"input": "hello", "response_format": "flac"}'))
    check_terminal(kind, None)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    check_terminal(kind, Path("hello.flac"))
    check_terminal("text/vtt; charset=utf-8", Path("-"))
    check_terminal(kind, None)  # it goes to a file of the data folder
    with pytest.raises(errors.BadRequest, match="The answer is audio/flac, not text; name a file for it with --output"):
        check_terminal(kind, Path("-"))


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    from ovms_cli.services import sink

    path = tmp_path / "speech.mp3"
    path.write_bytes(b"old")

    def break_off() -> None:
        with sink(path) as file:
            file.write(b"half")
            raise errors.BadRequest("no more")

    with pytest.raises(errors.BadRequest):
        break_off()
    assert [each.name for each in tmp_path.iterdir()] == ["speech.mp3"]
    assert path.read_bytes() == b"old"
    with sink(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("A notice of more than thirty columns is broken.", ["A notice of more than thirty", "columns is broken."]),
        ("模型已经下载完成，可以在终端中开始对话了。", ["模型已经下载完成，可以在终端中", "开始对话了。"]),
        (
            "See /a/path/that/is/longer/than/the/terminal now.",
            ["See", "/a/path/that/is/longer/than/the/terminal", "now."],
        ),
        ("  kept as it is", ["  kept as it is"]),
    ],
)
def test_a_terminal_gets_notices_in_lines_that_break_no_word(
    text: str, shown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Teletype()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "30")
    say(text)
    assert terminal.getvalue().splitlines() == shown


class Teletype(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "words", ["--data-dir {} config path", "--data-dir={} --debug config path", "config path --data-dir {}"]
)
def test_options_of_all_commands_may_stand_before_the_command(words: str, run: Any, tmp_path: Path) -> None:
    assert run(*words.format(tmp_path).split()).stdout == f"{tmp_path / 'config.yaml'}\n"


def test_another_option_before_the_command_is_told_its_place(run: Any) -> None:
    told = run("--json", "ls", code=2).stderr
    assert told == "No option --json stands before the command; type it behind, such as `ovms-plugin ls --json`.\n"
