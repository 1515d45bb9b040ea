"""A mixture of experts is trained with the load-balancing loss of its routers, as transformers computes it.

The loss is a product of two means over the whole step, so the mean over micro-batches is another number. Each case
takes one step of `loop.steps`, whose optimizer keeps the gradients it is given; nothing but the cut differs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from architectures import InDouble, lora
from matrix import rows
from test_split_invariance import PAIRS, WEIGHTS, KeepsGradients, Outcome, cut_by, store_of, take_step
from torch import Tensor

from orpo_cli.config.schema import RunConfig
from orpo_cli.data.collation import LAYOUTS, PAD, padded
from orpo_cli.losses import objective
from orpo_cli.machine.hardware import Hardware
from orpo_cli.models.adapters import add_lora
from orpo_cli.models.router import balancing_of
from orpo_cli.models.scorer import Scorer
from orpo_cli.training import evaluation, loop
from orpo_cli.training.events import Evaluated, MemoryRanOut, StepDone
from orpo_cli.training.inputs import Budget, Scoring, Training

COEFFICIENT = 0.5
"""Large, so that the term is a good part of the loss and of every gradient."""

TOLERANCE = 1e-10
"""Relative of a loss; of a gradient, a share of the largest entry of its parameter. Everything is computed in float64:
some thousand terms, each rounded to 1e-16. The mean over micro-batches is off by over 1e-3 (tested below)."""


@pytest.fixture(autouse=True)
def doubled() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    with InDouble():
        yield
    torch.set_default_dtype(torch.float32)


_SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "router_aux_loss_coef": COEFFICIENT, "num_experts_per_tok": 2,
}  # fmt: skip


_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": ("Qwen3Moe", {"num_experts": 6, "moe_intermediate_size": 12, "head_dim": 8, "mlp_only_layers": [1]}),
    "mixtral": ("Mixtral", {"num_local_experts": 5}),
    "olmoe": ("Olmoe", {"num_experts": 5}),
    "qwen2_moe": ("Qwen2Moe", {"num_experts": 5, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 12}),
    "phimoe": ("Phimoe", {"num_local_experts": 5, "router_jitter_noise": 0.0}),
    "granitemoe": ("GraniteMoe", {"num_local_experts": 5}),
    "gpt_oss": ("GptOss", {"num_local_experts": 5, "head_dim": 8}),
}
"""For each name the family of transformers, and what its configuration has beside the sizes."""


def mixture(name: str) -> Any:
    """A small model whose routers prefer some experts: with equal shares the loss would have no gradient."""
    torch.manual_seed(0)
    family, own = _FAMILIES[name]
    config = getattr(transformers, f"{family}Config")(**_SIZES | own, pad_token_id=None)
    model: Any = getattr(transformers, f"{family}ForCausalLM")(config)
    model.config._experts_implementation = "eager"  # the grouped product knows no float64
    for key, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.5 if "lm_head" in key else 0.25)
    return model


MIXTURES = ["qwen3_moe", "mixtral"]


@pytest.fixture(scope="module")
def config(compose_config: Callable[..., RunConfig]) -> RunConfig:
    return compose_config(
        "trainer.pairs_per_step=8", "trainer.precision=fp32", "trainer.device=cpu", "trainer.layout=padded",
        "trainer.max_grad_norm=null", "trainer.max_tokens=10000",
    )  # fmt: skip


def training_of(
    config: RunConfig, model: Any, directory: Path, weights: Sequence[float] | None = None, pairs: Any = PAIRS
) -> Training:
    store = store_of(pairs, weights or [1.0] * len(pairs), directory)
    scorer = Scorer(model, torch.float64)
    optimizer = KeepsGradients([parameter for parameter in scorer.parameters() if parameter.requires_grad])
    budget = Budget(int(config.trainer.max_tokens), config.trainer.eval_max_tokens)
    balancing = balancing_of(model, config.loss.router_aux_loss_coef)
    hardware = Hardware(torch.device("cpu"), "fp32", 0, 1)
    scoring = Scoring(config, scorer, hardware, config.trainer.layout, budget, balancing)
    return Training(scoring, [optimizer], store, store, total_steps=1)


def assert_same(outcome: Outcome, expected: Outcome) -> None:
    for name in ("loss", "router_aux_loss"):
        assert outcome.metrics[name] == pytest.approx(expected.metrics[name], rel=TOLERANCE)
    assert differences(outcome.gradients, expected.gradients) < TOLERANCE


def differences(gradients: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of an entry, as a share of the largest entry of its parameter."""
    assert len(gradients) == len(expected)
    return max(
        float((ours - theirs).abs().max() / theirs.abs().max())
        for ours, theirs in zip(gradients, expected, strict=True)
        if theirs.abs().max() > 0
    )


