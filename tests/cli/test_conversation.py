"""A conversation: what is sent, what is kept, and how an answer is shown while it grows."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovms_cli.conversation import Conversation, Stats, pieces
from ovms_cli.markdown import split_block
from ovms_kernel.errors import BadRequest
from ovms_kernel.server import noted_server, read_server

PIXEL = bytes.fromhex("89504e470d0a1a0a")


def test_a_question_goes_out_with_what_was_said_before() -> None:
    talk = Conversation("own/model", "Be brief.", {"temperature": 0.5})
    talk.ask("One?")
    talk.answered("Yes.")
    request = talk.ask("Two?")
    assert request["model"] == "own/model"
    assert request["temperature"] == 0.5
    assert [(each["role"], each["content"]) for each in request["messages"]] == [
        ("system", "Be brief."),
        ("user", "One?"),
        ("assistant", "Yes."),
        ("user", "Two?"),
    ]


def test_a_question_that_was_not_answered_is_withdrawn() -> None:
    talk = Conversation()
    talk.ask("One?")
    talk.withdraw()
    assert talk.messages == []


def test_an_image_goes_with_one_question(tmp_path: Path) -> None:
    talk = Conversation()
    (tmp_path / "a.png").write_bytes(PIXEL)
    talk.add_image(tmp_path / "a.png")
    first = talk.ask("What is this?")["messages"][0]["content"]
    assert first[1]["image_url"]["url"].startswith("data:image/png;base64,")
    assert talk.ask("And?")["messages"][-1]["content"] == "And?"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("temprature", "1", "There is no option 'temprature'; there are temperature,"),
        ("seed", "a", "The option seed takes a whole number, not 'a'."),
        ("temperature", "warm", "The option temperature takes a number, not 'warm'."),
    ],
)
def test_a_wrong_option_is_refused_in_words(name: str, value: str, told: str) -> None:
    with pytest.raises(BadRequest, match=told.replace(".", r"\.")):
        Conversation().set(name, value)


def test_a_conversation_is_saved_and_gone_on_with(tmp_path: Path) -> None:
    talk = Conversation("own/model", "Be brief.", {"seed": 7})
    talk.ask("Eins?")
    talk.answered("好")
    talk.save(tmp_path / "talk.json")
    other = Conversation()
    other.load(tmp_path / "talk.json")
    assert other == talk
    (tmp_path / "wrong.json").write_text(json.dumps([1]))
    with pytest.raises(BadRequest, match="is not a conversation"):
        other.load(tmp_path / "wrong.json")
    assert other == talk


async def test_text_reasoning_and_usage_are_read_from_the_events() -> None:
    async def events():
        for delta in ({"role": "assistant", "content": ""}, {"reasoning_content": "Hm"}, {"content": "A"}):
            yield f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n".encode()
        yield b'data: {"choices": [{"delta": {}, "finish_reason": "length"}]}\n\n'
        yield b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 9}}\n\ndata: [DONE]\n\n'

    stats = Stats()
    found = [(each.kind, each.text) async for each in pieces(events(), stats)]
    assert found == [("reasoning", "Hm"), ("text", "A")]
    assert stats.line().startswith("9 tokens, ")
    assert stats.line().endswith("3 tokens of prompt, cut off")


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("one\n\ntwo", "one\n\n"),
        ("one\ntwo", ""),
        ("```py\na\n\nb", ""),
        ("```py\na\n\nb\n```\nmore", "```py\na\n\nb\n```\n"),
        ("````\n```\n\n````\n", "````\n```\n\n````\n"),
    ],
)
def test_a_block_is_complete_at_a_blank_line_outside_of_code(text: str, done: str) -> None:
    assert split_block(text) == (done, text[len(done) :])


@given(st.text(alphabet="a`\n ", max_size=60))
def test_no_text_is_lost_between_blocks(text: str) -> None:
    done, rest = split_block(text)
    assert done + rest == text


def test_a_server_that_is_gone_gets_no_requests_even_if_its_number_is_another_process(tmp_path: Path) -> None:
    file = tmp_path / "run" / "http.json"
    with noted_server(tmp_path, "http://127.0.0.1:1", ""):
        found = read_server(tmp_path)
        assert found is not None
        assert (found.url, found.pid, found.key()) == ("http://127.0.0.1:1", os.getpid(), "")
        note = json.loads(file.read_text())
        file.write_text(json.dumps(note | {"started": note["started"] - 60}))
        assert read_server(tmp_path) is None
        file.write_text(json.dumps(note | {"boot": "another run of the system"}))
        assert read_server(tmp_path) is None
    assert not file.exists()
