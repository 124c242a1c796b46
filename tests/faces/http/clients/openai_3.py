# /// script
# requires-python = ">=3.11"
# dependencies = ["openai>=3,<4"]
# ///
"""OpenAI's own client."""

import base64
import contextlib
import io
import os

import openai

ANSWER = "OpenVINO is an open source toolkit for running AI models fast on Intel CPUs, GPUs and NPUs."
ASKED = [{"role": "user", "content": "What is OpenVINO?"}]
client = openai.OpenAI(base_url=os.environ["SERVED"] + "/v1", api_key=os.environ["KEY"], max_retries=0, timeout=60)

assert client.chat.completions.create(model="tiny/chat", messages=ASKED).choices[0].message.content == ANSWER
stream = client.chat.completions.create(
    model="tiny/chat", messages=ASKED, stream=True, stream_options={"include_usage": True}
)
chunks = list(stream)
assert "".join(each.choices[0].delta.content or "" for each in chunks if each.choices) == ANSWER
assert chunks[-1].usage.total_tokens > 0
two = client.chat.completions.create(model="tiny/chat", messages=ASKED, n=2, temperature=0.5)
assert len(two.choices) == 2
assert [
    each.text for each in client.completions.create(model="tiny/chat", prompt=["The capital of France is"] * 2).choices
]

first = client.responses.create(model="tiny/chat", input="What is OpenVINO?")
assert first.output_text == ANSWER
assert first.usage.output_tokens > 0
assert client.responses.create(model="tiny/chat", input="Count to five", previous_response_id=first.id).output_text
with client.responses.stream(model="tiny/chat", input="What is OpenVINO?") as events:
    kinds = [event.type for event in events]
    assert events.get_final_response().output_text == ANSWER
assert kinds[0] == "response.created"
assert kinds[-1] == "response.completed"

assert len(client.embeddings.create(model="tiny/embeddings", input=["one", "two"]).data) == 2
image = client.images.generate(
    model="tiny/image", prompt="a cat", size="64x64", extra_body={"num_inference_steps": 2}
).data[0]
png = base64.b64decode(image.b64_json)
assert png.startswith(b"\x89PNG")
edited = client.images.edit(
    model="tiny/image", image=("cat.png", png, "image/png"), prompt="a dog", extra_body={"num_inference_steps": 2}
)
assert edited.data[0].b64_json

sample = os.path.join(os.environ["SAMPLES"], "en_one_two_three.wav")
with open(sample, "rb") as file:
    assert client.audio.transcriptions.create(model="tiny/listener", file=file, language="en").text
for form, part in (("text", " "), ("srt", "-->"), ("vtt", "WEBVTT")):
    with open(sample, "rb") as file:
        heard = client.audio.transcriptions.create(
            model="tiny/listener", file=file, language="en", response_format=form
        )
    assert part in heard
with open(sample, "rb") as file:
    verbose = client.audio.transcriptions.create(
        model="tiny/listener", file=file, language="en", response_format="verbose_json"
    )
assert verbose.segments
assert verbose.duration > 0
with open(sample, "rb") as file:
    assert client.audio.translations.create(model="tiny/listener", file=file).text
spoken = client.audio.speech.create(model="tiny/speaker", voice="alloy", input="Hello there. How are you?")
assert spoken.response.headers["content-type"] == "audio/mpeg"
assert client.audio.speech.create(
    model="tiny/speaker", voice="alloy", input="Hi.", response_format="wav"
).content.startswith(b"RIFF")

assert {"tiny/chat", "tiny/rerank"} <= {each.id for each in client.models.list()}
assert client.models.retrieve("tiny/chat").id == "tiny/chat"
try:
    client.chat.completions.create(model="no/such", messages=ASKED)
except openai.NotFoundError as error:
    assert "ovms-plugin pull no/such" in str(error)
    assert error.code == "model_not_found"
else:
    raise AssertionError("a model that is not installed answered")
try:
    client.with_options(api_key="sk-wrong").models.list()
except openai.AuthenticationError as error:
    assert "ovms-plugin connect" in str(error)
else:
    raise AssertionError("a wrong key was accepted")

with contextlib.redirect_stdout(io.StringIO()) as printed:
    exec(os.environ["SNIPPET_OPENAI"])
assert "How can I help you" in printed.getvalue(), "what `ovms-plugin connect` prints works as it is"
