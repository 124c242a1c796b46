"""Folders for the sockets of plugins, which this user alone or a group of the host's may use."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ovms_face_aog.parent import WAITING

if TYPE_CHECKING:
    from collections.abc import Mapping

PATH_LIMIT = 100 - len("/pygrpc-native-12345678")
"""Bytes of a socket's path that every system takes, less what a folder in it may need."""
FOLDER = "ovms-plugin-"
"""The beginning of the name of the socket's folder; our pid follows."""


def make_folder(environment: Mapping[str, str]) -> Path | None:
    """Make a folder for sockets that this user, or the group that the host names, may use; ``None`` if none can be."""
    if sys.platform == "win32":
        return None
    wanted = environment.get("PLUGIN_UNIX_SOCKET_DIR")
    for parent in [wanted] if wanted else [tempfile.gettempdir(), "/tmp"]:  # noqa: S108 - a folder in it is made
        with contextlib.suppress(OSError):
            folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-", dir=parent))
            try:
                if len(os.fsencode(folder / WAITING)) > PATH_LIMIT or re.search(r"[|\s]", str(folder)):
                    raise OSError("No socket can have that path.")
                if (group := group_of(environment)) is not None:
                    os.chown(folder, -1, group)
                    folder.chmod(0o710)
            except OSError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            return folder
    return None


def group_of(environment: Mapping[str, str]) -> int | None:
    """Return the id of the group that the host wants sockets to belong to.

    :raises OSError: there is no such group.
    """
    group = environment.get("PLUGIN_UNIX_SOCKET_GROUP", "")
    if not group or sys.platform == "win32":
        return None
    import grp

    try:
        return int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise OSError(f"There is no group {group}.") from error


def remove_stale_folders() -> None:
    """Remove socket folders of plugins that were killed."""
    if sys.platform == "win32":
        return  # there are none
    for parent in {tempfile.gettempdir(), "/tmp"}:  # noqa: S108 - only folders of the plugin are touched
        for folder in Path(parent).glob(f"{FOLDER}*-*"):
            pid = folder.name.removeprefix(FOLDER).partition("-")[0]
            with contextlib.suppress(OSError, OverflowError):
                if pid.isdigit() and folder.stat().st_uid == os.getuid() and not _runs(int(pid)):
                    shutil.rmtree(folder, ignore_errors=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
