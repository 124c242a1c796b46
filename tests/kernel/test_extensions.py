"""Discovery: what is wrong with an extension costs that extension alone, and its report says so."""

import json
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from ovms_kernel.api.observers import Host
from ovms_kernel.drivers import GraphOptions, ModelFiles
from ovms_kernel.errors import BadRequest
from ovms_kernel.events import Events
from ovms_kernel.extensions import ExtensionReport, compose
from ovms_kernel.models.graph_writer import print_graph
from ovms_kernel.settings import read_settings

LINUX = Host("linux", "x86_64")
GOOD = """
from ovms_kernel.api.observers import hookimpl
class Observer:
    settings_type = dict
    def __init__(self, section): self.section = section
    @hookimpl
    def ovms_pulled(self, model): pass
"""


class Site:
    """A folder of distributions that are installed as far as Python can tell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(
        self, distribution: str, group: str, entry_point: str, source: str = GOOD, *, requires: str = ""
    ) -> str:
        module = distribution.replace("-", "_")
        (self.folder / f"{module}.py").write_text(source)
        info = self.folder / f"{module}-1.0.dist-info"
        info.mkdir()
        needs = f"Requires-Dist: {requires}\n" if requires else ""
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n{needs}")
        (info / "entry_points.txt").write_text(f"[{group}]\n{entry_point}\n")
        return module


DECLARED = """
import msgspec
from typing import Annotated
class Settings(msgspec.Struct, frozen=True):
    colour: str = "blue"
    strict: bool = False
    hosts: tuple[str, ...] = ()
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 80
class Observer:
    settings_type = Settings
    def __init__(self, settings): self.settings = settings
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(folder))
    yield Site(folder)
    for name in [each for each in sys.modules if each.startswith("acme_")]:
        del sys.modules[name]


def test_an_extension_is_given_the_struct_that_declares_its_settings(site: Site, tmp_path: Path) -> None:
    site.install("acme-declared", "ovms.observers", "two-words = acme_declared:Observer", DECLARED)
    (tmp_path / "config.yaml").write_text("observers: {two-words: {strict: on, port: '81', colour: null}, other:}\n")
    environment = {"OVMS_PLUGIN_OBSERVERS__TWO_WORDS__HOSTS": "a, b"}
    extensions = compose(read_settings(environment, data_dir=tmp_path), LINUX, events=Events())
    given = extensions.observers["two-words"].settings  # type: ignore[attr-defined]
    assert (given.colour, given.strict, given.hosts, given.port) == ("blue", True, ("a", "b"), 81)


@pytest.mark.parametrize(
    ("text", "environment", "sentence"),
    [
        ("observers: {it: {color: red}}", {}, "observers.it.color is not a setting; did you mean observers.it.colour?"),
        (
            "observers: {it: {size: 3}}",
            {},
            "observers.it.size is not a setting; there are colour, hosts, port, strict.",
        ),
        ("observers: {it: {port: 0}}", {}, "observers.it.port must be a whole number from 1 to 65535, not 0."),
        ("observers: {it: {strict: maybe}}", {}, "observers.it.strict must be true or false, not 'maybe'."),
        (
            "observers: {iit: {port: 1}}",
            {},
            "observers.iit names no extension that is installed; did you mean observers.it?",
        ),
        ("services: {chat: {defualt_model: x}}", {}, "did you mean services.chat.default_model?"),
        ("platforms: {portable: {url: x}}", {}, "platforms.portable.url is not a setting; there are no settings here"),
        ("", {"OBSERVERS__IT__COLOR": "x"}, "observers.it.color is not a setting; did you mean observers.it.colour?"),
        ("", {"SERVICES__CHAT__DEFUALT_MODEL": "x"}, "did you mean services.chat.default_model?"),
    ],
)
def test_a_typo_is_refused_with_the_place_and_what_was_meant(
    site: Site, tmp_path: Path, text: str, environment: dict[str, str], sentence: str
) -> None:
    site.install("acme-declared", "ovms.observers", "it = acme_declared:Observer", DECLARED)
    (tmp_path / "config.yaml").write_text(text)
    place = f"In the config file {tmp_path / 'config.yaml'}, " if text else "In the environment, "
    variables = {f"OVMS_PLUGIN_{name}": value for name, value in environment.items()}
    settings = read_settings(variables, data_dir=tmp_path)
    with pytest.raises(BadRequest) as caught:
        compose(settings, LINUX, events=Events())
    assert caught.value.message.startswith(place)
    assert sentence in caught.value.message


