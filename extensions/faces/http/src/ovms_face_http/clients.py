"""What to type or paste so that another program uses this server."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ovms_kernel.api.faces import LocalModel

CLIENTS = ("env", "openai", "anthropic", "ollama", "continue", "open-webui", "codex", "claude-code", "llm")
Client = StrEnum("Client", [(each.replace("-", "_"), each) for each in CLIENTS])  # type: ignore[misc]
"""The programs that ``connect`` knows."""

TEXTS = {
    "env": """\
# Any program that uses OpenAI's SDK
export OPENAI_BASE_URL={url}/v1
export OPENAI_API_KEY={key}""",
    "openai": """\
# Python, pip install openai
from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key="{key}")
answer = client.chat.completions.create(model="{chat}", messages=[{{"role": "user", "content": "Hello"}}])
print(answer.choices[0].message.content)""",
    "anthropic": """\
# Python, pip install anthropic
from anthropic import Anthropic

client = Anthropic(base_url="{url}", api_key="{key}")
answer = client.messages.create(model="{chat}", max_tokens=500, messages=[{{"role": "user", "content": "Hello"}}])
print(answer.content[0].text)""",
    "ollama": """\
# Python, pip install ollama
from ollama import Client

client = Client(host="{url}", headers={{"Authorization": "Bearer {key}"}})
answer = client.chat(model="{chat}", messages=[{{"role": "user", "content": "Hello"}}])
print(answer.message.content)""",
    "continue": """\
# Continue: ~/.continue/config.yaml
models:
  - name: {chat}
    provider: openai
    model: {chat}
    apiBase: {url}/v1
    apiKey: {key}
    roles: [chat, edit, apply]""",
    "open-webui": """\
# Open WebUI, pip install open-webui
export OPENAI_API_BASE_URL={url}/v1
export OPENAI_API_KEY={key}
open-webui serve""",
    "codex": """\
# Codex: ~/.codex/config.toml, and `export OVMS_API_KEY={key}`
model = "{chat}"
model_provider = "ovms"
[model_providers.ovms]
name = "ovms-plugin"
base_url = "{url}/v1"
env_key = "OVMS_API_KEY"
wire_api = "responses\"""",
    "claude-code": """\
# Claude Code
export ANTHROPIC_BASE_URL={url}
export ANTHROPIC_AUTH_TOKEN={key}
export ANTHROPIC_MODEL={chat}
export ANTHROPIC_SMALL_FAST_MODEL={chat}
claude""",
    "llm": """\
# llm: extra-openai-models.yaml in the folder that `llm logs path` names; `llm keys set ovms --value {key}`
- model_id: ovms
  model_name: {chat}
  api_base: {url}/v1
  api_key_name: ovms""",
}


def told(client: str, url: str, key: str, models: Sequence[LocalModel]) -> str:
    """Return the lines for one program.

    :param key: empty if none is needed; programs want one all the same.
    """
    chat = next((each.id for each in models if each.model_type == "text_generation"), "OWNER/NAME")
    return TEXTS[client].format(url=url, key=key or "none", chat=chat)
