"""What every driver has to keep, as test classes for authors to inherit.

    class TestPaint(ServiceContract):
        driver = Paint

Name the class ``Test…`` in a test module and set ``driver`` to the class under test; pytest does the rest.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from ovms_kernel.declared import NoSettings, read_struct
from ovms_kernel.drivers import ConversingService, GraphTemplate, Platform, Service, StreamingService
from ovms_kernel.values import Call, GraphOptions, Host, Installation, ModelFiles, Ports

if TYPE_CHECKING:
    from pathlib import Path

__test__ = False


def configured(driver: Any, **values: Any) -> Any:  # noqa: ANN401 - any driver
    """Return a driver with these settings, constructed as the kernel does it.

    :raises BadRequest: one is unknown or has a wrong value.
    """
    declared = getattr(driver, "settings_type", NoSettings)
    if declared is dict:
        return driver(values)
    read = read_struct(declared, values, lambda _: "the settings")
    return driver({} if declared is NoSettings else read)


ANY_HOST = Host("linux", "x86_64", "ubuntu", "24.04", memory=16 << 30)


class ServiceContract:
    """A service is described truthfully and refuses what is not a request."""

    driver: ClassVar[Any]

    def test_nothing_has_to_be_set(self) -> None:
        """Every setting has a default with which the service works."""
        assert isinstance(configured(self.driver), Service)

    def test_its_name_is_one_for_the_wire(self) -> None:
        """Lower case and dashes, as on AOG's wire."""
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", configured(self.driver).definition.name)

    def test_it_does_what_its_definition_says(self) -> None:
        """What is promised to hosts is there."""
        service = configured(self.driver)
        assert isinstance(service, StreamingService) or not service.definition.streaming
        assert isinstance(service, ConversingService) or not service.definition.bidirectional

    def test_its_default_model_is_a_setting(self) -> None:
        """Everybody has models of their own."""
        assert configured(self.driver, default_model="own/model").definition.default_model == "own/model"


class GraphContract:
    """A graph driver recognises its own type only and builds what parses back."""

    driver: ClassVar[Any]
    files: ClassVar[ModelFiles]
    """Files of a model of this type."""

    def test_it_recognises_its_own_files_and_not_an_empty_folder(self) -> None:
        """From files, not from names."""
        graph = configured(self.driver)
        assert isinstance(graph, GraphTemplate)
        assert graph.recognises(self.files) > 0
        assert graph.recognises(ModelFiles("model", {}, {})) == 0

    def test_what_it_builds_reads_back_the_same(self) -> None:
        """Through protobuf's own text format."""
        from google.protobuf import text_format

        from ovms_kernel.models.protos.ovms_graph_pb2 import CalculatorGraphConfig

        built = configured(self.driver).build(self.files, GraphOptions(ANY_HOST))
        assert text_format.Parse(text_format.MessageToString(built), CalculatorGraphConfig()) == built
        assert built.node
        assert all(node.name and node.calculator for node in built.node)

    def test_an_unknown_option_is_refused(self) -> None:
        """A typing error must not be ignored."""
        from ovms_kernel.errors import BadRequest

        with pytest.raises(BadRequest):
            configured(self.driver).build(self.files, GraphOptions(ANY_HOST, {"no_such_option": 1}))


class PlatformContract:
    """A platform knows its own hosts and launches with a clean environment."""

    driver: ClassVar[Any]
    host: ClassVar[Host]
    """A host that it is for."""

    def test_it_matches_its_host(self) -> None:
        """Or nobody would choose it."""
        platform = configured(self.driver)
        assert isinstance(platform, Platform)
        assert platform.matches(self.host) > 0

    def test_its_release_names_a_version(self) -> None:
        """Every installation has one."""
        assert configured(self.driver).release(self.host, "").version

    def test_its_environment_does_not_inherit_ours(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A foreign Python environment is the main cause of engines that do not start."""
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "API_KEY"):
            monkeypatch.setenv(name, "/foreign")
        plan = configured(self.driver).launch(Installation("1", tmp_path, "any"), Ports(1, 2))
        assert "/foreign" not in plan.env.values()


def make_call(service: str = "test", model: str = "m", **body: object) -> Call:
    """Return a call as the kernel would admit it, for tests of ``invoke`` and ``stream``."""
    import json

    decoded = {"model": model} | body
    return Call("call", service, model, decoded, json.dumps(decoded).encode())
