"""The speech-to-text service: OpenAI's transcriptions and translations."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from ovms_kernel.api.services import (
    Answer,
    BadRequest,
    ServiceDefinition,
    check,
    encode,
    host_names,
    present,
    read_media,
    served_model,
    sound_for_engine,
    transcribe,
    transcription_fields,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from ovms_kernel.api.services import Call, Engine, Heard, Segment

CONTENT_TYPES = {
    "json": "application/json",
    "verbose_json": "application/json",
    "text": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
}
"""By ``response_format``."""
GRANULARITIES = ("segment", "word")
FRAMES = 100
"""Whisper's frames in a second, in which ``seek`` counts."""


DEFAULT_MODEL = "OpenVINO/whisper-base-int8-ov"

PROBE = (
    "SUQzBAAAAAAAI1RTU0UAAAAPAAADTGF2ZjYyLjEyLjEwMgAAAAAAAAAAAAAA/+M4wAAAAAAAAAAAAEluZm8AAAAPAAAAGQAAB+AAJCQkLS0t"
    "LTY2NjZAQEBASUlJSVJSUlJbW1tbZGRkZG1tbW12dnZ2gICAgImJiYmSkpKSm5ubm6SkpKStra2ttra2tsDAwMDJycnJ0tLS0tvb29vk5OTk"
    "7e3t7fb29vb/////AAAAAExhdmYAAAAAAAAAAAAAAAAAAAAAACQDQQAAAAAAAAfgwIjhLgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAA/+MYxAAAAANIAAAAAP8VHigJ/uRk/xQn/+Lk7f/+7HdTjy///4uL5ih8X////yKd9rCh/////thgsHARyDjA"
    "QEf/////8jIK/+MYxDsAAANIAAAAAAoYUiG7zz3//jnVHX4dvNWuEaz199SQP3L2Gpt1kThmJv8RISZyWmTHp7e0v3HaTosf1/afOPTnq0mo"
    "/+MYxHYAAANIAAAAAFuP/uE6+/Sn///Hvd9/ig6PQOPSXdJp7eJm3d0+bqv4+jL3w7DQVbYJjD/G1Lf4emFKAWCzzcaY//6B/+MYxLEAAANI"
    "AUAAAEUFw47/9CoHF7IUO/zwjCIls3+hiL//0//mDwLsMhXFm6teYYg8EQQBcCCJx6b/57mLm/9//+fU9Cpt/+MYxOwPs5pgAYUoAZtFTSxU"
    "XEY9V7UB6LO/JGDcWAck0HYIsl7IfQUYBMR4tYkC9/UgLEuGv/8TBCDB50OZzkP1NHwIiSR8/+MYxOgaGtrNkYlAAO0Pjg7HlU3/1PEAVFrf"
    "96Dg6Y/Ff5URHiyAeF3AYTCI0eFXlQBWFBpL//QMg65c8m/ucxMG5O1qrmG0/+MYxLoTWu7+WcdQAzQJwCZdvh+8/qSyPrvQCJWPGDhxZ2Ip"
    "N25Xb7ADTFg1fgxgDADyZhn1mGkwIAMFj//yNnyoa/Vf+v///+MYxKcVQg7uWANONqfx4PoM6uicP0LOM5xnGW4YEKdbWXcSPEvS98ZXhuKK"
    "fX+tlqUmQVlt/WpMsEHCzwXNDiHomTUyXuYm/+MYxI0VacrKYFYO5AT5ICdgDIjmmz/+s45FW3/91fS2WzoVMya7602mBpKetGv///MtLQLt"
    "bLq7ZPz+AShwQWNEPv873SH2/+MYxHIXej7OWAPmEGTBsmnaJ7+atTih2AFPyf0SIpOiE+5n6FEQgB2UfIB/7FgSDm7p1SyxE//u/2qyYY6V"
    "A1lwwf/qW5NG/+MYxE8RYUryWAPGLliikUzJ0DRBDUYHBJANYhCXMD1PUhLiJWPwPoGMMCmeq/omZFLif/bRJZm/+owJ5gfb9VmJ5UMCJkXW"
    "/+MYxEQW8w69kGgFgNaLqSdBdMwM2v/b//9FI4wsYVJPFYEXoRDWqA0KAuk7YChsRIccms4QYAsQlNrLkA/IAbyc7/zox//3/+MYxCMOebLO"
    "WAKEGEb/6MRXVP/QIIEbsjYBF/f/////r5A+Agbu/8oA3Jf/55v/qRiuEoKIGom69Wc3AUgcIFIIyf0///u2/+MYxCQRKZ8qWAKeNigazNFL"
    "IQhbhemcfHY1ec5Ly6HakXD4//9KUlDh7y4DTQGIHLaIAFDif/U4wE//IQKkv6BAAnBAChUT/+MYxBoMiVb+WACSNE8//gogQiYKhlFPP///"
    "SeA0S8C/u4IOCyoONAAGBQH6BCaa38cEQa/9QAoF/9gzw17FHvr/Ev/9+Ej3/+MYxCIM8NLmWAHEDDQFIiiwsAzAEcCADJ//9L4DsgqkDJGn"
    "hBf+pQJj/8wmR/7jUeJP1hUNZoO/DIK/EgNB3qFjwa6xV3///+MYxCkMqJrieUcAAPngDHTKP/+16n1/OfBkutYZ3e75mkNu2rnZOU5a9He9"
    "tYd4tzhDGHMRSmGMGJnVyVdFXUx9QpF//1+5/+MYxDEWQ4q0AYwQAaqlRJv6f02IogxepTnARKgxPf/yburL3SjvjFm1///5x69P+soQldf6"
    "GMGKCoKgrEQNA0DUSgqCoKg0/+MYxBMMiCqQAcIYAP+JQVDv6wVBoGgaDv4lDWIgaf/lQV8Jf////+CoLA0qTEFNRTMuMTBMQU1FMy4xMDCq"
    "qqqqqqqqqqqq/+MYxBsAAANIAAAAAKqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqpMQU1FMy4xMDCqqqqqqqqqqqqq"
    "/+MYxFYAAANIAAAAAKqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqpMQU1FMy4xMDCqqqqqqqqqqqqq/+MYxJEAAANI"
    "AAAAAKqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq/+MYxMQAAANIAAAAAKqqqqqq"
    "qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq/+MYxMQAAANIAAAAAKqqqqqqqqqqqqqqqqqq"
    "qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq/+MYxMQAAANIAAAAAKqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq"
    "qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq"
)
"""MP3 of espeak-ng, which says: turn on the light."""


