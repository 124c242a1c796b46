"""Commands that report, and what is reported of extensions that fail."""

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from wcwidth import wcswidth

from ovms_cli.output import print_facts, print_table
from ovms_face_aog.client import PluginHost


def test_doctor_names_what_is_wrong_and_the_remedy(here: Any, environment: dict[str, str]) -> None:
    told = here("doctor").stdout
    assert "→ ovms-plugin engine install" in told
    findings = json.loads(here("doctor", "--json").stdout)
    assert {"system", "engine", "disk"} <= {each["subject"] for each in findings}
    environment["OVMS_PLUGIN_PLATFORM"] = "beos"
    assert "beos" in here("doctor", code=1).stdout


LISTENER = """
from ovms_kernel.api.observers import hookimpl
class Listener:
    def __init__(self, section): pass
    @hookimpl
    def ovms_kernel_started(self): raise OSError("the diary is full")
"""


def test_doctor_tells_of_an_extension_that_fails_when_it_is_asked(
    here: Any, acme: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(acme("[ovms.observers]\ndiary = acme:Listener\n", LISTENER))
    [finding] = [each for each in json.loads(here("doctor", "--json").stdout) if each["subject"] == "observers.diary"]
    assert finding["level"] == "warning"
    assert finding["text"] == "failed in ovms_kernel_started: OSError: the diary is full"


CARELESS = """
from ovms_kernel.api.services import ServiceDefinition
class Shout:
    definition = ServiceDefinition("shout", "text_generation", "/v3/shout", streaming=True)
    def __init__(self, section): pass
    async def invoke(self, call, engine): return len(call.fields["text"])["louder"]
    async def stream(self, call, engine): yield call.fields["no such field"]
"""
LEFT_EMPTY = """
class Shelf:
    def __init__(self, section): pass
    async def list_files(self, ref): return [1 / 0]
    def open(self, ref, file, start, end): pass
    alias, pace = "", None
"""


async def test_an_extension_that_breaks_is_named_with_where_to_look(
    executable: str, environment: dict[str, str], run: Any, acme: Any, tmp_path: Path
) -> None:
    offers = "[ovms.services]\nshout = acme:Shout\n[ovms.hubs]\nshelf = acme_hub:Shelf\n"
    environment["PYTHONPATH"] = acme(offers, CARELESS)
    (tmp_path / "acme_hub.py").write_text(LEFT_EMPTY)
    run("engine", "install")
    for words, told in (
        (["call", "shout", '{"text": "hi"}'], "services.shout of acme 1.0 failed (TypeError: 'int' object is not"),
        (["call", "shout", "{}", "--stream"], "services.shout of acme 1.0 failed (KeyError: 'no such field'); "),
        (["pull", "shelf:some/model"], "hubs.shelf of acme 1.0 failed (ZeroDivisionError: division by zero); "),
    ):
        [line] = run(*words, code=1).stderr.splitlines()
        assert line.startswith(f"The extension {told}")
        assert line.endswith("; --debug shows where.")
    assert 'acme.py", line 6' in run("call", "shout", '{"text": "hi"}', "--debug", code=1).stderr
    async with PluginHost([executable], environment) as host:
        answer = await host.call("InvokeService", service_name="shout", request_data=b'{"text": "hi"}')
    log = tmp_path / "data" / "logs" / "plugin.log"
    assert answer.code == 500
    said = f"The extension services.shout of acme 1.0 failed (TypeError); the log {log} has the details."
    assert answer.message == said
    assert 'acme.py", line 6' in log.read_text()


def test_a_narrow_terminal_cuts_nothing(here: Any, environment: dict[str, str]) -> None:
    environment |= {"FORCE_COLOR": "1", "COLUMNS": "40", "OVMS_PLUGIN_DISABLED": "services.speech-to-text-ws"}
    [line] = [each for each in here("extensions").stdout.splitlines() if each.startswith("services.speech-to-text-ws ")]
    name = "ovms-service-speech-to-text-ws"
    assert re.split("  +", line)[1:] == ["disabled", f"{name} {version(name)}", "by setting"]


def test_extensions_and_manifest_are_printed(here: Any, environment: dict[str, str]) -> None:
    environment["OVMS_PLUGIN_DISABLED"] = "services.embed"
    listed = {f"{each['kind']}.{each['name']}": each for each in json.loads(here("extensions", "--json").stdout)}
    assert listed["services.chat"]["state"] == "loaded"
    assert listed["services.embed"]["state"] == "disabled"
    assert "services.chat" in here("extensions").stdout
    services = {each["service_name"]: each for each in json.loads(here("manifest", "--json").stdout)["services"]}
    assert "embed" not in services
    assert here("call", "embed", code=3).stderr == "The service embed is disabled: by setting.\n"
    full = json.loads(here("manifest", "--json", "--bodies", "full").stdout)["services"]
    assert next(each for each in full if each["service_name"] == "chat")["config_ref"] == "openai:chat"
    assert here("manifest").stdout.startswith("# AOG's manifest")


PAINTER = """
from ovms_kernel.api.services import ServiceDefinition
class Paint:
    definition = ServiceDefinition("translate", "text_generation", "/v3/x", extras={"aog": {"config_ref": "acme:x"}})
    def __init__(self, section): pass
    async def invoke(self, call, engine): pass
"""


def test_a_service_with_a_template_that_aog_lacks_is_served_and_said_not_to_be_offered_to_aog(
    here: Any, acme: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(acme("[ovms.services]\ntranslate = acme:Paint\n", PAINTER))
    [found] = [each for each in json.loads(here("extensions", "--json").stdout) if each["name"] == "translate"]
    assert (found["state"], found["cause"]) == ("loaded", "not offered by aog: AOG has no template acme:x")
    assert "translate" not in here("manifest").stdout


GREETER = """
import typer
from ovms_kernel.api.commands import NotFound, say
class Greet:
    def __init__(self, section):
        self.app = typer.Typer()
        @self.app.command()
        async def greet(session, name: str) -> None:
            "Greet somebody."
            if name == "nobody":
                raise NotFound("There is nobody; name somebody.")
            say(f"Hello {name} in {session.settings.data_dir.name}.")
"""


def test_a_command_of_an_extension_is_one_of_the_program_s_commands(
    here: Any, acme: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(acme("[ovms.commands]\ngreet = acme:Greet\n", GREETER))
    assert "Greet somebody." in here("--help").stdout
    assert here("greet", "Ada", "--data-dir", str(tmp_path / "own")).stderr == "Hello Ada in own.\n"
    assert here("greet", "nobody", code=3).stderr == "There is nobody; name somebody.\n"
    assert {"commands.greet", "faces.aog"} <= {
        f"{each['kind']}.{each['name']}" for each in json.loads(here("extensions", "--json").stdout)
    }


def test_a_command_that_does_not_load_costs_only_itself(here: Any, acme: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(acme("[ovms.commands]\ngreet = acme:Greet\n", "raise RuntimeError('no good')"))
    told = here("--help")
    assert "doctor" in told.stdout
    assert "greet" not in told.stdout
    assert here("greet", code=2).stderr


def test_a_table_that_is_too_wide_does_without_what_matters_least(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    rows = [("OpenVINO/Qwen3-0.6B-int4-ov", "1.2 MB", "just now")]
    print_table(("MODEL", "SIZE", "CHANGED"), rows, spare=("CHANGED", "SIZE"))
    assert rows[0][0] in (shown := capsys.readouterr().out)
    assert "1.2 MB" not in shown
    monkeypatch.setenv("COLUMNS", "40")
    print_table(("MODEL", "SIZE", "CHANGED"), rows, spare=("CHANGED", "SIZE"))
    assert "1.2 MB" in (shown := capsys.readouterr().out)
    assert "just now" not in shown


def test_a_pipe_of_a_code_page_gets_other_marks_instead_of_question_marks(
    executable: str, environment: dict[str, str]
) -> None:
    environment |= {"PYTHONIOENCODING": "gbk", "PYTHONUTF8": "0"}
    done = subprocess.run([executable, "doctor"], env=environment, capture_output=True, check=False)
    lines = done.stdout.decode("gbk").splitlines()
    assert {line[0] for line in lines} <= {"+", "!", "x", " "}, "cp936 has → and not ✓"
    assert [line for line in lines if line.lstrip().startswith("→ ")]


def test_wide_characters_are_counted_as_a_terminal_does(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A Chinese character takes two columns, and a sentence of them has no spaces to break at."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    sentence, path = "请用一句话回答所有的问题谢谢", "/home/用户/.local/share/ovms-plugin/models"
    print_facts({"system": f"Brief: {sentence}", "path": path})
    *shown, last = capsys.readouterr().out.splitlines()
    assert all(wcswidth(line) <= 30 for line in shown)
    assert "".join(line[9:] for line in shown) == f"Brief: {sentence}"
    assert last.split() == ["path", path], "a path can be copied"
    print_table(("ALIAS", "SYSTEM"), [("助手", sentence)], clip="SYSTEM")
    assert capsys.readouterr().out.splitlines()[-1] == "助手    请用一句话回答所有的…"
