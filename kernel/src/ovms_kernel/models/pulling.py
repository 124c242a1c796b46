"""What one pull fetches: which files of a hub, into which folder, and what of it is here already."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from ovms_kernel.errors import BadRequest, TimedOut, Unavailable
from ovms_kernel.fetch.http import FetchFailed
from ovms_kernel.fetch.names import check_file_path, is_junk, one_name, shown
from ovms_kernel.fetch.partial import present_bytes
from ovms_kernel.fetch.transfer import clean_up, fetch_files
from ovms_kernel.files import Meter, hash_file, read_json, run_with_progress, size_of, write_atomically
from ovms_kernel.models import files as model_files
from ovms_kernel.models import gguf
from ovms_kernel.models.publish import JOURNAL, is_begun
from ovms_kernel.values import Progress, PullPlan, RemoteFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from ovms_kernel.drivers import Hub
    from ovms_kernel.fetch.http import Body
    from ovms_kernel.models.metadata import Metadata
    from ovms_kernel.values import ModelRef

log = logging.getLogger(__name__)

SPLIT = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")
FOREIGN_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".h5", ".onnx", ".msgpack", ".ckpt")
MAX_FILES = 10_000
WATCH_EVERY = 0.2
STUCK = 120.0
"""Seconds without progress after which a pull in another process is not waited for any longer."""
PREFERRED_GGUF = re.compile(r"(?i)q4_k_m")


def choose_files(files: Sequence[RemoteFile], name: str) -> list[RemoteFile]:
    """Return what to fetch of what a hub offers, checked; the note and the graph are always ours.

    :raises BadRequest: it is no model that an OpenVINO engine can use, or a path is unsafe.
    """
    if len(files) > MAX_FILES:
        raise BadRequest(f"{name} lists {len(files)} files, more than the {MAX_FILES} that a model may have.")
    for file in files:
        check_file_path(file.path, name)
        if file.size < 0:
            raise BadRequest(f"{name} lists {file.path} with {file.size} bytes, which no file has.")
    doubled, count = Counter(one_name(file.path) for file in files).most_common(1)[0] if files else ("", 0)
    if count > 1:
        raise BadRequest(
            f"{name} has two files that differ only in case or composition ({shown(doubled)}), "
            "which not every system can hold."
        )
    folders = {one_name(parent) for file in files for parent in _parents(file.path)}
    for file in files:
        if one_name(file.path) in folders:
            raise BadRequest(f"{name} lists {file.path} as a file and as a folder.")
    chosen = [
        file
        for file in files
        if file.path not in model_files.OURS and not file.path.startswith(".") and not is_junk(file.path)
    ]
    check_format((file.path for file in chosen), name)
    if any(file.path.endswith(".xml") for file in chosen):
        return chosen
    return _one_variant(chosen, name)


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def check_format(paths: Any, name: str) -> None:  # noqa: ANN401 - any iterable of text
    """Refuse what no OpenVINO engine can load.

    :raises BadRequest: the sentence says what to look for instead.
    """
    paths = list(paths)
    if not model_files.is_served_format(paths):
        kinds = ", ".join(sorted({each for each in FOREIGN_WEIGHTS for path in paths if path.endswith(each)}))
        raise BadRequest(
            f"{name} holds no OpenVINO model, which is an .xml file with its .bin, or a .gguf file"
            f"{f' (it has {kinds} files)' if kinds else ''}; look for the same model with -ov at the end of its name, "
            "such as those at https://www.modelscope.cn/organization/OpenVINO."
        )


def _one_variant(files: Sequence[RemoteFile], name: str) -> list[RemoteFile]:
    """Choose one of the quantizations that GGUF repositories offer side by side: Q4_K_M, unless there is one only."""
    variants: dict[str, list[RemoteFile]] = {}
    others = []
    for file in files:
        if file.path.endswith(".gguf") and "mmproj" not in file.path:
            variants.setdefault(SPLIT.sub("", file.path), []).append(file)
        else:
            others.append(file)
    wanted = list(variants) if len(variants) == 1 else [each for each in variants if PREFERRED_GGUF.search(each)]
    if len(wanted) != 1:
        raise BadRequest(
            f"{name} offers several GGUF files ({', '.join(sorted(variants))}); "
            "choose one with the hub's setting allow_patterns."
        )
    return [*others, *variants[wanted[0]]]


@dataclass(frozen=True)
class Staging:
    """What one pull fetches and the folder in which that grows."""

    ref: ModelRef
    folder: Path
    files: Sequence[RemoteFile]
    published: Path
    """Where an older state of the model may be, to take files over from."""
    known: Metadata | None
    """The note of that state."""

    @property
    def origin(self) -> dict[str, str]:
        """What has to be the same for a later pull to go on with the folder."""
        return {"hub": self.ref.hub, "revision": self.ref.revision}

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @cached_property
    def same(self) -> Sequence[RemoteFile]:
        """The files that the published state has, too, as far as its note says."""
        if self.known is None:
            return []
        had = {path: entry for path, entry in self.known.files.items() if path not in self.known.damaged}
        return [file for file in self.files if file.sha256 and had.get(file.path) == (file.size, file.sha256.lower())]

    def plan(self) -> PullPlan:
        """Return what there is to fetch, and what need not be as sizes tell; nothing is changed."""
        noted = self._noted() if is_begun(self.folder.parent, self.origin) else {}

        def of(file: RemoteFile) -> int:
            if file in self.same and size_of(self.published / file.path) == file.size:
                return file.size
            return present_bytes([file], self.folder) if noted.get(file.path) == [file.size, file.sha256] else 0

        return PullPlan(tuple(self.files), self.total, sum(map(of, self.files)))

    async def prepare(self, report: Callable[[Progress], None]) -> None:
        """Throw out what belongs to another state of the model, take over what is published already."""
        meter = Meter("verifying", sum(file.size for file in self.same))
        await run_with_progress(lambda: self._prepare(meter), meter, report if self.same else lambda _: None)

    def _prepare(self, meter: Meter) -> None:
        before, now = self._noted(), {file.path: [file.size, file.sha256] for file in self.files}
        for path, status in list(model_files.walk(self.folder)):
            # What was taken over earlier is the published file itself, which may have changed since.
            if path not in now or before.get(path) != now[path] or status.st_nlink > 1:
                (self.folder / path).unlink()
        note = self.folder.parent / JOURNAL
        journal = (read_json(note) or {}) | {"files": now}
        write_atomically(note, json.dumps(journal, ensure_ascii=False).encode())
        for file in self.same:
            target = self.folder / file.path
            if not target.exists():
                _take_over(self.published / file.path, target, file, meter)

    def _noted(self) -> dict[str, Any]:
        """Return size and digest by path of the files that the folder was begun for."""
        files = (read_json(self.folder.parent / JOURNAL) or {}).get("files")
        return files if isinstance(files, dict) else {}

    async def fetch(self, hub: Hub, report: Callable[[Progress], None]) -> None:
        """Fetch all files; progress counts what was here before."""
        await self._fetch(hub, self.files, report)

    async def _fetch(self, hub: Hub, files: Sequence[RemoteFile], report: Callable[[Progress], None]) -> None:
        def open_range(file: RemoteFile, start: int, end: int) -> Body:
            return hub.open(self.ref, file, start, end)

        await fetch_files(files, self.folder, open_range, self._within(report), hub.pace)

    async def fetch_texts(self, hub: Hub, report: Callable[[Progress], None]) -> Mapping[str, str]:
        """Fetch the small files that tell what the model is, and return their content."""
        texts = [file for file in self.files if model_files.is_text(file.path, file.size)]
        if texts:
            await self._fetch(hub, texts, report)
        sizes = {file.path: file.size for file in texts}
        return await anyio.to_thread.run_sync(model_files.read_texts, self.folder, sizes)

    async def check_gguf(self, hub: Hub) -> None:
        """Read the header of a GGUF model from the hub, and refuse what the engine cannot load.

        :raises BadRequest: it cannot.
        """
        for file in self.files:
            if file.path.endswith(".gguf") and "mmproj" not in file.path and not gguf.LATER_PART.search(file.path):

                def read(file: RemoteFile = file) -> gguf.Gguf:
                    body = hub.open(self.ref, file, 0, min(file.size, gguf.HEADER_LIMIT) - 1)
                    try:
                        return gguf.read_header(body.read, file.path)
                    finally:
                        body.close()

                try:
                    header = await anyio.to_thread.run_sync(read, abandon_on_cancel=True)
                except FetchFailed as error:
                    log.info("The header of %s cannot be read yet: %s", file.path, error.message)
                    return  # it is read again when all of it is here
                gguf.check_loadable(header, file.path)

    async def digests(self, report: Callable[[Progress], None]) -> dict[str, tuple[int, str]]:
        """Return size and SHA-256 of every file, reading only those whose digest the hub did not say.

        :raises Unavailable: a file is missing or has another size, whatever the hub driver claims.
        """
        unknown = [file for file in self.files if not file.sha256]
        meter = Meter("verifying", sum(file.size for file in unknown))

        def check() -> dict[str, tuple[int, str]]:
            for file in self.files:
                if size_of(self.folder / file.path) != file.size:
                    raise Unavailable(f"{file.path} did not arrive whole; pull the model again.")
            hashed = {file.path: hash_file(self.folder / file.path, meter.advance) for file in unknown}
            clean_up(self.folder)
            return {file.path: (file.size, hashed.get(file.path) or file.sha256.lower()) for file in self.files}

        return await run_with_progress(check, meter, report if unknown else lambda _: None)

    def _within(self, report: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """Report against the total of all files; what a hub reports never makes it fall."""

        def forward(progress: Progress) -> None:
            report(replace(progress, total=self.total, completed=min(progress.completed, self.total)))

        return forward


def watch_staging(folder: Path, report: Callable[[Progress], None]) -> Callable[[], None]:
    """Return a function that reports, now and then, how far the pull of another process is, as its staging tells."""
    last = 0.0
    before, changed = -1, time.monotonic()

    def look() -> None:
        nonlocal last, before, changed
        if time.monotonic() - last < WATCH_EVERY:
            return
        last = time.monotonic()
        listed = (read_json(folder / JOURNAL) or {}).get("files")
        files = [RemoteFile(path, *entry) for path, entry in listed.items()] if isinstance(listed, dict) else []
        total = sum(file.size for file in files)
        try:
            present = present_bytes(files, folder / "files")
        except OSError:
            return  # a file was just finished, or all was just published
        report(Progress("downloading", present, total) if total else Progress("waiting"))
        if present != before:
            before, changed = present, time.monotonic()
        elif time.monotonic() - changed > STUCK:
            raise TimedOut(
                f"Another process holds {folder.name.replace('@', '/')} and has made no progress for {STUCK:g} s; "
                "end that process, then try again."
            )

    return look


def _take_over(source: Path, target: Path, file: RemoteFile, meter: Meter) -> None:
    """Give a published file a second name if it is sound, or copy it where the file system has no links."""
    try:
        if source.stat().st_size != file.size or hash_file(source, meter.advance) != file.sha256.lower():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
    except OSError as error:
        log.warning("%s cannot be taken over (%s), so it is fetched again", source, error.strerror)
        target.unlink(missing_ok=True)
