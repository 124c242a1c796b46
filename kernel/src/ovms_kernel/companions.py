"""Faces that are served beside the one that a process is for, over the same kernel."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from ovms_kernel.blame import blame
from ovms_kernel.declared import WORDS
from ovms_kernel.errors import OvmsError
from ovms_kernel.extensions import compose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ovms_kernel.api.faces import KernelApi
    from ovms_kernel.drivers import Face
    from ovms_kernel.settings import Settings

log = logging.getLogger(__name__)


def companions_of(settings: Settings, own: str) -> list[str]:
    """Return the faces that the settings want beside a face: those with ``faces.<name>.with_<own>: true``."""
    sections = settings.sections.get("faces", {})
    return [name for name in sorted(sections) if WORDS.get(str(sections[name].get(f"with_{own}")).lower(), False)]


async def serve_companions(kernel: KernelApi, own: str) -> None:
    """Serve the faces that the settings want beside a face, until cancelled; one that fails costs nobody else anything.

    :param own: the name of the face that the process is for.
    """
    try:
        await _serve_all(kernel, [each.replace("_", "-") for each in companions_of(kernel.settings, own)], own)
    except OvmsError as error:
        log.error("No face is served beside %s: %s", own, error.message)
    except Exception:
        log.exception("Faces beside %s are no longer served", own)


async def _serve_all(kernel: KernelApi, names: Sequence[str], own: str) -> None:
    if not names:
        return
    found = await asyncio.to_thread(compose, kernel.settings, kernel.host, kinds=["faces"], names=names)
    for name in names:
        if name not in found.faces and not any(each.name == name for each in found.reports):
            log.error("There is no face %s to serve beside %s; install ovms-face-%s.", name, own, name)
    async with asyncio.TaskGroup() as group:
        for name, face in found.faces.items():
            group.create_task(_serve(name, face, kernel))


async def _serve(name: str, face: Face, kernel: KernelApi) -> None:
    ready: asyncio.Future[KernelApi] = asyncio.get_running_loop().create_future()
    ready.set_result(kernel)
    try:
        await face.serve(ready)
    except OvmsError as error:
        log.error("The face %s is not served: %s", name, error.message)
    except Exception as error:
        log.exception("%s; the face %s is no longer served", blame(error), name)
