"""Names from outside, checked once at the border: model ids and paths of files on a hub or in an archive.

A checked id is also a safe relative path, because its parts become the model's folder.
"""

from __future__ import annotations

import unicodedata

from ovms_kernel.errors import BadRequest, NotFound
from ovms_kernel.values import ModelRef

MAX_PART_BYTES = 96
"""Room for suffixes within the 255 bytes that file systems give a name."""
MAX_PATH = 1024
WINDOWS_RESERVED = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$"}
    | {f"{kind}{n}" for kind in ("com", "lpt") for n in "0123456789¹²³"}
)
OURS = ("config.json",)
"""Names in the models folder that are files of ours."""


def parse_model_id(text: str) -> str:
    """Return the id in Unicode's composed form, ``owner/name`` or ``name``.

    :raises BadRequest: it could not be a model's id or would be unsafe as a folder; one sentence says why.
    :raises NotFound: it is written as Ollama writes names, which no hub of OpenVINO models uses.
    """
    if not isinstance(text, str) or not text:
        raise BadRequest("The model's name is empty; write it as owner/name, such as OpenVINO/Qwen3-0.6B-int4-ov.")
    text = unicodedata.normalize("NFC", text)
    shown = _shown(text)
    name, colon, tag = text.partition(":")
    if colon and name and tag and _fault(name) == "" and _fault(tag) == "":
        raise NotFound(
            f"{shown} is a name of Ollama's, and there are no OpenVINO files under it; "
            "choose a model from https://www.modelscope.cn/organization/OpenVINO and give its owner/name."
        )
    parts = text.split("/")
    if len(parts) > 2:
        raise BadRequest(f"{shown} has more than one slash; write a model's name as owner/name.")
    for part in parts:
        if fault := _fault(part):
            raise BadRequest(f"{shown} is not a model's name: {fault}; write it as owner/name.")
    if parts[0].casefold().startswith(OURS):
        raise BadRequest(f"{shown} is the name of a file of this plugin; give the model another name.")
    return text


def parse_model_ref(text: str) -> ModelRef:
    """Return the reference for ``owner/name``, ``owner/name@revision`` or either with ``hub:`` before it.

    :raises BadRequest: a part of it is not a name.
    :raises NotFound: as :func:`parse_model_id`.
    """
    if not isinstance(text, str):
        raise BadRequest("The model's name must be text, such as OpenVINO/Qwen3-0.6B-int4-ov.")
    name, at, revision = text.partition("@")
    if at and (not revision or len(revision) > 128 or any(_fault(part) for part in revision.split("/"))):
        raise BadRequest(f"{_shown(revision)} is not a revision; write owner/name@branch, a tag or a commit.")
    hub, colon, rest = name.partition(":")
    if colon and "/" in rest and not _fault(hub):
        return ModelRef(parse_model_id(rest), revision, hub)
    return ModelRef(parse_model_id(name), revision)


def check_file_path(path: str, what: str) -> str:
    """Return the relative path of a file that somebody else named, with forward slashes.

    :param what: whose file it is, for the sentence.
    :raises BadRequest: it would lie outside the model's folder, or cannot exist on every system.
    """
    parts = path.split("/")
    fault = ""
    if not path or len(path) > MAX_PATH:
        fault = "it is empty or too long"
    elif "\\" in path or ":" in path or any(unicodedata.category(c).startswith("C") for c in path):
        fault = "it holds a backslash, a colon or a control character"
    elif any(part in ("", ".", "..") for part in parts):
        fault = "it leads outside its folder"
    elif any(len(part.encode()) > 255 or part[-1] in ". " or _reserved(part) for part in parts):
        fault = "a part of it cannot be a file's name on every system"
    if fault:
        raise BadRequest(f"{what} names a file {_shown(path)}, which is refused because {fault}.")
    return path


def staging_key(model_id: str) -> str:
    """Return one path part that stands for a checked id; no two ids share one, as ids hold no ``@``."""
    return model_id.replace("/", "@")


def _fault(part: str) -> str:
    """Return what is wrong with one part of a name; empty if nothing is."""
    if not part:
        return "a part of it is empty"
    if len(part.encode("utf-8", "replace")) > MAX_PART_BYTES:
        return f"a part of it is longer than {MAX_PART_BYTES} bytes"
    if part.startswith((".", "-")) or part.endswith("."):
        return "its parts must not begin with a dot or dash or end with a dot"
    if not all(character in "-_.+" or unicodedata.category(character)[0] in "LMN" for character in part):
        return "only letters, digits and - _ . + may stand in it"
    if _reserved(part):
        return "Windows keeps that name for a device"
    return ""


def _reserved(part: str) -> bool:
    return part.split(".", maxsplit=1)[0].rstrip().casefold() in WINDOWS_RESERVED


def _shown(text: str) -> str:
    """Return the text fit for one line of a message: escaped and cut."""
    return repr(text if len(text) <= 60 else text[:57] + "…")
