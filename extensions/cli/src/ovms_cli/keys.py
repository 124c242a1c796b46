"""Names of settings, as ``services.chat.default_model``: which there are, and which was meant."""

from __future__ import annotations

from importlib import metadata
from typing import Any, NamedTuple

from ovms_kernel.api.configuration import (
    ELSEWHERE,
    KINDS,
    TOP,
    BadRequest,
    ModelSettings,
    NoSettings,
    Settings,
    meant,
    settings_in,
)


class Key(NamedTuple):
    """A setting by name: of the kernel if ``kind`` is empty, else in the section of an extension or a model."""

    kind: str
    section: str
    name: str

    def __str__(self) -> str:
        return ".".join(filter(None, self))


def locate(text: str) -> Key:
    """Return the setting of that name.

    :raises BadRequest: there is none; the sentence names the one that was meant.
    """
    key = split(text)
    if not key.kind:
        if key.name == "data_dir":
            raise BadRequest(f"data_dir cannot be set in the config file; {ELSEWHERE}.")
        if key.name in KINDS:
            raise BadRequest(_is_section(text, key.name, ""))
        if key.name not in TOP:
            raise BadRequest(f"{text} is not a setting; {meant(key.name, [*TOP, *KINDS])}")
    elif key.kind not in KINDS:
        owners = [
            kind for kind in KINDS for each in metadata.entry_points(group=f"ovms.{kind}") if each.name == key.kind
        ]
        told = f"did you mean {owners[0]}.{text}?" if owners else meant(key.kind, KINDS)
        raise BadRequest(f"{text} is not a setting; {told}")
    elif not key.section or not key.name:
        raise BadRequest(_is_section(text, key.kind, key.section))
    elif key.kind == "models":
        near = meant(key.name, ModelSettings.__struct_fields__, f"models.{key.section}.")
        if key.name not in ModelSettings.__struct_fields__ and near.startswith("did you mean"):
            raise BadRequest(f"{text} is not a setting; {near}")
    else:
        declared = type_of(key.kind, key.section)
        if declared is not dict and key.name not in declared.__struct_fields__:
            near = meant(key.name, declared.__struct_fields__, f"{key.kind}.{key.section}.")
            raise BadRequest(f"{text} is not a setting; {near}")
    return key


def _is_section(text: str, kind: str, section: str) -> str:
    example = "models.OWNER/NAME.pinned" if kind == "models" else f"{kind}.{section or 'NAME'}.KEY"
    return f"{text} is a section, not a setting; name one in it, as {example}."


def split(text: str) -> Key:
    """Return the parts of a name, which may be none of a setting."""
    kind, dot, rest = text.partition(".")
    if not dot:
        return Key("", "", kind)
    # Names of models have dots, their settings have none.
    section, _, name = rest.rpartition(".") if kind == "models" else rest.partition(".")
    return Key(kind, section, name)


def type_of(kind: str, name: str) -> Any:  # noqa: ANN401 - the class of a struct, or dict
    """Return what an extension declares as its settings.

    :raises BadRequest: none of that name is installed.
    """
    return dict if kind == "models" else getattr(driver_of(kind, name), "settings_type", NoSettings)


def driver_of(kind: str, name: str) -> Any:  # noqa: ANN401 - any driver's class
    """Return the class of an extension.

    :raises BadRequest: none of that name is installed.
    """
    offered = {each.name.replace("-", "_"): each for each in metadata.entry_points(group=f"ovms.{kind}")}
    if (found := offered.get(name.replace("-", "_"))) is None:
        near = meant(name, offered, f"{kind}.")
        raise BadRequest(f"{kind}.{name} names no extension that is installed; {near}")
    return found.load()


def declared_keys() -> dict[Key, str]:
    """Return every setting that is declared, and its meaning."""
    found = {Key("", "", each.name): each.help for each in settings_in(Settings) if each.name in TOP}
    for kind in KINDS:
        for each in sorted(metadata.entry_points(group=f"ovms.{kind}"), key=lambda each: each.name):
            declared: Any = getattr(each.load(), "settings_type", dict)
            if declared is not dict:
                found |= {Key(kind, each.name, one.name): one.help for one in settings_in(declared)}
    return found
