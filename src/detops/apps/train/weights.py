"""`detops train --weights RUN`: a training that begins with the weights of another."""

from pathlib import Path

from rich.console import Console
from torch import nn

from detops.apps import note, runs
from detops.apps.runs import places, read_checkpoint


def take(network: nn.Module, run: Path, console: Console) -> None:
    """Copy the averaged weights of a run into a network, where their names and shapes are the same.

    Args:
        network: The network, whose other weights stay as they are: those of the class scores, where the classes differ.
        run: Folder of a run, or one of its checkpoints.
        console: Where to say what was taken.

    Raises:
        FileNotFoundError: There is no such run.
        ValueError: Nothing fits, or it is not finite.
    """
    folder, path = places(run)
    if not path.is_file():
        raise FileNotFoundError(f"weights: {run}: expected a run of detops train, with checkpoints/last.ckpt")
    state = read_checkpoint(path)["state_dict"]
    given = {str(name)[4:]: value for name, value in state.items() if str(name).startswith("ema.")}
    own = network.state_dict()
    fitting = {name: value for name, value in given.items() if name in own and value.shape == own[name].shape}
    parameters = {name for name, _ in network.named_parameters()}
    if not parameters & fitting.keys():
        raise ValueError(f"weights: {folder}: no weight of it fits this network; is it of the same model and width?")
    network.load_state_dict(fitting, strict=False)
    broken = runs.not_finite(network)
    if broken:
        raise ValueError(f"weights: {path}: holds weights that are not finite ({broken})")
    new = [name for name in own if name in parameters and name not in fitting]
    others = f"; {len(new)} begin at random, such as {new[0]}" if new else ""
    note(console, f"weights: {len(parameters & fitting.keys())} of {len(parameters)} are those of {folder}{others}")
