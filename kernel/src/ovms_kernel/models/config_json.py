"""The engine's ``config.json``: read, changed and replaced under one OS lock, so that no process loses another's entry.

Every write differs from the one before in at least one byte, because OVMS only looks at anything (a changed
``graph.pbtxt``, an entry that failed) when the bytes of this file have changed. The byte is a blank
at the end: the schema forbids keys of our own. For the same reason the names that we wrote are noted in a file beside
it; every other entry is a user's and stays as it is.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import msgspec

from ovms_kernel.file_watch import FileWatch
from ovms_kernel.files import disk_errors, locked, patiently, read_json, rename, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ovms_kernel.file_watch import Signature

log = logging.getLogger(__name__)

BLANKS = 16


class Entry(msgspec.Struct, frozen=True):
    """One servable of the file."""

    folder: str
    """``base_path``, as it is written."""
    by_hand: bool
    """A user wrote it, or added something to it such as ``group_name``."""


class ConfigFile:
    """One ``config.json``; the entries that we write are name and folder.

    :param known: name and folder of what is served, for making the file anew if it was damaged.
    """

    def __init__(self, path: Path, known: Callable[[], Mapping[str, Path]] = dict) -> None:
        self.path = path
        self._known = known
        self._lock = path.with_name(".config.lock")
        self._note = path.with_name(".config.written.json")
        self._file = FileWatch(path)
        self._seen: Signature = None

    async def prepare(self) -> None:
        """Make the file if there is none, and set a damaged one aside."""
        await self._change(lambda _: False)

    def was_changed(self) -> bool:
        """Tell whether somebody else has written the file since it was last written or asked for here."""
        seen, self._seen = self._seen, self._file.glance()
        return seen != self._seen

    async def entries(self) -> dict[str, Entry]:
        """Return every entry by name, in the order in which the engine loads them.

        A damaged file counts as what it is about to be made anew of.
        """
        known = {name: Entry(folder.absolute().as_posix(), by_hand=False) for name, folder in self._known().items()}

        def work() -> dict[str, Entry]:
            try:
                configs = _configs(_parse(patiently(self.path.read_bytes)))
            except FileNotFoundError:
                return {}
            except ValueError:
                return known
            written = self._written()
            return {
                str(each.get("name")): Entry(str(each.get("base_path", "")), not self._is_ours(each, written))
                for each in configs
            }

        # Another process writes its note and the file one after the other; between them, ours would look like a user's.
        async with locked(self._lock):
            return await anyio.to_thread.run_sync(work)

    async def put(self, name: str, folder: Path) -> None:
        """Add an entry at the end, where a failure cannot hide others; one of that name is moved there as it is."""

        def change(root: dict[str, Any]) -> bool:
            entries = root["model_config_list"]
            found = [each for each in entries if _is_called(each, name)]
            kept = [each for each in entries if not _is_called(each, name)]
            for each in found:
                each["config"]["base_path"] = _entry(name, folder)["config"]["base_path"]
            root["model_config_list"] = kept + (found or [_entry(name, folder)])
            if not found:
                self._note_written(self._written_or_all(root) | {name})
            return True

        await self._change(change)

    async def strip(self) -> list[str]:
        """Remove every entry that we wrote and return their names; users' entries stay."""
        gone: list[str] = []

        def change(root: dict[str, Any]) -> bool:
            written = self._written()
            gone.extend(str(each.get("name")) for each in _configs(root) if self._is_ours(each, written))
            for name in gone:
                _take(root, name)
            self._note_written(set())
            return bool(gone)

        await self._change(change)
        return gone

    async def take(self, *names: str) -> bool:
        """Remove entries; return whether there was one. The bytes change in any case."""
        found = False

        def change(root: dict[str, Any]) -> bool:
            nonlocal found
            for name in names:
                found |= _take(root, name)
            self._note_written(self._written_or_all(root) - set(names))
            return True

        await self._change(change)
        return found

    async def _change(self, change: Callable[[dict[str, Any]], bool]) -> None:
        known = dict(self._known())

        def work() -> None:
            root, blanks = self._read()
            fresh = root is None
            if root is None:
                self._note_written(set(known))
                root = {"model_config_list": [_entry(name, folder) for name, folder in known.items()]}
            if change(root) or fresh:
                text = json.dumps(root, ensure_ascii=False, indent=1)
                write_atomically(self.path, (text + " " * ((blanks + 1) % BLANKS) + "\n").encode())
                self._seen = self._file.look()

        with disk_errors("Changing what the engine serves"):
            async with locked(self._lock):
                await anyio.to_thread.run_sync(work)

    def _written(self) -> set[str] | None:
        """Return the names that we wrote; ``None`` if nothing is noted, as in a folder of an earlier version."""
        names = (read_json(self._note) or {}).get("names")
        return {str(each) for each in names} if isinstance(names, list) else None

    def _written_or_all(self, root: dict[str, Any]) -> set[str]:
        written = self._written()
        if written is not None:
            return written
        return {str(each.get("name")) for each in _configs(root) if self._is_ours(each, None)}

    def _note_written(self, names: set[str]) -> None:
        """Note what we write, before it is written: after a crash in between, a name without an entry does no harm."""
        if names != self._written():
            write_atomically(self._note, json.dumps({"names": sorted(names)}).encode())

    def _is_ours(self, entry: dict[str, Any], written: set[str] | None) -> bool:
        ours = self.path.parent.absolute().as_posix() + "/"
        plain = set(entry) <= {"name", "base_path"} and str(entry.get("base_path", "")).startswith(ours)
        return plain and (written is None or str(entry.get("name")) in written)

    def _read(self) -> tuple[dict[str, Any] | None, int]:
        """Return the content and how many blanks end it; what cannot be used is set aside."""
        try:
            data = patiently(self.path.read_bytes)
        except FileNotFoundError:
            return None, 0
        try:
            root = _parse(data)
        except ValueError as error:
            aside = self.path.with_name(f"{self.path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}")
            rename(self.path, aside)
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


def _is_called(entry: object, name: str) -> bool:
    return isinstance(entry, dict) and (entry.get("config") or {}).get("name") == name


def _take(root: dict[str, Any], name: str) -> bool:
    """Remove the entries of that name, and nothing that a user added beside them."""
    before = root["model_config_list"]
    root["model_config_list"] = [each for each in before if not _is_called(each, name)]
    return len(root["model_config_list"]) != len(before)
