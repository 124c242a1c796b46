"""Dialects of other distributions: found, checked and reported as every extension is."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ovms_face_http.api import routes
from ovms_kernel.compose import compose_kernel
from ovms_kernel.errors import BadRequest
from ovms_kernel.settings import read_settings

GOOD = """
import msgspec
from starlette.responses import PlainTextResponse
from starlette.routing import Route
NAME = __name__.replace("_", "-")
class Settings(msgspec.Struct, frozen=True):
    colour: str = "blue"
class Dialect:
    name = NAME
    settings_type = Settings
    def __init__(self, settings): self.settings = settings
    def routes(self, kernel):
        async def told(request): return PlainTextResponse(self.settings.colour)
        return [Route("/acme", told)]
    def error(self, status, message, code): return {"error": message}
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install one dialect that works, one that cannot be imported, and one that is made for another kernel."""
    site = tmp_path / "site"
    for name, source, requires in (
        ("acme-good", GOOD, ""),
        ("acme-broken", "import acme_is_missing", ""),
        ("acme-future", GOOD, "Requires-Dist: ovms-kernel>=9\n"),
    ):
        module = name.replace("-", "_")
        info = site / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires}")
        (info / "entry_points.txt").write_text(f"[ovms.dialects]\n{name} = {module}:Dialect\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(site))


@pytest.mark.usefixtures("installed")
async def test_a_dialect_that_does_not_load_costs_itself_alone(
    stubbed: Callable[[dict[str, object]], AbstractAsyncContextManager[Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with stubbed({}) as served, httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}") as client:
        answer = await client.get("/acme", headers={"authorization": f"Bearer {served.key}"})
    assert answer.text == "blue"
    said = [each.getMessage() for each in caplog.records if "is left out" in each.getMessage()]
    assert len(said) == 2
    assert "dialects.acme-broken" in said[0]
    assert "acme_is_missing" in said[0]
    assert "made for ovms-kernel >=9" in said[1]


@pytest.mark.usefixtures("installed")
async def test_a_wrong_setting_of_a_dialect_is_refused_with_its_place(tmp_path: Path) -> None:
    settings = read_settings({}, data_dir=tmp_path, dialects={"acme-good": {"color": "red"}})
    async with asyncio.timeout(60), compose_kernel(settings) as kernel:
        with pytest.raises(BadRequest, match=r"dialects\.acme-good\.color .* did you mean dialects\.acme-good\.colour"):
            routes(kernel, "")
