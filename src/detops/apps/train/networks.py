"""The network of a training with its first weights, and its kind of detector with the teacher that it may have."""

from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from detops import Teacher
from detops.apps import runs
from detops.apps.train import models, weights
from detops.apps.train.families import GFL, Family, family
from detops.apps.train.settings import Network, Settings


def kind_of(network: Network, settings: Settings, num_classes: int) -> Family:
    """Make the kind of detector, with the teacher of "ld".

    Raises:
        ValueError: There is no such kind, or the teacher is none.
    """
    if network.detector != "ld":
        return family(network.detector, num_classes, settings.max_detections)
    options = {"teacher": _teacher(network.teacher), **vars(settings.distillation)}
    return family("ld", num_classes, settings.max_detections, **options)


def untrained(how: Network, num_classes: int, console: Console, begins: bool) -> nn.Module:
    """Build the network, with weights to begin with only if the training begins: otherwise it has those of the run.

    Args:
        how: The network, and where its weights come from.
        num_classes: Number of classes.
        console: Where to say which weights were taken.
        begins: Whether the training begins.

    Raises:
        ValueError: The options contradict each other, or there is no such model.
    """
    if how.weights is not None and how.pretrained:
        raise ValueError("weights: --pretrained gives weights too; give one or the other")
    if how.frozen_stages and not (how.pretrained or how.weights):
        raise ValueError("frozen-stages: expected --pretrained or --weights, as random weights are not worth keeping")
    network = models.build(
        how.model, num_classes, how.width, how.detector,
        backbone=how.backbone, pretrained=how.pretrained and begins, frozen_stages=how.frozen_stages,
    )  # fmt: skip
    if how.weights is not None and begins:
        weights.take(network, how.weights, console)
    return network


def _teacher(run: Path | None) -> Teacher:
    """Load the network of a run as a teacher."""
    if run is None:
        raise ValueError("teacher: expected the folder of a run with --detector gfl or ld, as ld learns from one")
    network, kind, config = runs.load(run, torch.device("cpu"))
    if not isinstance(kind, GFL):
        raise ValueError(f"teacher: expected a run of gfl or ld, got one of {config['detector']} in {run}")
    return Teacher(network, kind.strides)
