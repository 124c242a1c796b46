"""Proxies: engine downloads, pulls from every hub, media of requests, and the embedded engine alone; all obey alike."""

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import anyio
import pytest

from ovms_embedded import proxies as embedded
from ovms_embedded import pulling
from ovms_embedded.cli import Media
from ovms_embedded.rest import media
from ovms_embedded.rest.errors import Invalid
from ovms_hub_huggingface import HuggingFace
from ovms_hub_modelscope import ModelScope
from ovms_kernel.errors import OvmsError
from ovms_kernel.fetch.http import Web
from ovms_kernel.fetch.proxies import proxy_for
from ovms_kernel.media import read_media
from ovms_kernel.testing.contract import configured
from ovms_kernel.testing.hub import FakeHub
from ovms_kernel.testing.huggingface import FakeHuggingFace
from ovms_kernel.values import ModelRef

FILE = "config.json"
OUTSIDE = "http://hub.invalid"
"""An address that only a proxy can reach, as it knows no such name either and goes to the hub."""
STRANGE = "localhost,fd07:b51a:cc66:f0::/64,[::1],fe11::/16,*.corp,::zz,10.0.0.0/99"
"""What Docker, VPNs and people write into ``NO_PROXY``."""


class Socks(socketserver.ThreadingTCPServer):
    """A SOCKS5 proxy (RFC 1928) that leads everything to one port of this machine."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, target: int) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.target, self.asked = target, 0
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class _Connection(socketserver.BaseRequestHandler):
    server: Socks

    def take(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += self.request.recv(count - len(data)) or self.fail()
        return data

    @staticmethod
    def fail() -> bytes:
        raise ConnectionError

    def handle(self) -> None:
        with suppress(OSError):
            self.take(self.take(2)[1])
            self.request.sendall(b"\5\0")
            kind = self.take(4)[3]
            length = {1: 4, 4: 16}.get(kind) or self.take(1)[0]
            self.take(length + 2)
            self.request.sendall(b"\5\0\0\1" + bytes(6))
            self.server.asked += 1
            with closing(socket.create_connection(("127.0.0.1", self.server.target))) as beyond:
                threading.Thread(target=pour, args=(self.request, beyond), daemon=True).start()
                pour(beyond, self.request)


def pour(source: socket.socket, into: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            into.sendall(data)
    with suppress(OSError):
        into.shutdown(socket.SHUT_WR)


async def from_modelscope(base: str) -> bytes:
    return await from_hub(configured(ModelScope, endpoint=base))


async def from_huggingface(base: str) -> bytes:
    return await from_hub(configured(HuggingFace, endpoint=base))


async def from_hub(driver: Any) -> bytes:
    ref = ModelRef("me/model")
    (file,) = [each for each in await driver.list_files(ref) if each.path == FILE]
    body = await anyio.to_thread.run_sync(driver.open, ref, file, 0, file.size - 1)
    with closing(body):
        return bytes(await anyio.to_thread.run_sync(body.read, file.size))


def stored(base: str) -> str:
    return f"{base}/store/me%2Fmodel/master/{FILE}"


async def of_an_engine(base: str) -> bytes:
    return await anyio.to_thread.run_sync(lambda: Web().read(stored(base), limit=1 << 20))


async def of_a_request(base: str) -> bytes:
    host = base.removeprefix("http://").partition(":")[0]
    return await read_media("image", stored(base), hosts=frozenset([host]))


async def seen_by_the_embedded_engine(base: str) -> bytes:
    return await anyio.to_thread.run_sync(media._fetch, stored(base), Media(frozenset({"all"})))


async def pulled_by_the_embedded_engine(base: str) -> bytes:
    def read() -> bytes:
        with pulling._open(stored(base)) as answer:
            return bytes(answer.read())

    return await anyio.to_thread.run_sync(read)


WAYS: dict[str, tuple[type[FakeHub], Callable[[str], Any]]] = {
    "modelscope": (FakeHub, from_modelscope),
    "huggingface": (FakeHuggingFace, from_huggingface),
    "engine": (FakeHub, of_an_engine),
    "media": (FakeHub, of_a_request),
    "embedded media": (FakeHub, seen_by_the_embedded_engine),
    "embedded pull": (FakeHub, pulled_by_the_embedded_engine),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, repo: Any) -> Iterator[tuple[FakeHub, Callable[[str], Any]]]:
    kind, take = WAYS[request.param]
    with kind() as hub:
        hub.add("me/model", repo, revision="main" if kind is FakeHuggingFace else "master")
        yield hub, take


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http", "https", "all", "no"):
        for each in (f"{name}_proxy", f"{name}_proxy".upper()):
            monkeypatch.delenv(each, raising=False)


@pytest.fixture
def content(repo: Any) -> bytes:
    return bytes((repo / FILE).read_bytes())


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("ALL_PROXY", "socks5h"), ("all_proxy", "socks"), ("HTTP_PROXY", "socks5h"), ("http_proxy", "SOCKS5H")],
)
async def test_socks_leads_to_what_only_the_proxy_reaches(
    way: Any, content: bytes, monkeypatch: pytest.MonkeyPatch, name: str, scheme: str
) -> None:
    hub, take = way
    with Socks(int(hub.url.rpartition(":")[2])) as socks:
        monkeypatch.setenv(name, f"{scheme}://127.0.0.1:{socks.server_address[1]}/")
        monkeypatch.setenv("NO_PROXY", STRANGE)
        assert await take(OUTSIDE) == content
        assert socks.asked
        socks.shutdown()


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_an_http_proxy_is_used_whatever_no_proxy_holds(
    way: Any, content: bytes, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    hub, take = way
    if name == "HTTP_PROXY":
        monkeypatch.delenv("REQUEST_METHOD", raising=False)  # urllib takes no upper case in a CGI script
    monkeypatch.setenv(name, hub.url.removeprefix("http://" if name == "ALL_PROXY" else ""))
    monkeypatch.setenv("NO_PROXY", STRANGE)
    assert await take(OUTSIDE) == content


@pytest.mark.parametrize("listed", ["127.0.0.0/8", "fe11::/16 127.0.0.1", "*", "10.0.0.0/8,127.0.0.1:{port}"])
async def test_no_proxy_leads_past_a_proxy_that_is_gone(
    way: Any, content: bytes, monkeypatch: pytest.MonkeyPatch, listed: str
) -> None:
    hub, take = way
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "socks5h://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", listed.format(port=hub.url.rpartition(":")[2]))
    assert await take(hub.url) == content


async def test_what_is_no_proxy_is_named_with_its_variable(way: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub, take = way
    monkeypatch.setenv("ALL_PROXY", "ftp://me:secret@127.0.0.1:9")
    with pytest.raises((OvmsError, Invalid, ValueError), match=r"ALL_PROXY names .*write http://HOST:PORT") as told:
        await take(hub.url)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("host", "listed", "direct"),
    [
        ("[::1]", "::1", True),
        ("[::1]", "[::1]", True),
        ("[::1]", "[::1]:80", True),
        ("[::1]", "[::1]:81", False),
        ("[fd07:b51a:cc66:f0::7]", STRANGE, True),
        ("[fd07:b51a:cc66:f1::7]", STRANGE, False),
        ("127.0.0.1", "::/0", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("a.corp", STRANGE, True),
        ("corp", ".corp", True),
        ("acorp", STRANGE, False),
        ("a.corp:8080", "a.corp:80", False),
    ],
)
def test_addresses_networks_and_names_in_no_proxy(
    monkeypatch: pytest.MonkeyPatch, host: str, listed: str, *, direct: bool
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:1")
    monkeypatch.setenv("NO_PROXY", listed)
    url = f"http://{host}" if ":8" in host else f"http://{host}:80"
    assert (proxy_for(url) == "") == direct
    assert (embedded._proxy_for(url) == "") == direct
