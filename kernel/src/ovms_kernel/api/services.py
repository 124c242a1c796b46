"""What the author of a service imports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovms_kernel.errors import *
from ovms_kernel.on_demand import on_demand

if TYPE_CHECKING:
    from ovms_kernel.admission import decode_request as decode_request
    from ovms_kernel.audio import Heard as Heard
    from ovms_kernel.audio import Segment as Segment
    from ovms_kernel.audio import language_of as language_of
    from ovms_kernel.audio import sound_for_engine as sound_for_engine
    from ovms_kernel.audio import spoken_samples as spoken_samples
    from ovms_kernel.audio import transcribe as transcribe
    from ovms_kernel.audio import transcription_fields as transcription_fields
    from ovms_kernel.audio import wav as wav
    from ovms_kernel.drivers import ConversingService as ConversingService
    from ovms_kernel.drivers import Engine as Engine
    from ovms_kernel.drivers import Service as Service
    from ovms_kernel.drivers import StreamingService as StreamingService
    from ovms_kernel.generation import Completions as Completions
    from ovms_kernel.generation import complete as complete
    from ovms_kernel.generation import stream_completion as stream_completion
    from ovms_kernel.hookspecs import hookimpl as hookimpl
    from ovms_kernel.media import host_names as host_names
    from ovms_kernel.media import read_media as read_media
    from ovms_kernel.services import Route as Route
    from ovms_kernel.services import check as check
    from ovms_kernel.services import decode_answer as decode_answer
    from ovms_kernel.services import encode as encode
    from ovms_kernel.services import forward as forward
    from ovms_kernel.services import forward_stream as forward_stream
    from ovms_kernel.services import need as need
    from ovms_kernel.services import present as present
    from ovms_kernel.services import served_model as served_model
    from ovms_kernel.services import with_model as with_model
    from ovms_kernel.streams import yielded as yielded
    from ovms_kernel.values import Answer as Answer
    from ovms_kernel.values import Call as Call
    from ovms_kernel.values import Message as Message
    from ovms_kernel.values import ServiceDefinition as ServiceDefinition
    from ovms_kernel.values import Upload as Upload
else:
    __getattr__ = on_demand(
        __name__,
        {
            "admission": "decode_request",
            "audio": "Heard Segment language_of sound_for_engine spoken_samples transcribe transcription_fields wav",
            "drivers": "ConversingService Engine Service StreamingService",
            "generation": "Completions complete stream_completion",
            "hookspecs": "hookimpl",
            "media": "host_names read_media",
            "services": "Route check decode_answer encode forward forward_stream need present served_model with_model",
            "streams": "yielded",
            "values": "Answer Call Message ServiceDefinition Upload",
        },
    )
