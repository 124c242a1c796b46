"""A pull that an rpc reports on while it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovms_kernel.api.faces import OvmsError, Progress

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from ovms_kernel.api.faces import LocalModel


class Pulling:
    """A pull that is under way, and what is still to be reported of it."""

    def __init__(self) -> None:
        self._latest: Progress | None = Progress("starting")
        self._model: LocalModel | None = None
        self._error: Exception | None = None

    async def run(self, pull: Awaitable[LocalModel]) -> None:
        """Do it."""
        try:
            self._model = await pull
        except Exception as error:
            self._error = error
            raise

    def report(self, progress: Progress) -> None:
        """Note how far it is; that the kernel says success is not yet that the pull returned."""
        if progress.status != "success":
            self._latest = progress

    def news(self) -> Progress | None:
        """Return what was noted since the last time, if anything."""
        latest, self._latest = self._latest, None
        return latest

    def done(self) -> Progress:
        """Return the last word on it.

        :raises Exception: whatever the pull raised.
        """
        if self._error:
            raise self._error
        if self._model is None:
            raise OvmsError("The pull was stopped; ask for it again.")
        return Progress("success", self._model.size, self._model.size, digest=self._model.digest)
