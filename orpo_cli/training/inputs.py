"""Hold everything that scoring pairs needs, and everything that the steps of a run need."""

from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from orpo_cli.checkpoints import averaging
from orpo_cli.config.schema import RunConfig
from orpo_cli.data import plan
from orpo_cli.data.tokens.store import PairStore
from orpo_cli.losses.balance import Balancing
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
class Scoring:
    """Everything that scoring pairs needs.

    Args:
        scorer: the owner of the model, on the hardware's device.
        layout: the layout of the batches, packed or padded.
        balancing: the load-balancing loss, which a mixture of experts has in its objective.
    """

    config: RunConfig
    scorer: Scorer
    hardware: Hardware
    layout: str
    budget: Budget
    balancing: Balancing | None = None


@dataclass(frozen=True)
class Training:
    """Everything that the steps of a run need.

    Args:
        optimizers: the optimizers of the model's trainable parameters.
        total_steps: the number of steps of the whole run.
    """

    scoring: Scoring
    optimizers: list[Optimizer]
    train: PairStore
    evaluation: PairStore
    total_steps: int

    @property
    def config(self) -> RunConfig:
        """Return the configuration of the run."""
        return self.scoring.config

    @property
    def scorer(self) -> Scorer:
        """Return the owner of the model."""
        return self.scoring.scorer

    @property
    def hardware(self) -> Hardware:
        """Return where the run computes."""
        return self.scoring.hardware

    @property
    def budget(self) -> Budget:
        """Return the sizes of micro-batches."""
        return self.scoring.budget

    @property
    def epoch(self) -> plan.Epoch:
        """Return the training pairs that one epoch sees."""
        return plan.Epoch.of(self.train.sizes, self.config.data.mixture)

    def use_weights_of_steps(self) -> None:
        """Give the model the weights that steps change."""
        averaging.use_weights_of_steps(self.optimizers)
        self.scorer.gather_again()

    def use_resulting_weights(self) -> None:
        """Give the model the weights that it is judged by and saved with, until steps go on."""
        averaging.use_resulting_weights(self.optimizers)
        self.scorer.gather_again()

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are trained."""
        return [parameter for parameter in self.scorer.parameters() if parameter.requires_grad]


def total_steps(config: RunConfig, train: PairStore) -> int:
    """Return the number of optimizer steps of the whole run."""
    trainer = config.trainer
    pairs = plan.Epoch.of(train.sizes, config.data.mixture).pairs
    return plan.total_steps(pairs, trainer.pairs_per_step, trainer.epochs, trainer.max_steps)
