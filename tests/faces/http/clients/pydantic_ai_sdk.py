# /// script
# requires-python = ">=3.11"
# dependencies = ["pydantic-ai-slim[openai]>=1"]
# ///
"""pydantic-ai over chat completions and over responses."""

import os

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

ANSWER = "OpenVINO is an open source toolkit for running AI models fast on Intel CPUs, GPUs and NPUs."
provider = OpenAIProvider(base_url=os.environ["SERVED"] + "/v1", api_key=os.environ["KEY"])
for model in (OpenAIChatModel, OpenAIResponsesModel):
    assert Agent(model("tiny/chat", provider=provider)).run_sync("What is OpenVINO?").output == ANSWER
