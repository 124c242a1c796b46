"""Models from Hugging Face and its mirrors.

``huggingface_hub`` says where the hub is, who asks and how URLs are made; the kernel fetches, as it does for every hub.
Its own downloads are not used: they write into a cache of their own and cannot be stopped.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import anyio.to_thread

from ovms_kernel.api.hubs import (
    LISTING_LIMIT,
    LISTING_TIME,
    Body,
    FetchFailed,
    FoundModel,
    HubSettings,
    ModelRef,
    OvmsError,
    RemoteFile,
    Web,
    check_owner,
    check_reachable,
    refusal,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


class HuggingFace:
    """The hub driver. Without settings it uses ``HF_ENDPOINT``, and ``HF_TOKEN`` or that of ``hf auth login``."""

    alias = "hf"
    settings_type = HubSettings

    def __init__(self, settings: HubSettings) -> None:
        self._settings = settings
        self._web = Web(proxy=settings.proxy, ca_file=settings.ca_file)
        self._commits: dict[ModelRef, str] = {}
        """The commit that was listed; its files are fetched, whatever the branch says by then."""
        self.pace = settings.pace()

    async def list_files(self, ref: ModelRef) -> list[RemoteFile]:
        """Return every file of the model that the patterns let through."""
        check_owner(ref)
        path = f"/api/models/{quote(ref.id)}"
        if ref.revision:
            path += f"/revision/{quote(ref.revision, safe='')}"
        listing = await self._ask(f"{path}?blobs=true", ref)
        try:
            self._commits[ref] = str(listing["sha"])
            files = [_file(each) for each in listing["siblings"]]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._no_listing(error) from error
        return self._settings.wanted(files, ref, self._endpoint())

    async def search(self, words: str, limit: int) -> list[FoundModel]:
        """Return models that the words find, the most downloaded first."""
        query = urlencode({"search": words, "sort": "downloads", "direction": "-1", "limit": limit})
        found = await self._ask(f"/api/models?{query}", ModelRef(words))
        try:
            return [
                FoundModel(str(each["id"]), int(each.get("downloads") or 0), str(each.get("pipeline_tag") or ""))
                for each in found
            ]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._no_listing(error) from error

    def open(self, ref: ModelRef, file: RemoteFile, start: int, end: int) -> Body:
        """Ask for a range of a file."""
        from huggingface_hub import hf_hub_url

        revision = self._commits.get(ref) or ref.revision or None
        url = hf_hub_url(ref.id, file.path, revision=revision, endpoint=self._endpoint())
        try:
            return self._web.open(url, start=start, end=end, headers=self._headers())
        except FetchFailed as error:
            raise self._ours(error, ref, file.path) from error

    def _endpoint(self) -> str:
        from huggingface_hub import constants

        return (self._settings.endpoint or constants.ENDPOINT).rstrip("/")

    def _headers(self) -> dict[str, str]:
        from huggingface_hub import get_token

        token = self._settings.token or get_token()
        return {"Authorization": f"Bearer {token}"} if token else {}

    async def _ask(self, path: str, ref: ModelRef) -> Any:  # noqa: ANN401 - JSON
        url = self._endpoint() + path
        await check_reachable(url, self._settings.proxy)

        def read() -> bytes:
            return self._web.read(url, limit=LISTING_LIMIT, seconds=LISTING_TIME, headers=self._headers())

        for again in (True, True, False):
            try:
                return json.loads(await anyio.to_thread.run_sync(read, abandon_on_cancel=True))
            except FetchFailed as error:
                if error.final or not again:
                    raise self._ours(error, ref) from error
                await anyio.sleep(min(error.retry_after if error.retry_after is not None else 0.5, 10))
            except (ValueError, RecursionError) as error:
                raise self._no_listing(error) from error
        return None

    def _no_listing(self, error: Exception) -> FetchFailed:
        return FetchFailed(
            f"{self._endpoint()} answers with something other than a list of models ({type(error).__name__}); "
            "check the setting hubs.huggingface.endpoint and the proxy.",
            final=True,
        )

    def _ours(self, error: FetchFailed, ref: ModelRef, path: str = "") -> OvmsError:
        return refusal(error.status, "huggingface", self._endpoint(), ref, path) or error


def _file(entry: Mapping[str, Any]) -> RemoteFile:
    """Return one file of a listing; only files in Git LFS are listed with a SHA-256."""
    lfs = entry.get("lfs") or {}
    digest = str(lfs.get("sha256") or "").lower()
    size = lfs.get("size") if lfs.get("size") is not None else entry.get("size")
    return RemoteFile(str(entry["rfilename"]), int(size or 0), digest if re.fullmatch("[0-9a-f]{64}", digest) else "")
