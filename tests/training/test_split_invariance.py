"""Hardware never changes the mathematics: however a step is cut, padded or ordered, its loss and gradient are the same.

Each case takes one step of `loop.steps` over the same 8 pairs; the optimizer keeps the gradients it is given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import Optimizer
from transformers import LlamaConfig, LlamaForCausalLM

from orpo_cli.config.keys import builtin_configs
from orpo_cli.config.schema import RunConfig
from orpo_cli.data.collation import LAYOUTS, PAD, Batch, padded
from orpo_cli.data.pairs import Lengths, TokenizedPair
from orpo_cli.data.tokens.store import EntryWriter, PairStore, StoredRow, TokenizedFile, record_batch
from orpo_cli.losses import objective
from orpo_cli.machine.hardware import Hardware
from orpo_cli.models.scorer import Scorer
from orpo_cli.training import evaluation, loop
from orpo_cli.training.events import OF_THE_MACHINE, Evaluated, EvaluationProgress
from orpo_cli.training.inputs import Budget, Scoring, Training

PRESETS = sorted(path.stem for path in (builtin_configs() / "loss").glob("*.yaml"))
VOCABULARY = 61
LENGTHS = [(9, 1, 30), (2, 25, 3), (14, 12, 12), (1, 7, 8), (20, 2, 5), (5, 18, 1), (3, 3, 3), (11, 28, 21)]
"""Prompt, chosen, rejected: unequal, so that averaging by micro-batch would show."""


def random_pairs() -> list[TokenizedPair]:
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()

    return [TokenizedPair(ids(prompt), ids(chosen), ids(rejected)) for prompt, chosen, rejected in LENGTHS]


PAIRS = random_pairs()
WIDTH = max(prompt + max(chosen, rejected) for prompt, chosen, rejected in LENGTHS)
MAX_TOKENS = {8: 2 * 8 * WIDTH, 4: 2 * 4 * WIDTH, 1: 1}
"""Pairs in a micro-batch -> the budget that cuts the step so: a padded batch of n pairs takes 2 n places a column."""


class KeepsGradients(Optimizer):
    """An optimizer that moves nothing."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters, {"lr": 1.0, "initial_lr": 1.0})
        self.gradients: list[Tensor] = []

    def step(self, closure: Any = None) -> None:  # noqa: ARG002
        self.gradients = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            for parameter in self.param_groups[0]["params"]
        ]


@dataclass(frozen=True)
class Outcome:
    """Loss and gradient of a step, and how many pairs each forward pass had."""

    metrics: dict[str, float]
    gradients: list[Tensor]
    cut: list[int]


def store_of(pairs: Sequence[TokenizedPair], weights: Sequence[float], directory: Path, first: int = 1) -> PairStore:
    """Return a store of pairs that stand on the lines of prefs.jsonl from `first` on."""
    rows = [
        StoredRow(line=line, pair=0, row_class="kept", weight=weight, lengths=Lengths(*map(len, vars(pair).values())),
                  boundary_merged=False, identical=False, control_tokens=0, hashes=(line, line, line), ids=pair)
        for line, (pair, weight) in enumerate(zip(pairs, weights, strict=True), start=first)
    ]  # fmt: skip
    entry = directory / f"entry-{len(list(directory.iterdir()))}"
    with EntryWriter(entry) as writer:
        writer.write(record_batch(rows))
        writer.publish({})
    return PairStore([(TokenizedFile(entry, "prefs.jsonl"), range(len(rows)))])


def small_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)  # logits of size 2: some log-odds are far from 0
    return model


def training_of(
    config: RunConfig, pairs: Sequence[TokenizedPair], directory: Path, weights: Sequence[float] | None = None
) -> Training:
    store = store_of(pairs, weights or [1.0] * len(pairs), directory)
    scorer = Scorer(small_llama())
    optimizer = KeepsGradients(list(scorer.parameters()))
    hardware, trainer = Hardware(torch.device("cpu"), "fp32", 0, 1), config.trainer
    budget = Budget(int(trainer.max_tokens), trainer.eval_max_tokens)
    scoring = Scoring(config, scorer, hardware, trainer.layout, budget)
    return Training(scoring, [optimizer], store, store, total_steps=1)


