"""The form of the detections in the results: of which classes, from which score, and with which names.

rows of a Predictor -> Form -> rows of results.jsonl
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detops.apps.data.ids import Id
from detops.apps.data.problems import quoted
from detops.apps.predict.predictor import Row

SHOWN = 40  # classes that a message names


@dataclass(frozen=True)
class Form:
    """Which detections the results hold.

    Attributes:
        names: Names of the categories by id, as far as they are known.
        score: Lowest score; None keeps all.
        categories: Ids of the categories; None keeps all.
    """

    names: Mapping[Id, str]
    score: float | None = None
    categories: frozenset[Id] | None = None

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows that are kept, with the names of their categories."""
        kept = []
        for row in rows:
            category = row["category_id"]
            if self.score is not None and row["score"] < self.score:
                continue
            if self.categories is not None and category not in self.categories:
                continue
            named = {"category": self.names[category]} if category in self.names else {}
            kept.append({"category_id": category, **named, **row})
        return kept


def chosen(classes: Sequence[str], names: Mapping[Id, str]) -> frozenset[Id] | None:
    """Find the categories that a user names.

    Args:
        classes: Names or ids, each alone or several with commas between; none chooses all categories.
        names: Names of the categories by id; if none is known, every whole number is an id.

    Raises:
        ValueError: There is no such category.
    """
    if not classes:
        return None
    by_text: dict[str, set[Id]] = {}
    for one, name in names.items():
        by_text.setdefault(name, set()).add(one)
    for one in names:  # where a name is the id of another category, it is the name
        by_text.setdefault(str(one), set()).add(one)
    found: set[Id] = set()
    for text in classes:
        for part in [text] if text in by_text else [part.strip() for part in text.split(",")]:
            if part in by_text:
                found |= by_text[part]
            elif not names and part.isdecimal():
                found.add(int(part))
            else:
                known = ", ".join(quoted(name) for name in list(names.values())[:SHOWN])
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                raise ValueError(f"classes: expected {known or 'ids'}{more}, got {quoted(part)}")
    return frozenset(found)
