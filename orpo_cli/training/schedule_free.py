"""Train schedule-free (Defazio et al. 2024, arXiv 2405.15682) without a trace of evaluations and checkpoints.

The library turns the weights of steps, y, into their average, x, and back by arithmetic that rounds. Here y is kept
while the model has x, so that a step finds the bits that the step before left.
"""

import torch
from schedulefree import AdamWScheduleFree


class ExactScheduleFree(AdamWScheduleFree):  # type: ignore[misc]
    """AdamW of schedulefree whose `train` gives back exactly the weights that `eval` replaced."""

    @torch.no_grad()
    def eval(self) -> None:
        """Give the model the average of its weights; `y` of the state keeps those of steps."""
        for group in self.param_groups:
            for parameter in group["params"] if group["train_mode"] else ():
                if self.state[parameter]:
                    self.state[parameter]["y"] = parameter.clone()
        super().eval()

    @torch.no_grad()
    def train(self) -> None:
        """Give the model the weights of steps."""
        super().train()
        for parameter, state in self.state.items():
            if "y" in state:
                parameter.copy_(state.pop("y"))
