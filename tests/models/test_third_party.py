"""A ninth model type: one distribution with one module, installed beside ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ovms_kernel.errors import NotSupported

MODULE = """
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from ovms_kernel.api.graphs import fill, graph_of

file = descriptor_pb2.FileDescriptorProto(name="ninth.proto", package="mediapipe", syntax="proto2")
message = file.message_type.add(name="PythonExecutorCalculatorOptions")
message.field.add(name="handler_path", number=1, type=9, label=2)
descriptor_pool.Default().Add(file)
Options = message_factory.GetMessageClass(
    descriptor_pool.Default().FindMessageTypeByName("mediapipe.PythonExecutorCalculatorOptions")
)


class Translation:
    model_type = "translation"

    def __init__(self, section):
        self.section = section

    def recognises(self, files):
        return 100 if "handler.py" in files.sizes else 0

    def build(self, files, options):
        chosen = Options()
        fill(chosen, {"handler_path": "handler.py"}, self.section, options.values, what=self.model_type)
        return graph_of("PythonExecutorCalculator", "python", chosen, side_packets=("PYTHON_NODE_RESOURCES:py",))
"""

USE = """
import sys
from pathlib import Path
import anyio
from ovms_kernel.compose import compose_models
from ovms_kernel.events import Events
from ovms_kernel.extensions import compose
from ovms_kernel.settings import Settings
from ovms_kernel.values import Host

settings, host = Settings(Path(sys.argv[1])), Host(os="linux", machine="x86_64")
drivers = compose(settings, host, kinds=("graphs",))
ingest = compose_models(settings, Events(), {}, drivers.graphs, host).ingest
model = anyio.run(lambda: ingest.import_(Path(sys.argv[2]), "me/ninth"))
print(model.model_type)
print((model.directory / "graph.pbtxt").read_text())
"""


def test_a_ninth_model_type_comes_with_one_distribution(tmp_path: Path):
    site = tmp_path / "site"
    info = site / "ovms_graph_translation-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "ovms_graph_translation.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ovms-graph-translation\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ovms.graphs]\ntranslation = ovms_graph_translation:Translation\n")
    source = tmp_path / "model"
    source.mkdir()
    for name in ("openvino_model.xml", "openvino_model.bin", "handler.py"):
        (source / name).write_text("x")
    answer = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path / "data"), str(source)],
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("translation\n")
    assert "[type.googleapis.com/mediapipe.PythonExecutorCalculatorOptions] {" in answer.stdout
    assert 'handler_path: "handler.py"' in answer.stdout


class Careless:
    """A graph driver that fails on every model."""

    model_type = "careless"

    def recognises(self, files):
        raise KeyError("x")


async def test_a_type_that_cannot_be_told_costs_models_of_that_type_alone(make_world, drivers, tiny, caplog):
    world = make_world(graphs={**drivers.graphs, "careless": Careless()})
    assert (await world.ingest.import_(tiny("embeddings"), "me/a")).model_type == "embeddings"
    [told] = [each.getMessage() for each in caplog.records if "careless" in each.getMessage()]
    assert told == "Extension graphs.careless cannot tell whether me/a is of its type (KeyError: 'x')."
    with pytest.raises(KeyError):
        await world.ingest.import_(tiny("embeddings"), "me/b", model_type="careless")


async def test_without_any_type_it_says_what_to_install(make_world, tiny):
    with pytest.raises(NotSupported, match="No extension for model types is installed; install one, such as ovms-"):
        await make_world(graphs={}).ingest.import_(tiny("embeddings"), "me/a")
