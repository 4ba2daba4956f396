"""Detections matched with the objects of a data set: which are true, which false, what is missed, and how often.

Annotations, Results -> Matches -> Curve, Rates, kinds of errors, confusion matrix
"""

from enum import IntEnum
from typing import NamedTuple

import torch

from detops.apps import require
from detops.apps.data.coco import Annotations
from detops.apps.data.results import Results
from detops.apps.data.table import Array
from detops.geometry.boxes import iou_of_pairs, overlap_of_first

NEAR = 0.1  # lowest IoU at which a detection that found nothing is taken for a badly placed one


class Matches(NamedTuple):
    """What each detection found, as arrays of the length D of the detections.

    Attributes:
        object: (D,) int64, row of the annotations' table; -1 for a detection that found no object of its class.
        iou: (D,) float64, IoU with that object; else the highest IoU with an object of its class, 0 if there is none.
        ignored: (D,) bool, detections that found no object and lie on a crowd region: neither true nor false.
    """

    object: Array
    iou: Array
    ignored: Array


def match(annotations: Annotations, results: Results, iou: float = 0.5) -> Matches:
    """Match detections with objects of their class, as COCO's scores do at one IoU and without a cap.

    Within an image, the detection with the highest score takes the free object of its class with which its IoU is
    highest, if that is at least `iou`; then the next does. Among equals, the first takes the first.

    Args:
        annotations: The objects and crowd regions.
        results: The detections.
        iou: Lowest IoU of a match.
    """
    np = require("numpy", "numpy")
    count, table = len(results.score), annotations.table
    matches = Matches(np.full(count, -1), np.zeros(count), np.zeros(count, bool))
    boxes = _corners(results)
    order = np.lexsort((np.arange(count), -results.score, results.image))
    edges = np.arange(len(annotations.images) + 1)
    first, begin = np.searchsorted(table.image, edges), np.searchsorted(results.image[order], edges)
    for image in np.flatnonzero((np.diff(first) > 0) & (np.diff(begin) > 0)).tolist():
        objects, found = np.arange(*first[image : image + 2]), order[slice(*begin[image : image + 2])]
        same = results.label[found][:, None] == table.label[objects]
        crowd = table.crowd[objects]
        ours, theirs = torch.from_numpy(boxes[found]), torch.from_numpy(table.xyxy[objects])
        values = np.where(same & ~crowd, iou_of_pairs(ours[:, None], theirs[None]).numpy(), 0.0)
        matches.iou[found] = values.max(1)
        for row in np.flatnonzero(values.max(1) >= iou).tolist():
            best = int(values[row].argmax())
            if values[row, best] >= iou:
                matches.object[found[row]], matches.iou[found[row]] = objects[best], values[row, best]
                values[:, best] = 0.0  # no longer free
        covered = np.where(same & crowd, overlap_of_first(ours, theirs).numpy(), 0.0).max(1) >= iou
        matches.ignored[found] = covered & (matches.object[found] < 0)
    return matches


def _corners(results: Results) -> Array:
    np = require("numpy", "numpy")
    return np.concatenate([results.xywh[:, :2], results.xywh[:, :2] + results.xywh[:, 2:]], 1)


