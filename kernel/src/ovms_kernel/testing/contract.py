"""What every driver has to keep, as test classes for authors to inherit.

    class TestPaint(ServiceContract):
        driver = Paint

Name the class ``Test…`` in a test module and set ``driver`` to the class under test; pytest does the rest.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from ovms_kernel.drivers import (
    Command,
    ConversingService,
    Dialect,
    Face,
    GraphTemplate,
    Platform,
    Service,
    StreamingService,
)
from ovms_kernel.values import Call, GraphOptions, Host, Installation, ModelFiles, Ports

if TYPE_CHECKING:
    from pathlib import Path

__test__ = False

ANY_HOST = Host("linux", "x86_64", "ubuntu", "24.04", memory=16 << 30)


class ServiceContract:
    """A service is described truthfully and refuses what is not a request."""

    driver: ClassVar[Any]

    def test_it_is_constructed_with_an_empty_section(self) -> None:
        """Nothing has to be set for a service to work."""
        assert isinstance(self.driver({}), Service)

    def test_its_name_is_one_for_the_wire(self) -> None:
        """Lower case and dashes, as faces offer it."""
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.driver({}).definition.name)

    def test_it_does_what_its_definition_says(self) -> None:
        """What is promised to hosts is there."""
        service = self.driver({})
        assert isinstance(service, StreamingService) or not service.definition.streaming
        assert isinstance(service, ConversingService) or not service.definition.bidirectional

    def test_its_default_model_is_a_setting(self) -> None:
        """Everybody has models of their own."""
        assert self.driver({"default_model": "own/model"}).definition.default_model == "own/model"


class GraphContract:
    """A graph driver recognises its own type only and builds what parses back."""

    driver: ClassVar[Any]
    files: ClassVar[ModelFiles]
    """Files of a model of this type."""

    def test_it_recognises_its_own_files_and_not_an_empty_folder(self) -> None:
        """From files, not from names."""
        graph = self.driver({})
        assert isinstance(graph, GraphTemplate)
        assert graph.recognises(self.files) > 0
        assert graph.recognises(ModelFiles("model", {}, {})) == 0

    def test_what_it_builds_reads_back_the_same(self) -> None:
        """Through protobuf's own text format."""
        from google.protobuf import text_format

        from ovms_kernel.models.protos.ovms_graph_pb2 import CalculatorGraphConfig

        built = self.driver({}).build(self.files, GraphOptions(ANY_HOST))
        assert text_format.Parse(text_format.MessageToString(built), CalculatorGraphConfig()) == built
        assert built.node
        assert all(node.name and node.calculator for node in built.node)

    def test_an_unknown_option_is_refused(self) -> None:
        """A typing error must not be ignored."""
        from ovms_kernel.errors import BadRequest

        with pytest.raises(BadRequest):
            self.driver({}).build(self.files, GraphOptions(ANY_HOST, {"no_such_option": 1}))


class PlatformContract:
    """A platform knows its own hosts and launches with a clean environment."""

    driver: ClassVar[Any]
    host: ClassVar[Host]
    """A host that it is for."""

    def test_it_matches_its_host(self) -> None:
        """Or nobody would choose it."""
        platform = self.driver({})
        assert isinstance(platform, Platform)
        assert platform.matches(self.host) > 0

    def test_its_release_names_a_version(self) -> None:
        """Every installation has one."""
        assert self.driver({}).release(self.host, "").version

    def test_its_environment_does_not_inherit_ours(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A foreign Python environment is the main cause of engines that do not start."""
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "API_KEY"):
            monkeypatch.setenv(name, "/foreign")
        plan = self.driver({}).launch(Installation("1", tmp_path, "any"), Ports(1, 2))
        assert "/foreign" not in plan.env.values()


class FaceContract:
    """A face is constructed with nothing set, and is served until it is cancelled."""

    driver: ClassVar[Any]

    def test_it_is_constructed_with_an_empty_section(self) -> None:
        """Nothing has to be set."""
        face = self.driver({})
        assert isinstance(face, Face)
        assert inspect.iscoroutinefunction(face.serve)

    def test_its_module_is_quick_to_import(self) -> None:
        """A host waits for the handshake, and a command line only wants to list what there is."""
        code = f"import sys, {self.driver.__module__}; print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert not {"grpc", "starlette", "httpx", "typer", "openvino"} & set(done.stdout.split())


class DialectContract:
    """A dialect has a name and routes of its own."""

    driver: ClassVar[Any]
    kernel: ClassVar[Any] = None
    """What ``routes`` is given: an object with what it asks of a kernel; a test of what requests do brings a real one.
    """

    def test_it_is_constructed_with_an_empty_section(self) -> None:
        """Nothing has to be set."""
        dialect = self.driver({})
        assert isinstance(dialect, Dialect)
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", dialect.name)

    def test_its_routes_are_starlettes_and_do_not_stand_in_each_others_way(self) -> None:
        """One path and method, one route."""
        from starlette.routing import BaseRoute

        routes = list(self.driver({}).routes(self.kernel))
        assert routes
        assert all(isinstance(each, BaseRoute) for each in routes)
        claimed = [(each.path, method) for each in routes for method in getattr(each, "methods", None) or ("",)]
        assert len(claimed) == len(set(claimed))


class CommandsContract:
    """A command has a typer app, says in its help what it does, and can be called with --help."""

    driver: ClassVar[Any]

    def test_it_has_an_app_with_commands(self) -> None:
        """Each tells what it does."""
        command = self.driver({})
        assert isinstance(command, Command)
        registered = command.app.registered_commands
        assert registered or command.app.registered_groups
        assert all(each.callback.__doc__ or each.help for each in registered)

    def test_coroutine_functions_take_the_session_first(self) -> None:
        """The command line hands it over."""
        for each in self.driver({}).app.registered_commands:
            if inspect.iscoroutinefunction(each.callback):
                assert next(iter(inspect.signature(each.callback).parameters)) == "session"


def make_call(service: str = "test", model: str = "m", **body: object) -> Call:
    """Return a call as the kernel would admit it, for tests of ``invoke`` and ``stream``."""
    import json

    decoded = {"model": model} | body
    return Call("call", service, model, decoded, json.dumps(decoded).encode())