def test_the_settings_of_an_extension_that_was_uninstalled_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "config.yaml").write_text("services: {gardening: {hedge: 1}}")
    compose(read_settings({}, data_dir=tmp_path), LINUX, events=Events())
    assert "services.gardening in the config file" in caplog.text


def reports(tmp_path: Path, **settings: Any) -> dict[str, ExtensionReport]:
    found = compose(read_settings({}, data_dir=tmp_path, **settings), LINUX, events=Events())
    return {each.distribution: each for each in found.reports if each.distribution.startswith("acme")}


def test_an_extension_is_loaded_with_its_section_of_the_settings_and_hears_events(site: Site, tmp_path: Path) -> None:
    site.install("acme-good", "ovms.observers", "good = acme_good:Observer")
    settings = read_settings({"OVMS_PLUGIN_OBSERVERS__GOOD__COLOUR": "red"}, data_dir=tmp_path)
    extensions = compose(settings, LINUX, events=Events())
    assert extensions.observers["good"].section == {"colour": "red"}  # type: ignore[attr-defined]
    [report] = [each for each in extensions.reports if each.name == "good"]
    assert report == ExtensionReport("observers", "good", "acme-good", "1.0", "loaded")


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        ("raise SystemExit(7)", "SystemExit"),
        ("assert False, 'never'", "AssertionError"),
        ("def broken(:", "SyntaxError"),
        ("class Observer:\n    def __init__(self, section): raise ValueError('bad section')", "bad section"),
        ("x = 1", "no attribute 'Observer'"),
        (GOOD.replace("ovms_pulled", "ovms_puled"), "unknown hook"),
    ],
    ids=["import error", "exit at import", "assertion", "syntax", "constructor", "no class", "unknown hook"],
)
def test_a_broken_extension_costs_itself_alone(site: Site, tmp_path: Path, source: str, cause: str) -> None:
    site.install("acme-bad", "ovms.observers", "bad = acme_bad:Observer", source)
    site.install("acme-good", "ovms.observers", "good = acme_good:Observer")
    found = reports(tmp_path)
    assert found["acme-good"].state == "loaded"
    assert found["acme-bad"].state == "broken"
    assert cause in found["acme-bad"].cause


def test_two_extensions_of_one_name_are_refused_before_either_is_imported(site: Site, tmp_path: Path) -> None:
    first = site.install("acme-one", "ovms.services", "paint = acme_one:Observer")
    second = site.install("acme-two", "ovms.services", "paint = acme_two:Observer")
    found = reports(tmp_path)
    assert found["acme-one"].state == found["acme-two"].state == "broken"
    assert "acme-one 1.0 and acme-two 1.0 both offer it" in found["acme-one"].cause
    assert first not in sys.modules
    assert second not in sys.modules


SERVICE = """
from ovms_kernel.api.services import ServiceDefinition
class Paint:
    def __init__(self, section):
        self.definition = ServiceDefinition(name="paint", model_type="painting", endpoint="/v3/paint")
    async def invoke(self, call, engine): return b"{}"
"""
GRAPH = """
class Paint:
    model_type = "painting"
    def __init__(self, section): pass
    def recognises(self, files): return 1
    def build(self, files, options): pass
"""

PLATFORM = """
class Paint:
    def __init__(self, section): pass
    def matches(self, host): return {}["x"]
    def release(self, host, version): pass
    async def requirements(self, installation): return []
    def launch(self, installation, ports): pass
"""


