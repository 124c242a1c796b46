import json

import anyio.to_thread
import msgspec

from ovms_kernel.api.hubs import Body, FetchFailed, ModelRef, NotFound, Pace, RemoteFile, Web


class ShelfSettings(msgspec.Struct, frozen=True):
    url: str = "https://models.example.org"
    """Base URL of the models, each as owner/name."""


class Shelf:
    settings_type = ShelfSettings
    alias = "shelf"

    def __init__(self, settings: ShelfSettings) -> None:
        self._base = settings.url.rstrip("/")
        self._web = Web()
        self.pace = Pace()

    async def list_files(self, ref: ModelRef) -> list[RemoteFile]:
        return await anyio.to_thread.run_sync(self._list, ref)

    def open(self, ref: ModelRef, file: RemoteFile, start: int, end: int) -> Body:
        return self._web.open(f"{self._base}/{ref.id}/{file.path}", start=start, end=end)

    def _list(self, ref: ModelRef) -> list[RemoteFile]:
        try:
            listing = json.loads(self._web.read(f"{self._base}/{ref.id}/files.json", limit=1 << 20))
        except FetchFailed as error:
            if error.status == 404:
                raise NotFound(f"{self._base} has no {ref.id}; check owner and name.") from error
            raise
        return [RemoteFile(each["path"], each["size"], each["sha256"]) for each in listing]
