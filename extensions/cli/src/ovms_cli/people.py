"""People's verbs over the services: transcribe, say, imagine, embed, rerank."""

import base64
import json as json_
import mimetypes
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import anyio
import typer

from ovms_cli import output
from ovms_cli.asking import services_of
from ovms_cli.completing import installed
from ovms_cli.conversation import read_file
from ovms_cli.services import WITHDRAWN, piped, sink
from ovms_cli.session import Json, Session, add
from ovms_kernel.api.commands import BadRequest, EngineFailed, Request, Upload

Model = Annotated[
    str,
    typer.Option("--model", "-m", metavar="MODEL", autocompletion=installed, help="As owner/name.", show_default=False),
]
SPOKEN = ("wav", "mp3", "opus", "flac", "aac", "pcm")
"""Formats of speech, by the ending of its file."""


class Transcript(StrEnum):
    """How a transcript is written."""

    txt = "txt"
    srt = "srt"
    vtt = "vtt"
    json = "json"


FORMATS = {"txt": "text", "srt": "srt", "vtt": "vtt", "json": "verbose_json"}
"""OpenAI's ``response_format`` by the name that the command takes."""


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    add(app, transcribe, say, imagine, embed, rerank)


async def transcribe(
    session: Session,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A recording; - reads it from stdin.", show_default=False)
    ] = "",
    *,
    live: Annotated[bool, typer.Option("--live", help="Listen to the microphone; with -, to sound on stdin.")] = False,
    format_: Annotated[Transcript, typer.Option("--format", "-f", help="Output format.")] = Transcript.txt,
    language: Annotated[
        str, typer.Option(metavar="CODE", help="Such as en; detected if not given.", show_default=False)
    ] = "",
    translate: Annotated[bool, typer.Option("--translate", help="Translate to English.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="File to write.", show_default=False)
    ] = None,
    model: Model = "",
) -> None:
    """Transcribe a recording or live speech."""
    if live:
        from ovms_cli.listening import listen

        await listen(session, file, model, language)
        return
    if not file:
        raise BadRequest("Name a recording, - for stdin, or --live to listen to the microphone.")
    name = "recording.wav" if file == "-" else Path(file).name
    data = sys.stdin.buffer.read() if file == "-" else await anyio.to_thread.run_sync(read_file, Path(file))
    fields: dict[str, Any] = {"response_format": FORMATS[format_]} | _named(model=model, language=language)
    if translate:
        fields["task"] = "translate"
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    session.kept = WITHDRAWN
    async with services_of(session) as services:
        with output.waiting(f"transcribing {name}"):
            answer = await services.invoke("speech-to-text", _request(fields, {"file": Upload(name, data, kind)}))
    _write(out, answer.body if answer.body.endswith(b"\n") else answer.body + b"\n")


async def say(
    session: Session,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Text to speak; - reads it from stdin.", callback=piped)],
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The file to write; its ending is the format.")
    ] = Path("speech.wav"),
    voice: Annotated[str, typer.Option(metavar="NAME", help="A voice of the model.", show_default=False)] = "",
    speed: Annotated[float, typer.Option(metavar="FACTOR", help="From 0.25 to 4.", min=0.25, max=4)] = 1.0,
    model: Model = "",
) -> None:
    """Turn text into a sound file."""
    ending = out.suffix.lstrip(".").lower()
    if ending not in SPOKEN:
        raise BadRequest(f"{out.name} does not end in a format of sound; name a file that ends in {_any(SPOKEN)}.")
    fields = {"input": text, "response_format": ending, "speed": speed} | _named(model=model, voice=voice)
    session.kept = WITHDRAWN
    async with services_of(session) as services:
        with output.waiting("speaking"):
            answer = await services.invoke("text-to-speech", _request(fields))
    _write(out, answer.body)
    print(out)


