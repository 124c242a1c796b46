"""A calculator that cannot be imported."""

import acme_forgotten_dependency  # noqa: F401