@pytest.mark.parametrize(
    ("group", "source", "cause"),
    [
        ("services", "class Paint:\n    def __init__(self, section): pass", "it lacks definition, invoke"),
        ("services", SERVICE.replace("endpoint=", "streaming=True, endpoint="), "it lacks stream"),
        ("services", SERVICE.replace("endpoint=", "bidirectional=True, endpoint="), "it lacks converse"),
        ("services", SERVICE.replace('"paint"', '"brush"'), "calls itself brush and its entry point calls it paint"),
        ("services", SERVICE.replace("(self, section)", "(self, one, two)"), "constructing it failed"),
        ("graphs", GRAPH.replace("build", "built"), "it lacks build"),
        ("graphs", GRAPH, "calls itself painting and its entry point calls it paint"),
        ("services", SERVICE.replace("call, engine", "call"), "Paint.invoke cannot be called as invoke(call, engine)"),
        ("graphs", GRAPH.replace("files, options", "files, options, more"), "Paint.build cannot be called as build(f"),
        ("platforms", PLATFORM, "examining it failed (KeyError: 'x')"),
        ("platforms", PLATFORM.replace('return {}["x"]', "pass"), "its matches returned NoneType, not a number"),
        ("service", SERVICE, "ovms.service is not a kind of extension; the kinds are ovms.services,"),
    ],
    ids=[
        "nothing",
        "stream",
        "converse",
        "name",
        "init",
        "build",
        "type",
        "arguments",
        "more arguments",
        "matches",
        "fit",
        "group",
    ],
)
def test_a_driver_that_could_not_do_its_work_is_refused_with_the_reason(
    site: Site, tmp_path: Path, group: str, source: str, cause: str
) -> None:
    site.install("acme-paint", f"ovms.{group}", "paint = acme_paint:Paint", source)
    report = reports(tmp_path)["acme-paint"]
    assert (report.key, report.state) == (f"{group}.paint", "broken")
    assert cause in report.cause


@pytest.mark.parametrize("taken", ["(self)", "(self, section)"], ids=["nothing", "an empty mapping"])
def test_a_driver_without_settings_is_constructed_with_what_it_takes(site: Site, tmp_path: Path, taken: str) -> None:
    source = SERVICE.replace("(self, section):", f"{taken}:")
    site.install("acme-paint", "ovms.services", "paint = acme_paint:Paint", source)
    assert reports(tmp_path)["acme-paint"].state == "loaded"


def test_a_disabled_extension_is_not_imported(site: Site, tmp_path: Path) -> None:
    module = site.install("acme-off", "ovms.observers", "off = acme_off:Observer")
    assert reports(tmp_path, disabled=("observers.off",))["acme-off"].state == "disabled"
    assert module not in sys.modules


def test_a_platform_for_another_system_is_not_imported_unless_it_is_asked_for(site: Site, tmp_path: Path) -> None:
    module = site.install("acme-beos", "ovms.platforms", "beos = acme_beos:Observer [beos]")
    report = reports(tmp_path)["acme-beos"]
    assert (report.state, report.cause) == ("unsuitable", "for beos only")
    assert module not in sys.modules
    assert "does not have all" in reports(tmp_path, platform="beos")["acme-beos"].cause
    assert module in sys.modules


def test_an_extension_installed_a_moment_ago_is_found(site: Site, tmp_path: Path) -> None:
    site.install("acme-first", "ovms.observers", "first = acme_first:Observer")
    assert set(reports(tmp_path)) == {"acme-first"}
    site.install("acme-second", "ovms.observers", "second = acme_second:Observer")
    found = reports(tmp_path)
    assert {each.state for each in found.values()} == {"loaded"}
    assert set(found) == {"acme-first", "acme-second"}


@pytest.mark.parametrize(
    ("requires", "cause"),
    [
        ("ovms-kernel>=9.0", f"made for ovms-kernel >=9.0; this is {metadata.version('ovms-kernel')}"),
        ("ovms_kernel[testing] (<0.1)", "made for ovms-kernel <0.1; this is"),
        ("ovms-kernel>>1", "has the range >>1 of ovms-kernel, which is not a range"),
        ("ovms-kernel>=0.1,<99", ""),
        ("ovms-kernel", ""),
        ("ovms-kernel; python_version > '3'", ""),
    ],
)
def test_an_extension_for_another_kernel_is_said_and_not_imported(
    site: Site, tmp_path: Path, requires: str, cause: str
) -> None:
    module = site.install("acme-new", "ovms.observers", "new = acme_new:Observer", requires=requires)
    report = reports(tmp_path)["acme-new"]
    assert (report.state, module in sys.modules) == (("broken", False) if cause else ("loaded", True))
    assert cause in report.cause


