"""A step that does not fit is done again in smaller micro-batches, and nothing shows of the attempt."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_split_invariance import LOSS_TOLERANCE, PAIRS, KeepsGradients, assert_same_gradients, training_of
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from orpo_cli.cli.main import main
from orpo_cli.config.schema import RunConfig
from orpo_cli.data.collation import Batch
from orpo_cli.errors import OutOfMemoryError
from orpo_cli.machine.hardware import Hardware
from orpo_cli.models.head import CHUNK_LOGITS, GPU_CHUNK_LOGITS, KEPT_LOGITS
from orpo_cli.models.scorer import Scorer
from orpo_cli.runs import assembly as assembly_module
from orpo_cli.runs.assembly import Assembly
from orpo_cli.training import evaluation, loop
from orpo_cli.training.events import OF_THE_MACHINE, Evaluated, EvaluationProgress, MemoryRanOut, StepDone
from orpo_cli.training.footprint import (
    LEAST_TOKENS,
    MOST_TOKENS,
    Footprint,
    count_parameters,
    fitting_tokens,
    footprint,
)  # fmt: skip
from orpo_cli.training.inputs import Budget, Training

WHOLE = 10_000
"""A budget that all eight pairs fit in."""

TOTAL = sum(len(ids) for pair in PAIRS for ids in vars(pair).values())
MESSAGE = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
Limit = Callable[[int, int], bool]
"""A function that tells whether the n-th forward pass, over so many places, does not fit."""


@pytest.fixture(params=["packed", "padded"])
def config(request: pytest.FixtureRequest, compose_config: Callable[..., RunConfig]) -> RunConfig:
    return compose_config(
        "trainer.pairs_per_step=8", "trainer.precision=fp32", "trainer.device=cpu", "trainer.max_grad_norm=null",
        f"trainer.layout={request.param}", f"trainer.max_tokens={WHOLE}",
    )  # fmt: skip


class Fails(torch.autograd.Function):
    """The identity, whose backward pass finds no memory."""

    @staticmethod
    def forward(ctx: Any, logps: Tensor) -> Tensor:  # noqa: ARG004
        return logps.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        raise RuntimeError(MESSAGE)


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`limited(does_not_fit, "backward")`: from now on such forward or backward passes of any scorer fail."""
    usual = Scorer.forward

    def limit(does_not_fit: Limit, passing: str = "forward", error: Exception | None = None) -> None:
        passes = []

        def forward(scorer: Scorer, batch: Batch) -> Tensor:
            passes.append(batch.input_ids.numel())
            if not does_not_fit(len(passes), passes[-1]):
                return usual(scorer, batch)
            if passing == "forward":
                raise error or RuntimeError(MESSAGE)
            return Fails.apply(usual(scorer, batch))

        monkeypatch.setattr(Scorer, "forward", forward)

    yield limit
    monkeypatch.setattr(Scorer, "forward", usual)


def stepped(training: Training) -> tuple[list[MemoryRanOut], StepDone, list[Tensor]]:
    *ran_out, done = loop.steps(training)
    assert isinstance(done, StepDone)
    (optimizer,) = training.optimizers
    assert isinstance(optimizer, KeepsGradients)
    return [event for event in ran_out if isinstance(event, MemoryRanOut)], done, optimizer.gradients


def in_bf16(training: Training) -> Training:
    return replace(training, scoring=replace(training.scoring, scorer=Scorer(training.scorer.model, torch.bfloat16)))


def with_budget(training: Training, places: int) -> Training:
    return replace(training, scoring=replace(training.scoring, budget=Budget(places, places)))


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in OF_THE_MACHINE}