def by_transformers(model: Any, config: RunConfig) -> Outcome:
    """The step as transformers and TRL compute it: one forward pass over the padded rows, with their own aux_loss."""
    batch = padded(PAIRS, score_prompts=False)
    mask = (batch.segments != PAD).long()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    output = model(input_ids=batch.input_ids, attention_mask=mask, output_router_logits=True)
    logps = output.logits.flatten(0, 1).log_softmax(-1)[batch.scored.places, batch.scored.ids]
    scores = objective.pair_scores(logps, batch.scored, batch.pair_count)
    orpo = objective.loss(scores, objective.Denominators(8, 1), config.loss, config.lambda_).loss
    loss = orpo + COEFFICIENT * output.aux_loss
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return Outcome({"loss": loss.item(), "router_aux_loss": output.aux_loss.item()}, list(gradients), [])


CASES = {f"{name}, {layout}": (name, layout) for name in _FAMILIES for layout in LAYOUTS}
CASES.pop("gpt_oss, packed")  # its attention has sinks


@pytest.mark.parametrize(("name", "layout"), rows(CASES, *(case for case in CASES if CASES[case][0] in MIXTURES)))
def test_as_transformers_computes_it(name: str, layout: str, config: RunConfig, tmp_path: Path) -> None:
    model = mixture(name)
    expected = by_transformers(model, config)
    outcome = take_step(cut_by(training_of(config, model, tmp_path), 10_000, layout))
    assert_same(outcome, expected)


@pytest.mark.parametrize("weights", WEIGHTS, ids=["equal", "weighted"])
@pytest.mark.parametrize("name", MIXTURES)
def test_any_cut_and_layout(name: str, weights: list[float] | None, config: RunConfig, tmp_path: Path) -> None:
    whole = training_of(config, mixture(name), tmp_path, weights)
    expected = take_step(whole)
    for max_tokens, layout in ((1, "packed"), (150, "packed"), (150, "padded")):
        assert_same(take_step(cut_by(whole, max_tokens, layout)), expected)


def test_a_pair_of_weight_two_is_the_pair_twice(config: RunConfig, tmp_path: Path) -> None:
    model = mixture("qwen3_moe")
    weighted = training_of(config, model, tmp_path, [1, 2, 1, 3, 1, 1], PAIRS[:6])
    copies = [PAIRS[number] for number in (0, 1, 1, 2, 3, 3, 3, 4, 5)]
    nine_pairs = replace(config, trainer=replace(config.trainer, pairs_per_step=9))
    repeated = take_step(training_of(nine_pairs, model, tmp_path, pairs=copies))
    assert_same(take_step(cut_by(weighted, 200, "packed")), repeated)


class OneOfTwo(Hardware):
    """A process that is told the choices of both, and whose other sums are its own part; the test adds them up."""

    def sum_over_processes(self, values: Tensor) -> Tensor:
        return CHOICES[0] + CHOICES[1] if any(values is own for own in CHOICES) else values


CHOICES: list[Tensor] = []


