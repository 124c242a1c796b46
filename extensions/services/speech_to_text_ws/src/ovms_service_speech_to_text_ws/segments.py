"""Cutting a stream of sound into sentences, given how likely each block is speech. Nothing here waits or asks."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

RATE = 16000
BLOCK = 512
"""Samples that are judged at once, 32 ms: the detector's window."""
BEGIN = 0.5
"""Likelihood from which a block is speech."""
END = 0.35
"""Likelihood below which it is not any more; between the two nothing changes."""
BEGIN_BLOCKS = 3
"""Blocks of speech that begin a sentence, 96 ms; a click is shorter."""
PAUSE_BLOCKS = 18
"""Blocks without speech that end a sentence, 576 ms."""
PADDING_BLOCKS = 9
"""Blocks that are sent before and after a sentence, 288 ms: soft sounds at its edges are in them."""
LONGEST_BLOCKS = 25 * RATE // BLOCK
"""Blocks after which a sentence is cut, 25 s: the model hears 30 s at once."""
LATE_BLOCKS = 5 * RATE // BLOCK
"""Where to cut a sentence that is too long: at the block of its last 5 s that is least like speech."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A stretch of speech: from when to when, in milliseconds from the first block, and its sound."""

    number: int
    begin: int
    end: int
    sound: NDArray[np.int16]


class Segmenter:
    """Takes blocks one after the other and returns a sentence when one has ended."""

    def __init__(self) -> None:
        self._count = 0
        self._number = 0
        self._before: deque[NDArray[np.int16]] = deque(maxlen=PADDING_BLOCKS + BEGIN_BLOCKS)
        self._run = 0
        self._blocks: list[NDArray[np.int16]] = []
        self._likely: list[float] = []
        self._first = 0
        self._last = 0

    @property
    def speaking(self) -> bool:
        """Whether a sentence has begun and not ended."""
        return bool(self._blocks)

    @property
    def number(self) -> int:
        """The number of the sentence that is being spoken, or of the next one."""
        return self._number

    @property
    def begin(self) -> int:
        """When the sentence that is being spoken began, in milliseconds."""
        return self._first * BLOCK * 1000 // RATE

    @property
    def length(self) -> int:
        """Blocks since the sentence that is being spoken began."""
        return self._count - self._first

    def push(self, block: NDArray[np.int16], likely: float) -> Sentence | None:
        """Take one block of ``BLOCK`` samples."""
        self._count += 1
        if not self._blocks:
            self._before.append(block)
            self._run = self._run + 1 if likely >= BEGIN else 0
            if self._run == BEGIN_BLOCKS:
                self._open()
            return None
        self._blocks.append(block)
        self._likely.append(likely)
        if likely >= END:
            self._last = self._count
        if self._count - self._last >= PAUSE_BLOCKS:
            return self._close(len(self._blocks) - PAUSE_BLOCKS, self._last)
        if len(self._blocks) >= LONGEST_BLOCKS:
            late = self._likely[-LATE_BLOCKS:]
            return self._cut(len(self._blocks) - len(late) + late.index(min(late)))
        return None

    def sound(self) -> NDArray[np.int16]:
        """Return what has been heard of the sentence that is being spoken."""
        return np.concatenate(self._blocks)

    def finish(self) -> Sentence | None:
        """Return the sentence that was being spoken when the sound ended, if there was one."""
        if not self._blocks:
            return None
        return self._close(len(self._blocks) - (self._count - self._last), self._last)

    def _open(self) -> None:
        self._blocks = list(self._before)
        self._likely = [1.0] * len(self._blocks)
        self._first = self._count - BEGIN_BLOCKS
        self._last = self._count
        self._before.clear()
        self._run = 0

    def _close(self, speech: int, last: int) -> Sentence:
        """End the sentence after that many of its blocks; some of the pause stays with it."""
        sentence = self._sentence(self._blocks[: speech + PADDING_BLOCKS], last)
        self._before.extend(self._blocks[speech:])
        self._blocks, self._likely = [], []
        return sentence

    def _cut(self, at: int) -> Sentence:
        """End the sentence in the midst of speech, and begin the next one with the rest."""
        rest, likely = self._blocks[at:], self._likely[at:]
        first = self._count - len(rest)
        sentence = self._sentence(self._blocks[:at], first)
        self._blocks, self._likely = rest, likely
        self._first = first
        return sentence

    def _sentence(self, blocks: list[NDArray[np.int16]], last: int) -> Sentence:
        sentence = Sentence(self._number, self.begin, last * BLOCK * 1000 // RATE, np.concatenate(blocks))
        self._number += 1
        return sentence
