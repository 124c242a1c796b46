# /// script
# requires-python = ">=3.11"
# dependencies = ["ollama>=0.6"]
# ///
"""Ollama's own client."""

import contextlib
import io
import os
from datetime import UTC, datetime

import ollama

ANSWER = "OpenVINO is an open source toolkit for running AI models fast on Intel CPUs, GPUs and NPUs."
ASKED = [{"role": "user", "content": "What is OpenVINO?"}]
client = ollama.Client(host=os.environ["SERVED"], headers={"Authorization": f"Bearer {os.environ['KEY']}"})

answer = client.chat(model="tiny/chat", messages=ASKED)
assert answer.message.content == ANSWER
assert answer.done
assert answer.eval_count > 0
assert "".join(each.message.content for each in client.chat(model="tiny/chat", messages=ASKED, stream=True)) == ANSWER
assert client.generate(model="tiny/chat:latest", prompt="What is OpenVINO?").response == ANSWER
assert "Paris" in client.generate(model="tiny/chat", prompt="The capital of France is", raw=True).response
assert client.generate(model="tiny/chat", keep_alive="10m").done_reason == "load"
assert "tiny/chat" in [each.model for each in client.ps().models]
assert len(client.embed(model="tiny/embeddings", input=["one", "two"]).embeddings) == 2
assert len(client.embeddings(model="tiny/embeddings", prompt="one").embedding) == 64
assert len(client.embed(model="tiny/embeddings", input=["word " * 3000, "one"]).embeddings) == 2, "long texts are cut"
assert client.embed(model="tiny/embeddings", input=[]).embeddings == []
assert client.chat(model="tiny/chat", messages=ASKED, logprobs=True).logprobs[0].token
try:
    client.embed(model="tiny/embeddings", input="word " * 3000, truncate=False)
except ollama.ResponseError as error:
    assert error.status_code == 400
else:
    raise AssertionError("a text that is too long was taken")
try:
    client.copy("tiny/chat", "tiny/other")
except ollama.ResponseError as error:
    assert "There is no POST /api/copy" in error.error
else:
    raise AssertionError("a model was copied")
for keep_alive, stays in ((-1, True), ("5m", True), (0, False)):
    client.chat(model="tiny/chat", messages=ASKED, keep_alive=keep_alive)
    loaded = {each.model: each.expires_at for each in client.ps().models}
    now = datetime.now(UTC)
    assert loaded["tiny/chat"] > now if stays else loaded.get("tiny/chat", now) <= now, keep_alive
assert "tiny/chat" in [each.model for each in client.list().models]
assert "completion" in client.show("tiny/chat").capabilities
try:
    client.chat(model="no/such", messages=ASKED)
except ollama.ResponseError as error:
    assert error.status_code == 404
    assert "pull no/such" in str(error)
else:
    raise AssertionError("a model that is not installed answered")

with contextlib.redirect_stdout(io.StringIO()) as printed:
    exec(os.environ["SNIPPET_OLLAMA"])
assert "How can I help you" in printed.getvalue(), "what `ovms-plugin connect` prints works as it is"
