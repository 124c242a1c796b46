"""An engine behind TLS, as on Kubernetes: trusted by its authority's file, and by nothing else."""

import datetime as dt
import ipaddress
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ovms_kernel.engine.client import EngineClient
from ovms_kernel.errors import Unavailable
from ovms_kernel.values import Endpoint


@pytest.fixture
def certificate(tmp_path, keys):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "engine")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "engine.pem"
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(made.public_bytes(pem) + secret)
    return path


async def test_an_engine_behind_tls(certificate):
    import asyncio

    async def answer(reader, writer):
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n{"ok":true}')
                await reader.readexactly(2)
        except asyncio.IncompleteReadError:
            writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    rest = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    trusting = EngineClient(Endpoint(rest, "", ca_file=str(certificate)))
    for _ in range(2):
        assert (await trusting.post("/v3/x", b"{}")).body == b'{"ok":true}'
    await trusting.aclose()
    wary = EngineClient(Endpoint(rest, ""))
    with pytest.raises(Unavailable, match="certificate is not trusted"):
        await wary.post("/v3/x", b"{}")
    await wary.aclose()
    server.close()
    await server.wait_closed()
