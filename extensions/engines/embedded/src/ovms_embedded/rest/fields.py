"""Reading the fields of a request: types and ranges as part E of the specification says, one sentence when wrong."""

from __future__ import annotations

from typing import Any

from ovms_embedded.rest.errors import Invalid

UINT32 = (1 << 32) - 1
INT32 = (1 << 31) - 1


def as_float(value: float, name: str) -> float:
    """Return a number as a float.

    :raises Invalid: a whole number is too large for one; some hundred digits are.
    """
    try:
        return float(value)
    except OverflowError:
        raise Invalid(f"{name} is too large a number") from None


class Fields:
    """The fields of a JSON object. ``null`` counts as absent unless a method says otherwise."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    def number(
        self, name: str, low: float | None = None, high: float | None = None, *, below: bool = False
    ) -> float | None:
        """Return a number.

        :param below: the upper bound itself is out of range.
        """
        value = self.data.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise Invalid(f"{name} is not a valid number")
        if (low is not None and value < low) or (high is not None and (value > high or (below and value == high))):
            raise Invalid(f"{name} out of range({low}, {high})")
        return as_float(value, name)

    def unsigned(self, name: str, *, least: int = 0, most: int = UINT32, null: bool = True) -> int | None:
        """Return a whole number that is not negative.

        :param null: whether ``null`` counts as absent.
        """
        if name not in self.data or (null and self.data[name] is None):
            return None
        value = self.data[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise Invalid(f"{name} is not an unsigned integer")
        if value > most:
            raise Invalid(f"{name} value can't be greater than {most}")
        if value < least:
            raise Invalid(f"{name} value should be greater than {least - 1}")
        return value

    def integer(self, name: str) -> int | None:
        """Return a whole number of 32 bits."""
        value = self.data.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not -INT32 - 1 <= value <= INT32:
            raise Invalid(f"{name} is not an integer")
        return value

    def boolean(self, name: str) -> bool | None:
        """Return true or false."""
        value = self.data.get(name)
        if value is not None and not isinstance(value, bool):
            raise Invalid(f"{name} accepts values true or false")
        return value

    def text(self, name: str, *, required: bool = False) -> str | None:
        """Return a string."""
        value = self.data.get(name)
        if value is None and not required:
            return None
        if value is None and name not in self.data:
            raise Invalid(f"{name} field is required")
        if not isinstance(value, str):
            raise Invalid(f"{name} is not a string")
        return value

    def mapping(self, name: str) -> dict[str, Any] | None:
        """Return an object."""
        value = self.data.get(name)
        if value is not None and not isinstance(value, dict):
            raise Invalid(f"{name} must be an object")
        return value
