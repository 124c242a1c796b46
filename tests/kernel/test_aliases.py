"""Aliases: what a request to one becomes, and what clients see of them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ovms_kernel.aliases import listed, target, with_fields
from ovms_kernel.errors import BadRequest
from ovms_kernel.settings import read_settings
from ovms_kernel.values import Call, LocalModel

FILE = {"aliases": {"helper": {"model": "tiny/chat", "system": "Be brief.", "request": {"temperature": 0, "seed": 1}}}}
ALIASES = read_settings({}, file=FILE, data_dir=Path("/nowhere")).aliases
QUESTION = {"role": "user", "content": "Hi"}


def asked(**fields: Any) -> Call:
    return with_fields(ALIASES, Call("1", "chat", str(fields.get("model", "")), fields, b"{}"))


def test_a_request_to_an_alias_has_its_fields_unless_it_says_otherwise() -> None:
    call = asked(model="helper", messages=[QUESTION], temperature=0.7, seed=None)
    assert call.fields["messages"] == [{"role": "system", "content": "Be brief."}, QUESTION]
    assert (call.fields["temperature"], call.fields["seed"]) == (0.7, 1)
    assert call.raw == b"", "the bytes that arrived are not what is sent"
    assert target(ALIASES, "helper") == "tiny/chat"


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_chat_that_brings_instructions_keeps_them(role: str) -> None:
    messages = [{"role": role, "content": "Be long."}, QUESTION]
    assert asked(model="helper", messages=messages).fields["messages"] == messages


def test_a_request_to_a_model_is_left_byte_for_byte() -> None:
    assert asked(model="tiny/chat", messages=[QUESTION]).raw == b"{}"
    assert asked(model="helper", input="no messages").fields["input"] == "no messages"


def test_an_alias_is_listed_as_a_model_if_its_own_is_installed() -> None:
    chat = LocalModel("tiny/chat", Path("/m"), "text_generation", 7, "", datetime.now(UTC))
    assert [(each.id, each.alias_of, each.size) for each in listed(ALIASES, [chat])] == [
        ("helper", "tiny/chat", 7),
        ("tiny/chat", "", 7),
    ]
    assert listed(ALIASES, []) == []


@pytest.mark.parametrize(
    ("aliases", "told"),
    [
        ({"a": {"model": "b"}, "b": {"model": "tiny/chat"}}, "aliases.a.model is b, another alias"),
        ({"a": {"system": "Hi"}}, "aliases.a.model is missing"),
        ({"a": {"modle": "x"}}, "did you mean aliases.a.model"),
        ({"a": "tiny/chat"}, "aliases.a must be a table"),
        ({"a": {"model": "tiny/chat", "context": -1}}, "aliases.a.context"),
        ({"..": {"model": "tiny/chat", "context": 9}}, "is a profile, so a model's id"),
    ],
)
def test_an_alias_that_stands_for_nothing_is_refused(aliases: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        read_settings({}, file={"aliases": aliases}, data_dir=Path("/nowhere"))
