"""Hold everything that the steps of a run need."""

from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from orpo_cli.config.schema import RunConfig
from orpo_cli.data import plan
from orpo_cli.data.tokens.store import PairStore
from orpo_cli.machine.hardware import Hardware
from orpo_cli.models.scorer import Scorer


@dataclass
class Budget:
    """The largest size of micro-batches, in places. It shrinks when memory runs out, and stays so.

    Args:
        training, evaluation: the size with and without a backward pass.
    """

    training: int
    evaluation: int


@dataclass(frozen=True)
class Training:
    """Everything that the steps of a run need.

    Args:
        scorer: the owner of the model, on the hardware's device.
        optimizers: the optimizers of its trainable parameters.
        total_steps: the number of steps of the whole run.
        layout: the layout of the batches, packed or padded.
    """

    config: RunConfig
    scorer: Scorer
    optimizers: list[Optimizer]
    train: PairStore
    evaluation: PairStore
    hardware: Hardware
    total_steps: int
    layout: str
    budget: Budget

    @property
    def epoch(self) -> plan.Epoch:
        """Return the training pairs that one epoch sees."""
        return plan.Epoch.of(self.train.sizes, self.config.data.mixture)

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are trained."""
        return [parameter for parameter in self.scorer.parameters() if parameter.requires_grad]


def total_steps(config: RunConfig, train: PairStore) -> int:
    """Return the number of optimizer steps of the whole run."""
    trainer = config.trainer
    pairs = plan.Epoch.of(train.sizes, config.data.mixture).pairs
    return plan.total_steps(pairs, trainer.pairs_per_step, trainer.epochs, trainer.max_steps)
