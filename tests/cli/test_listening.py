"""``transcribe --live``: sentences from a pipe, and from a microphone that a module of the test's own plays."""

import signal
import subprocess
import wave
from pathlib import Path
from typing import Any

import pytest

SILENCE = bytes(2 * 16000)
MICROPHONE = """
import threading, pathlib
class PortAudioError(Exception): pass
class RawInputStream:
    def __init__(self, samplerate, channels, dtype, blocksize, callback):
        assert (samplerate, channels, dtype) == (16000, 1, "int16")
        self.size, self.callback, self.ended = 2 * blocksize, callback, threading.Event()
    def __enter__(self):
        threading.Thread(target=self.play, daemon=True).start()
    def __exit__(self, *_): self.ended.set()
    def play(self):
        sound = pathlib.Path(__file__).with_name("heard.pcm").read_bytes()
        for at in range(0, len(sound), self.size):
            self.callback(sound[at:at + self.size], self.size // 2, None, None)
        while not self.ended.wait(0.1):
            self.callback(bytes(self.size), self.size // 2, None, None)
"""


@pytest.fixture
def spoken(fixtures: Path) -> bytes:
    with wave.open(str(fixtures / "speech_to_text_samples" / "en_one_two_three.wav")) as file:
        return file.readframes(file.getnframes()) + SILENCE


@pytest.mark.needs_inference
def test_what_is_piped_is_written_sentence_by_sentence(
    run: Any, executable: str, environment: dict[str, str], fixtures: Path, spoken: bytes
) -> None:
    run("import", str(fixtures / "speech_to_text"), "tiny/listener")
    words = [executable, "transcribe", "--live", "-"]
    done = subprocess.run(words, input=spoken, env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().split() == ["one", "two", "three", "stop"]
    assert b"Traceback" not in done.stderr
    broken = b"OggS" + bytes(1000)
    done = subprocess.run(words, input=broken, env=environment, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"The audio cannot be decoded; send" in done.stderr


@pytest.mark.needs_posix  # sends Ctrl-C to a process
def test_a_microphone_is_heard_until_ctrl_c(
    run: Any, executable: str, environment: dict[str, str], fixtures: Path, spoken: bytes, tmp_path: Path
) -> None:
    run("import", str(fixtures / "speech_to_text"), "tiny/listener")
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "sounddevice.py").write_text(MICROPHONE)
    (modules / "heard.pcm").write_bytes(spoken)
    process = subprocess.Popen(
        [executable, "transcribe", "--live"],
        env=environment | {"PYTHONPATH": str(modules)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    heard = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert (heard + rest).split() == ["one", "two", "three", "stop"]


def test_without_what_reads_a_microphone_it_says_how_to_install_it(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sounddevice", None)
    told = here("transcribe", "--live", code=7).stderr
    assert "pip install 'ovms-cli[microphone]'" in told
    assert "transcribe --live -" in told
    assert "Name a recording" in here("transcribe", code=2).stderr
    assert "takes no file" in here("transcribe", "--live", "a.wav", code=2).stderr
