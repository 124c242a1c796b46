"""What distributions of extensions there are: the index that comes with this one, or another of the same form."""

from __future__ import annotations

from importlib import metadata, resources

import anyio.to_thread
import msgspec

from ovms_kernel.api.commands import BadRequest, Unavailable

LIMIT = 10_000_000
"""Bytes of an index."""


class Distribution(msgspec.Struct, frozen=True):
    """One distribution."""

    name: str
    description: str = ""
    extensions: tuple[str, ...] = ()
    """What it offers, such as ``services.chat``."""
    version: str = ""
    """The installed version; empty if it is not installed."""


async def known(where: str, *, only_installed: bool) -> list[Distribution]:
    """Return distributions by name, those that are installed and, unless only those are wanted, the index's.

    :param where: a file or URL; empty means the packaged index, which has the project's own.
    :raises BadRequest: it is no index.
    """
    found = _installed()
    if not only_installed or where:
        data = await _read(where)
        try:
            listed = msgspec.json.decode(data, type=list[Distribution])
        except msgspec.DecodeError as error:
            raise BadRequest(f"{where or 'The packaged index'} is not an index of extensions: {error}.") from error
        for each in listed:
            have = found.get(each.name)
            found[each.name] = msgspec.structs.replace(each, version=have.version if have else "")
    return [found[name] for name in sorted(found) if found[name].version or not only_installed]


def _installed() -> dict[str, Distribution]:
    found: dict[str, Distribution] = {}
    for each in metadata.distributions():
        offered = tuple(
            f"{entry.group.removeprefix('ovms.')}.{entry.name}"
            for entry in each.entry_points
            if entry.group.startswith("ovms.")
        )
        if offered:
            found[each.name] = Distribution(each.name, each.metadata["Summary"] or "", offered, each.version)
    return found


async def _read(where: str) -> bytes:
    if not where:
        return (resources.files("ovms_authoring") / "index.json").read_bytes()
    if "://" not in where:
        try:
            return await anyio.Path(where).read_bytes()
        except OSError as error:
            raise BadRequest(f"{where} cannot be read: {error.strerror}.") from error
    from ovms_kernel.api.hubs import OvmsError, Web

    try:
        return await anyio.to_thread.run_sync(lambda: Web().read(where, limit=LIMIT))
    except OvmsError as error:
        raise Unavailable(f"The index {where} cannot be read: {error.message}") from error
