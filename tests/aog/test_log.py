"""Lines for a host: each is what go-plugin's reader takes for hclog, and none can make it panic."""

import json
import logging
import os
import re
import threading
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from ovms_kernel.log import DescriptorHandler, HclogFormatter, Log, open_file, set_level

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def line_of(level: int, message: object, *arguments: object, **more: object) -> dict[str, str]:
    record = logging.LogRecord("ovms_kernel.x", level, __file__, 1, message, arguments, None)
    record.__dict__.update(more)
    line = HclogFormatter().format(record)
    assert "\n" not in line
    assert len(line.encode()) < 60_000
    fields = json.loads(line)
    # As go-plugin's log_entry.go reads them: a type assertion each, and one layout for the time.
    assert all(isinstance(value, str) for value in fields.values())
    assert TIME.fullmatch(fields["@timestamp"])
    assert fields["@level"] in ("trace", "debug", "info", "warn", "error")
    return fields


@settings(deadline=None, database=None)
@given(st.integers(0, 60), st.text() | st.none() | st.integers() | st.just("\ud800\0\n"), st.floats(0, 4e9))
def test_any_record_is_one_line_of_hclog(level: int, message: object, created: float) -> None:
    line_of(level, message, created=created)


def test_levels_have_hclog_s_names() -> None:
    levels = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL, 5)
    assert [line_of(each, "x")["@level"] for each in levels] == ["debug", "info", "warn", "error", "error", "trace"]


def test_a_line_stays_below_the_reader_s_buffer() -> None:
    for text in ("x" * 200_000, "漢" * 60_000, "\0" * 60_000, "😀" * 30_000):
        assert line_of(logging.INFO, text)["@message"].endswith(" …")
    assert line_of(logging.INFO, "x" * 40_000)["@message"] == "x" * 40_000


def test_a_traceback_stays_in_its_line() -> None:
    try:
        raise KeyError("x")
    except KeyError as error:
        more = {"exc_info": (type(error), error, error.__traceback__)}
    assert "KeyError" in line_of(logging.ERROR, "It failed", **more)["@message"]


def test_a_host_that_is_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    handler = DescriptorHandler(writing)
    handler.emit(logging.LogRecord("x", logging.INFO, "", 1, "to nobody", (), None))
    os.close(writing)
    handler.emit(logging.LogRecord("x", logging.INFO, "", 1, "to nothing at all", (), None))
    handler.emit(logging.LogRecord("x", logging.INFO, "", 1, "%d", ("not a number",), None))


def test_the_file_has_readable_lines_and_is_kept_small(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("ovms_kernel.log.FILE_LIMIT", 20_000)
    root = logging.getLogger()
    before, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    reading, writing = os.pipe()
    said: list[dict[str, str]] = []

    def read() -> None:
        with os.fdopen(reading, "rb") as lines:
            said.extend(json.loads(line) for line in lines)

    host = threading.Thread(target=read)
    host.start()  # a pipe of Windows takes 4 KB
    try:
        log = Log(writing)
        log.add_file(tmp_path / "logs" / "plugin.log")
        set_level("DEBUG")
        logging.getLogger("ovms_kernel").info("hello %s", "漢")
        logging.getLogger("httpx").info("chatter with secrets")
        for _ in range(300):
            logging.getLogger("ovms_kernel").debug("x" * 100)
        log.close()
    finally:
        root.handlers[:], logging.raiseExceptions = before, raising
        root.setLevel(level)
        logging.captureWarnings(capture=False)
        os.close(writing)
    host.join()
    assert said[0]["@message"] == "hello 漢"
    files = sorted(each.name for each in (tmp_path / "logs").iterdir())
    assert files == ["plugin.log", "plugin.log.1", "plugin.log.2"]
    text = (tmp_path / "logs" / "plugin.log.2").read_text("utf-8")
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO    ovms_kernel: hello 漢\n", text)
    assert "chatter" not in text


def test_a_file_that_another_process_has_open_loses_no_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("ovms_kernel.log.FILE_LIMIT", 2_000)
    path = tmp_path / "plugin.log"
    handler = open_file(path)
    assert handler

    def write(count: int) -> None:
        for at in range(count):
            handler.emit(logging.LogRecord("x", logging.INFO, "", 1, f"line {at} {'x' * 60}", (), None))

    with path.open("rb"):  # Windows renames no file that is open
        write(60)
    write(60)
    handler.close()
    found = "".join(each.read_text("utf-8") for each in tmp_path.iterdir())
    assert "line 59 " in path.read_text("utf-8")
    if os.name == "nt":
        assert found.count("line 0 ") == 2
        assert len(list(tmp_path.iterdir())) > 1, "it is set aside once nobody else has it open"
