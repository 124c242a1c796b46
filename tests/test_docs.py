"""The documentation says what is the case: commands exist, examples run, settings are those of the code.

Run as a program, it writes the tables that are made from the code again.
"""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
import yaml

from ovms_cli.app import make_app, make_command
from ovms_cli.manual import manual
from ovms_face_http.clients import TEXTS
from ovms_kernel.aliases import AliasSettings
from ovms_kernel.api.commands import EXIT_CODES
from ovms_kernel.declared import settings_in
from ovms_kernel.settings import KINDS, ModelSettings, Settings
from ovms_kernel.testing.hub import FakeHub

ROOT = Path(__file__).parents[1]
DOCS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CHINESE_PAGES = ("users", "serve", "aog")
"""Pages of docs that are also there in Chinese."""
NOT_HERE = ("pull", "logs", "demo", "deploy")
"""Commands for users that need the internet or do not end; they are only parsed. The demo has tests of its own."""


def settings_tables() -> str:
    """Return the tables of all settings: the kernel's, those of a model, and those of each extension here."""
    parts = [
        _table(Settings),
        "### `models.<id>`\n",
        _table(ModelSettings),
        "### `aliases.<name>`\n",
        _table(AliasSettings),
    ]
    for group in sorted(f"ovms.{kind}" for kind in KINDS if kind != "models"):
        for each in sorted(metadata.entry_points(group=group), key=lambda each: each.name):
            if not each.dist or not each.dist.name.startswith("ovms-"):
                continue
            declared = getattr(each.load(), "settings_type", None)
            if isinstance(declared, type(Settings)):
                parts += [f"### `{group.removeprefix('ovms.')}.{each.name}`\n", _table(declared)]
    return "\n".join(parts)


def _table(struct: type[msgspec.Struct]) -> str:
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for each in settings_in(struct):
        if each.name not in ("sections", "places"):
            default = "see above" if each.name == "data_dir" else f"`{each.default}`" if each.default else ""
            assert each.help, f"{struct.__name__}.{each.name} has no docstring"
            lines.append(f"| `{each.name}` | {default} | {each.help} |")
    return "\n".join(lines) + "\n"


def commands_of(command: Any) -> dict[str, Any]:
    """Return the commands below one, by name."""
    return getattr(command, "commands", {})


def commands_table() -> str:
    """Return the table of all commands, from their own help."""
    lines = ["| command | what it does |", "|---|---|"]
    for name, command in commands_of(typer.main.get_command(make_app())).items():
        inner = commands_of(command)
        for words, each in [(f"{name} {key}", each) for key, each in inner.items()] or [(name, command)]:
            operands = [_shown_operand(operand) for operand in each.params if operand.param_type_name == "argument"]
            shown = " ".join([words, *operands]).replace("|", "\\|")
            lines.append(f"| `{shown}` | {each.help.splitlines()[0]} |")
    return "\n".join(lines) + "\n"


def _shown_operand(operand: typer.core.TyperArgument) -> str:
    name = f"{operand.metavar}{'...' if operand.nargs != 1 else ''}"
    return name if operand.required else f"[{name}]"


TABLES = {
    ROOT / "docs" / "settings.md": ("settings", settings_tables),
    ROOT / "docs" / "users.md": ("commands", commands_table),
}


def blocks(*kinds: str) -> Iterator[tuple[Path, str, str]]:
    """Yield every fenced block of these kinds, with its file."""
    for path in DOCS:
        for kind, text in BLOCK.findall(path.read_text("utf-8")):
            if kind in kinds:
                yield path, kind, text


def shell_lines(*paths: Path) -> Iterator[list[str]]:
    """Yield the words of every command line in the shell blocks of these files.

    Those on the pages for authors are run as they are, by ``authoring/test_pages.py``.
    """
    for path, _, text in blocks("sh"):
        if path in paths or (not paths and "extensions" not in (path.stem, path.parent.name)):
            for line in text.splitlines():
                if words := shlex.split(line, comments=True):
                    yield words


@pytest.mark.parametrize("path", TABLES, ids=lambda each: each.name)
def test_a_table_says_what_the_code_says(path: Path) -> None:
    assert TABLES[path][1]() in path.read_text("utf-8"), "run `python dev.py make` to write it again"


def test_the_manual_page_says_what_help_says() -> None:
    page = ROOT / "extensions" / "cli" / "ovms-plugin.1"
    assert manual(make_command()) == page.read_text("utf-8"), "run `python dev.py make` to write it again"


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_the_manual_page_is_set_without_a_warning() -> None:
    page = ROOT / "extensions" / "cli" / "ovms-plugin.1"
    done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", page], capture_output=True, text=True, check=True)
    assert not done.stderr
    assert "transcribe [FILE]" in re.sub(".\b", "", done.stdout), "bold is written as a letter over itself"


