"""Profiles: several settings on one set of weights, each a model of its own in the engine."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ovms_kernel.aliases import AliasSettings
from ovms_kernel.errors import BadRequest, NotFound
from ovms_kernel.models import memory as memory_module

BASE = "me/chat"


@pytest.fixture
async def world(make_world: Callable[..., Any], fixtures: Path) -> Any:
    profiles = {
        "short": AliasSettings(BASE, context=64, options={"cache_size": 1}),
        "other": AliasSettings(BASE, device="CPU", options={"cache_size": 2}),
        "name": AliasSettings(BASE, system="Be brief."),
        "lost": AliasSettings("me/gone", context=64),
    }
    world = make_world(aliases=profiles)
    async with world.residency:
        await world.ingest.import_(fixtures / "text_generation", BASE)
        yield world


def change(world: Any, **aliases: AliasSettings) -> None:
    """Have other aliases from now on, as a live change of the config file brings them."""
    settings = msgspec.structs.replace(world.settings, aliases=aliases)
    world.store._live = lambda: settings


def folder(world: Any, name: str) -> Path:
    path: Path = world.settings.profiles_dir / name
    return path


async def test_profiles_are_served_beside_their_model_from_the_same_weights(world: Any) -> None:
    assert [each.id for each in world.store.served()] == [BASE, "other", "short"]
    assert [each.id for each in world.store.list()] == [BASE]
    for name in ("short", "other", BASE):
        await world.use(name)
    assert set(world.entries()) == {"short", "other", BASE}
    weights = {path / "openvino_model.bin" for path in (folder(world, "short"), folder(world, "other"))}
    base = world.settings.models_dir / BASE
    assert all(each.samefile(base / "openvino_model.bin") for each in weights)
    configs = [json.loads((each / "config.json").read_text()) for each in (folder(world, "short"), base)]
    assert [each["max_position_embeddings"] for each in configs] == [64, 2048]
    graphs = {name: (folder(world, name) / "graph.pbtxt").read_text() for name in ("short", "other")}
    assert "cache_size: 1" in graphs["short"]
    assert "cache_size: 2" in graphs["other"]
    assert "cache_size: 1" not in (base / "graph.pbtxt").read_text()


async def test_each_takes_memory_of_its_own(world: Any) -> None:
    for name in ("short", "other"):
        await world.use(name)
    sizes = {each.id: each.bytes >> 30 for each in world.residency.loaded()}
    assert sizes == {"short": 1, "other": 2}, "the cache that its own graph sets"
    await world.residency.pin("short", pinned=True)
    await world.residency.pin("other", pinned=False)
    shown = {each.model.id: each.pinned for each in await world.residency.resident_models()}
    assert shown == {"short": True, "other": False}
    assert not world.store.entry(BASE)[1].pinned


async def test_a_request_without_a_name_means_the_model_and_no_profile(world: Any) -> None:
    async with world.residency.use("text_generation") as model:
        assert model.id == BASE
    async with world.residency.use("text_generation", default="short") as model:
        assert model.id == "short"


async def test_a_changed_profile_is_loaded_anew_and_one_that_is_gone_is_unloaded(world: Any) -> None:
    await world.use("short")
    change(world, short=AliasSettings(BASE, context=128))
    await world.use("short")
    assert world.engine.loads == ["short", "short"]
    assert json.loads((folder(world, "short") / "config.json").read_text())["max_position_embeddings"] == 128
    await world.use("short")
    assert world.engine.loads == ["short", "short"], "it is loaded once"
    change(world)
    with pytest.raises(NotFound, match="short is not installed"):
        await world.residency.use("text_generation", "short").__aenter__()
    assert world.entries() == []


async def test_a_model_that_is_replaced_or_removed_takes_its_profiles_with_it(
    world: Any, fixtures: Path, tmp_path: Path
) -> None:
    await world.use("short")
    newer = tmp_path / "newer"
    shutil.copytree(fixtures / "text_generation", newer)
    (newer / "openvino_model.bin").write_bytes((newer / "openvino_model.bin").read_bytes() + b"\0")
    await world.ingest.import_(newer, BASE)
    assert world.entries() == []
    assert not folder(world, "short").exists(), "no link keeps the old weights"
    await world.use("short")
    base = world.settings.models_dir / BASE
    assert (folder(world, "short") / "openvino_model.bin").samefile(base / "openvino_model.bin")
    await world.store.delete(BASE)
    assert world.entries() == []
    assert list(world.settings.profiles_dir.iterdir()) == []
    with pytest.raises(NotFound, match="Model me/chat is not installed"):
        world.store.find("short")


@pytest.mark.needs_posix  # symbolic links, which take a privilege on Windows
async def test_where_files_cannot_be_linked_they_are_pointed_at(world: Any, monkeypatch: Any) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    await world.use("short")
    assert (folder(world, "short") / "openvino_model.bin").is_symlink()
    assert not (folder(world, "short") / "config.json").is_symlink(), "the context is its own"
    assert json.loads((world.settings.models_dir / BASE / "config.json").read_text())["max_position_embeddings"] == 2048


async def test_an_option_that_is_wrong_costs_the_profile_alone(world: Any) -> None:
    change(world, short=AliasSettings(BASE, options={"cache_sise": 1}))
    with pytest.raises(BadRequest, match="cache_sise is not an option"):
        await world.use("short")
    await world.use(BASE)
    assert world.entries() == [BASE]
    assert memory_module.graph_memory(folder(world, "short")) == ("", 0)
