"""Lightning's trainer, with all that detops does by itself switched off, in the precision that suits the hardware."""

import logging
import warnings
from typing import Any

import lightning
import torch

from detops.apps import usable_cores
from detops.apps.train.checkpoint import AtomicIO
from detops.apps.train.settings import Hardware
from detops.arguments import flat
from detops.diagnostics.environment import cpu_multiplies_bfloat16

HARDWARE = "accelerator, devices, strategy, nodes or precision"


def choose_precision() -> str:
    """Return mixed bfloat16 where the hardware multiplies it, else float32.

    On 2 cores with avx512_bf16 a step of CompactNet took 135 ms with it and 223 ms without (8 images of 320x256).
    """
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if cpu_multiplies_bfloat16() else "32-true"


def make(hardware: Hardware, logger: Any, callbacks: list[Any], bar: bool) -> lightning.Trainer:
    """Make the trainer.

    Raises:
        ValueError: There is no such hardware, or Lightning cannot use it in this way.
    """
    _silence_lightning()
    on_cpu = hardware.accelerator == "cpu" or (hardware.accelerator == "auto" and not torch.cuda.is_available())
    cores = usable_cores()
    if on_cpu and hardware.devices.isdecimal() and int(hardware.devices) > max(2, cores):
        raise ValueError(f"--devices {hardware.devices}: would be as many processes, on {cores} cores")
    precision: Any = hardware.precision or choose_precision()
    try:
        return lightning.Trainer(
            accelerator=hardware.accelerator,
            devices=hardware.devices,
            strategy=hardware.strategy,
            num_nodes=hardware.nodes,
            precision=precision,
            max_epochs=1,  # one sequence of steps; our epochs are in `Steps`
            plugins=[AtomicIO()],
            callbacks=callbacks,
            enable_progress_bar=bar,
            logger=logger,
            log_every_n_steps=1,  # the module logs when it is time
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
        )
    except Exception as error:  # Lightning and each of its strategies have their own kinds
        raise ValueError(f"{HARDWARE}: {flat(error)}") from error


def _silence_lightning() -> None:
    """Silence advice that does not hold here: images are kept in memory, and the order of batches can be resumed."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*dataloader is not resumable.*",
        ".*in eval mode.*",
        ".*LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", text)