FAILURES: dict[str, tuple[Limit, str]] = {
    "more than 100 places": (lambda _, places: places > 100, "forward"),
    "more than 100 places, backward": (lambda _, places: places > 100, "backward"),
    "the first pass": (lambda number, _: number == 1, "forward"),
    "the second pass of the second attempt": (lambda number, _: number in (1, 3), "forward"),
    "the second backward pass of the second attempt": (lambda number, _: number in (1, 3), "backward"),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("failure", FAILURES)
def test_the_step_is_done_again_as_if_nothing_had_been(
    config: RunConfig, failure: str, precision: str, tmp_path: Path, limited: Callable[..., None]
) -> None:
    """It equals bit for bit the step of the budget it ends with, and the whole step but for the order of sums."""
    prepared = in_bf16 if precision == "bf16" else lambda training: training
    _, whole, whole_gradients = stepped(prepared(training_of(config, PAIRS, tmp_path)))
    training = prepared(training_of(config, PAIRS, tmp_path))
    before = [parameter.detach().clone() for parameter in training.parameters()]
    does_not_fit, passing = FAILURES[failure]
    limited(does_not_fit, passing)
    ran_out, done, gradients = stepped(training)
    limited(lambda *_: False)
    assert ran_out
    assert [event.step for event in ran_out] == [1] * len(ran_out)
    assert ran_out[-1].max_tokens == training.budget.training
    undisturbed = with_budget(prepared(training_of(config, PAIRS, tmp_path)), training.budget.training)
    none, expected, expected_gradients = stepped(undisturbed)
    assert none == []
    assert timeless(done.metrics) == timeless(expected.metrics)
    assert all(map(torch.equal, gradients, expected_gradients))
    assert all(map(torch.equal, training.parameters(), before))
    if precision == "fp32":  # in bf16 rows of another shape are rounded otherwise
        assert done.metrics["loss"] == pytest.approx(whole.metrics["loss"], rel=LOSS_TOLERANCE)
        assert_same_gradients(gradients, whole_gradients)


def test_budgets_are_halves_of_what_did_not_fit(
    compose_config: Callable[..., RunConfig], tmp_path: Path, limited: Callable[..., None]
) -> None:
    """All 8 pairs, then four batches of at most half as many places, the largest of which is halved again."""
    config = compose_config("trainer.pairs_per_step=8", "trainer.layout=packed", f"trainer.max_tokens={WHOLE}")
    training = training_of(config, PAIRS, tmp_path)
    sizes: list[int] = []
    limited(lambda _, places: (sizes.append(places), places > 100)[1])
    ran_out, _, _ = stepped(training)
    assert sizes[0] == TOTAL
    assert ran_out[0].max_tokens == TOTAL // 2
    largest = max(sizes[1:3])
    assert largest <= TOTAL // 2
    assert all(second.max_tokens < first.max_tokens for first, second in pairwise(ran_out))
    assert max(sizes[-3:]) <= 100


def test_the_budget_stays(config: RunConfig, tmp_path: Path, limited: Callable[..., None]) -> None:
    """The second step asks for nothing that did not fit in the first."""
    training = replace(training_of(config, PAIRS, tmp_path), total_steps=2)
    limited(lambda _, places: places > 150)
    events = list(loop.steps(training))
    steps = [place for place, event in enumerate(events) if isinstance(event, StepDone)]
    assert steps == [len(events) - 2, len(events) - 1]
    assert len(events) > 2
    assert training.budget.evaluation == WHOLE or training.budget.evaluation == config.trainer.eval_max_tokens


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_other_words_for_the_same(
    config: RunConfig, error: Exception, tmp_path: Path, limited: Callable[..., None]
) -> None:
    training = training_of(config, PAIRS, tmp_path)
    limited(lambda number, _: number == 1, error=error)
    assert len(stepped(training)[0]) == 1


def test_other_errors_are_not_taken_for_it(config: RunConfig, tmp_path: Path, limited: Callable[..., None]) -> None:
    training = in_bf16(training_of(config, PAIRS, tmp_path))
    limited(lambda *_: True, error=RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(loop.steps(training))
    assert {parameter.dtype for parameter in training.parameters()} == {torch.float32}


@pytest.mark.parametrize("passing", ["forward", "backward"])
def test_one_pair_that_does_not_fit_alone(
    config: RunConfig, passing: str, tmp_path: Path, limited: Callable[..., None]
) -> None:
    training = in_bf16(training_of(config, PAIRS, tmp_path))
    before = [parameter.detach().clone() for parameter in training.parameters()]
    limited(lambda _, places: places > 50, passing)
    events = []
    with pytest.raises(OutOfMemoryError, match="one pair at a time") as caught:
        events.extend(loop.steps(training))
    assert caught.value.exit_code == 71
    assert all(map(torch.equal, training.parameters(), before))
    assert all(parameter.grad is None for parameter in training.parameters())


def test_a_process_that_has_slices_cannot_begin_the_step_again_alone(
    config: RunConfig, tmp_path: Path, limited: Callable[..., None]
) -> None:
    training = training_of(config, PAIRS, tmp_path)
    training.scorer.is_divided = True
    training.scorer.reshard = lambda: None  # which torch gives to what it divides
    limited(lambda _, places: places > 50)
    with pytest.raises(OutOfMemoryError, match=r"in step 1; .* resume with trainer.max_tokens=\d+, ") as caught:
        list(loop.steps(training))
    assert "trainer.gradient_checkpointing=true, or more processes" in str(caught.value)


@pytest.mark.parametrize("at_once", [4096, 3])
def test_evaluation_counts_each_pair_once(
    config: RunConfig, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limited: Callable[..., None]
) -> None:
    monkeypatch.setattr(evaluation, "EVALUATED_AT_ONCE", at_once)
    training = with_budget(training_of(config, PAIRS, tmp_path), WHOLE)
    *_, whole = evaluation.evaluate(training.scoring, training.evaluation, step=7)
    assert isinstance(whole, Evaluated)
    _, done, _ = stepped(training)
    assert whole.metrics["loss"] == pytest.approx(done.metrics["loss"], rel=LOSS_TOLERANCE)
    limited(lambda number, places: places > 100 or (number == 3 and at_once > 8))
    *events, disturbed = evaluation.evaluate(training.scoring, training.evaluation, step=7)
    limited(lambda *_: False)
    assert isinstance(disturbed, Evaluated)
    ran_out = [event for event in events if isinstance(event, MemoryRanOut)]
    assert ran_out
    assert {event.step for event in ran_out} == {7}
    assert ran_out[-1].max_tokens == training.budget.evaluation < WHOLE
    assert training.budget.training == WHOLE
    progress = [event.pairs for event in events if isinstance(event, EvaluationProgress)]
    assert progress[0] == 0
    assert max(progress) == progress[-1] == 8
    for name, value in whole.metrics.items():
        assert disturbed.metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name  # as in the split tests
    if at_once > 8:  # else windows before the last failure were measured with the budget they had
        *_, expected = evaluation.evaluate(training.scoring, training.evaluation, step=7)
        assert disturbed == expected


def test_evaluation_of_a_pair_that_does_not_fit_alone(
    config: RunConfig, tmp_path: Path, limited: Callable[..., None]
) -> None:
    limited(lambda _, places: places > 50)
    training = training_of(config, PAIRS, tmp_path)
    with pytest.raises(OutOfMemoryError, match="one pair at a time"):
        list(evaluation.evaluate(training.scoring, training.evaluation, step=0))


def rows(path: Path) -> Path:
    lines = [{"prompt": f"word {i}?", "chosen": " moon" * (1 + i % 3), "rejected": " river"} for i in range(8)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(("places", "code"), [(80, 0), (10, 71)])
def test_a_run(places: int, code: int, tmp_path: Path, limited: Callable[..., None]) -> None:
    """The log says how large micro-batches are from then on, or the run ends with the code for memory."""
    limited(lambda _, size: torch.is_grad_enabled() and size > places)
    choices = ["model=tiny", f"data={rows(tmp_path / 'prefs.jsonl')}", f"output_dir={tmp_path / 'run'}"]
    steps = ["trainer.max_steps=2", "trainer.sample_tokens=0", "adapter=none"]
    assert main(["train", *choices, *steps]) == code
    log = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert ("memory" in log) is True
    assert (tmp_path / "run" / "model").exists() is (code == 0)


# How much fits

GIGABYTE = 10**9


def hardware(processes: int = 1, precision: str = "bf16", device: str = "cpu") -> Hardware:
    return Hardware(torch.device(device), precision, 0, processes)


@pytest.fixture(scope="module")
def skeleton() -> LlamaForCausalLM:
    """A model of 1.3 billion weights that takes no memory."""
    with torch.device("meta"):
        return LlamaForCausalLM(
            LlamaConfig(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, tie_word_embeddings=False)
        )


@pytest.fixture
def needs(compose_config: Callable[..., RunConfig], skeleton: LlamaForCausalLM) -> Callable[..., Footprint]:
    """`needs("adapter=lora")`; with an adapter, one projection of each layer is trained in its place."""

    def found(*overrides: str, precision: str = "bf16") -> Footprint:
        lora = any(choice.startswith("adapter=lora") for choice in overrides)
        for name, parameter in skeleton.named_parameters():
            parameter.requires_grad_(not lora or "k_proj" in name)
        return footprint(compose_config("model=tiny", *overrides), skeleton, hardware(precision=precision))

    return found


def test_tokens_that_fit_by_hand() -> None:
    """7 of 10 bytes that are free, less what is kept, over 10 bytes a token: (20,000 * 0.7 - 1,000) / 10 = 1,300."""
    needed = Footprint(process=10**9, loading=10**9, weights=10**9, kept=1000, per_place=10)
    assert fitting_tokens(needed, 20_000, hardware()) == 1300
    assert fitting_tokens(needed, 40_000, hardware(processes=2)) == 1300
    assert fitting_tokens(needed, 20_000, hardware(processes=2)) == 600
    assert fitting_tokens(needed, 200_000, hardware(processes=2, device="cuda")) == 13_900  # each has its own device


sizes = st.integers(0, 10**12)
footprints = st.builds(Footprint, sizes, sizes, sizes, sizes, st.integers(1, 10**9))


@given(footprints, sizes, sizes, st.sampled_from(["cpu", "cuda", "mps"]), st.integers(1, 8))
def test_tokens_grow_with_memory_within_bounds(
    needed: Footprint, first: int, second: int, device: str, processes: int
) -> None:
    machine = hardware(processes, device=device)
    less, more = (fitting_tokens(needed, free, machine) for free in sorted((first, second)))
    assert LEAST_TOKENS <= less <= more <= MOST_TOKENS[device]


def tokens(needed: Footprint, free: float) -> int:
    return fitting_tokens(needed, int(free), hardware(device="cuda"))  # which has the highest bound


def test_full_fine_tuning_leaves_less_than_adapters(needs: Callable[..., Footprint]) -> None:
    full, adapted = needs("adapter=none"), needs("adapter=lora")
    assert full.per_place == adapted.per_place
    assert full.kept > adapted.kept
    assert LEAST_TOKENS < tokens(full, 40 * GIGABYTE) < tokens(adapted, 40 * GIGABYTE) < MOST_TOKENS["cuda"]


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_gradient_checkpointing_leaves_more(needs: Callable[..., Footprint], adapter: str) -> None:
    plain, checkpointed = (
        needs(f"adapter={adapter}", f"trainer.gradient_checkpointing={choice}") for choice in ("false", "true")
    )
    assert plain.kept == checkpointed.kept
    assert LEAST_TOKENS < tokens(plain, 40 * GIGABYTE) < tokens(checkpointed, 40 * GIGABYTE)


def test_what_training_keeps_by_optimizer(needs: Callable[..., Footprint], skeleton: LlamaForCausalLM) -> None:
    """A gradient of 4 bytes a weight, and AdamW's two averages of 4, Muon's and SGD's one, Adafactor's none."""
    count = sum(parameter.numel() for parameter in skeleton.parameters())
    adamw, sgd, adafactor = (needs("adapter=none", f"optimizer={name}") for name in ("adamw", "sgd", "adafactor"))
    assert adamw.kept - sgd.kept == sgd.kept - adafactor.kept == 4 * count
    muon, ends = needs("adapter=none", "optimizer=muon"), skeleton.get_input_embeddings().weight.numel()
    vectors = sum(parameter.numel() for parameter in skeleton.parameters() if parameter.ndim < 2)
    assert muon.kept - sgd.kept == 4 * (2 * ends + vectors)  # embeddings, head and norms are AdamW's
    lion, eight_bit = (needs("adapter=none", f"optimizer={name}") for name in ("lion", "adamw_8bit"))
    assert lion.kept == sgd.kept
    assert eight_bit.kept - adafactor.kept == pytest.approx((2 + 8 / 256) * count, abs=1)
    assert adamw.weights == 4 * count
    assert adamw.total(10) - adamw.total(0) == 10 * adamw.per_place


def test_bf16_adds_copies_and_halves_what_a_place_keeps(
    needs: Callable[..., Footprint], skeleton: LlamaForCausalLM
) -> None:
    """Copies of 2 bytes a weight; 2 bytes less for each probability that the head keeps and each gradient of it, and
    for the two products around each logit of a chunk."""
    count = sum(parameter.numel() for parameter in skeleton.parameters())
    narrow, wide = (needs("adapter=none", precision=precision) for precision in ("bf16", "fp32"))
    assert narrow.kept - wide.kept == 2 * count - 2 * (2 * CHUNK_LOGITS + KEPT_LOGITS + skeleton.lm_head.weight.numel())
    assert wide.per_place == 2 * narrow.per_place


def test_weights_in_the_dtype_that_was_asked_for(needs: Callable[..., Footprint], skeleton: LlamaForCausalLM) -> None:
    """Trained weights of 2 bytes have a gradient and two averages of 2, and no copies; wide frozen ones have copies."""
    count, head = sum(parameter.numel() for parameter in skeleton.parameters()), skeleton.lm_head.weight.numel()
    narrow = needs("adapter=none", "model.dtype=bf16")
    assert narrow.weights == 2 * count
    assert narrow.kept == (2 + 4) * count + 8 * CHUNK_LOGITS + 2 * (KEPT_LOGITS + head)
    wide = needs("adapter=lora", "model.dtype=fp32")
    trained = [parameter.numel() for parameter in skeleton.parameters() if parameter.requires_grad]
    assert wide.weights == 4 * count
    assert wide.kept == 2 * count + (4 + 8) * sum(trained) + 8 * CHUNK_LOGITS + 2 * (KEPT_LOGITS + max(trained))


def test_each_expert_that_sees_a_token_keeps_its_own(compose_config: Callable[..., RunConfig]) -> None:
    """Seven numbers of 2 bytes for each of 32 places between an expert's matrices, in three layers and one redone."""
    config, per_place = compose_config("model=tiny", "adapter=none"), []
    for experts in (1, 2):
        shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
        with torch.device("meta"):
            model = MixtralForCausalLM(MixtralConfig(**shape, num_key_value_heads=2, num_experts_per_tok=experts))
        per_place.append(footprint(config, model, hardware()).per_place)
    assert per_place[1] - per_place[0] == (3 + 1) * 7 * 2 * 32


def test_routers_keep_logits_and_probabilities(compose_config: Callable[..., RunConfig]) -> None:
    """2 and 4 bytes for each of 8 experts in three layers, where the experts are balanced."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    with torch.device("meta"):
        model = MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=8))
    with_it, without = (
        footprint(compose_config("model=tiny", f"loss.router_aux_loss_coef={coefficient}"), model, hardware())
        for coefficient in ("auto", 0)
    )
    assert with_it.per_place - without.per_place == 3 * 8 * (2 + 4)


def test_processes_that_divide_the_weights(
    compose_config: Callable[..., RunConfig], skeleton: LlamaForCausalLM
) -> None:
    """A quarter of weights, gradients and averages each; whole are the ends with their gradient, or twice."""
    skeleton.requires_grad_(True)
    count = sum(parameter.numel() for parameter in skeleton.parameters())
    layer = sum(parameter.numel() for parameter in skeleton.model.layers[0].parameters())
    ends = count - 22 * layer
    config = compose_config("model=tiny", "adapter=none", "trainer.parallel=fsdp")
    shared = footprint(config, skeleton, hardware(processes=4))
    assert shared.weights == 4 * count // 4
    alone = (4 + 4 + 8) * count // 4
    assert shared.loading == 4 * count + alone  # main memory has the whole model too, to be divided and to be saved
    assert footprint(config, skeleton, hardware(processes=4, device="cuda")).loading == alone
    for machine, gradient, chunk in (("cuda", 2 + 4, GPU_CHUNK_LOGITS), ("cpu", 2 + 4 + 4, CHUNK_LOGITS)):
        whole = 2 * ends + max(gradient * ends, 2 * 2 * layer + gradient * layer)
        needed = footprint(config, skeleton, hardware(processes=4, device=machine))
        assert needed.kept == (4 + 8) * count // 4 + whole + 8 * chunk + 2 * KEPT_LOGITS
    skeleton.requires_grad_(False)
    frozen = footprint(config, skeleton, hardware(processes=4))
    assert frozen.kept == 2 * 2 * max(ends, 2 * layer) + 8 * CHUNK_LOGITS + 2 * KEPT_LOGITS
    assert ends > 2 * layer
    skeleton.requires_grad_(True)
    many = footprint(config, skeleton, hardware(processes=400))
    assert many.total(1) == many.process + many.loading > many.process + many.weights + many.kept + many.per_place
    alone = footprint(config, skeleton, hardware())
    assert alone == footprint(compose_config("model=tiny", "adapter=none"), skeleton, hardware())


def test_processes_that_divide_the_weights_plan_before_they_load_them(
    compose_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, they share what the whole model will leave of main memory; a GPU has its slice to load."""
    config = compose_config("model=tiny", f"data={rows(tmp_path / 'prefs.jsonl')}", "trainer.parallel=fsdp")
    assembly = Assembly(config)
    skeleton, weights = assembly.skeleton, 4 * count_parameters(assembly.skeleton)[0]
    monkeypatch.setattr(assembly_module, "free_memory", lambda _: 4 * GIGABYTE)
    for device, left in (("cpu", (4 * GIGABYTE - weights) // 2), ("cuda", 4 * GIGABYTE - weights // 2)):
        assembly.hardware = hardware(2, "fp32", device)
        needed = footprint(config, skeleton, assembly.hardware)
        monkeypatch.setitem(MOST_TOKENS, device, 10**9)
        assert assembly._fitting(None) == int((0.7 * left - needed.kept) / needed.per_place)


def test_the_check_before_the_first_step_takes_no_more_than_the_beginning_of_a_pair(
    compose_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """One pass with whole logits: 2 rows of at most 32 tokens of the prompt and 32 of a response, 64 wide."""
    data = tmp_path / "long.jsonl"
    data.write_text(json.dumps({"prompt": "a" * 300, "chosen": "b" * 200, "rejected": "c"}) + "\n", encoding="utf-8")
    assembly = Assembly(compose_config("model=tiny", f"data={data}", "data.eval_fraction=0"))
    training = assembly.training()
    seen: list[tuple[int, ...]] = []
    training.scorer.model.model.register_forward_hook(lambda *call: seen.append(tuple(call[2].last_hidden_state.shape)))
    assembly.check_model(training)
    assert seen == [(2, 64, 64)]
