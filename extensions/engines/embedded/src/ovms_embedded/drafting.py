"""Requests that want no drafts of a graph that makes them.

openvino-genai 2026.4.1 drafts a token at least for every request of a pipeline with drafts. So a pipeline without
drafts answers these requests, in a worker of its own.
"""

from __future__ import annotations

from typing import Any

LOOKUP = "prompt_lookup"


def refuses_drafts(fields: dict[str, Any], options: dict[str, Any]) -> bool:
    """Tell whether a request wants no drafts (``num_assistant_tokens: 0``), and the graph makes some."""
    if (wanted := fields.get("num_assistant_tokens")) is None:
        return False
    makes = bool(options.get("draft_models_path") or options.get("properties", {}).get(LOOKUP))
    return makes and wanted == 0 and isinstance(wanted, int) and not isinstance(wanted, bool)


def without_drafts(options: dict[str, Any]) -> dict[str, Any]:
    """Return a graph's options without what makes drafts."""
    kept = {name: value for name, value in options.items() if not name.startswith("draft_")}
    return kept | {"properties": {name: value for name, value in options["properties"].items() if name != LOOKUP}}
