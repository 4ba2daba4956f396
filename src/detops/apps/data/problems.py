"""What is wrong or odd with a data set, by kind: counts and the first few places, in one text for all commands."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from rich.console import Console

from detops.apps import note, warn

FEW = 3  # places of one kind that are named


class Level(IntEnum):
    """How bad a kind of problem is."""

    NOTE = 0  # told; nothing is lost
    DOUBTFUL = 1  # kept, but probably not what was meant; --strict stops
    LEFT_OUT = 2  # left out; --strict stops
    REFUSED = 3  # the file cannot be used


@dataclass
class Problem:
    """One kind of problem.

    Attributes:
        level: How bad it is.
        text: Statement that follows the count, such as "annotations left out, zero or negative size".
        count: How many records have it.
        places: The first few of them, with details.
    """

    level: Level
    text: str
    count: int = 0
    places: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        places = "; ".join(self.places)
        more = f"; and {self.count - len(self.places)} more" if self.places and self.count > len(self.places) else ""
        return f"{self.count:,} {self.text}" + (f": {places}{more}" if places else "")


class Problems:
    """All problems of one file, in the order in which they were found, the worst kinds first."""

    def __init__(self) -> None:
        self._by_key: dict[str, Problem] = {}

    def add(
        self, key: str, level: Level, text: str, rows: Iterable[int], place: Callable[[int], str] | None = None
    ) -> None:
        """Count a kind of problem.

        Args:
            key: Short name of the kind.
            level: How bad it is.
            text: Statement that follows the count.
            rows: Positions of the records that have it; none adds nothing.
            place: Names a record by its position; None names none.
        """
        rows = list(rows)
        if not rows:
            return
        problem = self._by_key.setdefault(key, Problem(level, text))
        problem.count += len(rows)
        if place is not None:
            problem.places += [place(row) for row in rows[: FEW - len(problem.places)]]

    def __iter__(self) -> Iterator[tuple[str, Problem]]:
        return iter(sorted(self._by_key.items(), key=lambda item: -item[1].level))

    def counts(self, least: Level = Level.NOTE) -> dict[str, int]:
        """Return the counts of the kinds of at least a level."""
        return {key: problem.count for key, problem in self if problem.level >= least}

    @property
    def worst(self) -> Level:
        """Return the highest level."""
        return max((problem.level for problem in self._by_key.values()), default=Level.NOTE)

    def tell(self, console: Console, source: object) -> None:
        """Print one line per kind, each beginning with the file's name; what refuses the file is left to the error."""
        for _, problem in self:
            if problem.level == Level.REFUSED:
                continue
            (note if problem.level == Level.NOTE else warn)(console, f"{source}: {problem}")

    def require_none(self, path: object, strict: bool) -> None:
        """With `strict`, refuse a set that has problems.

        Raises:
            ValueError: Something is left out or doubtful.
        """
        first = self.first(Level.DOUBTFUL) if strict else ""
        if first:
            raise ValueError(f"{path}: stopped, as --strict asks: {first}")

    def first(self, least: Level) -> str:
        """Return the worst problem of at least a level, as a text."""
        return next((str(problem) for _, problem in self if problem.level >= least), "")


def shown(value: object, limit: int = 60) -> str:
    """Return any value as short printable text on one line."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; a deep nest
        text = f"a {type(value).__name__} that is too large to print"
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 1] + "…"


def quoted(value: object) -> str:
    """Return an id as it stands in the JSON file: text in quotation marks, so that "1" and 1 can be told apart."""
    return f'"{shown(value)}"' if isinstance(value, str) else shown(value)