def take_step(training: Training) -> Outcome:
    cut: list[int] = []
    hook = training.scorer.register_forward_pre_hook(lambda _scorer, inputs: cut.append(inputs[0].pair_count))
    (done,) = loop.steps(training)
    hook.remove()
    (optimizer,) = training.optimizers
    assert isinstance(optimizer, KeepsGradients)
    return Outcome(done.metrics, optimizer.gradients, cut)


def cut_by(training: Training, max_tokens: int, layout: str | None = None) -> Training:
    layout, budget = layout or training.scoring.layout, Budget(max_tokens, max_tokens)
    return replace(training, scoring=replace(training.scoring, layout=layout, budget=budget))


class OneOfSeveral(Hardware):
    """A process whose sums are its own part; the test adds them up."""

    def sum_over_processes(self, values: Tensor) -> Tensor:
        return values


def share_of(training: Training, rank: int, processes: int) -> Training:
    hardware = OneOfSeveral(torch.device("cpu"), "fp32", rank, processes)
    return replace(training, scoring=replace(training.scoring, hardware=hardware))


TOLERANCE = 1e-5
"""Tolerance as a share of the largest entry of a parameter's gradient. An entry is a sum of some 500 terms (the places
of the 8 pairs), each rounded to 6e-8 of its size and added in another order: at most 500 * 6e-8 = 3e-5 if all errors
conspire, some 1e-6 if they do not. Averaging by micro-batch, the mistake this is about, is off by more than 1e-2
(tested below)."""

LOSS_TOLERANCE = 1e-6
"""Relative tolerance. The loss sums 8 numbers of size 1, each from sums of fp32 numbers: some ten roundings of 6e-8."""


def assert_same(outcome: Outcome, expected: Outcome) -> None:
    assert outcome.metrics["loss"] == pytest.approx(expected.metrics["loss"], rel=LOSS_TOLERANCE)
    assert_same_gradients(outcome.gradients, expected.gradients)


