"""The kinds of extension that can be written out of a template."""

from enum import StrEnum


class Kind(StrEnum):
    """What an extension adds."""

    service = "service"
    platform = "platform"
    graph = "graph"
    hub = "hub"
    face = "face"
    dialect = "dialect"
    observer = "observer"
    command = "command"