class SpeechToTextSettings(msgspec.Struct, frozen=True):
    """What can be set."""

    default_model: str = DEFAULT_MODEL
    """The model of requests that name none."""
    allowed_hosts: tuple[str, ...] = ()
    """Hosts that recordings may be fetched from."""


class SpeechToText:
    """Transcribes ``file``, an upload, or ``audio``, base64; with ``"task": "translate"`` into English."""

    settings_type = SpeechToTextSettings

    def __init__(self, settings: SpeechToTextSettings) -> None:
        self.definition = ServiceDefinition(
            name="speech-to-text",
            model_type="speech_to_text",
            endpoint="/v3/audio/transcriptions",
            probes=(f'{{"file":"{PROBE}","language":"en"}}',),
            probe_answers="words",
            paths=("/v1/audio/transcriptions", "/v1/audio/translations"),
            default_model=settings.default_model,
            support_models=(DEFAULT_MODEL, "NamoLi/whisper-large-v3-ov"),
            streaming=True,
            extras={
                "aog": {
                    "config_ref": "openvino:speech-to-text",
                    "config_ref_full": "aog:speech-to-text",
                    "timeout": -1,
                    "streaming": False,
                }
            },
        )
        self._hosts = host_names(settings.allowed_hosts)

    async def invoke(self, call: Call, engine: Engine) -> Answer:
        """Return the transcript in the ``response_format`` that is asked for: json, verbose_json, text, srt or vtt."""
        fields = present(call)
        form = check(fields, "response_format", str, "a text") or "json"
        if form not in CONTENT_TYPES:
            raise BadRequest(f"The field response_format must be one of {', '.join(CONTENT_TYPES)}, not {form!r}.")
        granularities = granularities_of(fields)
        model, heard, seconds = await self._hear(call, fields, engine, words="word" in granularities)
        if form == "text":
            body = f"{heard.text}\n".encode()
        elif form in ("srt", "vtt"):
            body = subtitles(timed(heard.segments, seconds), vtt=form == "vtt").encode()
        else:
            answer: dict[str, Any] = {"text": heard.text, "usage": duration_usage(seconds)}
            if form == "verbose_json":
                answer |= verbose(heard, seconds, granularities, temperature_of(fields))
            body = encode(answer | {"model": model})
        return Answer(body, CONTENT_TYPES[form], model)

    async def stream(self, call: Call, engine: Engine) -> AsyncGenerator[bytes, None]:
        """Yield OpenAI's transcription events: one for each stretch of speech, then the whole text."""
        _, heard, _ = await self._hear(call, present(call), engine)
        deltas = [each.text for each in heard.segments]
        for number, text in enumerate(deltas):
            delta = text if number == 0 or not between(deltas[number - 1], text) else f" {text}"
            yield _event({"type": "transcript.text.delta", "delta": delta})
        yield _event({"type": "transcript.text.done", "text": heard.text})

    async def _hear(
        self, call: Call, fields: dict[str, Any], engine: Engine, *, words: bool = False
    ) -> tuple[str, Heard, float]:
        """Return the model, what is said, and how long the recording is in seconds."""
        task = check(fields, "task", str, "a text") or "transcribe"
        if task not in ("transcribe", "translate"):
            raise BadRequest(f"The field task must be transcribe or translate, not {task!r}.")
        wanted = transcription_fields(fields, words=words)
        sound, seconds = await anyio.to_thread.run_sync(sound_for_engine, await self._recording(call, fields))
        async with served_model(self.definition, call, engine) as model:
            heard = await transcribe(engine, model, sound, wanted, translate=task == "translate")
        return model, heard, seconds

    async def _recording(self, call: Call, fields: dict[str, Any]) -> bytes:
        if (upload := call.files.get("file") or call.files.get("audio")) is not None:
            return upload.data
        # AOG puts the path of a file that it fetched itself into `image`.
        missing = "audio" if call.local_files else "file"
        name = next((name for name in ("audio", "file", "image") if name in fields), missing)
        source = fields.get("file_type")
        return await read_media(name, fields.get(name), source=source, hosts=self._hosts, local=call.local_files)


