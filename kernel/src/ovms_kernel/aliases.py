"""Aliases: further names of installed models, each with fields of its own for the requests that name it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ovms_kernel.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ovms_kernel.settings import AliasSettings
    from ovms_kernel.values import Call, LocalModel

INSTRUCTIONS = ("system", "developer")
"""Roles of messages that say how the model is to behave."""


def target(aliases: Mapping[str, AliasSettings], name: str) -> str:
    """Return the id of the model that a name stands for: the name itself unless it is an alias."""
    return aliases[name].model if name in aliases else name


def with_fields(aliases: Mapping[str, AliasSettings], call: Call) -> Call:
    """Return a call with the fields of the alias that it names; what the request says itself wins."""
    if (alias := aliases.get(call.model)) is None:
        return call
    given = {name: value for name, value in call.fields.items() if value is not None}
    fields: dict[str, Any] = {**alias.request, **given}
    messages = fields.get("messages")
    if alias.system and isinstance(messages, list) and not any(_instructs(each) for each in messages):
        fields["messages"] = [{"role": "system", "content": alias.system}, *messages]
    return replace(call, fields=fields, raw=b"")


def _instructs(message: object) -> bool:
    return isinstance(message, dict) and message.get("role") in INSTRUCTIONS


def listed(aliases: Mapping[str, AliasSettings], models: Sequence[LocalModel]) -> list[LocalModel]:
    """Return models and the aliases of those, by id."""
    known = {each.id: each for each in models}
    found = [
        replace(known[alias.model], id=name, alias_of=alias.model)
        for name, alias in aliases.items()
        if alias.model in known
    ]
    return sorted([*models, *found], key=lambda each: each.id)


def refuse(aliases: Mapping[str, AliasSettings], name: str) -> None:
    """Refuse to do to an alias what is meant for a model's files.

    :raises BadRequest: it is one.
    """
    if name in aliases:
        raise BadRequest(
            f"{name} is an alias of {aliases[name].model}; `ovms-plugin alias {name} --remove` removes it, "
            "and the model's own name reaches its files."
        )
