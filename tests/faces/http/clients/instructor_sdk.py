# /// script
# requires-python = ">=3.11"
# dependencies = ["instructor>=1.11"]
# ///
"""instructor with a JSON schema, which the engine keeps the model to."""

import os
from typing import Literal

import instructor
import openai
from pydantic import BaseModel


class Choice(BaseModel):
    """What the model must answer."""

    color: Literal["red", "green"]


client = instructor.from_openai(
    openai.OpenAI(base_url=os.environ["SERVED"] + "/v1", api_key=os.environ["KEY"]), mode=instructor.Mode.JSON_SCHEMA
)
asked = [{"role": "user", "content": "Name a color."}]
answer = client.chat.completions.create(model="tiny/chat", messages=asked, response_model=Choice, max_retries=0)
assert answer.color in ("red", "green")
