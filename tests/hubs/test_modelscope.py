"""The ModelScope driver and its real client against a local hub."""

import filecmp
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ovms_hub_modelscope import ModelScope
from ovms_kernel.errors import BadRequest, NotFound, Unauthorized, Unavailable
from ovms_kernel.fetch.partial import COUNT, HEADER, PARTIAL, present_bytes
from ovms_kernel.fetch.transfer import fetch_files
from ovms_kernel.testing.hub import FakeHub, Fault
from ovms_kernel.values import ModelRef, Progress

REF = ModelRef("me/model")
BIG = "openvino_model.bin"


def assert_same(repo: Path, into: Path) -> None:
    names = [each.relative_to(repo) for each in repo.rglob("*") if each.is_file()]
    matched, different, missing = filecmp.cmpfiles(repo, into, [str(name) for name in names], shallow=False)
    assert (different, missing) == ([], [])
    assert len(matched) == 6


async def download(driver: ModelScope, into: Path, report: Callable[[Progress], None]) -> None:
    """Fetch a model as the kernel does."""
    files = await driver.list_files(REF)
    await fetch_files(files, into, lambda *ranges: driver.open(REF, *ranges), report, driver.pace)


@pytest.fixture
def no_report():
    return lambda progress: None


async def test_the_listing_has_sizes_and_digests(hub, driver, repo):
    hub.add("me/model", repo)
    files = await driver().list_files(REF)
    assert {file.path for file in files} == {
        "config.json", "openvino_model.xml", BIG, "sub/other.bin", "empty.txt", "说明.md",
    }  # fmt: skip
    big = next(file for file in files if file.path == BIG)
    assert big.size == 3_000_000
    assert len(big.sha256) == 64


async def test_a_model_arrives_in_parallel_ranges(hub, driver, repo, tmp_path):
    hub.add("me/model", repo)
    reports: list[Any] = []
    await download(driver(part_size=200_000), tmp_path / "into", reports.append)
    assert_same(repo, tmp_path / "into")
    assert not any((tmp_path / "into" / PARTIAL).glob("*"))
    assert len([request for request in hub.requests if request.path == BIG]) == 15
    assert (reports[-1].completed, reports[-1].total) == (4_030_801, 4_030_801)


async def test_progress_is_in_bytes_often_and_never_falls(hub, driver, repo, tmp_path):
    hub.add("me/model", repo)
    hub.rate = 500_000
    hub.fault(BIG, Fault("corrupt"))
    reports: list[Any] = []
    await download(
        driver(part_size=400_000, connections=8),
        tmp_path / "into",
        lambda progress: reports.append((time.monotonic(), progress.completed)),
    )
    completed = [each for _, each in reports]
    assert completed == sorted(completed)
    assert len(reports) / (reports[-1][0] - reports[0][0]) >= 4
    assert len(set(completed)) >= 4
    assert completed[-1] == 4_030_801


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("status", 429, retry_after="0")],
        [Fault("status", 500), Fault("status", 503)],
        [Fault("cut", 1000), Fault("cut", 0), Fault("cut", 70_000)],
        [Fault("corrupt")],
        [Fault("stall", 5000)],
        [Fault("whole")] * 40,
        [Fault("html")],
    ],
    ids=lambda faults: faults[0].kind,
)
async def test_what_goes_wrong_once_is_fixed(hub, driver, repo, tmp_path, no_report, faults):
    hub.add("me/model", repo)
    hub.fault(BIG, *faults)
    await download(driver(part_size=300_000, stall_timeout=0.3), tmp_path / "into", no_report)
    assert_same(repo, tmp_path / "into")


@pytest.mark.parametrize(
    ("faults", "error", "words"),
    [
        ([Fault("status", 500)] * 100, Unavailable, "status 500"),
        ([Fault("corrupt")] * 100, Unavailable, "SHA-256"),
        ([Fault("other_size", 7)] * 100, Unavailable, "lists 3000000 bytes"),
        ([Fault("status", 403)] * 100, Unauthorized, "token"),
        ([Fault("status", 404)] * 100, NotFound, BIG),
    ],
    ids=["down", "corrupt", "size", "forbidden", "gone"],
)
async def test_what_stays_wrong_is_said(hub, driver, repo, tmp_path, no_report, faults, error, words):
    hub.add("me/model", repo)
    hub.fault(BIG, *faults)
    with pytest.raises(error, match=words):
        await download(driver(part_size=3_000_000, retries=2), tmp_path / "into", no_report)
    assert not (tmp_path / "into" / BIG).exists()


