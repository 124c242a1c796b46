"""Ids and references of models, checked once at the border.

A checked id is also a safe relative path, because its parts become the model's folder.
"""

from __future__ import annotations

import unicodedata

from ovms_kernel.errors import BadRequest, NotFound
from ovms_kernel.fetch.names import is_reserved, shown
from ovms_kernel.values import ModelRef

MAX_PART_BYTES = 96
"""Room for suffixes within the 255 bytes that file systems give a name."""
MAX_ID = 512
"""Characters of a model's id at most; what is longer is not even looked at."""
OURS = ("config.json",)
"""Names in the models folder that are files of the plugin."""
CHOOSE = "choose a model from https://www.modelscope.cn/organization/OpenVINO and give its owner/name"
HUBS = {
    "modelscope.cn": "modelscope",
    "modelscope.ai": "modelscope",
    "huggingface.co": "huggingface",
    "hf.co": "huggingface",
    "hf-mirror.com": "huggingface",
}
"""Hubs by the host of their pages."""


def parse_model_id(text: str) -> str:
    """Return the id in Unicode's composed form, ``owner/name`` or ``name``.

    :raises BadRequest: it could not be a model's id or would be unsafe as a folder; one sentence says why.
    :raises NotFound: it is written as Ollama writes names, which no hub of OpenVINO models uses.
    """
    text = _composed(text)
    if len(parts := text.split("/")) > 2:
        raise BadRequest(f"{shown(text)} has more than one slash; write a model's name as owner/name.")
    for part in parts:
        if fault := _fault(part):
            raise BadRequest(f"{shown(text)} is not a model's name: {fault}; write it as owner/name.")
    if parts[0].casefold().startswith(OURS):
        raise BadRequest(f"{shown(text)} is the name of a file of this plugin; give the model another name.")
    return text


def _composed(text: str) -> str:
    """Return a name in Unicode's composed form, its parts unchecked.

    :raises BadRequest: it is no text, empty or too long.
    :raises NotFound: it is a name of Ollama's.
    """
    if not isinstance(text, str) or not text:
        raise BadRequest("The model's name is empty; write it as owner/name, such as OpenVINO/Qwen3-0.6B-int4-ov.")
    if len(text) > MAX_ID:  # before anything is made of it
        raise BadRequest(f"{shown(text)} is not a model's name: it has {len(text)} characters; write it as owner/name.")
    text = unicodedata.normalize("NFC", text)
    name, colon, tag = text.partition(":")
    if colon and not _fault(tag) and name.count("/") < 2 and not any(_fault(each) for each in name.split("/")):
        instead = f", or {name}@{tag} if {tag} is a revision on a hub" if "/" in name else ""
        raise NotFound(
            f"{shown(text)} is a name of Ollama's, and there are no OpenVINO files under it; {CHOOSE}{instead}."
        )
    return text


def parse_model_ref(text: str) -> ModelRef:
    """Return the reference for ``owner/name``, ``owner/name@revision`` or either with ``hub:`` before it.

    The address of a model's page, as a browser shows it, is as good.

    :raises BadRequest: a part of it is not a name.
    :raises NotFound: as :func:`parse_model_id`.
    """
    if not isinstance(text, str):
        raise BadRequest("The model's name must be text, such as OpenVINO/Qwen3-0.6B-int4-ov.")
    if len(text) > MAX_ID:
        return ModelRef(parse_model_id(text))  # which refuses it
    if "://" in text or text.split("/", maxsplit=1)[0].lower().removeprefix("www.") in HUBS:
        return _parse_page(text)
    name, at, revision = text.partition("@")
    if at and (not revision or len(revision) > 128 or any(_fault(part) for part in revision.split("/"))):
        raise BadRequest(f"{shown(revision)} is not a revision; write owner/name@branch, a tag or a commit.")
    hub, colon, rest = name.partition(":")
    if colon and "/" in rest and not _fault(hub):
        return ModelRef(parse_model_id(rest), revision, hub)
    return ModelRef(parse_model_id(name), revision)


def _parse_page(text: str) -> ModelRef:
    """Return the model whose page has that address.

    :raises BadRequest: it is no page of a model on a hub that is known.
    :raises NotFound: it is a page of Ollama's.
    """
    address = text.partition("://")[2] or text
    host, *parts = address.split("?")[0].split("#")[0].strip("/").split("/")
    host = host.lower().removeprefix("www.")
    if host == "ollama.com":
        raise NotFound(f"{shown(text)} is a model of Ollama's; {CHOOSE}.")
    if (hub := HUBS.get(host)) is None:
        raise BadRequest(f"{shown(text)} is not the page of a model on ModelScope or Hugging Face; {CHOOSE}.")
    if hub == "modelscope" or parts[:1] == ["models"]:
        if parts[:1] != ["models"]:
            raise BadRequest(f"{shown(text)} is not the page of a model; {CHOOSE}.")
        parts = parts[1:]
    if len(parts) < 2 or parts[0] in ("datasets", "spaces", "collections"):
        raise BadRequest(f"{shown(text)} is not the page of a model; {CHOOSE}.")
    revision = "/".join(parts[3:4]) if parts[2:3] in (["tree"], ["blob"]) else ""
    named = parse_model_ref("/".join(parts[:2]))
    return ModelRef(named.id, named.revision or revision, hub)


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
    if is_reserved(part):
        return "Windows keeps that name for a device"
    return ""
