"""What hubs have in common: settings (where it is, who asks, which files, how fast), limits, and what refusals mean."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import TYPE_CHECKING, Annotated

import msgspec

from ovms_kernel.errors import BadRequest, NotFound, OvmsError, Unauthorized
from ovms_kernel.fetch.transfer import Pace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ovms_kernel.values import ModelRef, RemoteFile

LISTING_LIMIT = 64 << 20
"""Bytes of a listing, unpacked; one of ten thousand files has some 3 MB."""
LISTING_TIME = 60.0
"""Seconds for one answer of a hub's API, however slowly it comes."""


class HubSettings(msgspec.Struct, frozen=True):
    """What can be set of a hub."""

    endpoint: str = ""
    """Base URL of a mirror; empty = the hub itself."""
    token: str = ""
    """Access token; empty = the one that the hub's own tools use."""
    proxy: str = ""
    """URL of a proxy; empty = the usual variables."""
    ca_file: str = ""
    """File of a certificate authority; empty = the system's."""
    allow_patterns: tuple[str, ...] = ()
    """Only files that match one of these shell patterns are pulled; none = all."""
    ignore_patterns: tuple[str, ...] = ()
    """Files that match one of these shell patterns are not pulled."""
    connections: Annotated[int, msgspec.Meta(ge=1)] = 8
    """Connections at the same time."""
    part_size: Annotated[int, msgspec.Meta(ge=1)] = 16 << 20
    """Bytes that one connection fetches at a time."""
    max_rate: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Bytes per second of all connections together; 0 = no limit."""
    stall_timeout: Annotated[float, msgspec.Meta(ge=0.01)] = 30.0
    """Time without a byte after which a connection is opened again."""
    retries: Annotated[int, msgspec.Meta(ge=0)] = 5
    """How often a part is tried again."""
    retry_delay: Annotated[float, msgspec.Meta(ge=0)] = 0.5
    """Time before the first of these; it doubles with each."""

    def is_wanted(self, path: str) -> bool:
        """Tell whether the patterns let a file through."""
        allowed = not self.allow_patterns or any(fnmatch(path, each) for each in self.allow_patterns)
        return allowed and not any(fnmatch(path, each) for each in self.ignore_patterns)

    def wanted(self, files: Sequence[RemoteFile], ref: ModelRef, endpoint: str) -> list[RemoteFile]:
        """Return the files of a listing that the patterns let through.

        :raises NotFound: there are none.
        """
        found = [file for file in files if self.is_wanted(file.path)]
        if not found:
            raise NotFound(f"{ref.id} on {endpoint} has no files that could be pulled; look at its page.")
        return found

    def pace(self) -> Pace:
        """Return how fast files are fetched."""
        limits = self.max_rate, self.stall_timeout, self.retries, self.retry_delay
        return Pace(self.connections, self.part_size, *limits)


def check_owner(ref: ModelRef) -> None:
    """Return if a model is named as ``owner/name``.

    :raises BadRequest: it is not.
    """
    if "/" not in ref.id:
        raise BadRequest(f"{ref.id} has no owner; write it as owner/name, such as OpenVINO/Qwen3-0.6B-int4-ov.")


def refusal(status: int, hub: str, endpoint: str, ref: ModelRef, path: str = "") -> OvmsError | None:
    """Return what the status of a hub's answer means for a model or one of its files; ``None`` if nothing of its own.

    :param hub: its name in settings.
    """
    what = f"{path} of {ref.id}" if path else ref.id
    if status in (401, 403):
        # A hub may say 401 for a repository that does not exist, so that nobody can tell which ones do.
        return Unauthorized(
            f"{endpoint} does not give out {what} with these credentials; check its name, set hubs.{hub}.token to a "
            "token that may read it, and accept the model's terms on its page."
        )
    if status in (404, 410):
        at = f" at revision {ref.revision}" if ref.revision else ""
        return NotFound(f"{endpoint} has no {what}{at}; check owner, name and revision on its site.")
    return None
