"""Every service through the whole kernel, the embedded engine and the tiny models: asserted on what is said.

For each service: the request as AOG sends it after its own conversion, as an OpenAI client writes it, and in our names.
"""

import base64
import io
import json
import math
import wave
from contextlib import aclosing, suppress
from functools import partial

import anyio
import numpy as np
import psutil
import pytest
from openai.types import ImagesResponse
from openai.types.audio import TranscriptionTextDeltaEvent, TranscriptionTextDoneEvent, TranscriptionVerbose
from PIL import Image

from ovms_kernel.api.observers import hookimpl
from ovms_kernel.errors import BadRequest, NotFound
from ovms_kernel.values import Request, Upload

from .conftest import events_in

KNOWN = "OpenVINO is an open source toolkit for running AI models fast on Intel CPUs, GPUs and NPUs."


def user(text):
    return [{"role": "user", "content": text}]


@pytest.fixture
def ask(house):
    async def run(service, **body):
        return json.loads((await house.invoke(service, Request(json.dumps(body).encode(), local_files=True))).body)

    return run


@pytest.fixture
def stream(house):
    async def run(service, **body):
        return events_in([chunk async for chunk in house.stream(service, Request(json.dumps(body).encode()))])

    return run


def payloads(chunks):
    assert chunks[-1] == b"data: [DONE]\n\n"
    assert all(each.startswith(b"data: ") and each.endswith(b"\n\n") for each in chunks)
    return [json.loads(each[6:]) for each in chunks[:-1]]


# -- chat and generate ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"model": "tiny/text", "messages": user("What is OpenVINO?"), "temperature": 0, "max_tokens": 100},
        {
            "model": "tiny/text",
            "messages": [{"role": "user", "content": [{"type": "text", "text": "What is OpenVINO?"}]}],
            "temperature": 0.0,
            "max_completion_tokens": 100,
            "n": 1,
            "seed": 7,
            "user": "somebody",
            "stream": False,
            "stop": None,
            "tools": None,
        },
        {"messages": user("What is OpenVINO?"), "temperature": 0, "max_tokens": None},
    ],
    ids=["aog", "openai", "ours"],
)
async def test_chat(ask, body):
    answer = await ask("chat", **body)
    assert answer["choices"][0]["message"]["content"] == KNOWN
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["model"] == "tiny/text"
    assert answer["usage"]["completion_tokens"] > 5


async def test_chat_remembers_the_conversation_and_speaks_chinese(ask):
    turns = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "My name is Alice."},
        {"role": "assistant", "content": "Nice to meet you, Alice."},
        {"role": "user", "content": "What is my name?"},
    ]
    answer = await ask("chat", model="tiny/text", messages=turns, temperature=0, max_tokens=50)
    assert answer["choices"][0]["message"]["content"] == "Your name is Alice."
    answer = await ask("chat", model="tiny/text", messages=user("你好"), temperature=0, max_tokens=50)
    assert answer["choices"][0]["message"]["content"] == "你好！很高兴见到你。"


async def test_chat_gives_several_answers_their_tokens_and_what_a_schema_wants(ask):
    body = {"model": "tiny/text", "messages": user("Count to five"), "temperature": 0, "max_tokens": 50}
    several = await ask("chat", **body | {"temperature": 0.5}, n=3, seed=1)
    assert [each["index"] for each in several["choices"]] == [0, 1, 2]
    (known,) = (await ask("chat", **body, logprobs=True, stop=["4, "]))["choices"]
    assert known["message"]["content"] == "1, 2, 3, "
    assert [each["logprob"] <= 0 for each in known["logprobs"]["content"]].count(True) > 3
    schema = {"type": "object", "properties": {"a": {"enum": ["yes", "no"]}}, "required": ["a"]}
    wanted = {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema | {"additionalProperties": False}},
    }
    (said,) = (await ask("chat", **body | {"max_tokens": 200}, response_format=wanted))["choices"]
    assert json.loads(said["message"]["content"])["a"] in ("yes", "no")


async def test_chat_streams_the_same_answer(ask, stream):
    body = {"model": "tiny/text", "messages": user("Count to fifty"), "temperature": 0, "max_tokens": 300}
    chunks = payloads(await stream("chat", **body, stream=True, stream_options={"include_usage": True}))
    text = "".join(each["choices"][0]["delta"].get("content") or "" for each in chunks if each["choices"])
    whole = await ask("chat", **body)
    assert text == whole["choices"][0]["message"]["content"] == ", ".join(map(str, range(1, 51))) + "."
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert len(chunks) > 5, "tokens that come at once may share a chunk, but not all of them"