@pytest.mark.parametrize("client", TEXTS)
def test_how_to_connect_a_program_is_what_the_command_prints(client: str) -> None:
    text = TEXTS[client].format(url="http://127.0.0.1:16680", key="KEY", chat="OWNER/NAME")
    assert f"\n{text}\n```" in (ROOT / "docs" / "serve.md").read_text("utf-8")


def test_every_exit_code_is_explained() -> None:
    table = (ROOT / "docs" / "users.md").read_text("utf-8").partition("## Exit codes")[2]
    assert {0, 1, *EXIT_CODES.values()} == {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}


@pytest.mark.parametrize("path", DOCS, ids=lambda each: each.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text("utf-8")):
        assert "://" in target or (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_tests_that_tables_of_faults_name_are_there() -> None:
    named, folder = 0, ""
    for line in (ROOT / "docs" / "reliability.md").read_text("utf-8").splitlines():
        if head := re.search(r"\| test(?: in `(tests/\w+/)`)? \|$", line):
            folder = head[1] or ""
        for file, several, one in re.findall(r"`([\w/]*test_\w+\.py)(?: -k (?:\"([^\"]+)\"|(\w+)))?`", line):
            found = next(
                path for path in (ROOT / folder / file, ROOT / file, *ROOT.glob(f"tests/*/{file}")) if path.is_file()
            )
            for word in re.split(" or ", several or one):
                assert word in found.read_text("utf-8"), f"{file} has no test for {word!r}"
                named += 1
    assert named > 50


def test_every_row_of_what_the_newest_ovms_has_names_tests_that_are_there() -> None:
    page = (ROOT / "docs" / "engine.md").read_text("utf-8")
    table = page.partition("\n## What OVMS 2026")[2].partition("\n## ")[0]
    head, *rows = re.findall(r"^\|.*\|$", table, re.MULTILINE)
    assert head.endswith("| shown by |")
    for row in rows[1:]:
        named = re.findall(r"`(tests/\w+/)?(test_\w+\.py)(?: -k (\w+))?`", row.rpartition(" | ")[2])
        assert named, f"no test shows this: {row}"
        folder = ""
        for place, file, word in named:
            folder = place or folder  # of the file before
            tests = (ROOT / folder / file).read_text("utf-8")
            assert re.search(rf"^(async )?def test_\w*{word}", tests, re.MULTILINE), row
    assert len(rows) > 12


def test_blocks_of_data_and_python_are_well_formed() -> None:
    readers: dict[str, Any] = {"yaml": yaml.safe_load, "json": json.loads, "python": ast.parse}
    for path, kind, text in blocks(*readers):
        try:
            readers[kind](text)
        except (ValueError, SyntaxError, yaml.YAMLError) as error:
            raise AssertionError(f"{path.name} has a {kind} block that is none: {error}\n{text}") from error


def dev_commands() -> set[str]:
    """Return the words that `python3 dev.py` knows, by its own help."""
    help_text = subprocess.run([sys.executable, "dev.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^python3 dev\.py (\w+)", help_text, re.MULTILINE))


def test_every_command_line_has_words_that_the_program_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    program, development, seen = typer.main.get_command(make_app()), dev_commands(), 0
    for line in shell_lines():
        if words := line[line.index("ovms-plugin") + 1 :] if "ovms-plugin" in line else []:
            command: Any = program
            while words and hasattr(command, "commands"):
                command, words = command.commands[words[0]], words[1:]
            # Parses everything and runs nothing, and reads nothing from stdin.
            command.make_context(command.name, [each for each in words if each not in ("|", "&", "-")])
            seen += 1
        elif "dev.py" in line:
            assert line[line.index("dev.py") + 1] in development
    assert seen > 5


def test_the_commands_for_users_run(
    tmp_path: Path, fixtures: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from tests.cli.conftest import run_here  # not at the top, as this file is also run as a program

    monkeypatch.chdir(tmp_path)
    environment = os.environ | {
        "OVMS_PLUGIN_DATA_DIR": str(tmp_path / "data"),
        "OVMS_PLUGIN_PLATFORM": "portable",
        "OVMS_PLUGIN_FACES__HTTP__PORT": "0",
    }
    executable = str(Path(sys.executable).with_name("ovms-plugin"))
    shutil.copytree(fixtures / "text_generation", tmp_path / "my-model")
    (tmp_path / "request.json").write_text(
        '{"model": "tiny/chat", "messages": [{"role": "user", "content": "What is OpenVINO?"}]}'
    )

    def call(words: list[str]) -> str:
        capfd.readouterr()
        ended = run_here(words, environment)
        told, errors = capfd.readouterr()
        assert ended == 0, f"{words}: {errors}"
        return told

    def pipe(text: str, words: list[str]) -> str:
        done = subprocess.run(
            [executable, *words], check=True, env=environment, input=text, capture_output=True, text=True, timeout=60
        )
        return done.stdout

    call(["import", str(fixtures / "embeddings"), "tiny/embeddings"])
    call(["import", str(fixtures / "text_generation"), "tiny/chat"])
    ran, stays = [], None
    try:
        for words in shell_lines(ROOT / "docs" / "users.md"):
            if words == ["ovms-plugin", "serve"]:
                stays = subprocess.Popen([executable, "serve"], env=environment, stderr=subprocess.PIPE, text=True)
                assert stays.stderr
                assert any("is ready at" in line for line in stays.stderr)
            elif words[0] == "echo":
                assert words[2:4] == ["|", "ovms-plugin"]
                ran.append(pipe(words[1], words[4:]))
            elif words[0] == "ovms-plugin" and words[1] not in NOT_HERE:
                ran.append(call(words[1:]))
    finally:
        if stays:
            stays.terminate()
            stays.communicate()
    assert any("toolkit for running AI models" in each for each in ran)
    assert sum("embedding" in each for each in ran) >= 2


UNTOLD = re.compile(r"^(Extension \S+ of \S+ takes|\S+: (downloading|verifying|success)|How \S+ makes one vector)")
"""Lines that depend on how busy the machine is, or on the tiny model that stands in for the one that is named."""


def test_the_tour_in_the_readme_prints_what_it_shows(tmp_path: Path) -> None:
    def plain(text: str) -> list[str]:
        text = text.replace(str(tmp_path), "~").replace("2 minutes ago", "1 minute ago")
        text = re.sub(r"sk-ovms-\S+", "sk-ovms-…", text)
        text = re.sub(r"\d[\d.]*( [kM]?B| bytes)?", "N", re.sub(r"just now|\d+ minutes? ago", "ago", text))
        return [" ".join(line.split()) for line in text.splitlines() if line and not UNTOLD.match(line)]

    from tests import tour  # not at the top, as this file is also run as a program

    executable = str(Path(sys.executable).with_name("ovms-plugin"))
    steps = tour.blocks()
    assert len(steps) == 3
    with FakeHub() as hub:
        environment = tour.environment_of(tmp_path, hub)
        try:
            for typed, shown in steps:
                told = ""
                for line in typed.splitlines():
                    told += subprocess.run(
                        [executable, *shlex.split(line)[1:]],
                        check=True,
                        env=environment,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                        encoding="utf-8",
                        timeout=60,
                    ).stdout
                assert plain(told) == plain(shown)
        finally:
            subprocess.run([executable, "stop"], check=True, env=environment, capture_output=True)


@pytest.mark.needs_posix
def test_the_recording_shows_the_tour_as_a_terminal_does() -> None:
    from tests import tour

    def plain(lines: list[str]) -> list[str]:
        text = re.sub(r"just now|\d+ minutes? ago", "ago", "\n".join(lines))
        return [" ".join(each.split()) for each in re.sub(r"\d[\d.]*( [kM]?B| bytes)?", "N", text).splitlines()]

    recorded = tour.lines_of(tour.RECORDING.read_text("utf-8"))
    assert [each.removeprefix("$ ") for each in recorded if each.startswith("$ ")] == [
        line for typed, _ in tour.blocks() for line in typed.splitlines()
    ]
    assert plain(recorded) == plain(tour.record()), "`python -m tests.tour` records it again"


CHINESE = {"README.md": "README.zh-CN.md"} | {f"docs/{name}.md": f"docs/zh/{name}.md" for name in CHINESE_PAGES}
"""Pages by those that they are translated from."""


@pytest.mark.parametrize("page", CHINESE)
def test_a_chinese_page_shows_the_same_commands_and_output(page: str) -> None:
    def shown(path: Path) -> list[str]:
        lines = [line for _, text in BLOCK.findall(path.read_text("utf-8")) for line in text.splitlines()]
        return [line.partition("#")[0].rstrip() for line in lines]

    assert shown(ROOT / CHINESE[page]) == shown(ROOT / page), "`python dev.py make` copies the blocks of docs"


def test_the_chinese_page_explains_the_same_exit_codes() -> None:
    codes = [
        re.findall(r"^\| (\d+) \|", (ROOT / page).read_text("utf-8"), re.MULTILINE)
        for page in ("docs/users.md", "docs/zh/users.md")
    ]
    assert codes[0] == codes[1]


def copy_blocks(source: Path, to: Path) -> None:
    """Put the fenced blocks of a page into its translation, one after another."""
    fenced = re.compile(r"^```\w+\n.*?^```$", re.MULTILINE | re.DOTALL)
    blocks_of = iter(fenced.findall(source.read_text("utf-8")))
    text = to.read_text("utf-8")
    to.write_text(fenced.sub(lambda old: next(blocks_of, old.group()), text), "utf-8")


if __name__ == "__main__":
    for path, (name, table) in TABLES.items():
        begin, end = f"<!-- {name} -->\n", "<!-- end -->\n"
        before, _, rest = path.read_text("utf-8").partition(begin)
        path.write_text(before + begin + "\n" + table() + "\n" + end + rest.partition(end)[2], "utf-8")
    for name in CHINESE_PAGES:
        copy_blocks(ROOT / "docs" / f"{name}.md", ROOT / "docs" / "zh" / f"{name}.md")
