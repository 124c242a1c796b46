"""What the author of a service imports."""

from __future__ import annotations

from ovms_kernel.audio import (
    Heard,
    Segment,
    language_of,
    playable_sound,
    sound_for_engine,
    transcribe,
    transcription_fields,
    wav,
)
from ovms_kernel.drivers import (
    ConversingService,
    Engine,
    Service,
    StreamingService,
)
from ovms_kernel.errors import (
    BadRequest,
    Cancelled,
    EngineFailed,
    NotFound,
    NotSupported,
    OvmsError,
    PreconditionFailed,
    Refused,
    TimedOut,
    Unauthorized,
    Unavailable,
)
from ovms_kernel.hookspecs import (
    hookimpl,
)
from ovms_kernel.media import (
    allowed_hosts,
    output_folder,
    read_media,
    write_output,
)
from ovms_kernel.requests import (
    decode_request,
)
from ovms_kernel.services import (
    Route,
    check,
    decode_answer,
    encode,
    forward,
    forward_stream,
    need,
    present,
    served_model,
    time_left,
    with_best_of,
    with_id,
    with_model,
)
from ovms_kernel.values import (
    Answer,
    Call,
    Message,
    ServiceDefinition,
    Upload,
)

__all__ = [
    "Answer",
    "BadRequest",
    "Call",
    "Cancelled",
    "ConversingService",
    "Engine",
    "EngineFailed",
    "Heard",
    "Message",
    "NotFound",
    "NotSupported",
    "OvmsError",
    "PreconditionFailed",
    "Refused",
    "Route",
    "Segment",
    "Service",
    "ServiceDefinition",
    "StreamingService",
    "TimedOut",
    "Unauthorized",
    "Unavailable",
    "Upload",
    "allowed_hosts",
    "check",
    "decode_answer",
    "decode_request",
    "encode",
    "forward",
    "forward_stream",
    "hookimpl",
    "language_of",
    "need",
    "output_folder",
    "playable_sound",
    "present",
    "read_media",
    "served_model",
    "sound_for_engine",
    "time_left",
    "transcribe",
    "transcription_fields",
    "wav",
    "with_best_of",
    "with_id",
    "with_model",
    "write_output",
]