async def test_a_pulled_model_that_sees_answers_about_images(house, ask, stream):
    """From the hub over recognition and graph to an answer that depends on the image."""

    def about(colour):
        picture = io.BytesIO()
        Image.new("RGB", (40, 30), colour).save(picture, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
        question = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
        return {"model": "tiny/vision", "messages": [{"role": "user", "content": question}], "temperature": 0}

    pulled = await house.pull_model("tiny/vision")
    try:
        assert pulled.model_type == "text_generation"
        answer = await ask("chat", **about("lime"))
        assert answer["choices"][0]["message"]["content"] == "Grass is green."
        chunks = payloads(await stream("chat", **about("blue")))
        text = "".join(each["choices"][0]["delta"].get("content") or "" for each in chunks if each["choices"])
        assert text.startswith("The sky is blue")
        for service, model, sentence in (
            ("chat", "tiny/text", "supports only text input"),
            ("generate", "tiny/vision", "does not serve completions"),
        ):
            with pytest.raises(BadRequest, match=sentence):
                await ask(service, **about("red") | {"model": model, "prompt": "The capital of France is"})
    finally:
        await house.delete_model("tiny/vision")


@pytest.mark.parametrize("prompt", ["The capital of France is", ["The capital of France is"]], ids=["aog", "openai"])
async def test_generate(ask, stream, prompt):
    body = {"model": "tiny/text", "prompt": prompt, "temperature": 0, "max_tokens": 20}
    answer = await ask("generate", **body)
    assert answer["choices"][0]["text"] == " Paris."
    assert answer["id"].startswith("cmpl-")
    chunks = payloads(await stream("generate", **body))
    assert "".join(each["choices"][0]["text"] for each in chunks if each["choices"]) == " Paris."


def work_of_the_engine():
    """Return the seconds of processor time that every process of the engine has used."""
    used = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            used += sum(process.cpu_times()[:2])
    return used


async def work_until_rest(before):
    """Return the processor time that the engine has used since then, once it uses no more."""
    with anyio.fail_after(10):
        while True:
            now = work_of_the_engine()
            await anyio.sleep(0.15)
            if work_of_the_engine() - now <= 0.02:
                return now - before


@pytest.mark.parametrize("way", ["close", "cancel"])
async def test_leaving_a_long_answer_stops_the_generation(house, way):
    body = {"model": "tiny/text", "messages": user("Count to fifty"), "temperature": 0, "max_tokens": 2000}
    raw = json.dumps(body | {"ignore_eos": True}).encode()
    await house.load_model("tiny/text")
    began = work_of_the_engine()
    await house.invoke("chat", Request(raw))
    whole = await work_until_rest(began)
    began = work_of_the_engine()
    if way == "close":
        async with aclosing(house.stream("chat", Request(raw))) as chunks:
            await anext(chunks)
    else:
        with anyio.move_on_after(0.1) as scope:
            await house.invoke("chat", Request(raw))
        assert scope.cancelled_caught, "the whole answer takes a second"
    assert await work_until_rest(began) < whole / 2


async def test_a_model_is_loaded_once_whoever_asks_at_the_same_time(house, ask):
    loads = []

    class Watcher:
        @hookimpl
        def ovms_model_ready(self, model):
            loads.append(model.model.id)

    await house.unload_models(["tiny/embeddings"])
    house.events.register({"observers.watcher": Watcher()})
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(partial(ask, "embed", model="tiny/embeddings", input="a cat"))
    assert loads == ["tiny/embeddings"]


async def test_d2_31_the_engines_refusal_is_one_sentence(ask, stream):
    body = {"model": "tiny/text", "messages": user("hi"), "temperature": 9}
    for asked in (ask("chat", **body), stream("chat", **body)):
        with pytest.raises(BadRequest) as caught:
            await asked
        assert "temperature" in caught.value.message
        assert "Calculator" not in caught.value.message
        assert "\n" not in caught.value.message


async def test_wrong_models_are_named(ask):
    with pytest.raises(NotFound, match=r"tiny/none is not installed; .*tiny/text.*ovms-plugin pull tiny/none"):
        await ask("chat", model="tiny/none", messages=user("hi"))
    with pytest.raises(BadRequest, match=r"tiny/rerank is for rerank.*tiny/text"):
        await ask("chat", model="tiny/rerank", messages=user("hi"))


# -- embed and rerank -----------------------------------------------------------------------------------------------


def near(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)


def vectors(answer):
    data = sorted(answer["data"], key=lambda each: each["index"])
    return [
        np.frombuffer(base64.b64decode(each["embedding"]), "<f4").tolist()
        if isinstance(each["embedding"], str)
        else each["embedding"]
        for each in data
    ]


@pytest.mark.parametrize("more", [{}, {"encoding_format": "base64"}, {"dimensions": None, "user": "x"}])
async def test_d2_27_embed(ask, more):
    texts = ["A cat sits on the mat.", "A kitten is sitting on the rug.", "The stock market fell today."]
    answer = await ask("embed", model="tiny/embeddings", input=texts, **more)
    cat, kitten, market = vectors(answer)
    assert near(cat, kitten) > near(cat, market) + 0.3
    assert answer["model"] == "tiny/embeddings"
    assert answer["usage"]["prompt_tokens"] > 0
    (alone,) = vectors(await ask("embed", input=texts[0], **more))
    assert near(alone, cat) == pytest.approx(1, abs=1e-3)


async def test_a_file_of_an_editor_on_windows_is_a_request(house):
    raw = b'\xef\xbb\xbf{"model":"tiny/embeddings","input":"A cat"}'
    assert json.loads((await house.invoke("embed", Request(raw))).body)["data"]


DOCUMENTS = [
    "Bread is baked in an oven.",
    "Paris is the capital of France.",
    "The moon is far away.",
]


@pytest.mark.parametrize(
    "more",
    [
        {"model": "tiny/rerank", "documents": DOCUMENTS, "top_n": 2, "return_documents": True},
        {
            "documents": [{"text": each} for each in DOCUMENTS],
            "top_k": 2,
            "return_documents": True,
            "rank_fields": None,
        },
    ],
    ids=["aog", "ours"],
)
async def test_d2_28_rerank(ask, more):
    answer = await ask("rerank", query="What is the capital of France?", **more)
    assert len(answer["results"]) == 2
    best, second = answer["results"]
    assert best["index"] == 1
    assert best["document"] == {"text": DOCUMENTS[1]}
    assert best["relevance_score"] > second["relevance_score"]
    assert answer["model"] == "tiny/rerank"


# -- images ---------------------------------------------------------------------------------------------------------


def opened(data):
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    image.load()
    return image


async def test_d2_25_d2_26_text_to_image(ask):
    aog = {"prompt": "a fox", "size": "64x64", "num_inference_steps": 2, "rng_seed": 42}
    one = await ask("text-to-image", model="tiny/image", **aog)
    ImagesResponse.model_validate(one, strict=True)
    image = opened(one["data"][0]["b64_json"])
    assert (image.size, image.format) == ((64, 64), "PNG")
    ours = {"prompt": "a fox", "size": "64*64", "num_inference_steps": 2, "seed": 42, "n": 2, "guidance_scale": 7}
    two = await ask("text-to-image", **ours, negative_prompt="blur", response_format="url")
    prefix = "data:image/png;base64,"
    assert [opened(each["url"].removeprefix(prefix)).size for each in two["data"]] == [(64, 64)] * 2
    again = await ask("text-to-image", **aog)
    assert again["data"] == one["data"], "the same seed paints the same image"
    other = await ask("text-to-image", **aog | {"rng_seed": 43})
    assert other["data"] != one["data"]


async def test_images_of_images(ask, tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(picture, "PNG")
    (tmp_path / "red.png").write_bytes(picture.getvalue())
    body = {"prompt": "blue", "num_inference_steps": 2, "seed": 1, "strength": 0.5, "size": "64x64"}
    one = await ask("text-to-image", **body, image=str(tmp_path / "red.png"), image_type="path")
    two = await ask("text-to-image", **body, image=base64.b64encode(picture.getvalue()).decode(), image_type="base64")
    assert opened(one["data"][0]["b64_json"]).size == (64, 64)
    assert one["data"] == two["data"]
    half = io.BytesIO()
    Image.linear_gradient("L").point(lambda value: 255 * (value > 127)).resize((64, 64)).save(half, "PNG")
    mask = base64.b64encode(half.getvalue()).decode()
    inpainted = await ask("text-to-image", **body, image=str(tmp_path / "red.png"), mask=mask)
    assert opened(inpainted["data"][0]["b64_json"]).size == (64, 64)
    assert inpainted["data"] != one["data"], "only where the mask is white"


# -- speech ---------------------------------------------------------------------------------------------------------


def truth(fixtures):
    return json.loads((fixtures / "speech_to_text_samples" / "expected.json").read_text("utf-8"))


async def test_without_a_language_the_model_finds_out(ask, fixtures):
    name = "en_turn_on_the_light.wav"
    body = {"audio": str(fixtures / "speech_to_text_samples" / name), "language": None}
    answer = await ask("speech-to-text", **body, response_format="verbose_json")
    assert answer["text"] == truth(fixtures)[name]["text"]
    TranscriptionVerbose.model_validate(answer, strict=True)
    assert answer["language"] == "english"


@pytest.mark.parametrize("way", ["path", "base64", "flac", "aog"])
async def test_d2_32_speech_to_text(ask, fixtures, way):
    import soundfile

    for name, expected in truth(fixtures).items():
        path = fixtures / "speech_to_text_samples" / name
        if way == "path":
            body = {"file": str(path), "file_type": "path"}
        elif way == "flac":
            samples, rate = soundfile.read(path)
            buffer = io.BytesIO()
            soundfile.write(buffer, np.repeat(samples, 2), 2 * rate, format="FLAC")
            body = {"audio": f"data:audio/flac;base64,{base64.b64encode(buffer.getvalue()).decode()}"}
        elif way == "base64":
            body = {"audio": base64.b64encode(path.read_bytes()).decode()}
        else:
            body = {"audio": str(path), "model": "tiny/listener"}
        body |= {"language": f"<|{expected['language']}|>", "response_format": "verbose_json"}
        answer = await ask("speech-to-text", **body)
        TranscriptionVerbose.model_validate(answer, strict=True)
        assert answer["text"] == expected["text"]
        assert "".join(each["text"] for each in answer["segments"]).replace(" ", "") == answer["text"].replace(" ", "")
        assert [each["id"] for each in answer["segments"]] == list(range(len(answer["segments"])))
        if way != "flac":
            assert answer["segments"][0]["start"] <= expected["segments"][0]["start"] + 0.3
            assert answer["segments"][-1]["end"] >= expected["segments"][-1]["end"] - 0.3


async def test_a_recording_of_silence_has_no_segments(ask):
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(16000))
    body = {"audio": base64.b64encode(sound.getvalue()).decode(), "response_format": "verbose_json"}
    answer = await ask("speech-to-text", **body)
    assert (answer["text"], answer["segments"], answer["duration"]) == ("", [], 0.5)


async def test_a_recording_of_a_browser_is_written_down(house, fixtures):
    import av

    name = "en_turn_on_the_light.wav"
    webm = io.BytesIO()
    with (
        av.open(str(fixtures / "speech_to_text_samples" / name)) as source,
        av.open(webm, "w", format="webm") as out,
    ):
        stream = out.add_stream("libopus", rate=48000, layout="mono")
        for frame in source.decode(audio=0):
            frame.pts = None
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    files = {"file": Upload("blob", webm.getvalue(), "audio/webm")}
    for form in ("json", "text", "srt", "vtt"):
        fields = {"model": "tiny/listener", "language": "en", "response_format": form, "temperature": "0"}
        answer = await house.invoke("speech-to-text", Request(fields=fields, files=files))
        assert truth(fixtures)[name]["text"] in answer.body.decode()
    request = Request(fields={"model": "tiny/listener", "stream": True}, files=files)
    pieces = [each async for each in house.stream("speech-to-text", request)]
    events = [json.loads(each[6:]) for each in events_in(pieces)]
    assert TranscriptionTextDoneEvent.model_validate(events[-1], strict=True).text == truth(fixtures)[name]["text"]
    assert all(TranscriptionTextDeltaEvent.model_validate(each, strict=True).delta for each in events[:-1])


@pytest.mark.parametrize("name", ["text", "input"], ids=["ours", "aog and openai"])
async def test_d2_34_text_to_speech(house, name):
    body = {name: "Hello.", "model": "tiny/speaker", "voice": "alloy", "response_format": "wav"}
    answer = await house.invoke("text-to-speech", Request(json.dumps(body).encode()))
    assert (answer.content_type, answer.model) == ("audio/wav", "tiny/speaker")
    with wave.open(io.BytesIO(answer.body)) as sound:
        assert (sound.getframerate(), sound.getsampwidth(), sound.getnchannels()) == (16000, 2, 1)
        samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(float)
    assert math.sqrt((samples**2).mean()) > 500
    streamed = [each async for each in house.stream("text-to-speech", Request(json.dumps(body).encode()))]
    assert b"".join(streamed)[:4] == b"RIFF"
    assert len(b"".join(streamed)) == pytest.approx(len(answer.body), rel=0.2)
