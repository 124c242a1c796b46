"""Names of files that somebody else wrote: on a hub, in an archive, in a folder. One list of what is refused."""

from __future__ import annotations

import unicodedata

from ovms_kernel.errors import BadRequest

MAX_PATH = 1024
RESERVED = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$"}
    | {f"{kind}{n}" for kind in ("com", "lpt") for n in "0123456789¹²³"}
)
"""What Windows takes for a device, whatever the folder and the suffix."""
JUNK = frozenset({"__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini"})
"""What macOS and Windows put beside files by themselves."""


def path_fault(path: str) -> str:
    """Return what is wrong with the relative path of a file, with forward slashes; empty if nothing is."""
    parts = path.split("/")
    if not path or len(path) > MAX_PATH:
        return "it is empty or too long"
    if "\\" in path or ":" in path or any(unicodedata.category(c) in ("Cc", "Cs", "Cn") for c in path):
        return "it holds a backslash, a colon or a control character"
    if any(part in ("", ".", "..") for part in parts):
        return "it leads outside its folder"
    if any(len(part.encode()) > 255 or part[-1] in ". " or is_reserved(part) for part in parts):
        return "a part of it cannot be a file's name on every system"
    return ""


def check_file_path(path: str, what: str) -> None:
    """Refuse a path that is not safe on every system.

    :param what: whose file it is, for the sentence.
    :raises BadRequest: it would lie outside its folder, or cannot exist on every system.
    """
    if fault := path_fault(path):
        raise BadRequest(f"{what} names a file {shown(path)}, which is refused because {fault}.")


def is_junk(path: str) -> bool:
    """Tell whether a file is one that a system put beside the real ones, such as ``__MACOSX/._model.bin``."""
    return any(part in JUNK or part.startswith("._") for part in path.split("/"))


def is_reserved(part: str) -> bool:
    """Tell whether Windows keeps that name for a device."""
    return part.split(".", maxsplit=1)[0].rstrip().casefold() in RESERVED


def one_name(path: str) -> str:
    """Return what two paths share if they are one file on some system, as macOS ignores case and composition."""
    return unicodedata.normalize("NFC", path).casefold()


def shown(text: str) -> str:
    """Return a text that somebody else wrote fit for one line of a message: escaped and cut."""
    return repr(text if len(text) <= 60 else text[:57] + "…")
