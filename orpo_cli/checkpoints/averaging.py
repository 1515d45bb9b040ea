"""Change between the weights that steps are taken with and those that a run is judged by and leaves.

They are the same with most optimizers. One that averages weights has methods `train` and `eval`, as the modes of a
module, and gives the model the one or the other.
"""

from collections.abc import Iterable

from torch.optim import Optimizer


def use_weights_of_steps(optimizers: Iterable[Optimizer]) -> None:
    """Give the model the weights that the next step is taken with."""
    for optimizer in optimizers:
        if hasattr(optimizer, "train"):
            optimizer.train()


def use_resulting_weights(optimizers: Iterable[Optimizer]) -> None:
    """Give the model the weights that are evaluated and saved; the state of the optimizer keeps the others."""
    for optimizer in optimizers:
        if hasattr(optimizer, "eval"):
            optimizer.eval()
