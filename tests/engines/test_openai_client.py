"""The openai client, unchanged, against every endpoint it knows."""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING, Any

import openai
import pytest
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.engines.conftest import Engine

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{engine.port}/v3", api_key="unused", max_retries=0) as made:
        yield made


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (
            "What is OpenVINO?",
            "OpenVINO is an open source toolkit for running AI models fast on Intel CPUs, GPUs and NPUs.",
        ),
        ("你好", "你好！很高兴见到你。"),
        ("Smile", "Here is a smile: 😀"),
    ],
)
def test_chat_plain_and_streamed(client: openai.OpenAI, question: str, answer: str) -> None:
    plain = client.chat.completions.create(model="text_generation", temperature=0, messages=user(question))
    assert plain.choices[0].message.content == answer
    assert plain.choices[0].finish_reason == "stop"
    assert plain.usage
    assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens > 10
    streamed = client.chat.completions.create(
        model="text_generation",
        temperature=0,
        messages=user(question),
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(streamed)
    assert "".join(each.choices[0].delta.content or "" for each in chunks if each.choices) == answer
    assert [each.choices[0].finish_reason for each in chunks if each.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == plain.usage


def test_chat_over_turns_with_a_system_prompt(client: openai.OpenAI) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": [{"type": "text", "text": "My name is Alice."}]},
        {"role": "assistant", "content": "Nice to meet you, Alice."},
        {"role": "user", "content": "What is my name?"},
    ]
    answer = client.chat.completions.create(model="text_generation", temperature=0, messages=messages)
    assert answer.choices[0].message.content == "Your name is Alice."


def test_a_demanded_tool_is_called(client: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {"model": "tools", "temperature": 0, "messages": user("Weather?"), "tools": [WEATHER]}
    plain = client.chat.completions.create(**wanted, tool_choice="required", max_tokens=1500)
    (call,) = plain.choices[0].message.tool_calls
    assert plain.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    deltas = [
        each
        for chunk in client.chat.completions.create(**wanted, tool_choice=named, stream=True, max_tokens=1500)
        for each in chunk.choices[0].delta.tool_calls or ()
    ]
    assert deltas[0].function.name == "get_weather"
    assert "".join(each.function.arguments or "" for each in deltas) == call.function.arguments
    # A tool that nobody demands is not called by a model that has not learned to.
    free = client.chat.completions.create(**wanted, tool_choice="auto")
    assert free.choices[0].message.tool_calls == []


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="text_generation", prompt="The capital of France is", temperature=0, logprobs=1, max_tokens=20
    )
    assert answer.choices[0].text == " Paris."
    logprobs = answer.choices[0].logprobs
    assert logprobs
    assert logprobs.tokens
    assert logprobs.token_logprobs
    assert logprobs.tokens[:2] == [" Paris", "."]
    assert -0.1 < logprobs.token_logprobs[0] < 0
    chunks = client.completions.create(model="text_generation", prompt="1, 2, 3,", temperature=0, stream=True)
    assert "".join(each.choices[0].text for each in chunks) == " 4, 5, 6, 7, 8, 9, 10."


def test_responses(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="text_generation", input="Count to five", temperature=0)
    assert (answer.status, answer.output_text) == ("completed", "1, 2, 3, 4, 5.")
    cut = client.responses.create(model="text_generation", input="Count to five", temperature=0, max_output_tokens=5)
    assert cut.incomplete_details
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_tokens")
    events = list(client.responses.create(model="text_generation", input="Count to five", temperature=0, stream=True))
    assert [each.sequence_number for each in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert "".join(each.delta for each in events if each.type == "response.output_text.delta") == "1, 2, 3, 4, 5."
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == "1, 2, 3, 4, 5."


def test_embeddings_in_either_encoding(client: openai.OpenAI) -> None:
    texts = ["我喜欢小猫", "I love my kitten", "The weather is sunny today."]
    asked: dict[str, Any] = {"model": "embeddings", "input": texts}
    floats = [each.embedding for each in client.embeddings.create(**asked, encoding_format="float").data]
    packed = [each.embedding for each in client.embeddings.create(**asked).data]  # the client asks for base64
    for one, other in zip(floats, packed, strict=True):
        assert one == pytest.approx(other)
        assert sum(value * value for value in one) == pytest.approx(1, abs=1e-3)
    near, far = (sum(a * b for a, b in zip(floats[0], other, strict=True)) for other in floats[1:])
    assert near > 0.5 > far


def test_images_and_edits(client: openai.OpenAI) -> None:
    def decoded(answer: Any) -> list[bytes]:
        return [base64.b64decode(each.b64_json) for each in answer.data]

    def draw(seed: int) -> bytes:
        answer = client.images.generate(
            model="image_generation", prompt="a cat", size="64x64", n=1, extra_body={"rng_seed": seed}
        )
        return decoded(answer)[0]

    first = draw(1)
    assert Image.open(io.BytesIO(first)).size == (64, 64)
    assert draw(1) == first != draw(2)
    assert len(decoded(client.images.generate(model="image_generation", prompt="two", n=2))) == 2
    files: dict[str, Any] = {"image": ("a.png", first), "prompt": "a dog", "model": "image_generation"}
    extra = {"strength": "0.5", "num_inference_steps": "4", "rng_seed": "1"}
    edited = decoded(client.images.edit(**files, extra_body=extra))[0]
    painted = decoded(client.images.edit(**files, mask=("m.png", first), extra_body=extra))[0]
    for picture in (edited, painted):
        assert Image.open(io.BytesIO(picture)).size == (64, 64)
    assert edited != painted


@pytest.mark.parametrize("name", ["en_turn_on_the_light.wav", "en_one_two_three.wav", "zh_ni_hao.wav"])
def test_transcription_and_translation(client: openai.OpenAI, fixtures: Path, name: str) -> None:
    samples = fixtures / "speech_to_text_samples"
    expected = json.loads((samples / "expected.json").read_text("utf-8"))[name]
    recording = samples / name
    plain = client.audio.transcriptions.create(
        model="speech_to_text",
        file=recording,
        language=expected["language"],
        timestamp_granularities=["segment", "word"],
    )
    assert plain.text.strip() == expected["text"]
    assert plain.model_extra
    segments = plain.model_extra["segments"]
    assert [each["text"].strip() for each in segments] == [each["text"] for each in expected["segments"]]
    for got, want in zip(segments, expected["segments"], strict=True):
        assert got["start"] == pytest.approx(want["start"], abs=0.3)
        assert got["end"] == pytest.approx(want["end"], abs=0.3)
    assert "".join(each["word"] for each in plain.model_extra["words"]).strip() == expected["text"]
    events = list(
        client.audio.transcriptions.create(
            model="speech_to_text", file=recording, language=expected["language"], stream=True
        )
    )
    assert "".join(each.delta for each in events if each.type == "transcript.text.delta") == plain.text
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == plain.text
    if expected["language"] == "en":
        with pytest.warns(DeprecationWarning, match="deprecated"):
            translated = client.audio.translations.create(model="speech_to_text", file=recording)
        assert translated.text.strip() == expected["translation"]


def test_speech(client: openai.OpenAI) -> None:
    answer = client.audio.speech.create(model="text_to_speech", input="Hi", voice=None)  # type: ignore[arg-type]
    assert answer.content[:4] == b"RIFF"
    assert answer.content[8:12] == b"WAVE"
    assert len(answer.content) > 10000


def test_models(client: openai.OpenAI) -> None:
    assert {"text_generation", "embeddings"} <= {each.id for each in client.models.list()}
    assert client.models.retrieve("embeddings").owned_by == "OVMS"