async def imagine(
    session: Session,
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="Description of the image; - reads it from stdin.", callback=piped)
    ],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The PNG to write.")] = Path("image.png"),
    size: Annotated[str, typer.Option(metavar="WxH", help="Such as 512x512.", show_default=False)] = "",
    steps: Annotated[int, typer.Option(metavar="N", help="Number of inference steps.", min=0, show_default=False)] = 0,
    seed: Annotated[int, typer.Option(metavar="N", help="Makes images repeatable.", show_default=False)] = -1,
    negative: Annotated[
        str, typer.Option(metavar="TEXT", help="What the image must not show.", show_default=False)
    ] = "",
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="Image to change.", show_default=False)] = None,
    model: Model = "",
) -> None:
    """Generate an image."""
    fields: dict[str, Any] = {"prompt": prompt, "response_format": "b64_json"}
    fields |= _named(model=model, size=size, negative_prompt=negative)
    if steps:
        fields["num_inference_steps"] = steps
    if seed >= 0:
        fields["seed"] = seed
    files = {}
    if image:
        kind = mimetypes.guess_type(image.name)[0] or "image/png"
        files["image"] = Upload(image.name, await anyio.to_thread.run_sync(read_file, image), kind)
    session.kept = WITHDRAWN
    async with services_of(session) as services:
        with output.waiting("painting"):
            answer = await services.invoke("text-to-image", _request(fields, files))
    try:
        picture = base64.b64decode(json_.loads(answer.body)["data"][0]["b64_json"], validate=True)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise EngineFailed("The answer contains no image.") from error
    _write(out, picture)
    show_picture(picture)
    print(out)


async def embed(
    session: Session,
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT", help="One or more; - reads lines from stdin.", show_default=False)
    ],
    *,
    dimensions: Annotated[int, typer.Option(metavar="N", help="Cut vectors to N.", min=0, show_default=False)] = 0,
    model: Model = "",
) -> None:
    """Print an embedding for each text, as one line of JSON."""
    texts = [each for each in piped("-").splitlines() if each.strip()] if texts == ["-"] else texts
    fields: dict[str, Any] = {"input": texts} | _named(model=model)
    if dimensions:
        fields["dimensions"] = dimensions
    session.kept = WITHDRAWN
    async with services_of(session) as services:
        answer = await services.invoke("embed", _request(fields))
    for each in json_.loads(answer.body)["data"]:
        print(json_.dumps(each["embedding"]))


async def rerank(
    session: Session,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="The query.", show_default=False)],
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE", help="Texts to rank; - takes each line of stdin.", show_default=False),
    ],
    *,
    top: Annotated[int, typer.Option(metavar="N", help="Only the best N.", min=0, show_default=False)] = 0,
    model: Model = "",
    json: Json = False,
) -> None:
    """Rank texts by how well they match a query."""
    if files == ["-"]:
        texts = [each for each in piped("-").splitlines() if each.strip()]
        names = texts
    else:
        names = files
        texts = [(await anyio.to_thread.run_sync(read_file, Path(each))).decode(errors="replace") for each in files]
    fields: dict[str, Any] = {"query": query, "documents": texts} | _named(model=model)
    if top:
        fields["top_n"] = top
    session.kept = WITHDRAWN
    async with services_of(session) as services:
        answer = await services.invoke("rerank", _request(fields))
    found = [(each["relevance_score"], names[each["index"]]) for each in json_.loads(answer.body)["results"]]
    if json:
        output.print_json([{"score": score, "document": name} for score, name in found])
        return
    for score, name in found:
        print(f"{score:7.4f}  {name}")


def show_picture(data: bytes) -> None:
    """Draw a picture at a terminal that can: those that speak iTerm2's or kitty's protocol."""
    if not sys.stdout.isatty():
        return
    program, terminal = os.environ.get("TERM_PROGRAM", ""), os.environ.get("TERM", "")
    text = base64.b64encode(data).decode()
    if program in ("iTerm.app", "WezTerm", "vscode"):
        print(f"\033]1337;File=inline=1;size={len(data)}:{text}\a")
    elif "kitty" in terminal or "ghostty" in terminal:
        parts = [text[begin : begin + 4096] for begin in range(0, len(text), 4096)]
        for number, part in enumerate(parts):
            head = "f=100,a=T," if number == 0 else ""
            print(f"\033_G{head}m={int(number + 1 < len(parts))};{part}\033\\", end="")
        print()


def _named(**fields: str) -> dict[str, Any]:
    """Return the fields that were given."""
    return {name: value for name, value in fields.items() if value}


def _any(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _request(fields: dict[str, Any], files: dict[str, Upload] | None = None) -> Request:
    return Request(fields=fields, files=files or {}, caller="cli")


def _write(path: Path | None, data: bytes) -> None:
    """Write a result to a file, or to stdout where none is named."""
    with sink(path) as file:
        file.write(data)
