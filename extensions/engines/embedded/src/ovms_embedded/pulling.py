"""``--pull``: a model from a hub that speaks Hugging Face's API, into a folder, with its graph.

Protocol: ``GET /api/models/OWNER/NAME/tree/main?recursive=true`` lists files, in pages that a ``Link`` header joins;
``GET /OWNER/NAME/resolve/main/FILE`` is a file, and takes ranges. Large files bear their SHA-256 as ``lfs.oid``.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from ovms_embedded.cli import CommandFailed, WrongUsage
from ovms_embedded.graphs import GraphInvalid
from ovms_embedded.proxies import handlers_for
from ovms_embedded.recognition import text_for

if TYPE_CHECKING:
    import argparse

    from ovms_embedded.cli import GraphFlags

HUB = "https://huggingface.co"
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
NEXT = re.compile(r'<([^>]+)>\s*;\s*rel="next"')
PATIENCE = 30.0
"""Seconds of silence."""
LISTING = 1 << 24
"""Bytes of a page of a listing."""
FILES = 10_000
BLOCK = 1 << 20
GRAPH = "graph.pbtxt"


class _File(NamedTuple):
    path: str
    size: int
    sha256: str
    """Nothing for a small file."""


def pull(given: argparse.Namespace, flags: GraphFlags) -> str:
    """Download a model and write its graph, and return what to print; what is there already is not fetched again.

    :raises WrongUsage: something that it needs is missing or wrong.
    :raises CommandFailed: the hub does not give the model, or it cannot be served.
    """
    if not given.source_model or not NAME.fullmatch(given.source_model) or ".." in given.source_model:
        raise WrongUsage("--pull needs --source_model OWNER/NAME")
    repository = given.model_repository_path or os.environ.get("OVMS_MODEL_REPOSITORY_PATH")
    if not repository:
        raise WrongUsage("--pull needs --model_repository_path")
    hub = given.hub or os.environ.get("HF_ENDPOINT") or HUB
    if urlsplit(hub).scheme not in ("http", "https"):
        raise WrongUsage(f"--hub {hub} is not an address that begins with https://")
    target = Path(repository, given.source_model)
    if target.exists() and not given.overwrite_models:
        return f"{target} is there already; --overwrite_models fetches it again\n"
    try:
        _fetch(hub.rstrip("/"), given.source_model, target, flags)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise CommandFailed(f"{given.source_model} was not pulled from {hub}: {_words(error)}") from error
    return f"Model: {given.source_model} downloaded to: {target}\nGraph: {GRAPH} created in: {target}\n"


def _words(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError) and error.code in (401, 403, 404):
        return f"the hub has no such model, or it needs a key in HF_TOKEN (HTTP {error.code})"
    return str(error) or type(error).__name__


def _fetch(hub: str, name: str, target: Path, flags: GraphFlags) -> None:
    """Make the folder whole beside its place, then put it there at once; an interrupted pull goes on where it was."""
    from ovms_embedded.calculators.discovery import find_calculators

    files = _list(hub, name)
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(partial).free, sum(each.size for each in files)
    if needed - sum(path.stat().st_size for path in partial.rglob("*") if path.is_file()) > free:
        message = f"it has {needed >> 20} MB, and {free >> 20} MB are free in {partial.parent}"
        raise ValueError(message)
    for each in files:
        _download(f"{hub}/{name}/resolve/main/{quote(each.path)}", partial.joinpath(*each.path.split("/")), each)
    if flags or not (partial / GRAPH).exists():
        try:
            graph = text_for(partial, target.name, find_calculators(), flags)
        except GraphInvalid as error:
            raise CommandFailed(str(error).replace(str(partial), str(target))) from error
        (partial / GRAPH).write_text(graph + "\n", "utf-8")
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _open(url: str, start: int = 0) -> Any:  # noqa: ANN401 - urllib's response has no type of its own
    request = urllib.request.Request(url)  # noqa: S310 - its scheme is checked
    if token := os.environ.get("HF_TOKEN"):
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # of the hub alone
    if start:
        request.add_header("Range", f"bytes={start}-")
    return urllib.request.build_opener(*handlers_for(url)).open(request, timeout=PATIENCE)


def _list(hub: str, name: str) -> list[_File]:
    found: list[_File] = []
    url = f"{hub}/api/models/{name}/tree/main?recursive=true"
    while url:
        with _open(url) as answer:
            content: bytes = answer.read(LISTING + 1)
            link = NEXT.search(answer.headers.get("Link") or "")
        entries = json.loads(content) if len(content) <= LISTING else None
        if not isinstance(entries, list) or len(found) + len(entries) > FILES:
            raise ValueError("the hub's answer is not a list of a model's files")
        found += [file for entry in entries if (file := _entry(entry))]
        following = urljoin(url, link[1]) if link and entries else ""
        if following and urlsplit(following).netloc != urlsplit(hub).netloc:
            raise ValueError("the hub's listing goes on at another address")
        url = following
    if not found:
        raise ValueError("it has no files")
    return found


def _entry(entry: Any) -> _File | None:  # noqa: ANN401 - what a hub sends
    if not isinstance(entry, dict) or entry.get("type") != "file":
        return None
    large, path = entry.get("lfs"), entry.get("path")
    size, digest = (large.get("size"), large.get("oid")) if isinstance(large, dict) else (entry.get("size"), "")
    if not isinstance(path, str) or path.startswith("/") or any(map(_leads_out, path.split("/"))):
        message = f"the hub lists a file that leads out of the model's folder: {str(path)[:80]!r}"
        raise ValueError(message)
    if not isinstance(size, int) or size < 0 or not isinstance(digest, str):
        message = f"the hub does not say how large {path} is"
        raise ValueError(message)
    return _File(path, size, digest)


def _leads_out(part: str) -> bool:
    return part in ("", ".", "..") or bool(set(part) & set('\\:*?"<>|\0'))


def _download(url: str, path: Path, file: _File) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    have = path.stat().st_size if path.exists() else 0
    if have > file.size:
        path.unlink()
        have = 0
    if have < file.size or not path.exists():
        with _open(url, have) as answer, path.open("ab") as out:
            if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
                out.truncate(0)
            while block := answer.read(BLOCK):
                out.write(block)
                if out.tell() > file.size:
                    break
    if path.stat().st_size < file.size:  # what is there is kept: the next pull goes on behind it
        message = f"the connection ended in the middle of {file.path}; pull again"
        raise ValueError(message)
    digest = ""
    if file.sha256:
        with path.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
    if path.stat().st_size != file.size or digest != file.sha256:
        path.unlink()
        message = f"{file.path} arrived damaged; pull again"
        raise ValueError(message)
