"""What every hub keeps, and the Hugging Face driver against a local hub."""

import gzip
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ovms_hub_huggingface import HuggingFace
from ovms_hub_modelscope import ModelScope
from ovms_kernel.compose import Models, compose_models
from ovms_kernel.errors import BadRequest, NotFound, NotSupported, Unauthorized, Unavailable
from ovms_kernel.events import Events
from ovms_kernel.extensions import compose
from ovms_kernel.models.names import parse_model_ref
from ovms_kernel.settings import Settings
from ovms_kernel.testing.contract import HubContract, ServedModel, configured
from ovms_kernel.testing.hub import FakeHub, Fault
from ovms_kernel.testing.huggingface import FakeHuggingFace, commit_of
from ovms_kernel.values import Host, ModelRef

REF = ModelRef("me/model")
BIG = "openvino_model.bin"
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def face() -> Iterator[FakeHuggingFace]:
    with FakeHuggingFace() as hub:
        yield hub


@pytest.fixture
def hugging(face: FakeHuggingFace) -> Callable[..., HuggingFace]:
    def make(**section: Any) -> HuggingFace:
        return configured(HuggingFace, **({"endpoint": face.url, "retry_delay": 0.01, "part_size": 500_000} | section))

    return make


@pytest.fixture
def model(tmp_path: Path, fixtures: Path) -> Path:
    folder = tmp_path / "repo"
    shutil.copytree(fixtures / "embeddings", folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


class TestHuggingFace(HubContract):
    @pytest.fixture
    def served(self, face: FakeHuggingFace, hugging: Any, repo: Path) -> ServedModel:
        face.add("me/model", repo, revision="main")
        return ServedModel(hugging(), hugging(endpoint=NOWHERE), REF, contents(repo))


class TestModelScope(HubContract):
    @pytest.fixture
    def served(self, hub: FakeHub, driver: Any, repo: Path) -> ServedModel:
        hub.add("me/model", repo)
        return ServedModel(driver(), driver(endpoint=NOWHERE), REF, contents(repo))


@pytest.fixture
def models(tmp_path: Path, hub: FakeHub, driver: Any, hugging: Any) -> Models:
    settings, host = Settings(tmp_path / "data"), Host("linux", "x86_64", memory=16 << 30)
    graphs = compose(settings, host, kinds=("graphs",)).graphs
    return compose_models(settings, Events(), {"modelscope": driver(), "huggingface": hugging()}, graphs, host)


async def test_a_model_is_pulled_from_the_hub_that_its_name_says(models, hub, face, model):
    face.add("me/model", model, revision="main")
    hub.add("me/other", model)
    pulled = await models.ingest.pull(parse_model_ref("hf:me/model"))
    assert models.store.describe(pulled.id)["hub"] == "huggingface"
    assert await models.store.verify(pulled.id) == []
    assert (await models.ingest.pull(parse_model_ref("ms:me/other"))).model_type == "embeddings"
    assert (hub.listings, face.listings) == (1, 1)
    with pytest.raises(NotSupported, match=r"no hub 'gh'.*installed: huggingface, modelscope"):
        await models.ingest.pull(parse_model_ref("gh:me/model"))


async def test_a_complete_copy_needs_no_hub_and_another_hubs_copy_is_not_taken_for_it(models, hub, face, model):
    face.add("me/model", model, revision="main")
    await models.ingest.pull(parse_model_ref("hf:me/model"))
    face.refuse_all = hub.refuse_all = 500
    before = len(face.requests)
    assert await models.ingest.pull(parse_model_ref("hf:me/model"))
    assert await models.ingest.pull(REF)
    assert len(face.requests) == before
    hub.refuse_all = 0
    hub.add("me/model", model)
    await models.ingest.pull(parse_model_ref("ms:me/model"))
    assert models.store.describe("me/model")["hub"] == "modelscope"


async def test_a_pull_from_hugging_face_resumes_and_keeps_to_the_commit_that_was_listed(tmp_path, face, hugging, repo):
    shutil.copy(repo / BIG, tmp_path / "weights")
    face.add("me/model", repo, revision="main")
    driver = hugging()
    (file,) = [each for each in await driver.list_files(REF) if each.path == BIG]
    body = driver.open(REF, file, 10, 19)
    assert f"/{commit_of('main')}/" in face.paths[-2]
    assert body.read(100) == (repo / BIG).read_bytes()[10:20]
    body.close()


async def test_gated_models_and_revisions_of_hugging_face(face, hugging, repo, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(repo))
    face.add("me/model", repo, revision="main", token="secret")
    face.add("me/model", {"config.json": repo / "config.json"}, revision="v1")
    with pytest.raises(Unauthorized, match=r"hubs\.huggingface\.token"):
        await hugging().list_files(REF)
    assert len(await hugging(token="secret").list_files(REF)) == 6
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert len(await hugging().list_files(REF)) == 6
    assert [each.path for each in await hugging().list_files(ModelRef("me/model", "v1"))] == ["config.json"]
    with pytest.raises(NotFound, match="v2"):
        await hugging().list_files(ModelRef("me/model", "v2"))


async def test_a_listing_of_hugging_face_that_fails_at_first_is_asked_for_again(face, hugging, repo):
    face.add("me/model", repo, revision="main")
    face.fault("listing", Fault("status", 503, retry_after="0"))
    assert len(await hugging().list_files(REF)) == 6


async def test_hugging_face_is_searched(models, face, model):
    face.add("OpenVINO/Qwen3-8B-int4-ov", model, revision="main")
    face.add("me/model", model, revision="main")
    found = await models.ingest.search("qwen3", hub="hf")
    assert [(each.id, each.task) for each in found] == [("OpenVINO/Qwen3-8B-int4-ov", "text-generation")]


# -- hostile answers -----------------------------------------------------------------------------------------------


def endless() -> Iterator[bytes]:
    yield b"[" + b" " * 1000
    yield from itertools.repeat(b" " * (1 << 20))


FILES = (b'"abc"', b"[1]", b'[{"Path": "a", "Size": "abc"}]', b'[{"Path": "a", "Size": [1]}]', b'[{"Path": 7}]')
SHAPES = [
    *(b"[]", b"null", b"[" * 200_000, b"<html>", b'{"siblings": "abc", "sha": "x"}', b'{"siblings": [1], "sha": "x"}'),
    *(b'{"Code": 200, "Data": {"Files": %s}}' % files for files in FILES),
]


@pytest.mark.parametrize("answer", SHAPES, ids=lambda each: each[:40].decode())
@pytest.mark.parametrize("kind", [HuggingFace, ModelScope])
async def test_a_listing_without_shape_is_one_sentence(hub, kind, answer):
    hub.raw = answer
    with pytest.raises((Unavailable, NotFound, BadRequest), match=r"list of|has no files|has no me/model|cannot be"):
        await configured(kind, endpoint=hub.url).list_files(REF)


@pytest.mark.parametrize("kind", [HuggingFace, ModelScope])
async def test_a_listing_without_end_or_a_bomb_is_given_up(hub, kind, monkeypatch):
    module = __import__(kind.__module__)
    monkeypatch.setattr(module, "LISTING_LIMIT", 4 << 20)
    monkeypatch.setattr("modelscope_hub._legacy_api.REPO_TREE_PAGE_MAX_ATTEMPTS", 1)
    for answer in (endless(), gzip.compress(bytes(64 << 20))):
        hub.raw = answer
        # Hugging Face's is not asked for compressed, so that a bomb is no listing.
        with pytest.raises(Unavailable, match="more than 4 MB" if kind is ModelScope else None):
            await configured(kind, endpoint=hub.url).list_files(REF)


@pytest.mark.parametrize("kind", [HuggingFace, ModelScope])
async def test_a_listing_that_comes_byte_by_byte_is_given_up(hub, kind, monkeypatch):
    module = __import__(kind.__module__)
    monkeypatch.setattr(module, "LISTING_TIME", 0.5)
    monkeypatch.setattr("modelscope_hub._legacy_api.REPO_TREE_PAGE_MAX_ATTEMPTS", 1)

    def slowly() -> Iterator[bytes]:
        while not hub.wait(0.1):
            yield b" "

    hub.raw = slowly()
    with pytest.raises(Unavailable):
        await configured(kind, endpoint=hub.url).list_files(REF)
