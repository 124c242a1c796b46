# /// script
# requires-python = ">=3.11"
# dependencies = ["litellm>=1.80"]
# ///
"""LiteLLM, as its users call it."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask the internet

import litellm

ANSWER = "OpenVINO is an open source toolkit for running AI models fast on Intel CPUs, GPUs and NPUs."
ASKED = [{"role": "user", "content": "What is OpenVINO?"}]
HERE = {"api_base": os.environ["SERVED"] + "/v1", "api_key": os.environ["KEY"]}
SURE = {"temperature": 0}  # one answer in a thousand is another one otherwise

assert litellm.completion(model="openai/tiny/chat", messages=ASKED, **SURE, **HERE).choices[0].message.content == ANSWER
chunks = litellm.completion(model="openai/tiny/chat", messages=ASKED, stream=True, **SURE, **HERE)
assert "".join(each.choices[0].delta.content or "" for each in chunks) == ANSWER
assert len(litellm.embedding(model="openai/tiny/embeddings", input=["one"], **HERE).data) == 1
anthropic = {"api_base": os.environ["SERVED"], "api_key": os.environ["KEY"]}
answer = litellm.completion(model="anthropic/tiny/chat", messages=ASKED, max_tokens=100, **SURE, **anthropic)
assert answer.choices[0].message.content == ANSWER
ranked = litellm.rerank(model="cohere/tiny/rerank", query="cat", documents=["a cat", "a car"], **anthropic)
assert len(ranked.results) == 2
