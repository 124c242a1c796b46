"""What Ollama's API does, with the kernel."""

from __future__ import annotations

import json
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio.to_thread
from starlette.responses import JSONResponse, PlainTextResponse, Response

from ovms_dialect_ollama import answers, requests
from ovms_kernel.api.faces import (
    BadRequest,
    EngineFailed,
    NotFound,
    OvmsError,
    Request,
    StreamedAnswer,
    context_length,
    decode_request,
    read_events,
    reported,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping
    from pathlib import Path

    from starlette.requests import Request as HttpRequest
    from starlette.types import Receive, Scope, Send

    from ovms_dialect_ollama.requests import Fields
    from ovms_kernel.api.faces import KernelApi, LocalModel

VERSION = "0.12.0"
"""The version of Ollama whose API this is: clients switch on what they know a version to have."""
CAPABILITIES = {"text_generation": ("completion", "tools"), "embeddings": ("embedding",)}
"""What clients may ask of a model, by its type."""
TEXTS = ("config.json", "chat_template.jinja")


class Endpoints:
    """Each method answers one path."""

    def __init__(self, kernel: KernelApi) -> None:
        self._kernel = kernel

    # -- answers ---------------------------------------------------------------------------------------------------

    async def chat(self, http: HttpRequest) -> Response:
        """``/api/chat``."""
        fields = decode_request(await http.body())
        if not fields.get("messages"):
            return await self._only_load(fields, {"message": {"role": "assistant", "content": ""}})
        return await self._generate("chat", requests.chat_of(fields), fields, http, chat=True)

    async def generate(self, http: HttpRequest) -> Response:
        """``/api/generate``."""
        fields = decode_request(await http.body())
        if not fields.get("prompt"):
            return await self._only_load(fields, {"response": ""})
        if fields.get("raw"):
            return await self._generate("generate", requests.completion_of(fields), fields, http, chat=False)
        return await self._generate("chat", requests.chat_of_prompt(fields), fields, http, chat=False)

    async def embed(self, http: HttpRequest) -> Response:
        """``/api/embed``."""
        began = time.monotonic_ns()
        fields = decode_request(await http.body())
        if fields.get("input") in ("", []):
            return await self._only_load(fields, {"embeddings": []})
        answer = await self._embed(fields, http)
        made = {
            "model": fields.get("model"),
            "embeddings": [each["embedding"] for each in answer["data"]],
            "total_duration": time.monotonic_ns() - began,
            "load_duration": 0,
            "prompt_eval_count": (answer.get("usage") or {}).get("prompt_tokens", 0),
        }
        return JSONResponse(made)

    async def embeddings(self, http: HttpRequest) -> Response:
        """``/api/embeddings``, the older one."""
        fields = decode_request(await http.body())
        if fields.get("prompt") in (None, ""):
            return await self._only_load(fields, {"embedding": []})
        answer = await self._embed(fields, http)
        return JSONResponse({"embedding": answer["data"][0]["embedding"]})

    async def _embed(self, fields: Fields, http: HttpRequest) -> Fields:
        """Return OpenAI's answer; texts that are too long for the model are cut, unless the client forbids that."""
        asked = requests.embeddings_of(fields)
        try:
            return await self._ask("embed", asked, fields, http)
        except BadRequest as error:
            if fields.get("truncate") is False or "tokenize" not in self._kernel.services:
                raise
            shorter = await self._shortened(asked, http)
            if shorter is None:
                raise error from None
        return await self._ask("embed", asked | {"input": shorter}, fields, http)

    async def _shortened(self, asked: Fields, http: HttpRequest) -> list[list[int]] | None:
        """Return the tokens of texts, no more than the model takes; ``None`` if none of them is longer."""
        texts = [asked["input"]] if isinstance(asked["input"], str) else asked["input"]
        if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
            return None
        model = await self._find(str(asked["model"]))
        length = await anyio.to_thread.run_sync(context_length, model.directory)
        answer = await self._kernel.invoke("tokenize", _request({"model": model.id, "text": texts}, {}, http))
        tokens = json.loads(answer.body)["tokens"]
        if length is None or all(len(each) <= length for each in tokens):
            return None
        # The last token, which may end a text for the model, stays.
        return [each if len(each) <= length else [*each[: length - 1], each[-1]] for each in tokens]

    async def _generate(
        self, service: str, translated: Fields, fields: Fields, http: HttpRequest, *, chat: bool
    ) -> Response:
        pieces = answers.Pieces(str(fields.get("model")), chat=chat)
        if requests.streams(fields):
            return _Stream(self._pieces(service, translated, fields, http, pieces))
        return JSONResponse(pieces.whole(await self._ask(service, translated, fields, http)))

    async def _pieces(
        self, service: str, translated: Fields, fields: Fields, http: HttpRequest, pieces: answers.Pieces
    ) -> AsyncGenerator[bytes, None]:
        translated = translated | {"stream": True, "stream_options": {"include_usage": True}}
        chunks = read_events(self._kernel.stream(service, _request(translated, fields, http)))
        async with aclosing(chunks):
            async for chunk in chunks:
                if line := pieces.chunk(chunk):
                    yield line
        yield pieces.end()

    async def _ask(self, service: str, translated: Fields, fields: Fields, http: HttpRequest) -> Fields:
        answer = await self._kernel.invoke(service, _request(translated, fields, http))
        found = json.loads(answer.body)
        if not isinstance(found, dict) or not (found.get("choices") or found.get("data")):
            raise EngineFailed("The engine's answer is empty.")
        return found

    async def _only_load(self, fields: Fields, said: Fields) -> Response:
        """Load or unload a model, which is what a request without a prompt asks for."""
        model, keep_alive = requests.model_of(fields), requests.keep_alive_of(fields)
        if keep_alive == 0:
            await self._kernel.unload_models([model], "asked to over HTTP")
            reason = "unload"
        else:
            await self._kernel.load_model(model, keep_alive=keep_alive)
            reason = "load"
        head = {"model": fields.get("model") or fields.get("name"), "created_at": answers.now()}
        return JSONResponse(head | said | {"done": True, "done_reason": reason})

    # -- models ----------------------------------------------------------------------------------------------------

    async def tags(self, http: HttpRequest) -> Response:
        """``/api/tags``: the installed models."""
        del http
        return JSONResponse({"models": [answers.tag(each) for each in await self._kernel.list_models()]})

    async def ps(self, http: HttpRequest) -> Response:
        """``/api/ps``: the loaded models."""
        del http
        resident = [each for each in await self._kernel.resident_models() if each.state == "loaded"]
        return JSONResponse({"models": [answers.loaded(each) for each in resident]})

    async def show(self, http: HttpRequest) -> Response:
        """``/api/show``: one model."""
        model = await self._find(requests.model_of(decode_request(await http.body())))
        texts = await anyio.to_thread.run_sync(_texts, model.directory)
        capabilities = [*CAPABILITIES.get(model.model_type, ())]
        if "vision_config" in _config(texts):
            capabilities.append("vision")
        length = await anyio.to_thread.run_sync(context_length, model.directory)
        return JSONResponse(answers.shown(model, texts, length, capabilities))

    async def pull(self, http: HttpRequest) -> Response:
        """``/api/pull``: fetch a model from its hub."""
        fields = decode_request(await http.body())
        model = requests.model_of(fields)
        if requests.streams(fields):
            return _Stream(self._pull(model))
        await self._kernel.pull_model(model)
        return JSONResponse({"status": "success"})

    async def _pull(self, model: str) -> AsyncGenerator[bytes, None]:
        async def work(report: Callable[[bytes], None]) -> None:
            await self._kernel.pull_model(model, report=lambda now: report(answers.line(answers.progress(now))))

        yield answers.line({"status": "pulling manifest"})
        async with aclosing(reported(work)) as lines:
            async for line in lines:
                yield line
        yield answers.line({"status": "success"})

    async def delete(self, http: HttpRequest) -> Response:
        """``/api/delete``."""
        model = await self._find(requests.model_of(decode_request(await http.body())))
        await self._kernel.delete_model(model.id)
        return Response(status_code=200)

    async def version(self, http: HttpRequest) -> Response:
        """``/api/version``."""
        del http
        return JSONResponse({"version": VERSION})

    async def root(self, http: HttpRequest) -> Response:
        """``/``, by which clients see that something is here."""
        del http
        return PlainTextResponse("Ollama is running")

    async def unknown(self, http: HttpRequest) -> Response:
        """What Ollama has and nothing here does, such as ``/api/create``."""
        raise NotFound(
            f"There is no {http.method} {http.url.path} here; "
            "`ovms-plugin import` and `ovms-plugin alias` make models of your own."
        )

    async def _find(self, name: str) -> LocalModel:
        for each in await self._kernel.list_models():
            if each.id == name:
                return each
        raise NotFound(f"Model {name} is not installed; pull it with `ovms-plugin pull {name}`.")


class _Stream(Response):
    """Lines of JSON as they come; the face ends them when the client leaves."""

    def __init__(self, lines: AsyncGenerator[bytes, None]) -> None:
        super().__init__()
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        del receive, send
        streamed: StreamedAnswer = scope["ovms.stream"]
        await streamed(self._lines, _failed, b"application/x-ndjson", b"")


def _failed(error: Exception) -> bytes:
    message = error.message if isinstance(error, OvmsError) else "Internal error; the log has the details."
    return answers.line({"error": message})


def _request(translated: Fields, fields: Fields, http: HttpRequest) -> Request:
    if not isinstance(translated.get("model"), str):
        raise BadRequest("The field model must name a model.")
    keep_alive = requests.keep_alive_of(fields)
    return Request(
        fields=translated,
        caller="ollama",
        id=http.scope["ovms.request"],
        keep_alive=keep_alive,
        trace=http.headers.get("traceparent", ""),
    )


def _texts(directory: Path) -> dict[str, str]:
    found = {}
    for name in TEXTS:
        try:
            found[name] = (directory / name).read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
    return found


def _config(texts: Mapping[str, str]) -> Fields:
    try:
        value = json.loads(texts.get("config.json", ""))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