def test_two_processes(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both count before either goes on, as an all-reduce has it; each then computes the gradient of its part."""
    whole = cut_by(training_of(config, mixture("qwen3_moe"), tmp_path), 10_000, "packed")
    expected = take_step(whole)
    both = [
        replace(whole, scoring=replace(whole.scoring, hardware=OneOfTwo(torch.device("cpu"), "fp32", rank, 2)))
        for rank in range(2)
    ]
    (step,) = loop.plan.steps(whole.epoch, 8, 1, config.seed)
    balancing = whole.scoring.balancing
    assert balancing is not None
    with whole.scorer.at_work("packed"):
        CHOICES[:] = [loop._choices(training, balancing, step) for training in both]
    counted = iter(CHOICES)
    monkeypatch.setattr(loop, "_choices", lambda *_: next(counted))
    parts = [take_step(training) for training in both]
    summed = [torch.stack(shares).sum(0) for shares in zip(*(part.gradients for part in parts), strict=True)]
    assert differences(summed, expected.gradients) < TOLERANCE


def test_the_tolerance_would_see_a_mean_over_micro_batches(config: RunConfig, tmp_path: Path) -> None:
    """Each pair balanced by itself, which is what accumulated steps are elsewhere."""
    whole = training_of(config, mixture("qwen3_moe"), tmp_path)
    expected = take_step(whole)
    alone = replace(config, trainer=replace(config.trainer, pairs_per_step=1))
    each = [take_step(training_of(alone, whole.scorer.model, tmp_path, pairs=[pair])) for pair in PAIRS]
    mean = [torch.stack(parts).mean(0) for parts in zip(*(one.gradients for one in each), strict=True)]
    assert differences(mean, expected.gradients) > 1e-3


def checkpointed(model: Any) -> Any:
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def with_lora(model: Any) -> Any:
    """Adapters that change the hidden states already; the routers are frozen."""
    adapted: Any = add_lora(model, lora(targets=["q_proj", "v_proj"]), 0, "")
    for key, parameter in adapted.double().named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    return adapted


@pytest.mark.parametrize("changed", [checkpointed, with_lora], ids=["checkpointing", "LoRA"])
def test_in_other_ways_of_training(changed: Callable[[Any], Any], config: RunConfig, tmp_path: Path) -> None:
    """The reference computes with the same weights, without checkpointing, and without the loop."""
    model = changed(mixture("qwen3_moe"))
    expected = by_transformers(model.eval(), config)
    outcome = take_step(cut_by(training_of(config, model, tmp_path), 100, "packed"))
    assert_same(outcome, expected)
    assert all(gradient.abs().max() > 0 for gradient in outcome.gradients)


def test_logits_computed_whole(config: RunConfig, tmp_path: Path) -> None:
    whole = cut_by(training_of(config, mixture("mixtral"), tmp_path), 100, "packed")
    expected = take_step(whole)
    whole.scorer.whole_logits = True
    assert_same(take_step(whole), expected)


def test_both_passes_draw_the_same_dropout(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choices that are counted are those that are made, to the last one."""
    model = mixture("qwen3_moe")
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    training = cut_by(training_of(config, model, tmp_path), 100, "packed")
    counted, made = [], []
    choices_of, micro_batch_loss = loop.choices_of, loop.micro_batch_loss
    monkeypatch.setattr(loop, "choices_of", lambda *given: counted.append(choices_of(*given)) or counted[-1])
    monkeypatch.setattr(loop, "micro_batch_loss", lambda *given: made.append(micro_batch_loss(*given)) or made[-1])
    dropped = take_step(training)
    assert len(counted) == len(made) > 2
    assert all(torch.equal(ours, done.load.choices) for ours, done in zip(counted, made, strict=True))
    assert dropped.metrics["loss"] != pytest.approx(take_step(as_trained(training)).metrics["loss"], rel=1e-6)


def as_trained(training: Training) -> Training:
    for layer in training.scorer.model.model.layers:
        layer.self_attn.attention_dropout = 0.0
    return training


def test_memory_that_runs_out_while_choices_are_counted(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is cut smaller and taken again; its gradient is the same."""
    training = cut_by(training_of(config, mixture("qwen3_moe"), tmp_path), 150, "packed")
    expected, calls, choices_of = take_step(training), [], loop.choices_of

    def fails_once(*given: Any) -> Tensor:
        calls.append(given)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return choices_of(*given)

    monkeypatch.setattr(loop, "choices_of", fails_once)
    ran_out, done = loop.steps(training)
    assert isinstance(ran_out, MemoryRanOut)
    assert ran_out.max_tokens == training.budget.training < 150
    assert isinstance(done, StepDone)
    assert done.metrics["loss"] == pytest.approx(expected.metrics["loss"], rel=TOLERANCE)
    assert differences(training.optimizers[0].gradients, expected.gradients) < TOLERANCE  # type: ignore[attr-defined]


@pytest.mark.parametrize("weights", WEIGHTS, ids=["equal", "weighted"])
def test_evaluation_measures_the_same(weights: list[float] | None, config: RunConfig, tmp_path: Path) -> None:
    whole = training_of(config, mixture("mixtral"), tmp_path, weights)
    expected = take_step(whole).metrics
    for max_tokens, layout in ((1, "packed"), (150, "padded")):
        scoring = cut_by(whole, max_tokens, layout).scoring
        *_, evaluated = evaluation.evaluate(scoring, whole.evaluation, step=1)
        assert isinstance(evaluated, Evaluated)
        for name in ("loss", "router_aux_loss"):
            assert evaluated.metrics[name] == pytest.approx(expected[name], rel=TOLERANCE)


def test_the_switch(config: RunConfig, tmp_path: Path) -> None:
    """A loss is linear in its coefficient; at 0 nothing of it is computed or shown."""
    model = mixture("qwen3_moe")

    def taken(coefficient: float | str) -> Outcome:
        chosen = replace(config, loss=replace(config.loss, router_aux_loss_coef=coefficient))
        return take_step(training_of(chosen, model, tmp_path))

    own, double, none = taken("auto"), taken(2 * COEFFICIENT), taken(0)
    assert "router_aux_loss" not in none.metrics
    balance = own.metrics["router_aux_loss"]
    assert own.metrics["loss"] == pytest.approx(none.metrics["loss"] + COEFFICIENT * balance, rel=TOLERANCE)
    assert double.metrics["loss"] == pytest.approx(none.metrics["loss"] + 2 * COEFFICIENT * balance, rel=TOLERANCE)
    expected = [2 * with_it - without for with_it, without in zip(own.gradients, none.gradients, strict=True)]
    assert differences(double.gradients, expected) < TOLERANCE
