"""What every test shares: asyncio as the one event loop, and the tiny models."""

from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of the tiny OpenVINO models, one folder each, named by model type."""
    return FIXTURES
