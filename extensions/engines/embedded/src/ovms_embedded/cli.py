"""The command line of OVMS, as far as a supervisor or a person at a terminal needs it."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ovms_embedded import SERVER_NAME, SERVER_VERSION

USAGE = 64
PORTS = 65535
WORKERS = (2, 10000)
MANAGEMENT = {
    "list_models": "list the models in --model_repository_path and exit",
    "add_to_config": "add --model_name and --model_path to the configuration file and exit",
    "remove_from_config": "remove --model_name from the configuration file and exit",
    "configure": "write graph.pbtxt into --model_path and exit",
    "pull": "download --source_model into --model_repository_path and exit",
}


@dataclass(frozen=True)
class Media:
    """Which images requests may name, beside those that they carry."""

    domains: frozenset[str] = frozenset()
    """Hosts, in lower case; ``all`` alone stands for every host."""
    folder: Path | None = None
    redirects: bool = False


@dataclass(frozen=True)
class GraphFlags:
    """What the graph of ``--model_path`` is to be, instead of the one in the folder."""

    task: str = ""
    """Detected in the folder when it is not given."""
    device: str = ""
    draft: str = ""
    """Folder of the draft model, relative to the model's."""

    def __bool__(self) -> bool:
        """Tell whether any is given."""
        return bool(self.task or self.device or self.draft)


@dataclass(frozen=True)
class Settings:
    """A checked command line."""

    port: int
    rest_port: int
    grpc_addresses: tuple[str, ...]
    rest_addresses: tuple[str, ...]
    config_path: Path | None
    model_name: str
    model_path: Path | None
    graph: GraphFlags
    poll_seconds: float
    log_level: str
    log_path: str | None
    cache_dir: str | None
    spare_worker: bool
    idle_seconds: float
    """Seconds without a request after which a model is unloaded; 0 = never."""
    api_key: str
    worker_memory: int
    """Megabytes that a worker may take; 0 for what suits its model."""
    metrics: bool
    metrics_list: tuple[str, ...]
    rest_workers: int
    allowed_origins: str
    allowed_methods: str
    allowed_headers: str
    allow_credentials: bool
    media: Media


class WrongUsage(Exception):
    """The command line is wrong, with the reason."""


