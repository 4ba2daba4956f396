"""Ground truth of a batch in one type, whatever form it comes in."""

from detops.ground_truth.collation import collate
from detops.ground_truth.ground_truth import GroundTruth
from detops.ground_truth.require import Targets, require_ground_truth

__all__ = ["GroundTruth", "Targets", "collate", "require_ground_truth"]