class Curve(NamedTuple):
    """Precision and recall of the detections from each score up, the highest first.

    Attributes:
        score: (S,) float64, the different scores, descending.
        precision: (S,) float64.
        recall: (S,) float64; NaN if there is no object.
    """

    score: Array
    precision: Array
    recall: Array

    @property
    def f1(self) -> Array:
        """(S,) float64, the harmonic mean of precision and recall."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / require("numpy", "numpy").where(total > 0, total, 1.0)

    @property
    def best(self) -> float | None:
        """The score from which F1 is highest, the highest of equal ones; None if nothing was found."""
        f1 = self.f1
        return float(self.score[f1.argmax()]) if len(f1) and f1.max() > 0 else None


def curve(annotations: Annotations, results: Results, matches: Matches, label: int | None = None) -> Curve:
    """Compute precision and recall over the scores.

    Args:
        annotations: The objects.
        results: The detections.
        matches: What they found.
        label: Class; None takes all objects and detections together.
    """
    np, table = require("numpy", "numpy"), annotations.table
    counts, objects = ~matches.ignored, ~table.crowd
    if label is not None:
        counts, objects = counts & (results.label == label), objects & (table.label == label)
    score, true = results.score[counts], matches.object[counts] >= 0
    order = np.argsort(-score, kind="stable")
    score, true = score[order], np.cumsum(true[order])
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True)[: len(score)])  # of equal scores
    number = objects.sum()
    recall = true[last] / number if number else np.full(len(last), np.nan)
    return Curve(score[last], true[last] / (last + 1), recall)


class Rates(NamedTuple):
    """Counts at one threshold. Without detections there is no precision, without objects no recall: None."""

    objects: int
    true: int
    false: int

    @property
    def precision(self) -> float | None:
        """The fraction of the detections that are true."""
        return self.true / (self.true + self.false) if self.true + self.false else None

    @property
    def recall(self) -> float | None:
        """The fraction of the objects that are found."""
        return self.true / self.objects if self.objects else None

    @property
    def f1(self) -> float | None:
        """The harmonic mean of precision and recall."""
        return 2 * self.true / (self.objects + self.true + self.false) if self.objects else None


def rates(annotations: Annotations, results: Results, matches: Matches, threshold: float) -> list[Rates]:
    """Count objects, true and false detections of each class.

    Args:
        annotations: The objects.
        results: The detections.
        matches: What they found.
        threshold: Lowest score of the detections that count.
    """
    np, table, number = require("numpy", "numpy"), annotations.table, len(annotations.class_names)
    counts, true = (results.score >= threshold) & ~matches.ignored, matches.object >= 0
    columns = (table.label[~table.crowd], results.label[counts & true], results.label[counts & ~true])
    return [Rates(*row) for row in zip(*(np.bincount(c, minlength=number).tolist() for c in columns), strict=True)]


def total(classes: list[Rates]) -> Rates:
    """Add up the counts of all classes."""
    return Rates(*(sum(column) for column in zip(*classes, strict=True))) if classes else Rates(0, 0, 0)


class Kind(IntEnum):
    """What a detection is."""

    TRUE = 0  # found an object of its class
    WRONG_CLASS = 1  # lies on an object of another class that is missed
    BADLY_PLACED = 2  # is near an object of its class that is missed
    TWICE = 3  # lies on an object that another detection found
    FALSE = 4  # has no object
    IGNORED = 5  # lies on a crowd region
    BELOW = 6  # has a score below the threshold


def kinds(
    annotations: Annotations, results: Results, matches: Matches, threshold: float, iou: float = 0.5
) -> tuple[Array, Array]:
    """Tell what each detection is.

    Args:
        annotations: The objects.
        results: The detections.
        matches: What they found at this `iou`.
        threshold: Lowest score of the detections that count.
        iou: Lowest IoU of a match.

    Returns:
        (D,) int64 of `Kind`; and (D,) int64, the row of the object, for detections that are neither true nor badly
        placed nor of the wrong class -1. A missed object belongs to one detection at most, the one with the highest
        score, and rather to one of the wrong class than to one that is badly placed.
    """
    np, table = require("numpy", "numpy"), annotations.table
    counts = results.score >= threshold
    true = counts & (matches.object >= 0)
    kind = np.where(~counts, Kind.BELOW, np.where(true, Kind.TRUE, np.where(matches.ignored, Kind.IGNORED, Kind.FALSE)))
    place = np.where(true, matches.object, -1)
    boxes = _corners(results)
    free = ~table.crowd
    free[place[true]] = False
    starts = np.searchsorted(table.image, np.arange(len(annotations.images) + 1))
    left = np.flatnonzero(kind == Kind.FALSE)
    left = left[np.argsort(-results.score[left], kind="stable")]
    overlaps = {}
    for row in left.tolist():
        objects = np.arange(*starts[results.image[row] : results.image[row] + 2])
        others = torch.from_numpy(table.xyxy[objects])
        overlaps[row] = objects, iou_of_pairs(torch.from_numpy(boxes[row]), others).numpy()
    for what in (Kind.WRONG_CLASS, Kind.BADLY_PLACED, Kind.TWICE):
        for row, (objects, values) in overlaps.items():
            same = table.label[objects] == results.label[row]
            fits = {
                Kind.WRONG_CLASS: ~same & free[objects] & (values >= iou),
                Kind.BADLY_PLACED: same & free[objects] & (values >= NEAR),
                Kind.TWICE: same & ~free[objects] & ~table.crowd[objects] & (values >= iou),
            }[what]
            if kind[row] != Kind.FALSE or not fits.any():
                continue
            kind[row] = what
            if what != Kind.TWICE:
                place[row] = objects[np.where(fits, values, -1).argmax()]
                free[place[row]] = False
    return kind, place


def confusion(annotations: Annotations, results: Results, kind: Array, place: Array) -> Array:
    """Count objects by their class and by that of the detection that found them.

    Args:
        annotations: The objects.
        results: The detections.
        kind: What they are, of `kinds`.
        place: Their objects, of `kinds`.

    Returns:
        (C + 1, C + 1) int64: rows are the objects' classes, and detections without object; columns are the detections'
        classes, and missed objects. An object whose detection is badly placed is missed.
    """
    np, table, number = require("numpy", "numpy"), annotations.table, len(annotations.class_names)
    matrix = np.zeros((number + 1, number + 1), np.int64)
    hit = (kind == Kind.TRUE) | (kind == Kind.WRONG_CLASS)
    np.add.at(matrix, (table.label[place[hit]], results.label[hit]), 1)
    lost = ~table.crowd
    lost[place[hit]] = False
    np.add.at(matrix[:, number], table.label[lost], 1)
    false = (kind == Kind.BADLY_PLACED) | (kind == Kind.TWICE) | (kind == Kind.FALSE)
    np.add.at(matrix[number], results.label[false], 1)
    return matrix
