"""Numbers and ids of a COCO file: ids are integers or text, told apart by type as JSON does."""

from collections.abc import Iterable
from typing import Any

from detops.apps.data.problems import quoted

Id = int | str
NUMBERS = frozenset((int, float))  # types of JSON's numbers; True and False are none


def whole(value: object) -> int | None:
    """Return a number without fraction as int; None for anything else, True and False too."""
    if type(value) is int:
        return value
    return int(value) if type(value) is float and value.is_integer() else None


def as_id(value: object) -> Id | None:
    """Return an id: an integer or text; None for anything else."""
    return value if type(value) is str else whole(value)


def id_text(key: str, record: dict[str, Any], known: Iterable[Id]) -> str:
    """Say what an unknown id is, and whether only its type differs from one that is known."""
    if key not in record:
        return f"no {key}"
    value = record[key]
    text = f"{key} {quoted(value)}"
    known = known if isinstance(known, dict) else dict.fromkeys(known)
    other = str(value) if type(value) is int else whole_text(value)
    if other is not None and other in known:
        kinds = ("text", "a number") if isinstance(value, str) else ("a number", "text")
        return f"{text} is {kinds[0]}, the file's own id {quoted(other)} is {kinds[1]}"
    examples = ", ".join(quoted(one) for one in list(known)[:5])
    return f"{text}, known are {examples}{', ...' if len(known) > 5 else ''}" if known else f"{text}, none is known"


def whole_text(value: object) -> int | None:
    """Return the integer that a text spells; None for anything else."""
    digits = value.strip() if isinstance(value, str) else ""
    return int(digits) if digits.lstrip("-").isdecimal() and len(digits) < 100 and digits.count("-") < 2 else None
