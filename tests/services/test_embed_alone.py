"""The embed service with the kernel alone: `.ci/alone` runs this in an environment of its own."""

import json
from importlib.metadata import entry_points

from ovms_kernel.extensions import compose
from ovms_kernel.settings import read_settings
from ovms_kernel.testing.contract import ANY_HOST, ServiceContract, make_call
from ovms_kernel.testing.stub import StubClient, StubEngine
from ovms_service_embed import Embed

ALONE = {each.name for each in entry_points(group="ovms.services")} == {"embed"}


class TestEmbed(ServiceContract):
    driver = Embed


def composed(tmp_path):
    # In the full workspace the others are switched off; alone, there are none to switch off.
    others = tuple(f"services.{each.name}" for each in entry_points(group="ovms.services") if each.name != "embed")
    return compose(read_settings({}, data_dir=tmp_path, disabled=others), ANY_HOST, kinds=["services"])


def test_it_is_the_only_service(tmp_path):
    found = composed(tmp_path)
    assert list(found.services) == ["embed"]
    if ALONE:
        assert [(each.key, each.state) for each in found.reports] == [("services.embed", "loaded")]


async def test_it_answers(tmp_path):
    vectors = {"object": "list", "data": [{"object": "embedding", "embedding": [0.5, -0.5], "index": 0}]}
    async with StubEngine({"/v3/embeddings": vectors}) as stub:
        engine = StubClient(stub.endpoint, {"own/vectors": "embeddings"})
        embed = composed(tmp_path).services["embed"]
        answer = await embed.invoke(make_call(model="own/vectors", input=["a cat"], dimensions=None), engine)
        await engine.aclose()
    assert json.loads(answer.body) == vectors | {"model": "own/vectors"}
    assert stub.requests[0].json == {"model": "own/vectors", "input": ["a cat"]}
