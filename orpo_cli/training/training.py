"""What a run needs to take steps."""

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
    """Places of a micro-batch. It shrinks when memory runs out, and stays so.

    Args:
        training, evaluation: of micro-batches with and without a backward pass.
    """

    training: int
    evaluation: int


@dataclass(frozen=True)
class Training:
    """What a run needs to take steps.

    Args:
        scorer: owns the model, which lies on the hardware's device.
        optimizers: over its trainable parameters.
        total_steps: of the whole run.
        layout: of its batches: packed or padded.
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
        """What one pass sees of the training pairs."""
        return plan.Epoch.of(self.train.sizes, self.config.data.mixture)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for parameter in self.scorer.parameters() if parameter.requires_grad]


def total_steps(config: RunConfig, train: PairStore) -> int:
    """Of the whole run."""
    trainer = config.trainer
    pairs = plan.Epoch.of(train.sizes, config.data.mixture).pairs
    return plan.total_steps(pairs, trainer.pairs_per_step, trainer.epochs, trainer.max_steps)
