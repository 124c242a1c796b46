"""What the author of a service imports."""

from __future__ import annotations

from ovms_kernel.admission import (
    decode_request,
)
from ovms_kernel.audio import (
    Heard,
    Segment,
    language_of,
    sound_for_engine,
    spoken_samples,
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
from ovms_kernel.generation import (
    Completions,
    complete,
    stream_completion,
)
from ovms_kernel.hookspecs import (
    hookimpl,
)
from ovms_kernel.media import (
    host_names,
    read_media,
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
    "Completions",
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
    "check",
    "complete",
    "decode_answer",
    "decode_request",
    "encode",
    "forward",
    "forward_stream",
    "hookimpl",
    "host_names",
    "language_of",
    "need",
    "present",
    "read_media",
    "served_model",
    "sound_for_engine",
    "spoken_samples",
    "stream_completion",
    "transcribe",
    "transcription_fields",
    "wav",
    "with_model",
]
