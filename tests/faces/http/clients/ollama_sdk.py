# /// script
# requires-python = ">=3.11"
# dependencies = ["ollama>=0.6"]
# ///
"""Ollama's own client."""

import os

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
assert "tiny/chat" in [each.model for each in client.list().models]
assert "completion" in client.show("tiny/chat").capabilities
try:
    client.chat(model="no/such", messages=ASKED)
except ollama.ResponseError as error:
    assert error.status_code == 404
    assert "pull no/such" in str(error)
else:
    raise AssertionError("a model that is not installed answered")
