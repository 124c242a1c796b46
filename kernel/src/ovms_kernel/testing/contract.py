"""What every driver has to keep, as test classes for authors to inherit.

    class TestPaint(ServiceContract):
        driver = Paint

Name the class ``Test…`` in a test module and set ``driver`` to the class under test; pytest does the rest.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
import pytest

from ovms_kernel import hookspecs
from ovms_kernel.construction import construct
from ovms_kernel.declared import NoSettings, read_struct
from ovms_kernel.drivers import (
    Command,
    ConversingService,
    Dialect,
    Face,
    GraphOptions,
    GraphTemplate,
    Hub,
    ModelFiles,
    Platform,
    Service,
    StreamingService,
)
from ovms_kernel.events import Events
from ovms_kernel.examination import flaw_of
from ovms_kernel.values import Call, Host, Installation, ModelRef, Ports

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__test__ = False


def configured(driver: Any, **values: Any) -> Any:  # noqa: ANN401 - any driver
    """Return a driver with these settings, constructed as the kernel does it.

    :raises BadRequest: one is unknown or has a wrong value.
    """
    declared = getattr(driver, "settings_type", NoSettings)
    given = values if declared is dict else read_struct(declared, values, lambda _: "the settings")
    return construct(driver, given)


ANY_HOST = Host("linux", "x86_64", "ubuntu", "24.04", memory=16 << 30)


class DriverContract:
    """A driver is one that the kernel loads under its name, whatever its kind."""

    kind: ClassVar[str]
    """Such as ``services``."""
    name: ClassVar[str]
    """Of its entry point."""
    driver: ClassVar[Any]

    def test_the_kernel_accepts_it(self) -> None:
        """It has what its kind needs, with the arguments that it is called with, under one name."""
        assert flaw_of(self.kind, self.name, configured(self.driver), ANY_HOST) == ""


class ServiceContract:
    """A service is described truthfully and refuses what is not a request."""

    driver: ClassVar[Any]

    def test_nothing_has_to_be_set(self) -> None:
        """Every setting has a default with which the service works."""
        assert isinstance(configured(self.driver), Service)

    def test_its_name_is_one_for_the_wire(self) -> None:
        """Lower case and dashes, as faces offer it."""
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


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that a hub offers, for :class:`HubContract`."""

    driver: Any
    """The driver under test, connected to that hub."""
    unreachable: Any
    """The same driver, with an endpoint where nothing listens."""
    ref: ModelRef
    files: Mapping[str, bytes]
    """Content by path."""


class HubContract:
    """A hub lists whole and honestly, opens exact ranges, and fails in words.

    Override the fixture ``served``.
    """

    @pytest.fixture
    def served(self) -> ServedModel:
        """Return a model and its driver."""
        raise NotImplementedError

    async def test_it_lists_every_file_with_its_size(self, served: ServedModel) -> None:
        """And with a SHA-256, or none."""
        assert isinstance(served.driver, Hub)
        files = {file.path: file for file in await served.driver.list_files(served.ref)}
        assert {path: file.size for path, file in files.items()} == {
            path: len(content) for path, content in served.files.items()
        }
        for path, file in files.items():
            assert file.sha256 in ("", hashlib.sha256(served.files[path]).hexdigest())

    async def test_it_opens_the_range_that_is_asked_for_or_the_whole_file(self, served: ServedModel) -> None:
        """A server may know no ranges; then it says so."""
        for file in await served.driver.list_files(served.ref):
            if file.size < 2:
                continue
            body = served.driver.open(served.ref, file, 1, file.size - 1)
            with closing(body):
                content = bytearray()
                while piece := body.read(1 << 16):
                    content += piece
            assert content == served.files[file.path][1 if body.ranged else 0 :]
            assert body.total in (None, file.size)

    async def test_what_the_hub_does_not_have_is_not_found(self, served: ServedModel) -> None:
        """Or needs a token: some hubs do not tell the two apart."""
        from ovms_kernel.errors import NotFound, Unauthorized

        with pytest.raises((NotFound, Unauthorized), match="none/such"):
            await served.driver.list_files(ModelRef("none/such"))

    async def test_a_hub_that_cannot_be_reached_is_said_within_two_seconds(self, served: ServedModel) -> None:
        """With its cause."""
        from ovms_kernel.errors import Unavailable

        with anyio.fail_after(2), pytest.raises(Unavailable, match="cannot be reached"):
            await served.unreachable.list_files(served.ref)


class ObserverContract:
    """An observer listens to events that there are."""

    driver: ClassVar[Any]

    def test_it_listens(self) -> None:
        """To one hook at least, with arguments that the hook has."""
        events = Events()
        assert not events.register({"observers.test": configured(self.driver)})
        assert any(events.listens(name) for name in vars(hookspecs) if name.startswith("ovms_"))


class FaceContract:
    """A face is constructed with nothing set, and is served until it is cancelled."""

    driver: ClassVar[Any]

    def test_it_is_constructed_with_an_empty_section(self) -> None:
        """Nothing has to be set."""
        face = configured(self.driver)
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
        dialect = configured(self.driver)
        assert isinstance(dialect, Dialect)
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", dialect.name)

    def test_its_routes_are_starlettes_and_do_not_stand_in_each_others_way(self) -> None:
        """One path and method, one route."""
        from starlette.routing import BaseRoute

        routes = list(configured(self.driver).routes(self.kernel))
        assert routes
        assert all(isinstance(each, BaseRoute) for each in routes)
        claimed = [(each.path, method) for each in routes for method in getattr(each, "methods", None) or ("",)]
        assert len(claimed) == len(set(claimed))


class CommandsContract:
    """A command has a typer app, says in its help what it does, and can be called with --help."""

    driver: ClassVar[Any]

    def test_it_has_an_app_with_commands(self) -> None:
        """Each tells what it does."""
        command = configured(self.driver)
        assert isinstance(command, Command)
        registered = command.app.registered_commands
        assert registered or command.app.registered_groups
        assert all(each.callback.__doc__ or each.help for each in registered)

    def test_coroutine_functions_take_the_session_first(self) -> None:
        """The command line hands it over."""
        for each in configured(self.driver).app.registered_commands:
            if inspect.iscoroutinefunction(each.callback):
                assert next(iter(inspect.signature(each.callback).parameters)) == "session"


def make_call(service: str = "test", model: str = "m", **body: object) -> Call:
    """Return a call as the kernel would admit it, for tests of ``invoke`` and ``stream``."""
    import json

    decoded = {"model": model} | body
    return Call("call", service, model, decoded, json.dumps(decoded).encode())
