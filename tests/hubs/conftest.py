"""A hub on this machine, and bytes to pull from it."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ovms_hub_modelscope import ModelScope
from ovms_kernel.testing.contract import configured
from ovms_kernel.testing.hub import FakeHub


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        yield hub


@pytest.fixture
def driver(hub: FakeHub) -> Callable[..., ModelScope]:
    """Make the real driver, with the real client, against the local hub."""

    def make(**section: Any) -> ModelScope:
        return configured(ModelScope, **({"endpoint": hub.url, "retry_delay": 0.01} | section))

    return make


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository of a few small files and two larger ones; the bytes are always the same."""
    folder = tmp_path / "repo"
    random.seed(4)
    for name, size in (
        ("config.json", 300),
        ("openvino_model.xml", 30_000),
        ("openvino_model.bin", 3_000_000),
        ("sub/other.bin", 1_000_001),
        ("empty.txt", 0),
        ("说明.md", 500),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(random.randbytes(size))
    return folder
