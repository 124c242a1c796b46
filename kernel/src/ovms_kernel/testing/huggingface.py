"""A hub on this machine that behaves as Hugging Face's API does towards a client, and misbehaves on demand.

``/api/models/<id>`` and ``/api/models/<id>/revision/<revision>`` list files with size, and with a SHA-256 where they
are in Git LFS; ``/<id>/resolve/<revision>/<path>`` gives a file: small ones directly, large ones through a redirect to
a store that knows ranges. ``/api/models?search=`` searches.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import unquote

from ovms_kernel.testing.hub import DIRECT, FakeHub, Handler

MODEL = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?$")
RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")
MAIN = "main"


class _Handler(Handler):
    def answer(self, path: str, query: dict[str, str]) -> None:
        """Answer a request to the hub itself."""
        if path == "/api/models":
            words = query.get("search", "").casefold()
            names = sorted({model for model, _ in self.hub.repos if words in model.casefold()})
            found = [{"id": name, "downloads": 7, "pipeline_tag": "text-generation"} for name in names]
            self.json(200, found[: int(query.get("limit", 10))])
        elif found_model := MODEL.match(unquote(path)):
            self._list(found_model[1], found_model[2] or MAIN)
        elif found_file := RESOLVE.match(unquote(path)):
            self._resolve(*found_file.groups())
        else:
            self.error(404, "no such page")

    def _list(self, model: str, revision: str) -> None:
        repo = self.hub.repo(model, revision)
        if repo is None or self.is_refused(repo):
            # Repositories that do not exist and those that are private look the same.
            known = any(name == model for name, _ in self.hub.repos)
            self.error(404 if known and repo is None else 401, "Repository not found")
            return
        self.hub.listings += 1
        if fault := self.hub.next_fault("listing"):
            self.error(fault.value, "listing failed", fault.retry_after)
            return
        self.json(
            200,
            {
                "id": model,
                "sha": commit_of(revision),
                "siblings": [
                    {"rfilename": each["Path"], "size": each["Size"], "blobId": "0" * 40}
                    | ({"lfs": {"sha256": each["Sha256"], "size": each["Size"]}} if each["Size"] > DIRECT else {})
                    for each in repo.listed
                    if each["Type"] == "blob"
                ],
            },
        )

    def _resolve(self, model: str, revision: str, path: str) -> None:
        names = [name for known, name in self.hub.repos if known == model and revision in (name, commit_of(name))]
        repo = self.hub.repo(model, names[0]) if names else None
        if repo is None or path not in repo.files:
            self.error(404, "Entry not found")
        elif self.is_refused(repo):
            self.error(401, "Invalid credentials")
        elif repo.files[path].stat().st_size <= DIRECT:
            self.give(model, names[0], path, ranges=True)
        else:
            self.redirect(model, names[0], path)


def commit_of(revision: str) -> str:
    """Return the commit that a branch or tag is at."""
    return hashlib.sha1(revision.encode(), usedforsecurity=False).hexdigest()


class FakeHuggingFace(FakeHub):
    """The server; models are added with ``revision="main"``."""

    handler = _Handler
