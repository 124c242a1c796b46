"""What every test shares: asyncio as the one event loop, and the tiny models."""

import os
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


@pytest.fixture(scope="session", autouse=True)
def modelscope_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let the client of ModelScope, which notes a session and makes folders, do so in a place of the tests' own."""
    home = tmp_path_factory.mktemp("modelscope")
    os.environ |= {"MODELSCOPE_HOME": str(home), "MODELSCOPE_CACHE": str(home / "cache")}
