"""``call``: ask any service with a request in JSON."""

import codecs
import sys
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO
from uuid import uuid4

import typer

from ovms_cli.asking import services_of
from ovms_cli.completing import offered
from ovms_cli.session import Session, add
from ovms_kernel.api.commands import (
    BadRequest,
    NotSupported,
    Request,
    Upload,
    decode_request,
    print_json,
    read_file,
    source_of,
)

if TYPE_CHECKING:
    from ovms_kernel.api.commands import Service

MEDIA = {"audio": "file_type", "file": "file_type", "image": "image_type", "mask": "image_type"}
"""Fields that may name a file, and the field that says whether they do."""
STDOUT = Path("-")
WITHDRAWN = "Interrupted; the request is withdrawn."


def piped(text: str) -> str:
    """Return what a ``-`` stands for; before the event loop begins, whose signals a read of stdin would hold up."""
    given = text.encode(errors="surrogateescape")
    if text == "-":
        given = sys.stdin.buffer.read() if sys.stdin else b""
    try:
        return given.decode()
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"it is not UTF-8 ({error.reason} at byte {error.start}).") from error


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    add(app, call)


async def call(
    session: Session,
    service: Annotated[
        str, typer.Argument(metavar="SERVICE", autocompletion=offered, help="Such as embed.", show_default=False)
    ],
    request: Annotated[
        str,
        typer.Argument(
            metavar="JSON|@FILE|-", help="The request; - reads it from stdin.", callback=piped, show_default=False
        ),
    ] = "{}",
    *,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer piece by piece as it comes.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE|-", help="Write the answer to a file, or as it is.", show_default=False
        ),
    ] = None,
) -> None:
    """Send a JSON request to a service and print the answer."""
    asked = with_uploads(read_request(request))
    session.kept = WITHDRAWN
    async with services_of(session) as services:
        driver = services.service(service)
        if stream and not driver.definition.streaming:
            raise NotSupported(f"The service {service} does not stream; leave out --stream.")
        content_type = content_type_of(driver, asked)
        check_terminal(content_type, out)
        answer = None if stream else await services.invoke(service, asked)
        content_type = answer.content_type if answer else content_type
        check_terminal(content_type, out)
        path = out or (None if is_text(content_type) else place_for(session.settings.data_dir, content_type))
        with sink(path) as file:
            if answer:
                file.write(answer.body + b"\n" * (path is None and not answer.body.endswith(b"\n")))
            else:
                async with aclosing(services.stream(service, asked)) as chunks:
                    async for chunk in chunks:
                        file.write(chunk)
                        file.flush()
        if path and out is None:
            print_json({"url": str(path), "content_type": content_type})


def with_uploads(body: bytes) -> Request:
    """Return the request, with the files of this machine that it names as uploads: relative paths are those of here.

    :raises BadRequest: it is no JSON object, or such a file cannot be read.
    """
    fields = decode_request(body.removeprefix(codecs.BOM_UTF8))
    files: dict[str, Upload] = {}
    for name, kind in MEDIA.items():
        text = fields.get(name)
        if not isinstance(text, str) or text.startswith("data:"):
            continue
        path = text.strip() if source_of(text.strip()) == "path" else local_path(text.strip())
        if path and fields.get(kind) in (None, "path"):
            if not path.startswith("file://"):
                path = str(Path(path).expanduser().absolute())
            files[name] = Upload(Path(path).name, read_file(name, path))
    if not files:
        return Request(body, caller="cli", local_files=True)
    kept = {name: value for name, value in fields.items() if name not in files and name not in MEDIA.values()}
    return Request(fields=kept, files=files, caller="cli", local_files=True)


def local_path(text: str) -> str:
    """Return a relative path of a file that exists; else nothing."""
    try:
        return text if text and len(text) < 4096 and Path(text).is_file() else ""
    except (OSError, ValueError):
        return ""


def content_type_of(driver: "Service", asked: Request) -> str:
    """Return the content type of the answer, as far as it is known before the work."""
    told = getattr(driver, "stream_content_type", None)
    return str(told(asked.fields or decode_request(asked.body))) if told else "application/json"


def is_text(content_type: str) -> bool:
    """Tell whether people can read it."""
    return content_type.startswith(("text/", "application/json", "application/x-subrip"))


def check_terminal(content_type: str, out: Path | None) -> None:
    """Refuse to show on a terminal what is no text.

    :raises BadRequest: it has to be written to a file.
    """
    if out == STDOUT and not is_text(content_type) and sys.stdout.isatty():
        raise BadRequest(f"The answer is {content_type.partition(';')[0]}, not text; name a file for it with --output.")


def place_for(data_dir: Path, content_type: str) -> Path:
    """Return a new file for an answer that is no text, in the data folder.

    :raises BadRequest: the folder cannot be made.
    """
    kind = content_type.partition(";")[0].strip().rpartition("/")[2]
    ending = "mp3" if kind == "mpeg" else kind
    folder = data_dir / "answers"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadRequest(f"{folder} cannot be made ({error.strerror}); name a file with --output.") from error
    return folder / f"{uuid4().hex[:12]}.{ending}"


@contextmanager
def sink(path: Path | None) -> Iterator[BinaryIO]:
    """Yield where the answer is written: stdout, or a file that is there whole or not at all.

    :raises BadRequest: the file cannot be written.
    """
    if path is None or path == STDOUT:
        yield sys.stdout.buffer
        return
    half = path.with_name(f".{path.name}.partial")
    try:
        file = half.open("wb")
    except OSError as error:
        raise BadRequest(f"{path} cannot be written ({error.strerror}); name another file with --output.") from error
    try:
        with file:
            yield file
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def read_request(text: str) -> bytes:
    """Return the request that was typed, or that is in the file named as ``@file``."""
    if not text.startswith("@"):
        return text.encode()
    try:
        return Path(text[1:]).expanduser().read_bytes()
    except OSError as error:
        raise BadRequest(f"{text} cannot be read ({error.strerror}); give @ and a file with JSON in it.") from error
