"""Records README's five minutes at a real terminal: ``python -m tests.tour`` writes docs/tour.svg again.

Tiny models stand in for those that are named, so sizes and times are theirs.
"""

import html
import itertools
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ovms_kernel.testing.hub import FakeHub

ROOT = Path(__file__).parents[1]
RECORDING = ROOT / "docs" / "tour.svg"
FIXTURES = ROOT / "tests" / "fixtures"
COLUMNS = 100
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MODELS = {
    "OpenVINO/Qwen3-0.6B-int4-ov": "text_generation",
    "OpenVINO/Qwen3-Embedding-0.6B-int8-ov": "embeddings",
}
"""The models of the tour, and what stands in for each."""
LINE, CHARACTER, MARGIN = 19, 8.43, 16
"""Pixels of the picture."""
BUSY = re.compile(r"^Extension \S+ of \S+")
"""What a busy machine adds."""


def blocks() -> list[tuple[str, str]]:
    """Return what README has people type and what it says is shown, one pair for each step."""
    found = BLOCK.findall((ROOT / "README.md").read_text("utf-8"))
    pairs = itertools.pairwise(found)
    return [(typed, shown) for (kind, typed), (next_, shown) in pairs if (kind, next_) == ("sh", "text")]


def environment_of(folder: Path, hub: FakeHub) -> dict[str, str]:
    """Return the environment of somebody who has nothing yet, with a hub that has the models of the tour."""
    for name, kind in MODELS.items():
        stand_in = folder / "hub" / kind
        shutil.copytree(FIXTURES / kind, stand_in)
        # As the model that is named has it; without, the pull says that it had to guess.
        (stand_in / "1_Pooling").mkdir()
        (stand_in / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
        hub.add(name, stand_in)
    # The size of another terminal is not that of this one.
    left_out = ("OVMS_PLUGIN_", "COLUMNS", "LINES")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    return kept | {
        "HOME": str(folder),
        "XDG_DATA_HOME": str(folder / ".local" / "share"),
        "OVMS_PLUGIN_PLATFORM": "portable",
        "OVMS_PLUGIN_HUBS__MODELSCOPE__ENDPOINT": hub.url,
        "OVMS_PLUGIN_FACES__HTTP__PORT": "0",
        "OVMS_PLUGIN_REST_PORT": str(_free_port()),
        "OVMS_PLUGIN_GRPC_PORT": str(_free_port()),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def record() -> list[str]:
    """Type the tour's commands at a terminal and return the lines that it shows, those typed begin with ``$``."""
    # A short name, as paths in it are broken as those of a person's home are.
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        return _recorded(Path(name))


def _recorded(folder: Path) -> list[str]:
    from tests.cli.terminal import Terminal  # which Windows lacks

    executable = str(Path(sys.executable).with_name("ovms-plugin"))
    lines: list[str] = []
    with FakeHub() as hub:
        environment = environment_of(folder, hub) | {"NO_COLOR": "1", "TERM": "xterm-256color"}
        try:
            for command in (each for typed, _ in blocks() for each in typed.splitlines()):
                words = [executable, *shlex.split(command)[1:]]
                with Terminal(words, environment, folder=folder, columns=COLUMNS) as terminal:
                    code, shown = terminal.code(), terminal.shown()
                assert code == 0, f"{command} ended with {code}:\n{shown}"
                told = [each for each in shown.replace(str(folder), "~").splitlines() if not BUSY.match(each)]
                lines += [f"$ {command}", *told]
        finally:
            subprocess.run([executable, "stop"], env=environment, check=False, capture_output=True)
    return [re.sub(r"sk-ovms-\S+", "sk-ovms-…", each) for each in lines]


def picture(lines: list[str]) -> str:
    """Return the lines as an SVG."""
    width, height = round(COLUMNS * CHARACTER) + 2 * MARGIN, len(lines) * LINE + 2 * MARGIN
    return "\n".join(["", *_drawn(lines, width, height), ""]).lstrip()


def _drawn(lines: list[str], width: int, height: int) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-size="14" '
        'font-family="ui-monospace, Consolas, Menlo, monospace">'
    )
    yield f'<rect width="{width}" height="{height}" rx="8" fill="#1d2430"/>'
    for number, line in enumerate(lines):
        color = "#7ee0a8" if line.startswith("$ ") else "#d8dee9"
        place = MARGIN + (number + 1) * LINE - 5
        yield f'<text x="{MARGIN}" y="{place}" fill="{color}" xml:space="preserve">{html.escape(line)}</text>'
    yield "</svg>"


def lines_of(svg: str) -> list[str]:
    """Return the lines that a picture shows."""
    return [html.unescape(each) for each in re.findall(r"<text [^>]*>(.*?)</text>", svg)]


def main() -> None:
    """Write the recording again."""
    RECORDING.write_text(picture(record()), "utf-8")


if __name__ == "__main__":
    main()
