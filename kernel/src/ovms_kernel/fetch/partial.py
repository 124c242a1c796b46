"""One file that is being fetched in parts: its bytes, and beside them how many of each part there are."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO

from ovms_kernel.files import patiently, rename, size_of, sync

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ovms_kernel.values import RemoteFile

PARTIAL = ".partial"
"""Folder in which files grow, beside the complete ones."""
HEADER = struct.Struct("<32sQ")
"""Digest of path, size and SHA-256 of the file, and the size of its parts."""
COUNT = struct.Struct("<Q")
HASH_STEPS = 64
"""Pieces of one file that are hashed before it is another file's turn."""


class Partial:
    """A file on its way. ``counts`` holds the bytes that each part has, from its start without a gap.

    Each part is changed by one thread at a time; the hash belongs to one thread. Counts are noted right after the bytes
    are written, so that a kill costs no more than what was on its way.

    :param version: of the file on its server where no digest is known, such as an ETag.
    """

    def __init__(self, remote: RemoteFile, into: Path, part_size: int, version: str) -> None:
        self.remote = remote
        self.done = False
        self.hashed = 0
        self.resets = 0
        self.whole = threading.Lock()
        """Held by the download that takes the whole file from a server that knows no ranges."""
        self._target = into / remote.path
        identity = f"{remote.path}\0{remote.size}\0{remote.sha256 or version}"
        self._identity = hashlib.sha256(identity.encode()).digest()
        key = hashlib.sha256(remote.path.encode()).hexdigest()[:24]
        self._data = into / PARTIAL / f"{key}.data"
        self._journal = into / PARTIAL / f"{key}.journal"
        self._digest = hashlib.sha256()
        self._notes: BinaryIO | None = None
        self._lock = threading.Lock()
        self._divide(part_size)

    def start(self, index: int) -> int:
        """Return the first byte of a part."""
        return index * self.part_size

    def length(self, index: int) -> int:
        """Return the bytes that a part is to have."""
        return min(self.part_size, self.remote.size - self.start(index))

    @property
    def completed(self) -> int:
        """Bytes that are here."""
        return self.remote.size if self.done else sum(self.counts)

    def look(self) -> None:
        """See what is there: the whole file, some of it, or nothing."""
        if size_of(self._target) == self.remote.size:
            self.done = True
        elif size_of(self._data) == self.remote.size:
            self._read_journal()

    def open(self) -> None:
        """Get ready to fetch what is missing; nothing happens if it is."""
        with self._lock:
            if self._notes is not None or self.done:
                return
            self._data.parent.mkdir(parents=True, exist_ok=True)
            if size_of(self._data) != self.remote.size:
                with self._data.open("wb") as data:
                    data.truncate(self.remote.size)
            if not any(self.counts):
                self._journal.write_bytes(HEADER.pack(self._identity, self.part_size) + bytes(COUNT.size * self.parts))
            self._notes = self._journal.open("r+b", buffering=0)

    def open_data(self) -> BinaryIO:
        """Return the growing file for writing, with a position of its own."""
        return self._data.open("r+b", buffering=0)

    def add(self, index: int, piece: bytes) -> None:
        """Count bytes that were written to a part."""
        count = min(self.counts[index] + len(piece), self.length(index))
        self._note(index, count)
        # Last: once the last part is counted, the thread that hashes may finish the file and close its journal.
        self.counts[index] = count
        if count == self.length(index) and self.completed == self.remote.size:
            self.close()

    def hash_some(self, buffer: memoryview) -> bool:
        """Hash the next bytes, if they are here; return whether there is anything to do with the file now."""
        gap = self._first_gap()
        if self.hashed == gap:
            return gap == self.remote.size
        # Opened anew each time: many files may wait for their hash, and a process may open a few hundred.
        with self._data.open("rb", buffering=0) as reader:
            reader.seek(self.hashed)
            for _ in range(HASH_STEPS):
                count = reader.readinto(buffer[: gap - self.hashed])
                self._digest.update(buffer[:count])
                self.hashed += count
                if self.hashed == gap:
                    break
        return True

    def finish(self) -> bool:
        """Put the complete file in its place; return whether its digest is right."""
        if self.remote.sha256 and self._digest.hexdigest() != self.remote.sha256.lower():
            return False
        self.close()
        sync(self._data)  # first: the next pull after a power cut takes a file under its own name for complete
        self._target.parent.mkdir(parents=True, exist_ok=True)
        rename(self._data, self._target)
        patiently(lambda: self._journal.unlink(missing_ok=True))  # another process may read how far it is
        self.done = True
        return True

    def reset(self) -> None:
        """Forget everything that is here of the file."""
        self.open()
        self.resets += 1
        self.hashed = 0
        self._digest = hashlib.sha256()
        for index in range(self.parts):
            self.counts[index] = 0
            self._note(index, 0)

    def close(self) -> None:
        """Close the journal."""
        with self._lock:
            if self._notes is not None:
                self._notes.close()
            self._notes = None

    def _first_gap(self) -> int:
        for index, count in enumerate(self.counts):
            if count < self.length(index):
                return self.start(index) + count
        return self.remote.size

    def _note(self, index: int, count: int) -> None:
        if self._notes is None:
            return
        data, offset = COUNT.pack(count), HEADER.size + COUNT.size * index
        if hasattr(os, "pwrite"):
            os.pwrite(self._notes.fileno(), data, offset)
        else:
            with self._lock:
                self._notes.seek(offset)
                self._notes.write(data)

    def _divide(self, part_size: int) -> None:
        self.part_size = part_size
        self.parts = max(1, -(-self.remote.size // part_size))
        self.counts = [0] * self.parts

    def _read_journal(self) -> None:
        """Take over the parts and counts of an earlier try, if that was for the same bytes."""
        try:
            content = self._journal.read_bytes()
            identity, part_size = HEADER.unpack_from(content)
        except (FileNotFoundError, struct.error):
            return
        body = content[HEADER.size :]
        if identity != self._identity or not part_size or len(body) != COUNT.size * -(-self.remote.size // part_size):
            return
        self._divide(part_size)
        counts = [each[0] for each in COUNT.iter_unpack(body)]
        # Only complete parts were synced before they were noted. After a power cut others may lack what their note
        # says: a digest finds that out, and without one they begin anew.
        self.counts = [
            count if count == self.length(index) or (count < self.length(index) and self.remote.sha256) else 0
            for index, count in enumerate(counts)
        ]


def present_bytes(files: Iterable[RemoteFile], into: Path, version: str = "") -> int:
    """Return how many bytes of the files are in the folder already, whole or in part."""
    present = 0
    for file in files:
        partial = Partial(file, into, max(file.size, 1), version)
        partial.look()
        present += partial.completed
    return present


def clean_up(into: Path) -> None:
    """Remove what unfinished transfers left in the folder."""
    with suppress(FileNotFoundError):
        shutil.rmtree(into / PARTIAL)