def test_what_an_extension_prints_is_logged_and_not_printed(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    site.install("acme-loud", "ovms.observers", "loud = acme_loud:Observer", "print('hello')" + GOOD)
    assert reports(tmp_path)["acme-loud"].state == "loaded"
    assert capsys.readouterr().out == ""
    assert "observers.loud of acme-loud prints while it is loaded, and should log: hello" in caplog.text


def test_an_extension_that_takes_long_to_load_is_named(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ovms_kernel.examination.SLOW", 0.0)
    site.install("acme-slow", "ovms.observers", "slow = acme_slow:Observer")
    reports(tmp_path)
    assert "observers.slow of acme-slow takes 0.0 s to load." in caplog.text


OPTIONAL = """
from ovms_kernel.api.observers import hookimpl
class Observer:
    def __init__(self, section): self.heard = []
    @hookimpl(optional=True)
    def ovms_of_a_later_kernel(self, thing): pass
    @hookimpl(optional=True)
    def ovms_deleted(self, model, whom): self.heard.append(whom)
    @hookimpl(optional=True)
    def ovms_pulled(self, model): self.heard.append(model)
"""


async def test_optional_hooks_and_arguments_that_this_kernel_lacks_are_passed_over(site: Site, tmp_path: Path) -> None:
    site.install("acme-later", "ovms.observers", "later = acme_later:Observer", OPTIONAL)
    events = Events()
    found = compose(read_settings({}, data_dir=tmp_path), LINUX, events=events)
    await events.tell("ovms_pulled", model="m")
    await events.tell("ovms_deleted", model="m")
    assert found.observers["later"].heard == ["m"]  # type: ignore[attr-defined]
    assert not events.failures


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"cache_sice": 3}, r"cache_sice is not a setting; did you mean graphs\.text_generation\.cache_size\?$"),
        ({"cache_size": [3]}, r"cache_size .*cannot be \[3\]; it takes a whole number"),
    ],
)
def test_a_wrong_option_of_a_calculator_is_refused_at_the_start(tmp_path: Path, wrong: Any, sentence: str) -> None:
    (tmp_path / "config.yaml").write_text(json.dumps({"graphs": {"text_generation": wrong}}))
    with pytest.raises(BadRequest, match=r"^In .*config\.yaml, graphs\.text_generation\." + sentence):
        compose(read_settings({}, data_dir=tmp_path), LINUX, kinds=("graphs",))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"cache_sice": 3}, r"cache_sice is not a setting; did you mean models\.me/chat\.cache_size\?$"),
        ({"pined": True}, r"pined is not a setting; did you mean models\.me/chat\.pinned\?$"),
        ({"cache_size": [3]}, r"cache_size cannot be \[3\]\.$"),
    ],
)
def test_a_wrong_option_of_a_model_is_refused_at_the_start(tmp_path: Path, wrong: Any, sentence: str) -> None:
    (tmp_path / "config.yaml").write_text(json.dumps({"models": {"me/chat": wrong | {"pinned": "on"}}}))
    with pytest.raises(BadRequest, match=r"^In .*config\.yaml, models\.me/chat\." + sentence):
        compose(read_settings({}, data_dir=tmp_path), LINUX, kinds=("graphs",))


def test_options_of_models_of_any_type_are_read(tmp_path: Path) -> None:
    options = {"me/chat": {"cache_size": 3, "device": "GPU"}, "me/vectors": {"pooling": "MEAN", "target_device": "CPU"}}
    (tmp_path / "config.yaml").write_text(json.dumps({"models": options}))
    found = compose(read_settings({}, data_dir=tmp_path), LINUX, kinds=("graphs",))
    assert [each.key for each in found.reports if each.state != "loaded"] == []


def test_options_of_calculators_are_read_and_empty_sections_are_absent(tmp_path: Path) -> None:
    written = {"graphs": {"text_generation": {"cache_size": "3", "plugin_config": {"NUM_STREAMS": 1}}, "rerank": None}}
    (tmp_path / "config.yaml").write_text(json.dumps(written | {"hubs": None, "services": {"chat": {}}}))
    found = compose(read_settings({}, data_dir=tmp_path), LINUX, kinds=("graphs", "services"))
    assert [each.key for each in found.reports if each.state != "loaded"] == []
    graph = found.graphs["text_generation"].build(ModelFiles("model", {}, {}), GraphOptions(LINUX))
    assert "cache_size: 3" in print_graph(graph, "test")
