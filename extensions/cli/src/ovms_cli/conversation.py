"""A conversation with a model: its messages, its options, and what is known of each answer. No terminal in here."""

from __future__ import annotations

import base64
import json
import mimetypes
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ovms_kernel.api.commands import BadRequest
from ovms_kernel.api.faces import read_events

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

OPTIONS: dict[str, type[int | float]] = {
    "temperature": float,
    "top_p": float,
    "max_tokens": int,
    "seed": int,
    "frequency_penalty": float,
    "presence_penalty": float,
}
"""What ``/set`` changes, by its name in OpenAI's request."""


@dataclass
class Conversation:
    """What is sent with the next question."""

    model: str = ""
    system: str = ""
    options: dict[str, float | int] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    """Images of the next question, as data URIs."""
    schema: dict[str, Any] | None = None
    """A JSON schema that answers keep; an empty one means any JSON object."""

    def ask(self, text: str) -> dict[str, Any]:
        """Add a question and return the request that asks it."""
        content: str | list[dict[str, Any]] = text
        if self.images:
            pictures = [{"type": "image_url", "image_url": {"url": each}} for each in self.images]
            content = [{"type": "text", "text": text}, *pictures]
            self.images = []
        self.messages.append({"role": "user", "content": content})
        return self.request()

    def request(self) -> dict[str, Any]:
        """Return the request for the next answer."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        request: dict[str, Any] = {"messages": system + self.messages, "stream": True} | self.options
        request["stream_options"] = {"include_usage": True}
        if self.model:
            request["model"] = self.model
        if self.schema is not None:
            kind = {"type": "json_schema", "json_schema": {"name": "answer", "schema": self.schema}}
            request["response_format"] = kind if self.schema else {"type": "json_object"}
        return request

    def answered(self, text: str) -> None:
        """Add the answer to the last question, also one that was interrupted."""
        if text:
            self.messages.append({"role": "assistant", "content": text})

    def withdraw(self) -> None:
        """Remove the last question, which was not answered."""
        if self.messages and self.messages[-1]["role"] == "user":
            self.messages.pop()

    def set(self, name: str, value: str) -> None:
        """Set an option; an empty value removes it.

        :raises BadRequest: there is no such option, or the value is not a number.
        """
        if name not in OPTIONS:
            raise BadRequest(f"There is no option {name!r}; there are {', '.join(OPTIONS)}.")
        if not value:
            self.options.pop(name, None)
            return
        try:
            self.options[name] = OPTIONS[name](value)
        except ValueError as error:
            kind = "a whole number" if OPTIONS[name] is int else "a number"
            raise BadRequest(f"The option {name} takes {kind}, not {value!r}.") from error

    def add_image(self, path: Path) -> None:
        """Attach an image to the next question.

        :raises BadRequest: the file cannot be read, or is not an image.
        """
        kind = mimetypes.guess_type(path.name)[0] or ""
        if not kind.startswith("image/"):
            raise BadRequest(f"{path} is not an image file; use PNG, JPEG, WebP, GIF or BMP.")
        self.images.append(data_uri(read_file(path), kind))

    def save(self, path: Path) -> None:
        """Write the conversation as JSON.

        :raises BadRequest: the file cannot be written.
        """
        kept = {"model": self.model, "system": self.system, "options": self.options, "messages": self.messages}
        try:
            path.write_text(json.dumps(kept, ensure_ascii=False, indent=2) + "\n", "utf-8")
        except OSError as error:
            raise BadRequest(f"{path} cannot be written ({error.strerror}).") from error

    def load(self, path: Path) -> None:
        """Go on with a conversation that was saved.

        :raises BadRequest: the file cannot be read, or holds something else.
        """
        try:
            kept = json.loads(read_file(path))
            messages = kept["messages"]
            if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
                raise TypeError
            self.model, self.system = str(kept.get("model", "")), str(kept.get("system", ""))
            self.options = {name: kept["options"][name] for name in OPTIONS if name in kept.get("options", {})}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadRequest(f"{path} is not a conversation that /save wrote.") from error
        self.messages = messages

    def clear(self) -> None:
        """Forget the messages; model, system text and options stay."""
        self.messages, self.images = [], []


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer."""

    kind: Literal["text", "reasoning"]
    text: str


@dataclass
class Stats:
    """How long an answer took, measured here."""

    began: float = field(default_factory=time.monotonic)
    first: float | None = None
    """Seconds until the first piece."""
    seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = ""

    def line(self) -> str:
        """Return it in a line, such as ``24 tokens, 31.0 tokens/s, first after 0.12 s``."""
        parts = []
        if self.completion_tokens:
            parts.append(f"{self.completion_tokens} tokens")
            generating = self.seconds - (self.first or 0.0)
            if self.completion_tokens > 1 and generating > 0:
                parts.append(f"{(self.completion_tokens - 1) / generating:.1f} tokens/s")
        if self.first is not None:
            parts.append(f"first after {self.first:.2f} s")
        if self.prompt_tokens:
            parts.append(f"{self.prompt_tokens} tokens of prompt")
        if self.finish_reason == "length":
            parts.append("cut off")
        return ", ".join(parts)


async def pieces(chunks: AsyncGenerator[bytes, None], stats: Stats) -> AsyncGenerator[Piece, None]:
    """Yield the text and the reasoning in the events of a chat's answer, and fill in its stats; closes ``chunks``."""
    async with aclosing(read_events(chunks)) as events:
        async for event in events:
            for piece in _pieces_of(event, stats):
                if stats.first is None:
                    stats.first = time.monotonic() - stats.began
                yield piece
    stats.seconds = time.monotonic() - stats.began


def _pieces_of(event: dict[str, Any], stats: Stats) -> list[Piece]:
    found: list[Piece] = []
    if usage := event.get("usage"):
        stats.prompt_tokens = usage.get("prompt_tokens") or 0
        stats.completion_tokens = usage.get("completion_tokens") or 0
    for choice in event.get("choices") or ():
        stats.finish_reason = choice.get("finish_reason") or stats.finish_reason
        delta = choice.get("delta") or {}
        if reasoning := delta.get("reasoning_content") or delta.get("reasoning"):
            found.append(Piece("reasoning", reasoning))
        if text := delta.get("content"):
            found.append(Piece("text", text))
    return found


def read_file(path: Path) -> bytes:
    """Return what is in a file.

    :raises BadRequest: it cannot be read.
    """
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise BadRequest(f"{path} cannot be read ({error.strerror}).") from error


def data_uri(data: bytes, kind: str) -> str:
    """Return bytes as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
