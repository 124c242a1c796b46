"""The face's own settings, ``faces.http``, and the address that they make."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from ovms_face_http.keys import keys_of
from ovms_kernel.api.faces import BadRequest, read_server, read_struct

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovms_kernel.api.faces import Settings

PORT = 16680


class HttpSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What can be set. Sizes are in bytes."""

    host: str = "127.0.0.1"
    """The address to listen at; `0.0.0.0` or `::` means every network that this machine is in."""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = PORT
    """The port to listen at; 0 means any free one."""
    keys: Literal["required", "none"] = "required"
    """`none` serves programs without a key, which is accepted at a loopback address only."""
    allowed_origins: tuple[str, ...] = ()
    """Web pages that may use the API from a browser, such as `https://chat.example.com`; `*` means all."""
    tls_cert: str = ""
    """Path of a PEM file with the certificate chain; set it together with `tls_key` to serve https."""
    tls_key: str = ""
    """Path of a PEM file with the private key of `tls_cert`."""
    max_body: Annotated[int, msgspec.Meta(ge=1024)] = 128 << 20
    """The largest request body."""
    with_aog: bool = False
    """Serve this address also while AOG runs the plugin."""

    @property
    def scheme(self) -> str:
        """``http``, or ``https`` if there is a certificate."""
        return "https" if self.tls_cert else "http"


def read(section: Mapping[str, Any]) -> HttpSettings:
    """Return the settings in a section.

    :raises BadRequest: a name or a value is wrong; the sentence says which.
    """
    values = dict(section)
    if values.get("keys", "") is None:  # YAML's way to write none
        values["keys"] = "none"
    return checked(read_struct(HttpSettings, values, lambda _: "the settings", "faces.http."))


def checked(settings: HttpSettings) -> HttpSettings:
    """Return settings that fit together.

    :raises BadRequest: they do not; the sentence says which.
    """
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise BadRequest("faces.http needs both tls_cert and tls_key to serve https; set the other one too.")
    if settings.keys == "none" and not is_loopback(settings.host):
        raise BadRequest(
            f"faces.http.keys: none would open this machine's models to the whole network at {settings.host}; "
            "set host to 127.0.0.1, or leave keys out."
        )
    for origin in settings.allowed_origins:
        if origin not in ("*", "null") and ("://" not in origin or origin.endswith("/")):
            raise BadRequest(
                f"faces.http.allowed_origins has {origin!r}; write an origin as a browser sends it, "
                "such as https://chat.example.com, without a path."
            )
    return settings


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def base_url(settings: HttpSettings, port: int) -> str:
    """Return the address as programs on this machine use it, without a path."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"{settings.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def report(settings: Settings, wanted: HttpSettings) -> dict[str, Any]:
    """Return where the face listens, or would listen, and where the key is."""
    if found := read_server(settings.data_dir):
        return {"url": found.url, "key_file": found.key_file, "pid": found.pid}
    key_file = str(keys_of(settings).file) if wanted.keys == "required" else ""
    return {"url": base_url(wanted, wanted.port), "key_file": key_file, "pid": None}
