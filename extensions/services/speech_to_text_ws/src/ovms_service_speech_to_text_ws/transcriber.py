"""Asking the engine what was said: for finished sentences, and in between for the one that is being spoken.

At most one request is under way. A partial text is asked for only while no sentence waits, and given up when one comes.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING

import anyio

from ovms_kernel.api.services import OvmsError, transcribe, wav
from ovms_service_speech_to_text_ws.segments import BLOCK, RATE
from ovms_service_speech_to_text_ws.stabilizer import steady

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from ovms_kernel.api.services import Engine
    from ovms_service_speech_to_text_ws.segments import Segmenter, Sentence

log = logging.getLogger(__name__)

WAITING_SENTENCES = 2
"""Finished sentences that wait for the engine; then ``put`` waits."""
PARTIAL_BLOCKS = 12
"""Blocks of speech, 384 ms, after which a partial text is asked for, and asked for again."""


class Transcriber:
    """Transcribes the sentences of one task.

    :param say: is told begin, end (``None`` while partial) and text of each.
    """

    def __init__(
        self,
        engine: Engine,
        model: str,
        fields: Mapping[str, str | list[str]],
        segmenter: Segmenter,
        say: Callable[[int, int | None, str], Awaitable[None]],
    ) -> None:
        self._engine = engine
        self._model = model
        self._fields = fields
        self._segmenter = segmenter
        self._say = say
        self._waiting: deque[Sentence] = deque()
        self._closed = False
        self._wake = anyio.Event()
        self._room = anyio.Event()
        self._partial_scope: anyio.CancelScope | None = None
        # Of the sentence that is being spoken:
        self._number = -1
        self._ask_at = 0
        self._shown = ""
        self._previous = ""

    async def put(self, sentence: Sentence) -> None:
        """Hand over a finished sentence; waits while there are too many."""
        while len(self._waiting) >= WAITING_SENTENCES:
            self._room = anyio.Event()
            await self._room.wait()
        self._waiting.append(sentence)
        if self._partial_scope:
            self._partial_scope.cancel()
        self._wake.set()

    def look(self) -> None:
        """Say that there is more sound."""
        self._wake.set()

    def close(self) -> None:
        """Say that no sentence will follow."""
        self._closed = True
        self._wake.set()

    async def run(self) -> None:
        """Work until everything is transcribed after ``close``."""
        while True:
            self._wake = anyio.Event()
            if self._waiting:
                await self._final(self._waiting[0])
                self._waiting.popleft()
                self._room.set()
            elif self._closed:
                return
            elif self._partial_is_due():
                await self._partial()
            else:
                await self._wake.wait()

    async def _final(self, sentence: Sentence) -> None:
        text = await self._hear(sentence.sound)
        self._follow(sentence.number)
        # Noise that was taken for speech has no text; it is told only if something was shown for it.
        if text or self._shown:
            await self._say(sentence.begin, sentence.end, text)

    def _partial_is_due(self) -> bool:
        if not self._segmenter.speaking:
            return False
        self._follow(self._segmenter.number)
        return self._segmenter.length >= self._ask_at

    async def _partial(self) -> None:
        number, begin, asked = self._segmenter.number, self._segmenter.begin, self._segmenter.length
        started = time.monotonic()
        text = ""
        with anyio.CancelScope() as self._partial_scope:
            try:
                text = await self._hear(self._segmenter.sound())
            except OvmsError as error:
                log.info("A partial text failed: %s", error.message)
        self._partial_scope = None
        # An engine that takes longer is asked less often.
        took = int((time.monotonic() - started) * RATE / BLOCK)
        self._ask_at = asked + max(PARTIAL_BLOCKS, took)
        if text and not self._waiting and number == self._segmenter.number:
            shown, self._previous = steady(self._shown, self._previous, text), text
            if shown != self._shown:
                self._shown = shown
                await self._say(begin, None, shown)

    def _follow(self, number: int) -> None:
        """Forget what was shown when another sentence is meant."""
        if number != self._number:
            self._number, self._ask_at, self._shown, self._previous = number, PARTIAL_BLOCKS, "", ""

    async def _hear(self, sound: NDArray[np.int16]) -> str:
        # The model may have been unloaded while nobody spoke.
        async with self._engine.model(self._model, "speech_to_text") as model:
            return (await transcribe(self._engine, model, wav(sound, RATE), self._fields)).text
