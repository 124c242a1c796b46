"""What every test shares: asyncio as the one event loop, the tiny models, and what a system must have for a test.

A test says what it needs with a marker, a fixture by asking for the fixture ``inference``. ``--without inference``
skips what needs an engine that infers, as under Wine, where OpenVINO loads and its generated code crashes.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xdist.remote import Producer

    from tests.spread import PartScheduling

FIXTURES = Path(__file__).parent / "fixtures"
# Thousands of processes start, each of which would compile everything anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
LEAN_PYTEST = {"PYTEST_ADDOPTS": "-p no:hypothesispytest -p no:pytest_httpserver -p no:xdist"}
"""Has a pytest that a test starts load none of the plugins that only this suite needs."""


NEEDS = {
    "inference": "an engine that infers is left out by --without",
    "posix": "this system has no POSIX signals, permissions, links or shells",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--without", action="append", default=[], choices=list(NEEDS), help="skip what needs this")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> PartScheduling:
    from tests.spread import PartScheduling

    config.option.loadscopereorder = False
    return PartScheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Look for no garbage among what is collected: thousands of tests and all their imports, which stay to the end."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of several processes
        from tests.spread import longest_first

        longest_first(items)


def lack_of(config: pytest.Config, need: str) -> str:
    """Return why a need is not met, as a reason to skip; empty if it is."""
    lacks = need in config.getoption("--without") or (need == "posix" and os.name != "posix")
    return f"needs_{need}: {NEEDS[need]}" if lacks else ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    for need in NEEDS:
        if item.get_closest_marker(f"needs_{need}") and (reason := lack_of(item.config, need)):
            pytest.skip(reason)


@pytest.fixture(scope="session")
def inference(pytestconfig: pytest.Config) -> None:
    """An engine that infers; fixtures that start one ask for it."""
    if reason := lack_of(pytestconfig, "inference"):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def keys() -> None:
    """A library that makes keys for certificates; under Wine its OpenSSL finds no randomness."""
    from cryptography.exceptions import InternalError
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        ec.generate_private_key(ec.SECP256R1())
    except InternalError as error:
        pytest.skip(f"needs_keys: cryptography makes none here ({str(error)[-80:]})")


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
