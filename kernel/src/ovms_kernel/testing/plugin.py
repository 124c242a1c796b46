"""The pytest plugin that comes with ``ovms-kernel[testing]``: fixtures for authors of extensions.

Everything is imported inside the fixtures, so that having the kernel installed costs other test suites nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from ovms_kernel.settings import Settings
    from ovms_kernel.testing.events import EventRecorder


pytest.register_assert_rewrite("ovms_kernel.testing.contract")


@pytest.fixture
def ovms_settings(tmp_path: Path) -> Settings:
    """Settings with a data folder of the test's own, untouched by the environment."""
    from ovms_kernel.settings import read_settings

    return read_settings({}, data_dir=tmp_path / "data")


@pytest.fixture
def ovms_events() -> EventRecorder:
    """Events with a listener that writes down every one of them."""
    from ovms_kernel.testing.events import EventRecorder

    return EventRecorder()
