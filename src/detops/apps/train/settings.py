"""The settings of a training: data, network, training and hardware; and their form in `config.json`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from detops.apps.data.formats import exists
from detops.apps.data.layouts import find_split
from detops.apps.train.augment import Augmentation
from detops.arguments import flat


@dataclass(frozen=True)
class Data:
    """The data that a run trains on and is evaluated on: annotation files and image folders."""

    train_annotations: Path
    train_images: Path
    val_annotations: Path
    val_images: Path

    @classmethod
    def from_folder(cls, folder: Path) -> "Data":
        """Find the data in a folder in one of the layouts that `layouts` accepts, or by a `data.yaml`.

        Raises:
            FileNotFoundError: One of them is missing.
        """
        return cls.from_paths(*find_split(folder, "train"), *find_split(folder, "val"))

    @classmethod
    def from_paths(cls, *paths: Path | None) -> "Data":
        """Take the four paths, in the order of the fields.

        Raises:
            ValueError: A path is None.
            FileNotFoundError: A path does not exist.
        """
        names = tuple(cls.__dataclass_fields__)
        for name, path in zip(names, paths, strict=True):
            if path is None:
                raise ValueError(f"{name}: expected a path, as others of {', '.join(names)} are given")
            if not exists(path):
                raise FileNotFoundError(f"{name}: {path} does not exist")
        return cls(*(path.resolve() for path in paths if path is not None))


@dataclass(frozen=True)
class Network:
    """The network that is trained.

    Attributes:
        detector: Kind of detector: "centernet", "yolox", "gfl", "ld", "tal", "tal-once" or "detr".
        model: "compact", or "module:function" (see `models.build`).
        width: Width of the network, in channels at stride 4.
        size: (height, width) that images are resized to fit into.
        teacher: Folder of a run of "gfl" or "ld" that "ld" learns from.
        backbone: Backbone of the model "compact": "compact", or "timm:NAME".
        pretrained: Start from the weights that timm has for the backbone.
        frozen_stages: Stages of the backbone that are not trained, the first 0 .. 4.
        weights: Run, or checkpoint of one, whose weights the training begins with where they fit.
    """

    detector: str = "centernet"
    model: str = "compact"
    width: int = 32
    size: tuple[int, int] = (512, 512)
    teacher: Path | None = None
    backbone: str = "compact"
    pretrained: bool = False
    frozen_stages: int = 0
    weights: Path | None = None


@dataclass(frozen=True)
class Distillation:
    """How "ld" learns from a teacher: keyword arguments of `LDLoss`, which normalises the distillation here."""

    temperature: float = 10.0
    ld_weight: float = 4.0
    ld_region: str = "main"


@dataclass(frozen=True)
class Settings:
    """How the network is trained.

    Attributes:
        epochs: Number of epochs.
        batch_size: Images per step and device.
        lr: Peak learning rate.
        weight_decay: Weight decay, of weights but not of biases and norms.
        warmup: Fraction of the steps in which the learning rate rises.
        ema: Decay of the moving average of the weights; lower in the first steps.
        clip: Largest norm of the gradient.
        seed: Random seed of weights, order of the images and augmentation.
        augmentation: How training images are varied.
        l1_epochs: YOLOX: number of epochs at the end that add the L1 loss.
        distillation: LD: how the teacher is used.
        log_every: Steps between lines of `metrics.jsonl`.
        eval_every: Epochs between evaluations.
        patience: Evaluations without a higher AP after which the training ends; 0 never ends it.
        save_every: Steps between checkpoints; each epoch ends with one too.
        max_detections: Largest number of detections per image, in the evaluations and after the training.
    """

    epochs: int = 60
    batch_size: int = 8
    lr: float = 5e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    ema: float = 0.998
    clip: float = 10.0
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    l1_epochs: int = 15
    distillation: Distillation = field(default_factory=Distillation)
    log_every: int = 20
    eval_every: int = 10
    save_every: int = 200
    patience: int = 0
    max_detections: int = 100


@dataclass(frozen=True)
class Hardware:
    """What the training runs on. A run may be resumed on other hardware, so this is not in `config.json`.

    Attributes:
        precision: Lightning's name of the precision; None is `trainer.choose_precision()`.
        devices: Lightning's devices: how many, or which.
        accelerator: Lightning's accelerator: "auto", "cpu" or "gpu".
        strategy: Lightning's strategy: "ddp" for several devices or machines.
        nodes: Number of machines.
        memory_limit: Bytes of decoded images to keep; a larger data set is decoded again in each epoch.
        workers: Processes that decode images which are not kept; None is one per core, at most 8.
    """

    precision: str | None = None
    devices: str = "1"
    accelerator: str = "auto"
    strategy: str = "auto"
    nodes: int = 1
    memory_limit: int = 4 << 30
    workers: int | None = None


def to_config(
    data: Data, network: Network, settings: Settings, class_names: Sequence[str], category_ids: Sequence[int]
) -> dict[str, Any]:
    """Build the content of `config.json`: all that rebuilds the network and resumes the training."""
    return {
        "detector": network.detector,
        "model": network.model,
        "backbone": network.backbone,
        "pretrained": network.pretrained,
        "frozen_stages": network.frozen_stages,
        "width": network.width,
        "size": network.size,
        "classes": class_names,
        "category_ids": category_ids,
        **{name: str(path) for name, path in vars(data).items()},
        "teacher": None if network.teacher is None else str(network.teacher.resolve()),
        "weights": None if network.weights is None else str(network.weights.resolve()),
        "settings": asdict(settings),
    }


def from_config(config: dict[str, Any]) -> tuple[Data, Network, Settings]:
    """Read what `to_config` wrote.

    Raises:
        ValueError: It is something else.
    """
    try:
        data = Data(**{name: Path(config[name]) for name in Data.__dataclass_fields__})
        height, width = config["size"]
        teacher = config["teacher"] and Path(config["teacher"])
        backbone = {name: config[name] for name in ("backbone", "pretrained", "frozen_stages") if name in config}
        weights = Path(config["weights"]) if config.get("weights") else None
        network = Network(
            config["detector"], config["model"], config["width"], (height, width), teacher, **backbone, weights=weights
        )
        values = dict(config["settings"])
        augmentation = Augmentation(**values.pop("augmentation"))
        distillation = Distillation(**values.pop("distillation"))
        return data, network, Settings(**values, augmentation=augmentation, distillation=distillation)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"config.json: is damaged, or of another version of detops: {flat(error)}") from error
