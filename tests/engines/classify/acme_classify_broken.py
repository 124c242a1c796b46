"""A calculator that cannot be imported."""

import acme_forgotten_dependency  # type: ignore[import-not-found]  # noqa: F401
