"""Ollama's API as OpenAI's and back; nothing here needs a server."""

import json
from typing import Any

import pytest

from ovms_dialect_ollama import answers, requests
from ovms_kernel.api.faces import BadRequest, Progress


def test_a_chat_in_full() -> None:
    fields = {
        "model": "own/m:latest",
        "options": {"num_predict": 5, "temperature": 0, "seed": 3, "stop": ["x"], "num_ctx": 4096, "num_gpu": 1},
        "format": {"type": "object"},
        "think": False,
        "tools": [{"type": "function", "function": {"name": "look"}}],
        "messages": [
            {"role": "user", "content": "Hi", "images": ["iVBORw0KGgo="]},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "look", "arguments": {"at": 1}}}],
            },
            {"role": "tool", "content": "a cat", "tool_name": "look"},
        ],
    }
    assert requests.chat_of(fields) == {
        "model": "own/m",
        "max_tokens": 5,
        "temperature": 0,
        "seed": 3,
        "stop": ["x"],
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}},
        "chat_template_kwargs": {"enable_thinking": False},
        "tools": fields["tools"],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Hi"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
                ],
            },
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"id": "call_0", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
                ],
            },
            {"role": "tool", "content": "a cat", "tool_call_id": "call_0"},
        ],
    }


def test_a_prompt_goes_through_the_template_unless_it_is_raw() -> None:
    fields = {"model": "m", "prompt": "Hi", "system": "Be brief.", "options": {"num_predict": -1}, "think": True}
    assert requests.chat_of_prompt(fields)["messages"][0] == {"role": "system", "content": "Be brief."}
    assert requests.completion_of(fields) == {"model": "m", "prompt": "Hi"}


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (None, None), ("5m", 300.0), ("1h30m", 5400.0), (-1, -1.0), ("-1", -1.0), ("-1m", -60.0), (0, 0.0), ("0", 0.0),
        ("1.5s", 1.5), (30, 30.0),
    ],
)  # fmt: skip
def test_how_long_a_model_stays(given: object, seconds: float | None) -> None:
    assert requests.keep_alive_of({"keep_alive": given}) == seconds


@pytest.mark.parametrize(
    "call",
    [
        lambda: requests.keep_alive_of({"keep_alive": "soon"}),
        lambda: requests.model_of({}),
        lambda: requests.chat_of({"model": "m", "messages": "hi"}),
        lambda: requests.chat_of({"model": "m", "messages": [{"role": "user", "content": "x", "images": [5]}]}),
        lambda: requests.chat_of({"model": "m", "messages": [], "options": "many"}),
        lambda: requests.chat_of({"model": "m", "messages": [], "format": "xml"}),
        lambda: requests.streams({"stream": "yes"}),
        lambda: requests.chat_of_prompt({"model": "m", "prompt": "a", "suffix": "b"}),
    ],
)
def test_what_has_no_meaning_is_refused(call: Any) -> None:
    with pytest.raises(BadRequest):
        call()


def test_a_stream_ends_with_its_counts_and_hands_over_calls_whole() -> None:
    pieces = answers.Pieces("m", chat=True)
    data = b""
    for delta in (
        {"role": "assistant", "content": None},
        {"reasoning_content": "hm"},
        {"content": "I look."},
        {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "look", "arguments": '{"at"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]},
    ):
        data += pieces.chunk({"choices": [{"delta": delta}]})
    data += pieces.chunk({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 9}})
    data += pieces.end()
    lines = [json.loads(line) for line in data.splitlines()]
    assert [each["done"] for each in lines] == [False, False, False, True]
    assert lines[0]["message"]["thinking"] == "hm"
    assert lines[1]["message"]["content"] == "I look."
    assert lines[2]["message"]["tool_calls"] == [{"function": {"name": "look", "arguments": {"at": 1}}}]
    assert (lines[3]["prompt_eval_count"], lines[3]["eval_count"], lines[3]["done_reason"]) == (4, 9, "stop")


def test_a_pull_tells_how_far_it_is() -> None:
    assert answers.progress(Progress("verifying")) == {"status": "verifying"}
    told = answers.progress(Progress("downloading", 5, 10, "model.bin"))
    assert (told["completed"], told["total"], told["digest"]) == (5, 10, "model.bin")


def test_probabilities_of_tokens_are_asked_for_and_handed_over() -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 2}
    chat = requests.chat_of(asked)
    assert (chat["logprobs"], chat["top_logprobs"]) == (True, 2)
    assert "logprobs" not in requests.chat_of(asked | {"logprobs": False})
    tokens = [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}]
    piece = answers.Pieces("m", chat=True).chunk(
        {"choices": [{"delta": {"content": "a"}, "logprobs": {"content": tokens}}]}
    )
    assert json.loads(piece)["logprobs"] == tokens
    choice = {"message": {"content": "a"}, "logprobs": {"content": tokens}, "finish_reason": "stop"}
    assert answers.Pieces("m", chat=True).whole({"choices": [choice]})["logprobs"] == tokens
    assert "logprobs" not in answers.Pieces("m", chat=True).whole({"choices": [choice | {"logprobs": None}]})


def test_the_speed_of_a_whole_answer_is_a_speed() -> None:
    choice = {"message": {"content": "a"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 5}
    made = answers.Pieces("m", chat=True).whole({"choices": [choice], "usage": usage})
    assert made["eval_duration"] == made["prompt_eval_duration"] == made["total_duration"]
