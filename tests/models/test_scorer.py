"""The chunked head against the model's own logits: small random models of every kind of head."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import lora
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BertConfig,
    BertLMHeadModel,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from orpo_cli.data.collation import CHOSEN, PAD, Batch, padded
from orpo_cli.data.pairs import TokenizedPair
from orpo_cli.models import adapters, head
from orpo_cli.models.scorer import HEAD_TOLERANCE, Scorer

VOCABULARY = 97
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def gpt2() -> nn.Module:
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=256)
    return GPT2LMHeadModel(config)


def phi() -> nn.Module:
    model = PhiForCausalLM(PhiConfig(**SMALL | {"num_key_value_heads": 2}))
    nn.init.normal_(model.lm_head.bias)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "llama, head tied": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True)),
    "gemma2, soft-cap": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0)),
    "gpt2": gpt2,
    "cohere, logits multiplied": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25)),
    "granite, logits divided": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=3.0)),
    "phi, head bias": phi,
}
MORE_THAN_A_MATRIX = ["gemma2, soft-cap", "cohere, logits multiplied", "granite, logits divided", "phi, head bias"]


def build(name: str) -> Any:
    """Return the model with logits of size 4, where a wrong head shows; those of a fresh model are 0.1."""
    torch.manual_seed(0)
    model: Any = MODELS[name]().eval()
    nn.init.normal_(model.get_output_embeddings().weight)
    return model


def batch_of(pair_count: int = 4, seed: int = 0) -> Batch:
    """Pairs of unequal lengths with their prompts scored; about 60 scored tokens each."""
    generator = torch.Generator().manual_seed(seed)

    def ids(least: int, most: int) -> list[int]:
        length = int(torch.randint(least, most, (), generator=generator))
        return torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()

    return padded([TokenizedPair(ids(5, 20), ids(10, 40), ids(10, 40)) for _ in range(pair_count)], score_prompts=True)


def own_logps(model: Any, batch: Batch) -> Tensor:
    """Log-probabilities of the scored tokens from the model's own logits, whole, with an attention mask; float64."""
    mask = (batch.segments != PAD).long()
    logits = model(input_ids=batch.input_ids, attention_mask=mask, use_cache=False).logits
    rows = torch.log_softmax(logits.double(), dim=-1).flatten(0, 1)[batch.scored.places]
    return rows[torch.arange(len(rows)), batch.scored.ids]


def gradients(model: nn.Module, logps: Tensor) -> list[Tensor]:
    """Return the gradients of an unequally weighted sum of log-probabilities in every trainable parameter."""
    weights = torch.linspace(-1, 1, len(logps), dtype=logps.dtype)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad((weights * logps).sum(), parameters))


