# /// script
# requires-python = ">=3.11"
# dependencies = ["anthropic>=1"]
# ///
"""Anthropic's own client."""

import contextlib
import io
import os

import anthropic

ANSWER = "OpenVINO is an open source toolkit for running AI models fast on Intel CPUs, GPUs and NPUs."
ASKED = [{"role": "user", "content": "What is OpenVINO?"}]
client = anthropic.Anthropic(base_url=os.environ["SERVED"], api_key=os.environ["KEY"], max_retries=0, timeout=60)

message = client.messages.create(model="tiny/chat", max_tokens=100, messages=ASKED)
assert message.content[0].text == ANSWER
assert message.stop_reason == "end_turn"
assert message.usage.input_tokens > 0
assert client.messages.create(model="tiny/chat", max_tokens=2, messages=ASKED).stop_reason == "max_tokens"
with client.messages.stream(model="tiny/chat", max_tokens=100, system="Be brief.", messages=ASKED) as stream:
    text = "".join(stream.text_stream)
    final = stream.get_final_message()
assert text == final.content[0].text
assert final.usage.output_tokens > 0
until = {"model": "tiny/chat", "max_tokens": 100, "stop_sequences": ["source tool"], "messages": ASKED}
stopped = client.messages.create(**until)
with client.messages.stream(**until) as stream:
    final = stream.get_final_message()
for each in (stopped, final):
    assert (each.stop_reason, each.stop_sequence) == ("stop_sequence", "source tool")
    assert each.content[0].text == "OpenVINO is an open "
bearer = anthropic.Anthropic(base_url=os.environ["SERVED"], auth_token=os.environ["KEY"], api_key=None)
assert bearer.messages.count_tokens(model="tiny/chat", messages=ASKED).input_tokens > 5
for key, model, wrong in (
    ("sk-wrong", "tiny/chat", anthropic.AuthenticationError),
    (os.environ["KEY"], "no/such", anthropic.NotFoundError),
    (os.environ["KEY"], "tiny/rerank", anthropic.BadRequestError),
):
    try:
        client.with_options(api_key=key).messages.create(model=model, max_tokens=5, messages=ASKED)
    except wrong as error:
        assert error.body["type"] == "error"
    else:
        raise AssertionError(f"{wrong.__name__} was expected")

with contextlib.redirect_stdout(io.StringIO()) as printed:
    exec(os.environ["SNIPPET_ANTHROPIC"])
assert "How can I help you" in printed.getvalue(), "what `ovms-plugin connect` prints works as it is"
