"""Read values from JSON files and headers that are not trusted."""

import json
from typing import Any


def parse_object(text: str | bytes, name: str) -> dict[str, Any]:
    """Parse a JSON object; lists become tuples, as in settings.

    name: describes it in the message of the ValueError that is raised if it is not an object.
    """
    try:
        contents = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name} cannot be read as JSON ({error})") from None
    if not isinstance(contents, dict):
        raise ValueError(f"{name} must be an object of JSON, not {type(contents).__name__}")
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in contents.items()
    }


def shorten(value: Any) -> str:
    """A value as JSON, of at most 100 characters."""
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."


def to_float(value: Any) -> Any:
    """An integer as a float, since JSON writers may leave out ".0"; anything else unchanged."""
    return float(value) if type(value) is int and abs(value) < 2**53 else value