def granularities_of(fields: Mapping[str, Any]) -> Sequence[str]:
    """Return which times are asked for, by default those of segments.

    :raises BadRequest: there are no such times.
    """
    given = fields.get("timestamp_granularities[]", fields.get("timestamp_granularities")) or ["segment"]
    found = given if isinstance(given, list) else [given]
    if wrong := [each for each in found if each not in GRANULARITIES]:
        raise BadRequest(f"The field timestamp_granularities must list segment or word, not {wrong[0]!r}.")
    return found


def temperature_of(fields: Mapping[str, Any]) -> float:
    """Return the temperature, which ``transcription_fields`` has checked; a form writes it as text."""
    return float(fields.get("temperature") or 0)


def timed(segments: Sequence[Segment], seconds: float) -> list[tuple[float, float, str]]:
    """Return begin, end and text of each segment, none of them beyond the recording."""
    return [(min(each.start, seconds), min(each.end or seconds, seconds), each.text) for each in segments]


def verbose(heard: Heard, seconds: float, granularities: Sequence[str], temperature: float) -> dict[str, Any]:
    """Return what ``verbose_json`` adds. The engine tells no probabilities and no tokens: they are 0 and none."""
    answer: dict[str, Any] = {
        "task": "transcribe",
        "language": LANGUAGES.get(heard.language, heard.language or "unknown"),
        "duration": round(seconds, 3),
    }
    if "segment" in granularities:
        answer["segments"] = [
            {
                "id": number,
                "seek": int(start // 30 * 30 * FRAMES),
                "start": round(start, 3),
                "end": round(end, 3),
                "text": text,
                "tokens": [],
                "temperature": temperature,
                "avg_logprob": 0.0,
                "compression_ratio": round(len(text.encode()) / len(zlib.compress(text.encode())), 3),
                "no_speech_prob": 0.0,
            }
            for number, (start, end, text) in enumerate(timed(heard.segments, seconds))
        ]
    if "word" in granularities:
        answer["words"] = [
            {"word": text, "start": round(start, 3), "end": round(end, 3)}
            for start, end, text in timed(heard.words, seconds)
        ]
    return answer


def subtitles(segments: Sequence[tuple[float, float, str]], *, vtt: bool) -> str:
    """Return subtitles: SubRip, or WebVTT."""
    lines = ["WEBVTT", ""] if vtt else []
    for number, (start, end, text) in enumerate(segments, 1):
        begin, finish = clock(start, "." if vtt else ","), clock(end, "." if vtt else ",")
        # A blank line would end the cue, and an arrow would begin its times.
        shown = " ".join(text.split()).replace("-->", "->")
        lines += [*([] if vtt else [str(number)]), f"{begin} --> {finish}", shown, ""]
    return "\n".join(lines) + ("\n" if lines else "")


def clock(seconds: float, point: str) -> str:
    """Return a time as ``00:00:03.500``."""
    whole = round(max(seconds, 0) * 1000)
    return f"{whole // 3_600_000:02}:{whole // 60_000 % 60:02}:{whole // 1000 % 60:02}{point}{whole % 1000:03}"


def duration_usage(seconds: float) -> dict[str, Any]:
    """Return the usage of a transcript: the length of the recording."""
    return {"type": "duration", "seconds": round(seconds, 3)}


def between(one: str, other: str) -> bool:
    """Tell whether a blank stands between two texts: Chinese and Japanese have none."""
    return bool(one and other) and (ord(one[-1]) < 0x2E80 and ord(other[0]) < 0x2E80)


def _event(fields: dict[str, Any]) -> bytes:
    return b"data: " + encode(fields) + b"\n\n"


LANGUAGES = dict(
    each.split(":")
    for each in """
    af:afrikaans ar:arabic az:azerbaijani be:belarusian bg:bulgarian bn:bengali bs:bosnian ca:catalan cs:czech
    cy:welsh da:danish de:german el:greek en:english es:spanish et:estonian eu:basque fa:persian fi:finnish
    fr:french ga:irish gl:galician gu:gujarati he:hebrew hi:hindi hr:croatian hu:hungarian hy:armenian
    id:indonesian is:icelandic it:italian ja:japanese ka:georgian kk:kazakh km:khmer kn:kannada ko:korean
    la:latin lo:lao lt:lithuanian lv:latvian mi:maori mk:macedonian ml:malayalam mn:mongolian mr:marathi
    ms:malay my:myanmar ne:nepali nl:dutch nn:nynorsk no:norwegian pa:punjabi pl:polish ps:pashto pt:portuguese
    ro:romanian ru:russian sa:sanskrit sd:sindhi si:sinhala sk:slovak sl:slovenian so:somali sq:albanian
    sr:serbian su:sundanese sv:swedish sw:swahili ta:tamil te:telugu tg:tajik th:thai tk:turkmen tl:tagalog
    tr:turkish tt:tatar uk:ukrainian ur:urdu uz:uzbek vi:vietnamese yi:yiddish yo:yoruba yue:cantonese zh:chinese
    """.split()  # noqa: SIM905 - a table
)
"""The names that ``verbose_json`` has for languages, by code."""