def assert_same_logps_and_gradients(model: Any, batch: Batch) -> None:
    """fp32 against the same logits in float64 after the head.

    Values: logits of size 16 carry 1e-6 each from the product's rounding; 1e-5 nats.
    Gradients: sums over some 250 tokens of terms that cancel, each rounded to 6e-8 of its size; 1e-5 of the largest.
    """
    logps, expected = Scorer(model)(batch), own_logps(model, batch)
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps.double(), expected, rtol=0, atol=1e-5)
    for ours, theirs in zip(gradients(model, logps), gradients(model, expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", MODELS)
def test_chunks_equal_the_models_own_logits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK_LOGITS", 70 * VOCABULARY)
    batch = batch_of()
    assert len(batch.scored.ids) > 3 * 70
    assert_same_logps_and_gradients(build(name), batch)


@pytest.mark.parametrize("name", MORE_THAN_A_MATRIX)
def test_the_matrix_alone_would_be_wrong(name: str) -> None:
    """The test above tests something: without scale, cap and bias the log-probabilities are off by over 0.1."""
    model, batch = build(name), batch_of()
    hidden = model.base_model(input_ids=batch.input_ids).last_hidden_state.flatten(0, 1)[batch.scored.places]
    rows = torch.log_softmax(hidden @ model.get_output_embeddings().weight.T, dim=-1)
    plain = rows[torch.arange(len(rows)), batch.scored.ids]
    assert (plain - own_logps(model, batch)).abs().max().item() > 0.1


SCORED = len(batch_of().scored.ids)


@pytest.mark.parametrize("tokens", [1, 64, 65, SCORED // 2, SCORED - 1, SCORED, SCORED + 1, 100_000])
def test_any_chunk_size(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK_LOGITS", tokens * VOCABULARY)
    assert_same_logps_and_gradients(build("llama"), batch_of())


@pytest.mark.parametrize("name", MODELS)
def test_without_gradient_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit what training computes."""
    monkeypatch.setattr(head, "CHUNK_LOGITS", 70 * VOCABULARY)
    model, batch = build(name), batch_of()
    with torch.no_grad():
        evaluated = Scorer(model)(batch)
    assert torch.equal(evaluated, Scorer(model)(batch))


@pytest.mark.parametrize("targets", [["all-linear"], ["q_proj", "lm_head"]])
def test_adapters_are_part_of_the_model(targets: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA on the layers, and on the head itself; B is random, since the zero it starts from would hide it."""
    monkeypatch.setattr(head, "CHUNK_LOGITS", 70 * VOCABULARY)
    config = lora(targets=targets)
    model: Any = adapters.add_lora(build("llama"), config, seed=0, base_reference="llama")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    assert_same_logps_and_gradients(model.eval(), batch_of())


def test_bf16_logits_count_as_their_fp32_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-sum-exp and difference of bf16 logits in fp32: 1e-5 nats; in bf16 it would be 2**-9 of some 10 nats."""
    monkeypatch.setattr(head, "CHUNK_LOGITS", 70 * VOCABULARY)
    model, batch = build("llama").to(torch.bfloat16), batch_of()
    own_head = head.head_of(model)
    with torch.no_grad():
        logps = Scorer(model)(batch)
        hidden = model.base_model(input_ids=batch.input_ids).last_hidden_state.flatten(0, 1)[batch.scored.places]
        logits = torch.cat([own_head.projection(part) for part in hidden.split(70)])
    assert logits.dtype == torch.bfloat16
    rows = torch.log_softmax(logits.double(), dim=-1)
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps.double(), rows[torch.arange(len(rows)), batch.scored.ids], rtol=0, atol=1e-5)


class LargestLogits(TorchDispatchMode):
    """The most rows of any tensor whose rows are as long as the vocabulary, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.ndim > 0 and tensor.shape[-1] == VOCABULARY:
                self.rows = max(self.rows, tensor.numel() // VOCABULARY)
        return result


@pytest.mark.parametrize("name", MODELS)
def test_tokens_by_vocabulary_never_exists_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of chunks of 70 tokens two may be kept, so that no tensor of logits or of their gradient has 141 rows."""
    monkeypatch.setattr(head, "CHUNK_LOGITS", 70 * VOCABULARY)
    monkeypatch.setattr(head, "KEPT_LOGITS", 140 * VOCABULARY)
    model, batch = build(name), batch_of()
    assert len(batch.scored.ids) > 3 * 70
    with LargestLogits() as seen:
        Scorer(model)(batch).sum().backward()
    assert 70 <= seen.rows <= 140


def test_the_watch_sees_whole_logits() -> None:
    """The same watch on whole logits sees every place of the batch, so its silence above means something."""
    model, batch = build("llama"), batch_of()
    whole = Scorer(model)
    whole.whole_logits = True
    with LargestLogits() as seen:
        whole(batch).sum().backward()
    assert seen.rows == batch.input_ids.numel()


@pytest.mark.parametrize("name", MODELS)
def test_check_head_accepts_the_heads_it_knows(name: str) -> None:
    """Two roundings of the same product: far below the tolerance."""
    checked = Scorer(build(name))
    assert checked.check_head(batch_of()) < 1e-5 < HEAD_TOLERANCE[torch.float32]
    assert not checked.whole_logits


class SteeperLlama(LlamaForCausalLM):
    """A head with a step of its own, which no configuration names."""

    factor = 1.3

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * self.factor
        return output


class BarelySteeperLlama(SteeperLlama):
    """Off by less than one would see in a loss curve, but above rounding."""

    factor = 1.001


class NoBackboneLlama(LlamaForCausalLM):
    """A model that does not say where its layers end and its head begins."""

    base_model_prefix = "nothing"


@pytest.mark.parametrize("kind", [SteeperLlama, BarelySteeperLlama, NoBackboneLlama])
def test_unknown_head_is_caught_and_trained_through_its_own_logits(kind: type) -> None:
    torch.manual_seed(0)
    model: Any = kind(LlamaConfig(**SMALL)).eval()
    nn.init.normal_(model.lm_head.weight)
    batch, checked = batch_of(), Scorer(model)
    difference = checked.check_head(batch)
    assert difference > HEAD_TOLERANCE[torch.float32]
    assert checked.whole_logits
    logps, expected = checked(batch), own_logps(model, batch)
    torch.testing.assert_close(logps.double(), expected, rtol=0, atol=1e-5)  # as in assert_same_logps_and_gradients
    for ours, theirs in zip(gradients(model, logps), gradients(model, expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


def test_check_head_returns_the_largest_difference() -> None:
    """All logits are 0 but one bias b on token 0, steeper by 1.3: log softmax is known in closed form.

    log p(0) = b - log(e^b + V - 1), log p(other) = -log(e^b + V - 1); here b = 2 in chunks and 2.6 in the model.
    """
    torch.manual_seed(0)
    model: Any = SteeperLlama(LlamaConfig(**SMALL)).eval()
    model.lm_head = nn.Linear(16, VOCABULARY)
    nn.init.zeros_(model.lm_head.weight)
    nn.init.zeros_(model.lm_head.bias)
    with torch.no_grad():
        model.lm_head.bias[0] = 2.0
    batch = padded([TokenizedPair([5], [0, 1], [2])], score_prompts=False)
    first, second = (bias - torch.log(torch.tensor(bias).double().exp() + VOCABULARY - 1) for bias in (2.0, 2.0 * 1.3))
    difference = Scorer(model).check_head(batch)
    assert difference == pytest.approx(float(second - first), rel=1e-5)  # fp32; token 0 differs most


def test_non_finite_logits_go_through_the_model_too() -> None:
    """NaN compares false with any tolerance, so a broken comparison must not pass as a good one."""
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    checked = Scorer(model)
    checked.check_head(batch_of())
    assert checked.whole_logits


def test_scored_places_predict_their_tokens() -> None:
    """A batch of one pair against one forward pass a response, without padding: what a scored token means."""
    model = build("llama")
    pair = TokenizedPair([3, 1, 4], [1, 5], [9, 2, 6, 5])
    batch = padded([pair], score_prompts=False)
    logps = Scorer(model)(batch)
    for role, response in ((CHOSEN, pair.chosen_ids), (CHOSEN + 1, pair.rejected_ids)):
        ids = torch.tensor([pair.prompt_ids + response])
        rows = torch.log_softmax(model(ids).logits[0], dim=-1)
        expected = torch.stack([rows[2 + place, token] for place, token in enumerate(response)])
        torch.testing.assert_close(logps[batch.scored.roles == role], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_model_that_sees_later_tokens_is_told_from_one_that_does_not(autocast: bool, dtype: torch.dtype) -> None:
    """At BERT's own small start weights a later token moves a logit by less than bf16 rounds; its gradient is not 0."""
    sizes = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
    batch = padded([TokenizedPair([1, 2, 3, 4, 5], [6, 7, 8, 9], [3, 4])], False)
    for is_decoder in (True, False):
        torch.manual_seed(0)
        model = BertLMHeadModel(BertConfig(**sizes, is_decoder=is_decoder)).to(dtype).eval()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            assert Scorer(model).is_causal(batch) is is_decoder


@pytest.mark.parametrize("name", MODELS)
def test_the_architectures_people_train_are_causal(name: str) -> None:
    batch = padded([TokenizedPair([1, 2, 3], [6, 7], [3, 4, 5])], False)
    assert Scorer(build(name)).is_causal(batch)
