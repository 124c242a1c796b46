"""How drivers are constructed; apart from what describes them, as help constructs commands and needs nothing else."""

from typing import Any


def construct(driver: Any, given: Any) -> Any:  # noqa: ANN401 - any driver's class
    """Return a driver of that class, made with its settings, or with nothing if it declares none.

    A constructor that has a parameter all the same is given an empty mapping, as it was up to version 0.1.
    """
    import inspect

    if hasattr(driver, "settings_type"):
        return driver(given)
    return driver({}) if inspect.signature(driver).parameters else driver()