def assert_same_gradients(gradients: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert difference(gradients, expected) < TOLERANCE


def difference(gradients: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest difference of an entry, as a share of the largest entry of its parameter."""
    shares = [
        (ours - theirs).abs().max() / theirs.abs().max() for ours, theirs in zip(gradients, expected, strict=True)
    ]
    return float(max(shares))


DAILY = ("orpo", "trl", "log_ratio")
"""Presets that differ in the average, the nll and the preference term."""


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=() if name in DAILY else pytest.mark.slow) for name in PRESETS]
)
def config(request: pytest.FixtureRequest, compose_config: Callable[..., RunConfig]) -> RunConfig:
    return compose_config(
        f"loss={request.param}",
        "trainer.pairs_per_step=8",
        "trainer.precision=fp32",
        "trainer.device=cpu",
        "trainer.layout=padded",
        "trainer.max_grad_norm=null",
        f"trainer.max_tokens={MAX_TOKENS[8]}",
    )


WEIGHTS = [None, [0.3, 2.0, 1.0, 0.05, 7.0, 1 / 3, 1 / 6, 0.5]]
"""Weights of the pairs; None counts each once. Far apart, so that a mean over pairs instead of weights would show."""


@pytest.mark.parametrize("weights", WEIGHTS, ids=["equal", "weighted"])
@pytest.mark.parametrize("pairs_in_one", [4, 1])
def test_micro_batches(config: RunConfig, pairs_in_one: int, weights: list[float] | None, tmp_path: Path) -> None:
    whole = training_of(config, PAIRS, tmp_path, weights)
    expected = take_step(whole)
    assert expected.cut == [8]
    outcome = take_step(cut_by(whole, MAX_TOKENS[pairs_in_one]))
    assert outcome.cut == [pairs_in_one] * (8 // pairs_in_one)
    assert_same(outcome, expected)
    for name in set(outcome.metrics) - set(OF_THE_MACHINE):
        # means over pairs of numbers up to 10; or_pull is steepest, 1/(1-p) passes on ten times the error of log p
        assert outcome.metrics[name] == pytest.approx(expected.metrics[name], rel=1e-5, abs=1e-6), name


@given(st.lists(st.floats(1e-3, 1e3), min_size=8, max_size=8), st.sampled_from([1, 90, 150, 400]), st.integers(1, 3))
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_weights_and_any_cut(
    config: RunConfig, tmp_path: Path, weights: list[float], max_tokens: int, processes: int
) -> None:
    whole = training_of(config, PAIRS, tmp_path, weights)
    expected = take_step(whole)
    cut = cut_by(whole, max_tokens)
    parts = [take_step(share_of(cut, rank, processes)) for rank in range(processes)]
    assert sum(part.metrics["loss"] for part in parts) == pytest.approx(expected.metrics["loss"], rel=LOSS_TOLERANCE)
    summed = [torch.stack(shares).sum(0) for shares in zip(*(part.gradients for part in parts), strict=True)]
    assert_same_gradients(summed, expected.gradients)


def test_a_pair_of_weight_two_is_the_pair_twice(config: RunConfig, tmp_path: Path) -> None:
    """Loss, gradient and every metric of a step, through the store and the plan."""
    weighted = training_of(config, PAIRS[:6], tmp_path, [1, 2, 1, 3, 1, 1])
    copies = [PAIRS[number] for number in (0, 1, 1, 2, 3, 3, 3, 4, 5)]
    nine_pairs = replace(config, trainer=replace(config.trainer, pairs_per_step=9))
    repeated = training_of(nine_pairs, copies, tmp_path)
    one, many = take_step(weighted), take_step(repeated)
    assert_same(one, many)
    for name in set(one.metrics) - set(OF_THE_MACHINE):
        assert one.metrics[name] == pytest.approx(many.metrics[name], rel=1e-5, abs=1e-6), name  # as above


@pytest.mark.parametrize("weights", WEIGHTS, ids=["equal", "weighted"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(config: RunConfig, layout: str, weights: list[float] | None, tmp_path: Path) -> None:
    """Every layout and cut gives the gradient of the padded batch of all pairs."""
    whole = training_of(config, PAIRS, tmp_path, weights)
    expected = take_step(whole)
    for max_tokens in (1, 150, 10_000):
        assert_same(take_step(cut_by(whole, max_tokens, layout)), expected)


@pytest.mark.parametrize("order", [[7, 6, 5, 4, 3, 2, 1, 0], [2, 0, 5, 7, 1, 3, 6, 4]])
def test_order_of_the_file(config: RunConfig, order: list[int], tmp_path: Path) -> None:
    expected = take_step(training_of(config, PAIRS, tmp_path))
    shuffled = training_of(config, [PAIRS[index] for index in order], tmp_path)
    assert_same(take_step(shuffled), expected)
    assert_same(take_step(cut_by(shuffled, MAX_TOKENS[4])), expected)


@pytest.mark.parametrize("weights", WEIGHTS, ids=["equal", "weighted"])
@pytest.mark.parametrize("processes", [2, 3, 8])
def test_processes(config: RunConfig, processes: int, weights: list[float] | None, tmp_path: Path) -> None:
    """Each process's part of the step, computed one after the other in this one process; their sum is the step."""
    whole = training_of(config, PAIRS, tmp_path, weights)
    expected = take_step(whole)
    parts = [take_step(share_of(whole, rank, processes)) for rank in range(processes)]
    assert sum(sum(part.cut) for part in parts) == 8
    assert all(part.cut for part in parts)
    assert sum(part.metrics["loss"] for part in parts) == pytest.approx(expected.metrics["loss"], rel=LOSS_TOLERANCE)
    summed = [torch.stack(shares).sum(0) for shares in zip(*(part.gradients for part in parts), strict=True)]
    assert_same_gradients(summed, expected.gradients)


@pytest.mark.parametrize(("weights", "at_once"), [(None, 4096), (WEIGHTS[1], 4096), (WEIGHTS[1], 3)])
def test_evaluation_measures_the_same(
    config: RunConfig, weights: list[float] | None, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step's loss and metrics before its update, since nothing of the model is random; cut or not."""
    monkeypatch.setattr(evaluation, "EVALUATED_AT_ONCE", at_once)
    whole = training_of(config, PAIRS, tmp_path, weights)
    expected = take_step(whole).metrics
    for max_tokens in MAX_TOKENS.values():
        *progress, evaluated = evaluation.evaluate(cut_by(whole, max_tokens).scoring, whole.evaluation, step=1)
        assert isinstance(evaluated, Evaluated)
        assert evaluated.metrics["loss"] == pytest.approx(expected["loss"], rel=LOSS_TOLERANCE)
        for name, value in evaluated.metrics.items():
            assert value == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name  # as above
        counts = [event.pairs for event in progress if isinstance(event, EvaluationProgress)]
        assert counts == sorted(set(counts))
        assert (counts[0], counts[-1]) == (0, 8)


def widened(batch: Batch, columns: int, filler: int) -> Batch:
    """The same batch with more padding on the right, filled with a token of its own."""
    rows, width = batch.input_ids.shape

    def wider(tensor: Tensor, value: int) -> Tensor:
        return torch.cat([tensor, torch.full((rows, columns), value)], dim=1)

    ids = torch.where(batch.segments == PAD, filler, batch.input_ids)
    positions = torch.arange(width + columns).expand(rows, -1)
    row, column = batch.scored.places // width, batch.scored.places % width
    scored = replace(batch.scored, places=row * (width + columns) + column)
    return Batch(wider(ids, filler), positions, wider(batch.segments, PAD), scored, batch.pair_count)


@pytest.mark.parametrize(("columns", "filler"), [(0, 17), (1, 0), (50, 17)])
def test_padding(config: RunConfig, columns: int, filler: int, tmp_path: Path) -> None:
    """More padding, of any token: no place sees it, though the scorer is given no mask."""
    training = training_of(config, PAIRS, tmp_path)
    expected = take_step(training)
    batch = widened(padded(PAIRS, score_prompts=config.loss.nll == "prompt_and_chosen"), columns, filler)
    scores = objective.pair_scores(training.scorer(batch), batch.scored, batch.pair_count)
    tokens = sum(objective.nll_tokens(lengths, config.loss) for lengths in map(training.train.lengths, range(8)))
    loss = objective.loss(scores, objective.Denominators(8, tokens), config.loss, config.lambda_).loss
    assert loss.item() == pytest.approx(expected.metrics["loss"], rel=LOSS_TOLERANCE)
    assert_same_gradients(torch.autograd.grad(loss, list(training.scorer.parameters())), expected.gradients)


@pytest.mark.parametrize("name", ["trl", "ms_swift"])
def test_tolerance_would_see_an_average_by_micro_batch(
    name: str, compose_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """The field's mistake, the mean over micro-batches of each one's mean over tokens, is off by over 1e-2."""
    config = compose_config(
        f"loss={name}", "trainer.pairs_per_step=8", "trainer.max_grad_norm=null", "trainer.max_tokens=10000"
    )
    training = training_of(config, PAIRS, tmp_path)
    expected = take_step(cut_by(training, MAX_TOKENS[8]))
    parts = []
    for number, pair in enumerate(PAIRS):
        batch = padded([pair], score_prompts=config.loss.nll == "prompt_and_chosen")
        scores = objective.pair_scores(training.scorer(batch), batch.scored, 1)
        tokens = objective.nll_tokens(training.train.lengths(number), config.loss)
        parts.append(objective.loss(scores, objective.Denominators(1, tokens), config.loss, config.lambda_).loss / 8)
    wrong = torch.autograd.grad(torch.stack(parts).sum(), list(training.scorer.parameters()))
    assert difference(wrong, expected.gradients) > 1e-2
