"""What AOG's clients send and read where that differs from OpenAI's API, which the services speak.

Sound and images come as the path of a file in ``url``, times as ``00:00:03.500``. Requests name their files by paths.
"""

from __future__ import annotations

import base64
import codecs
import io
import json
import uuid
import wave
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from ovms_face_aog.payloads import write
from ovms_kernel.api.faces import BadRequest, EngineFailed, PreconditionFailed, Unavailable, decode_request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from ovms_kernel.api.faces import Answer

SHAPED = ("speech-to-text", "text-to-image", "text-to-speech")
"""Services whose requests or answers differ."""


async def invoke_shaped(
    service: str, body: bytes, output_dir: str, invoke: Callable[[bytes], Awaitable[Answer]]
) -> bytes:
    """Answer a request in AOG's form.

    :param output_dir: the setting, where files are written.
    :param invoke: answers a body in OpenAI's form.
    """
    if service not in SHAPED:
        return (await invoke(body)).body
    fields = decode_request(body.removeprefix(codecs.BOM_UTF8))
    if service == "speech-to-text":
        answer = await invoke(write(fields | {"response_format": "verbose_json"}))
        return write(transcript(json.loads(answer.body)))
    asked = fields.get("response_format")
    if service == "text-to-image":
        if asked not in ("path", "url"):
            if asked not in (None, "b64_json"):
                raise BadRequest(f"The field response_format must be b64_json or path, not {asked}.")
            return (await invoke(body)).body
        folder = output_folder(output_dir)
        answer = await invoke(write(fields | {"response_format": "b64_json"}))
        return await anyio.to_thread.run_sync(with_image_files, answer.body, folder)
    inline = asked == "b64_json"
    speech_folder = None if inline else output_folder(output_dir)
    form = "wav" if inline else asked or "wav"
    answer = await invoke(write(fields | {"response_format": form}))
    return await anyio.to_thread.run_sync(speech, answer, form, speech_folder)


def transcript(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a verbose transcript with the fields that AOG's clients read, and no others."""
    said = {name: answer[name] for name in ("text", "segments", "model") if name in answer}
    if "segments" in said:
        said["segments"] = [
            {"id": each["id"], "start": clock(each["start"]), "end": clock(each["end"]), "text": each["text"]}
            for each in said["segments"]
        ]
    return said


def clock(seconds: float) -> str:
    """Return a time as ``00:00:03.500``."""
    whole = round(max(seconds, 0) * 1000)
    return f"{whole // 3_600_000:02}:{whole // 60_000 % 60:02}:{whole // 1000 % 60:02}.{whole % 1000:03}"


def with_image_files(body: bytes, folder: Path) -> bytes:
    """Write the images to files and return the answer with each one's path as ``url``."""
    painted = json.loads(body)
    for each in painted.get("data", []):
        try:
            data = base64.b64decode(each["b64_json"], validate=True)
        except (KeyError, TypeError, ValueError) as error:
            raise EngineFailed("The engine's answer holds no image.") from error
        each["url"] = str(write_output(folder, "image", ".png", data))
    return write(painted)


def speech(answer: Answer, form: str, folder: Path | None) -> bytes:
    """Return the path of a file with the sound, or without a folder the sound itself in ``audio``."""
    said: dict[str, Any]
    if folder:
        said = {"url": str(write_output(folder, "speech", f".{form}", answer.body))}
    else:
        said = {"audio": base64.b64encode(answer.body).decode()}
    said["model"] = answer.model
    if form == "wav":
        with wave.open(io.BytesIO(answer.body)) as sound:
            said["duration"] = round(sound.getnframes() / sound.getframerate(), 3)
    return write(said)


def output_folder(chosen: str) -> Path:
    """Return the setting ``output_dir``, else the user's folder for downloads, else the home folder.

    :raises PreconditionFailed: the setting does not say where the folder is, whatever the working directory.
    """
    if chosen:
        folder = Path(chosen)
        with suppress(RuntimeError):  # ~ of somebody who is not known here
            folder = folder.expanduser()
        if not folder.is_absolute():
            raise PreconditionFailed(f"The setting output_dir must be an absolute path or begin with ~/, not {chosen}.")
        return folder
    import platformdirs

    downloads = platformdirs.user_downloads_path()  # it knows XDG_DOWNLOAD_DIR
    return downloads if downloads.is_dir() else Path.home()


def write_output(folder: Path, stem: str, suffix: str, data: bytes) -> Path:
    """Write a new file under a name that says what and when, whole or not at all, and return its path.

    :raises Unavailable: the folder cannot be written.
    """
    name = f"{stem}-{datetime.now().astimezone():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}{suffix}"
    path, half = folder / name, folder / f".{name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        half.write_bytes(data)
        half.replace(path)
    except OSError as error:
        with suppress(OSError):
            half.unlink(missing_ok=True)
        raise Unavailable(
            f"The result cannot be written to {folder} ({error.strerror}); set output_dir to another folder."
        ) from error
    return path