async def test_a_wrong_digest_in_the_listing_is_no_success(hub, driver, repo, tmp_path, no_report):
    listed = hub.add("me/model", repo)
    next(entry for entry in listed if entry["Path"] == "config.json")["Sha256"] = "0" * 64
    with pytest.raises(Unavailable, match=r"config\.json"):
        await download(driver(), tmp_path / "into", no_report)
    assert not (tmp_path / "into" / "config.json").exists()


async def test_a_size_the_file_does_not_have_is_no_success(hub, driver, repo, tmp_path, no_report):
    listed = hub.add("me/model", repo)
    next(entry for entry in listed if entry["Path"] == BIG)["Size"] = 4_000_000
    with pytest.raises(Unavailable, match=BIG):
        await download(driver(part_size=1_000_000), tmp_path / "into", no_report)


async def test_gated_models_need_their_token(hub, driver, repo, tmp_path, no_report):
    hub.add("me/model", repo, token="secret")
    with pytest.raises(Unauthorized, match=r"hubs\.modelscope\.token"):
        await driver().list_files(REF)
    with pytest.raises(Unauthorized):
        await driver(token="wrong").list_files(REF)
    await download(driver(token="secret"), tmp_path / "into", no_report)
    assert_same(repo, tmp_path / "into")


async def test_revisions_are_told_apart(hub, driver, repo):
    hub.add("me/model", {"config.json": repo / "config.json"}, revision="v1")
    assert [file.path for file in await driver().list_files(ModelRef("me/model", "v1"))] == ["config.json"]
    with pytest.raises(NotFound, match="v2"):
        await driver().list_files(ModelRef("me/model", "v2"))


async def test_a_listing_that_fails_at_first_is_asked_for_again(hub, driver, repo):
    hub.add("me/model", repo)
    hub.fault("listing", Fault("status", 503, retry_after="0"))
    assert len(await driver().list_files(REF)) == 6


async def test_an_unreachable_hub_is_said_in_a_sentence(driver, hub, monkeypatch):
    monkeypatch.setattr("modelscope_hub._legacy_api.REPO_TREE_PAGE_MAX_ATTEMPTS", 1)
    unreachable = driver(endpoint="http://127.0.0.1:1")
    with pytest.raises(Unavailable, match="cannot be reached"):
        await unreachable.list_files(REF)


async def test_a_name_without_an_owner_is_refused_before_anyone_is_asked(driver, hub):
    with pytest.raises(BadRequest, match="owner/name"):
        await driver().list_files(ModelRef("Qwen3"))
    assert hub.requests == []


async def test_patterns_choose_files(hub, driver, repo):
    hub.add("me/model", repo)
    chosen = driver(allow_patterns="*.bin,*.json", ignore_patterns=["sub/*"])
    assert {file.path for file in await chosen.list_files(REF)} == {"config.json", BIG}


def test_settings_that_do_not_exist_are_refused(driver):
    with pytest.raises(BadRequest, match=r"did you mean connections\?"):
        driver(conections=3)
    with pytest.raises(BadRequest, match="connections"):
        driver(connections="many")


async def test_the_rate_is_limited(hub, driver, repo, tmp_path, no_report):
    hub.add("me/model", {BIG: repo / BIG})
    began = time.monotonic()
    await download(driver(max_rate=3_000_000, part_size=500_000), tmp_path / "into", no_report)
    assert 0.9 < time.monotonic() - began < 5


async def test_connections_are_as_many_as_set(hub, driver, repo, tmp_path, no_report):
    hub.add("me/model", {BIG: repo / BIG})
    hub.rate = 2_000_000
    await download(driver(connections=4, part_size=200_000), tmp_path / "into", no_report)
    assert hub.most_connections == 4


