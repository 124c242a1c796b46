# /// script
# requires-python = ">=3.11"
# dependencies = ["langchain-openai>=1"]
# ///
"""langchain-openai with its default settings."""

import os

from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

ANSWER = "OpenVINO is an open source toolkit for running AI models fast on Intel CPUs, GPUs and NPUs."
HERE = {"base_url": os.environ["SERVED"] + "/v1", "api_key": os.environ["KEY"], "max_retries": 0}

chat = ChatOpenAI(model="tiny/chat", **HERE)
assert chat.invoke("What is OpenVINO?").content == ANSWER
assert "".join(each.content for each in chat.stream("What is OpenVINO?")) == ANSWER
assert ChatOpenAI(model="tiny/chat", use_responses_api=True, **HERE).invoke("What is OpenVINO?").text
assert OpenAI(model="tiny/chat", **HERE).invoke("The capital of France is").strip().startswith("Paris")
embeddings = OpenAIEmbeddings(model="tiny/embeddings", check_embedding_ctx_length=False, **HERE)
assert len(embeddings.embed_query("one")) == 64
