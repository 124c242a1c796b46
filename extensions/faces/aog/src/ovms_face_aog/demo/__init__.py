"""``ovms-plugin demo``: the whole way through, with this command in the part of the host.

The plugin is started as AOG starts it and asked what AOG asks, in AOG's order. Everything happens in a temporary
folder, and what is left of it at the end is looked for, not assumed.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from ovms_face_aog.demo.story import CHAT, EMBED, tell
from ovms_kernel.api.commands import NotFound, OvmsError, Session, say

FOLDERS = {CHAT: "text_generation", EMBED: "embeddings"}
"""The tiny models' folders among the fixtures, by the id they are given here."""
LOG_LINES = 15
"""How many of a log's last lines are shown when the demo fails."""


@dataclass(frozen=True)
class Place:
    """Where a demo happens."""

    own: Path
    """A folder of this run alone, gone afterwards."""
    data: Path
    """The plugin's data folder."""

    @property
    def temporary(self) -> Path:
        """What the plugin is told to be the folder for temporary files, so that what it leaves there is seen."""
        return self.own / "tmp"

    def environment(self) -> dict[str, str]:
        """Return ours, with this place in it; a platform that is set stays."""
        folders = dict.fromkeys(("TMPDIR", "TMP", "TEMP"), str(self.temporary))
        platform = os.environ.get("OVMS_PLUGIN_PLATFORM", "portable")
        return os.environ | folders | {"OVMS_PLUGIN_DATA_DIR": str(self.data), "OVMS_PLUGIN_PLATFORM": platform}


async def run(session: Session, models: Path | None) -> None:
    """Play the demo.

    :param models: folder of the tiny models; ``None`` means in the clone that this program runs from.
    """
    from ovms_face_aog.demo.steps import Steps
    from ovms_face_aog.demo.traces import Traces

    sources, executable = find_models(models), find_executable()
    session.kept = "Interrupted; all that was started is stopped, and the temporary folder is gone."
    steps = Steps()
    with _place(session) as place:
        traces = Traces(place.own)
        steps.line(f"What AOG does with this plugin, done by hand in {place.data}", "bold")
        steps.line()
        try:
            await tell(steps, traces, place, sources, executable)
            with steps.step("nothing is left") as step:
                left = [*traces.left(), *(f"file {each}" for each in place.temporary.rglob("*"))]
                if left:
                    raise OvmsError(f"The demo worked, but something is left of it: {', '.join(left)}.")
                step.note = "no process, no port, no temporary file"
        except OvmsError:
            _show_logs(place)
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(traces.end)
    if place.own.exists():
        raise OvmsError(f"The demo worked, but its folder {place.own} could not be removed; remove it by hand.")
    steps.line()
    steps.line(f"Done in {steps.seconds:.1f} s.", "bold")
    steps.line("Next: `ovms-plugin run OpenVINO/Qwen3-0.6B-int4-ov` talks to a model, `ovms-plugin serve` offers all.")
    if session.data_dir_given:
        say(f"Models and engine are kept in {place.data}.")


@contextmanager
def _place(session: Session) -> Iterator[Place]:
    # Short, because the path of a Unix socket in it must be.
    own = Path(tempfile.mkdtemp(prefix="ovms-"))
    try:
        place = Place(own, session.settings.data_dir if session.data_dir_given else own / "data")
        place.temporary.mkdir()
        yield place
    finally:
        shutil.rmtree(own, ignore_errors=True)


def find_models(folder: Path | None) -> dict[str, Path]:
    """Return the tiny models' folders by the id they are to have.

    :param folder: where they are; ``None`` means in the clone that this program runs from.
    """
    root = folder or Path(__file__).absolute().parents[6] / "tests" / "fixtures"
    found = {model: root / name for model, name in FOLDERS.items()}
    if not all(each.is_dir() for each in found.values()):
        what = f"{root} does not hold" if folder else "The demo needs"
        raise NotFound(
            f"{what} the two tiny models text_generation and embeddings, which are in tests/fixtures of the source; "
            "name that folder with --models DIR."
        )
    return found


def find_executable() -> Path:
    """Return the plugin's executable: this very program as it is installed."""
    name = "ovms-plugin" + (".exe" if os.name == "nt" else "")
    beside = Path(sys.executable).with_name(name)
    found = beside if beside.exists() else shutil.which(name)
    if not found:
        raise NotFound(f"The program {name} is not installed beside {sys.executable}; install ovms-plugin with pip.")
    return Path(found)


def _show_logs(place: Place) -> None:
    for path in sorted((place.data / "logs").glob("*.log")):
        lines = path.read_text("utf-8", "replace").splitlines()[-LOG_LINES:]
        if lines:
            say(f"\nThe end of {path}:")
            for line in lines:
                say(f"  {line}")
    say("")