async def test_d2_22_a_cancel_stops_at_once_and_the_next_pull_goes_on(hub, driver, repo, tmp_path, no_report):
    hub.add("me/model", repo)
    hub.rate = 300_000
    into = tmp_path / "into"
    with anyio.CancelScope() as scope:
        some = driver(part_size=500_000)
        await download(some, into, lambda progress: scope.cancel() if progress.completed > 300_000 else None)
    files = await driver().list_files(REF)
    present = present_bytes(files, into)
    assert 300_000 < present < 4_000_000
    before = len(hub.requests)
    hub.rate = 0
    await download(driver(part_size=123_456), into, no_report)
    assert_same(repo, into)
    again = sum(request.end + 1 - request.start for request in hub.requests[before:])
    assert again == 4_030_801 - present


async def test_without_a_digest_only_what_was_synced_is_believed(hub, driver, repo, tmp_path, no_report):
    listed = hub.add("me/model", {BIG: repo / BIG})
    listed[0]["Sha256"] = ""
    hub.rate = 600_000
    into = tmp_path / "into"
    with anyio.CancelScope() as scope:
        slow = driver(part_size=500_000, connections=4)
        await download(slow, into, lambda progress: scope.cancel() if progress.completed > 700_000 else None)
    journal = next((into / PARTIAL).glob("*.journal"))
    counts = [each[0] for each in COUNT.iter_unpack(journal.read_bytes()[HEADER.size :])]
    assert any(0 < count < 500_000 for count in counts)
    files = await driver().list_files(REF)
    assert present_bytes(files, into) == 500_000 * counts.count(500_000)
    hub.rate = 0
    await download(driver(), into, no_report)
    assert (into / BIG).read_bytes() == (repo / BIG).read_bytes()


async def test_what_is_complete_is_not_asked_for_again(hub, driver, repo, tmp_path, no_report):
    hub.add("me/model", repo)
    await download(driver(), tmp_path / "into", no_report)
    before = len(hub.requests)
    await download(driver(), tmp_path / "into", no_report)
    assert len(hub.requests) == before


async def test_a_stall_in_the_middle_of_a_cancel_holds_nobody_up(hub, driver, repo, tmp_path, no_report):
    hub.add("me/model", repo)
    hub.fault(BIG, *[Fault("stall", 1000)] * 20)
    began = time.monotonic()
    with anyio.move_on_after(0.3):
        await download(driver(part_size=300_000), tmp_path / "into", no_report)
    assert time.monotonic() - began < 5, "of 1000"


async def test_everything_goes_through_a_proxy(hub, driver, repo, tmp_path, no_report, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    hub.add("me/model", repo)
    # The local hub takes the absolute addresses that a proxy is sent; nothing else could reach that endpoint.
    behind = driver(endpoint="http://modelscope.invalid", proxy=hub.url)
    await download(behind, tmp_path / "into", no_report)
    assert_same(repo, tmp_path / "into")


async def test_a_company_may_have_its_own_authority(driver, repo, tmp_path, no_report, authority, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    ca_file, tls = authority
    with FakeHub(tls=tls) as hub:
        hub.add("me/model", repo)
        await download(driver(endpoint=hub.url, ca_file=str(ca_file)), tmp_path / "into", no_report)
    assert_same(repo, tmp_path / "into")


async def test_a_connection_that_is_given_up_brings_no_bytes_any_more(driver, repo, authority):
    ca_file, tls = authority
    with FakeHub(tls=tls) as hub:
        hub.add("me/model", repo)
        secure = driver(endpoint=hub.url, ca_file=str(ca_file))
        file = next(each for each in await secure.list_files(REF) if each.path == BIG)
        body = secure.open(REF, file, 0, file.size - 1)
        assert body.read(100_000)
        body.abort()
        with pytest.raises(Unavailable):
            body.read(100_000)  # what has arrived by now is encrypted, and nobody is left to decrypt it
        body.close()


@pytest.fixture
def authority(tmp_path: Path, keys: None) -> tuple[Path, ssl.SSLContext]:
    """A certificate for this machine that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    ca_file, key_file = tmp_path / "ca.pem", tmp_path / "key.pem"
    ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca_file, key_file)
    return ca_file, context
