"""The settings that every hub has: where it is, who asks, which files, and how fast."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Annotated

import msgspec

from ovms_kernel.fetch.transfer import Pace


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

    def pace(self) -> Pace:
        """Return how fast files are fetched."""
        return Pace(
            connections=self.connections,
            part_size=self.part_size,
            max_rate=self.max_rate,
            stall=self.stall_timeout,
            retries=self.retries,
            retry_delay=self.retry_delay,
        )