class CommandFailed(Exception):
    """A verb of the command line did not do what it should, with the reason."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise WrongUsage(message)


def version_lines() -> list[str]:
    """Return what ``--version`` prints."""
    return [
        f"{SERVER_NAME} {SERVER_VERSION}",
        f"OpenVINO backend {_version('openvino')}",
        f"OpenVINO GenAI backend {_version('openvino-genai')}",
        f"Bazel build flags: none (ovms-embedded {_version('ovms-embedded')}, Python {sys.version.split()[0]})",
    ]


def _version(distribution: str) -> str:
    from importlib import metadata  # takes longer than the rest of this module; the first worker starts before it

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"


def parser() -> argparse.ArgumentParser:
    """Return the parser of every flag."""
    made = _Parser(prog="ovms-embedded", allow_abbrev=False, add_help=False, description=__doc__)
    add = made.add_argument
    add("--help", "-h", action="store_true", help="show this and exit")
    add("--version", action="store_true", help="show versions and exit")
    add("--port", type=int, default=0, help="gRPC port, 0 = off")
    add("--rest_port", type=int, default=0, help="REST port, 0 = off")
    add("--grpc_bind_address", default="0.0.0.0", help="comma list of addresses and host names")
    add("--rest_bind_address", default="0.0.0.0", help="comma list of addresses and host names")
    add("--config_path", help="configuration file; excludes --model_name and --model_path")
    add("--model_repository_path", help="folder whose config.json is used when --config_path is not given")
    add("--model_name", help="name of the only servable")
    add("--model_path", help="folder of the only servable, with graph.pbtxt or a model that is recognised")
    add("--task", default="", help="what the model does, such as text_generation; detected when it is not given")
    add("--target_device", default="", help="device of the model, such as CPU, GPU.1 or AUTO")
    add("--draft_model_path", default="", help="draft model for speculative decoding, relative to --model_path")
    add("--file_system_poll_wait_seconds", type=int, default=1, help="period of the configuration watcher, 0 = off")
    add("--log_level", default="INFO", help="TRACE, DEBUG, INFO, WARNING or ERROR")
    add("--log_path", help="log file, in addition to standard output")
    add("--cache_dir", help="folder for compiled models")
    add("--spare_worker", nargs="?", const="true", default="true", help="keep a process ready for the next model")
    add(
        "--idle_unload_timeout_seconds", type=int, default=0, help="unload a model after so long without use, 0 = never"
    )
    add("--api_key_file", help="file whose first line is the key that generative requests must bear")
    add("--worker_memory_limit", type=int, default=0, help="MB that a model's process may take, 0 = automatic")
    add("--metrics_enable", nargs="?", const="true", default="false", help="serve /metrics")
    add("--metrics_list", default="", help="comma list of metrics")
    add("--allowed_media_domains", default="", help="comma list of hosts whose images messages may name, or all")
    add("--allowed_local_media_path", help="folder whose images messages may name by their paths")
    _add_compatible(made)
    for name, does in MANAGEMENT.items():
        add(f"--{name}", nargs="?", const="true", help=does)
    add("--group_name", help="group of the model that --add_to_config adds")
    add("--source_model", help="OWNER/NAME of the model to --pull")
    add("--hub", help="address of the hub to --pull from; HF_ENDPOINT, or https://huggingface.co")
    add("--overwrite_models", action="store_true", help="--pull a model that is there already")
    return made


def _add_compatible(made: argparse.ArgumentParser) -> None:
    """Add the flags that are there because OVMS has them."""
    add = made.add_argument
    add("--disable_input_count_validation", nargs="?", const="true", help="accepted for compatibility")
    add("--rest_workers", type=int, help="accepted for compatibility: this engine needs no threads for REST")
    add("--grpc_workers", type=int, default=1, help="accepted for compatibility")
    add("--grpc_max_threads", type=int, help="accepted for compatibility")
    add("--grpc_memory_quota", type=int, help="accepted for compatibility")
    add("--grpc_channel_arguments", help="accepted for compatibility")
    add("--cpu_extension", help="refused: this engine loads no CPU extensions")
    add("--custom_node_resources_cleaner_interval_seconds", type=int, help="accepted for compatibility")
    add("--verbose_response", nargs="?", const="true", default="false", help="accepted for compatibility")
    add("--allowed_origins", default="*", help="CORS")
    add("--allowed_methods", default="*", help="CORS")
    add("--allowed_headers", default="*", help="CORS")
    add("--allow_credentials", nargs="?", const="true", default="false", help="CORS")


def parse(arguments: list[str]) -> Settings | str:
    """Return the settings, or the text to print before ending with success.

    :raises WrongUsage: the command line is wrong.
    """
    made = parser()
    if not arguments:
        return made.format_help()
    given = made.parse_args(arguments)
    if given.help:
        return made.format_help()
    if given.version:
        return "\n".join(version_lines()) + "\n"
    flags = GraphFlags(given.task, given.target_device, given.draft_model_path)
    if any(getattr(given, name) for name in MANAGEMENT):
        from ovms_embedded.management import manage

        return manage(given, flags)
    repository = given.model_repository_path or os.environ.get("OVMS_MODEL_REPOSITORY_PATH")
    if repository and not (given.config_path or given.model_name or given.model_path):
        given.config_path = os.path.join(repository, "config.json")  # noqa: PTH118 - a path as the user wrote it
    _check(given)
    return _settings(given, flags)


def _settings(given: argparse.Namespace, flags: GraphFlags) -> Settings:
    return Settings(
        port=given.port,
        rest_port=given.rest_port,
        grpc_addresses=_addresses(given.grpc_bind_address, "grpc_bind_address"),
        rest_addresses=_addresses(given.rest_bind_address, "rest_bind_address"),
        config_path=Path(given.config_path) if given.config_path else None,
        model_name=given.model_name or "",
        model_path=Path(given.model_path) if given.model_path else None,
        graph=flags,
        poll_seconds=given.file_system_poll_wait_seconds,
        log_level=given.log_level.upper(),
        log_path=given.log_path,
        cache_dir=given.cache_dir,
        spare_worker=bool(given.config_path) and _flag(given.spare_worker, "spare_worker"),
        idle_seconds=given.idle_unload_timeout_seconds,
        api_key=_api_key(given.api_key_file),
        worker_memory=given.worker_memory_limit,
        metrics=_flag(given.metrics_enable, "metrics_enable"),
        metrics_list=tuple(each.strip() for each in given.metrics_list.split(",") if each.strip()),
        rest_workers=given.rest_workers or max(2, os.cpu_count() or 2),
        allowed_origins=given.allowed_origins,
        allowed_methods=given.allowed_methods,
        allowed_headers=given.allowed_headers,
        allow_credentials=_flag(given.allow_credentials, "allow_credentials"),
        media=_media(given),
    )


def _media(given: argparse.Namespace) -> Media:
    return Media(
        domains=frozenset(each.strip().lower() for each in given.allowed_media_domains.split(",") if each.strip()),
        folder=Path(given.allowed_local_media_path) if given.allowed_local_media_path else None,
        redirects=os.environ.get("OVMS_MEDIA_URL_ALLOW_REDIRECTS") == "1",
    )


def _check(given: argparse.Namespace) -> None:
    if given.cpu_extension:
        raise WrongUsage("--cpu_extension is not part of the embedded engine")
    for name in ("port", "rest_port"):
        if not 0 <= getattr(given, name) <= PORTS:
            raise WrongUsage(f"{name} number out of range from 0 to {PORTS}")
    if not given.port and not given.rest_port:
        raise WrongUsage("port and rest_port cannot both be unset")
    if given.port == given.rest_port:
        raise WrongUsage("port and rest_port cannot have the same values")
    if given.rest_workers is not None:
        if not given.rest_port:
            raise WrongUsage("rest_workers is set but rest_port is not set")
        if not WORKERS[0] <= given.rest_workers <= WORKERS[1]:
            raise WrongUsage(f"rest_workers count should be from {WORKERS[0]} to {WORKERS[1]}")
    if not 1 <= given.grpc_workers <= (os.cpu_count() or 1):
        raise WrongUsage("grpc_workers count should be from 1 to CPU core count")
    if given.log_level.upper() not in ("TRACE", "DEBUG", "INFO", "WARNING", "ERROR"):
        raise WrongUsage("log_level should be one of: TRACE, DEBUG, INFO, WARNING, ERROR")
    if given.worker_memory_limit < 0:
        raise WrongUsage("worker_memory_limit must not be negative")
    if given.file_system_poll_wait_seconds < 0:
        raise WrongUsage("file_system_poll_wait_seconds must not be negative")
    if given.idle_unload_timeout_seconds < 0:
        raise WrongUsage("idle_unload_timeout_seconds must not be negative")
    if given.config_path and (given.task or given.target_device or given.draft_model_path):
        raise WrongUsage("task, target_device and draft_model_path are for a start with model_path, not config_path")
    if given.config_path and (given.model_name or given.model_path):
        raise WrongUsage("Use either config_path or model_path with model_name")
    if not given.config_path and not (given.model_name and given.model_path):
        raise WrongUsage("Use config_path or model_path with model_name")
    metrics = _flag(given.metrics_enable, "metrics_enable")
    if metrics and not given.rest_port:
        raise WrongUsage("rest_port setting is missing, metrics are enabled on rest port")
    if given.metrics_list and not metrics:
        raise WrongUsage("metrics_enable setting is missing, required when metrics_list is provided")


def _flag(value: str, name: str) -> bool:
    if value.lower() in ("true", "1"):
        return True
    if value.lower() in ("false", "0"):
        return False
    raise WrongUsage(f"{name} is a boolean flag; it cannot be {value}")


def _addresses(value: str, name: str) -> tuple[str, ...]:
    found = tuple(each.strip() for each in value.split(","))
    if not all(found) or any(" " in each for each in found):
        raise WrongUsage(f"{name} has invalid format: proper hostname or IP address expected.")
    return found


def _api_key(path: str | None) -> str:
    if path is None:
        return os.environ.get("API_KEY", "")
    try:
        with Path(path).open(encoding="utf-8") as file:
            return file.readline().rstrip()
    except (OSError, UnicodeDecodeError) as error:
        raise WrongUsage(f"api_key_file {path} cannot be read: {error}") from error
