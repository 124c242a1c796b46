"""The engine's ``config.json``: read, changed and replaced under one OS lock, so that no process loses another's entry.

Every write differs from the one before in at least one byte, because OVMS only looks at anything (a changed
``graph.pbtxt``, an entry that failed) when the bytes of this file have changed (spec/ovms.md C.6). The byte is a blank
at the end: the schema forbids keys of our own.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from ovms_kernel.files import locked, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

log = logging.getLogger(__name__)

BLANKS = 16


class ConfigFile:
    """One ``config.json``; its graph entries are name and folder.

    :param known: name and folder of what is served, for making the file anew if it was damaged.
    """

    def __init__(self, path: Path, known: Callable[[], Mapping[str, Path]] = dict) -> None:
        self.path = path
        self._known = known
        self._lock = path.with_name(".config.lock")
        self._seen: tuple[int, int] | None = None

    async def prepare(self) -> None:
        """Make the file if there is none, and set a damaged one aside."""
        await self._change(lambda _: False)

    def was_changed(self) -> bool:
        """Tell whether somebody else has written the file since it was last written or asked for here."""
        seen, self._seen = self._seen, self._look()
        return seen != self._seen

    async def entries(self) -> dict[str, str]:
        """Return name and folder of every entry, in the order in which the engine loads them."""

        def work() -> dict[str, str]:
            try:
                return _entries(_parse(self.path.read_bytes()))
            except (FileNotFoundError, ValueError):
                return {}

        return await anyio.to_thread.run_sync(work)

    async def put(self, name: str, folder: Path) -> None:
        """Add an entry at the end, where a failure cannot hide others, or replace the one of that name."""

        def change(root: dict[str, Any]) -> bool:
            _take(root, name)
            root["model_config_list"].append(_entry(name, folder))
            return True

        await self._change(change)

    async def take(self, *names: str) -> bool:
        """Remove entries; return whether there was one. The bytes change in any case."""
        found = False

        def change(root: dict[str, Any]) -> bool:
            nonlocal found
            for name in names:
                found |= _take(root, name)
            return True

        await self._change(change)
        return found

    async def _change(self, change: Callable[[dict[str, Any]], bool]) -> None:
        known = dict(self._known())

        def work() -> None:
            root, blanks = self._read()
            fresh = root is None
            if root is None:
                root = {"model_config_list": [_entry(name, folder) for name, folder in known.items()]}
            if change(root) or fresh:
                text = json.dumps(root, ensure_ascii=False, indent=1)
                write_atomically(self.path, (text + " " * ((blanks + 1) % BLANKS) + "\n").encode())
                self._seen = self._look()

        async with locked(self._lock):
            await anyio.to_thread.run_sync(work)

    def _look(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def _read(self) -> tuple[dict[str, Any] | None, int]:
        """Return the content and how many blanks end it; what cannot be used is set aside."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None, 0
        try:
            root = _parse(data)
        except ValueError as error:
            aside = self.path.with_name(f"{self.path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}")
            self.path.replace(aside)
            log.error("%s is damaged (%s); it was set aside as %s and made anew", self.path, error, aside.name)
            return None, 0
        body = data.rstrip(b"\n")
        return root, len(body) - len(body.rstrip(b" "))


def _parse(data: bytes) -> dict[str, Any]:
    root = json.loads(data)
    if not isinstance(root, dict) or not isinstance(root.get("model_config_list"), list):
        raise ValueError("it has no model_config_list")
    return root


def _entry(name: str, folder: Path) -> dict[str, Any]:
    return {"config": {"name": name, "base_path": folder.absolute().as_posix()}}


def _configs(root: dict[str, Any]) -> list[dict[str, Any]]:
    wrapped = (each.get("config") for each in root["model_config_list"] if isinstance(each, dict))
    return [each for each in wrapped if isinstance(each, dict)]


def _entries(root: dict[str, Any]) -> dict[str, str]:
    return {str(each.get("name")): str(each.get("base_path", "")) for each in _configs(root)}


def _take(root: dict[str, Any], name: str) -> bool:
    """Remove the entries of that name, and nothing that a user added beside them."""
    before = root["model_config_list"]
    after = [each for each in before if not (isinstance(each, dict) and (each.get("config") or {}).get("name") == name)]
    root["model_config_list"] = after
    return len(after) != len(before)
