"""Aliases: further names of installed models, each with fields of its own for the requests that name it."""

from __future__ import annotations

import re
from collections.abc import Mapping  # noqa: TC003 - msgspec reads annotations
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from ovms_kernel.declared import Count  # noqa: TC001
from ovms_kernel.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ovms_kernel.values import Call, LocalModel

INSTRUCTIONS = ("system", "developer")
"""Roles of messages that say how the model is to behave."""
NAME = re.compile(r"[\w+][\w.+-]*(/[\w+][\w.+-]*)?")
"""Names that profiles may have, as their folders have them."""


class AliasSettings(msgspec.Struct, frozen=True):
    """A further name of an installed model; every client sees it as a model of its own.

    One with a device, a context or options is a profile: it is loaded beside its model, from the same files.
    """

    model: str = ""
    """The installed model that it stands for."""
    system: str = ""
    """System prompt for chats without one."""
    request: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """Fields of its requests where they have none, such as `{temperature: 0.2}`."""
    device: str = ""
    """Device that it runs on, such as `GPU`; empty = as its model."""
    context: Count = 0
    """Tokens that a prompt and its answer may have together; 0 = as many as its model takes."""
    options: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """Options of its calculator, over those of its model, such as `{cache_size: 2}`."""

    @property
    def is_profile(self) -> bool:
        """Whether it is loaded beside its model."""
        return bool(self.device or self.context or self.options)


def check_aliases(aliases: Mapping[str, AliasSettings]) -> None:
    """Refuse aliases that stand for nothing.

    :raises BadRequest: one names no model, or another alias, or is a profile whose name no model may have.
    """
    for name, alias in aliases.items():
        if not alias.model or alias.model in aliases:
            wrong = f"is {alias.model}, another alias" if alias.model else "is missing"
            raise BadRequest(f"In the settings, aliases.{name}.model {wrong}; name an installed model.")
        if alias.is_profile and not NAME.fullmatch(name):
            raise BadRequest(
                f"In the settings, aliases.{name} is a profile, so a model's id; write it as name or owner/name."
            )


def target(aliases: Mapping[str, AliasSettings], name: str) -> str:
    """Return the name by which the engine serves a model: the name itself unless it is an alias and no profile."""
    alias = aliases.get(name)
    return name if alias is None or alias.is_profile else alias.model


def files_of(aliases: Mapping[str, AliasSettings], name: str) -> str:
    """Return the id of the model whose files a name stands for: the name itself unless it is an alias."""
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
    """Return models, among which profiles are already, and the other aliases of those, by id."""
    known = {each.id: each for each in models}
    found = [
        replace(known[alias.model], id=name, alias_of=alias.model)
        for name, alias in aliases.items()
        if alias.model in known and not alias.is_profile
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
