"""https: with a good certificate, and with files that are none."""

import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ovms_face_http import config
from ovms_face_http.server import tls_of
from ovms_kernel.api.faces import BadRequest


def pem(key: ec.EllipticCurvePrivateKey, password: bytes = b"") -> bytes:
    secret = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, keys: None) -> dict[str, Path]:
    """A certificate of 127.0.0.1, its key plain and encrypted, another key, and a text."""
    folder = tmp_path_factory.mktemp("tls")
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "here")]), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    contents = {
        "cert": certificate.public_bytes(serialization.Encoding.PEM),
        "key": pem(key),
        "locked": pem(key, b"secret"),
        "other": pem(other),
        "text": b"hello",
    }
    for each, data in contents.items():
        (folder / each).write_bytes(data)
    return {each: folder / each for each in [*contents, "missing"]}


def test_a_certificate_serves_https_and_nothing_else(
    start: Callable[..., AbstractContextManager[Any]], files: dict[str, Path]
) -> None:
    with start(tls_cert=files["cert"], tls_key=files["key"]) as served:
        assert served.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=files["cert"])
        with served.client(verify=trusting) as client:
            assert len(client.get("/v1/models").json()["data"]) == 7
            own = client.get("/v1/models", headers={"origin": served.url})
            assert own.headers["access-control-allow-origin"] == served.url
        with served.client() as suspicious, pytest.raises(httpx.ConnectError, match="certificate"):
            suspicious.get("/health")
        with httpx.Client(trust_env=False) as plain, pytest.raises(httpx.HTTPError):
            plain.get(served.url.replace("https", "http") + "/health")


@pytest.mark.parametrize(
    ("cert", "key", "part"),
    [
        ("missing", "key", "tls_cert .*missing cannot be read .No such file"),
        ("cert", "missing", "tls_key .*missing cannot be read .No such file"),
        ("cert", "other", "do not belong together"),
        ("text", "key", "not a PEM file"),
        ("cert", "text", "not a PEM file"),
        ("key", "cert", "not a PEM file"),
        ("cert", "locked", "encrypted"),
    ],
)
def test_files_that_are_no_certificate_are_said_in_a_sentence(
    files: dict[str, Path], cert: str, key: str, part: str
) -> None:
    with pytest.raises(BadRequest, match=part) as refused:
        tls_of(config.read({"tls_cert": str(files[cert]), "tls_key": str(files[key])}))
    assert str(files[cert]) in refused.value.message or str(files[key]) in refused.value.message
    assert refused.value.message.count("\n") == 0
