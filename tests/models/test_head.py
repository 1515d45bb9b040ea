"""The head's own backward pass against float64 autograd of all logits at once, its products counted, its memory."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from orpo_cli.data.collation import padded
from orpo_cli.data.pairs import TokenizedPair
from orpo_cli.models import head
from orpo_cli.models.head import Head, token_logps
from orpo_cli.models.scorer import Scorer

TOKENS, HIDDEN, VOCABULARY, CHUNK = 150, 16, 331, 64

ROUNDED = 2e-6
"""Tolerance as a share of the largest value. The sums have up to 331 fp32 terms, each rounded to 6e-8 of its size;
errors add up as their root, 1e-6."""


@pytest.fixture(autouse=True)
def chunks_of_64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK_LOGITS", CHUNK * VOCABULARY)
    monkeypatch.setattr(head, "LEAST_CHUNK", 1)


def hidden_and_head(bias: bool, scale: float, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Head, Tensor]:
    """Return states, a head whose logits are of size 4, and tokens of which some are equal."""
    torch.manual_seed(0)
    projection = nn.Linear(HIDDEN, VOCABULARY, bias)
    nn.init.normal_(projection.weight)
    if bias:
        nn.init.normal_(projection.bias)
    hidden = torch.randn(TOKENS, HIDDEN).to(dtype).requires_grad_()
    return hidden, Head(projection.to(dtype), scale, None), torch.randint(0, VOCABULARY, (TOKENS,))


UPSTREAM = torch.linspace(-1, 2, TOKENS)
"""Gradient of the objective in each log-probability, one of them 0."""


def gradients(logps: Tensor, hidden: Tensor, own: Head) -> list[Tensor]:
    trained = [hidden, *(parameter for parameter in own.projection.parameters() if parameter.requires_grad)]
    return list(torch.autograd.grad(logps, trained, UPSTREAM.to(logps.dtype)))


def whole(hidden: Tensor, own: Head, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities and gradients of the same numbers in float64, all logits at once."""
    projection: Any = own.projection
    states = hidden.detach().double().requires_grad_()
    leaves = [parameter.detach().double().requires_grad_() for parameter in projection.parameters()]
    logps = torch.log_softmax(own.scale * nn.functional.linear(states, *leaves), -1)[torch.arange(TOKENS), ids]
    trained = [leaf for leaf, own in zip(leaves, projection.parameters(), strict=True) if own.requires_grad]
    return logps.detach(), list(torch.autograd.grad(logps, [states, *trained], UPSTREAM.double()))


def shares(ours: list[Tensor], theirs: list[Tensor]) -> list[float]:
    """The largest difference of each tensor, as a share of its largest entry."""
    return [float((own - other).abs().max() / other.abs().max()) for own, other in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize("kept", [0, 1 << 26], ids=["kept none", "kept all"])
@pytest.mark.parametrize("scale", [1.0, 0.25, 3.0])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients(bias: bool, scale: float, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "KEPT_LOGITS", kept)
    hidden, own, ids = hidden_and_head(bias, scale)
    logps, (expected, references) = token_logps(own, hidden, ids, VOCABULARY), whole(hidden, own, ids)
    assert logps.dtype == torch.float32
    assert max(shares([logps], [expected])) < ROUNDED
    assert max(shares(gradients(logps, hidden, own), references)) < ROUNDED


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("bias", [False, True])
def test_a_frozen_head(bias: bool, scale: float) -> None:
    hidden, own, ids = hidden_and_head(bias, scale)
    own.projection.requires_grad_(False)
    logps, (expected, references) = token_logps(own, hidden, ids, VOCABULARY), whole(hidden, own, ids)
    assert max(shares([logps], [expected])) < ROUNDED
    assert max(shares(gradients(logps, hidden, own), references)) < ROUNDED


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_head_of_which_half_is_frozen(frozen: str) -> None:
    hidden, own, ids = hidden_and_head(bias=True, scale=0.5)
    getattr(own.projection, frozen).requires_grad_(False)
    logps, (_, references) = token_logps(own, hidden, ids, VOCABULARY), whole(hidden, own, ids)
    assert max(shares(gradients(logps, hidden, own), references)) < ROUNDED


def test_states_that_need_no_gradient() -> None:
    """A head trained alone, under a frozen backbone."""
    hidden, own, ids = hidden_and_head(bias=True, scale=1.0)
    logps = token_logps(own, hidden.detach(), ids, VOCABULARY)
    ours = torch.autograd.grad(logps, list(own.projection.parameters()), UPSTREAM)
    assert max(shares(list(ours), whole(hidden, own, ids)[1][1:])) < ROUNDED


@pytest.mark.parametrize("bias", [False, True])
def test_what_is_computed_again_is_the_same(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeping probabilities changes only the order of sums: some 200 terms, each rounded to 6e-8."""
    found = []
    for kept in (0, 1 << 26):
        monkeypatch.setattr(head, "KEPT_LOGITS", kept)
        hidden, own, ids = hidden_and_head(bias, 0.5)
        found.append(gradients(token_logps(own, hidden, ids, VOCABULARY), hidden, own))
    for kept, again in zip(*found, strict=True):
        torch.testing.assert_close(kept, again, rtol=0, atol=1e-6 * float(again.abs().max()))


class Products(TorchDispatchMode):
    """Counts the multiplications of matrix products, in units of those that the logits of all tokens take."""

    def __init__(self) -> None:
        super().__init__()
        self._multiplications = 0

    @property
    def of_logits(self) -> float:
        return self._multiplications / (TOKENS * HIDDEN * VOCABULARY)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm"):
            left, right = [tensor for tensor in args if isinstance(tensor, Tensor) and tensor.ndim >= 2][-2:]
            self._multiplications += left.numel() * right.shape[-1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("trained", "kept", "expected"),
    [
        (False, 0, 2),  # logits, and their gradient times the weight, in one pass
        (True, TOKENS * VOCABULARY, 3),  # the gradients of the kept tokens and of the weight
        (True, TOKENS * VOCABULARY - 1, 4),  # and logits once more
    ],
)
def test_products(trained: bool, kept: int, expected: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "KEPT_LOGITS", kept)
    hidden, own, ids = hidden_and_head(bias, 1.0)
    own.projection.requires_grad_(trained)
    with Products() as products:
        gradients(token_logps(own, hidden, ids, VOCABULARY), hidden, own)
    assert products.of_logits == expected


def test_products_without_gradient() -> None:
    hidden, own, ids = hidden_and_head(bias=False, scale=1.0)
    with torch.no_grad(), Products() as products:
        token_logps(own, hidden, ids, VOCABULARY)
    assert products.of_logits == 1


def test_tied_embeddings_add_both_gradients_up() -> None:
    """The gradient of a matrix at both ends is the sum of those of two matrices with the same entries."""
    found = {}
    for tied in (True, False):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            tie_word_embeddings=tied,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        nn.init.normal_(model.model.embed_tokens.weight)
        model.lm_head.weight.data.copy_(model.model.embed_tokens.weight)
        assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
        batch = padded([TokenizedPair(list(range(90)), list(range(90, 180)), [3, 1, 4])], score_prompts=True)
        Scorer(model)(batch).sum().backward()
        found[tied] = [model.model.embed_tokens.weight.grad, model.lm_head.weight.grad]
    (sum_of_both, _), (at_the_start, at_the_end) = found[True], found[False]
    assert sum_of_both is not None
    assert at_the_start is not None
    assert at_the_end is not None
    torch.testing.assert_close(sum_of_both, at_the_start + at_the_end, rtol=1e-6, atol=1e-6)  # one fp32 addition


@pytest.mark.parametrize("trained", [False, True])
def test_bf16_gradients(trained: bool) -> None:
    """States, weights and p - onehot rounded to 2**-9 of their size, sums in fp32 or of one chunk in bf16.

    Against the float64 gradients of the same bf16 states and weights: logits of size 4, up to 16, are rounded by up to
    2**-5, which moves p by 3 % where it is large; log-probabilities by twice as much. Averaged over 331 terms of either
    sign, a gradient entry of the largest is off by less than 3 %, and all of them in their norm by less than 1.5 %.
    """
    hidden, own, ids = hidden_and_head(bias=False, scale=1.0, dtype=torch.bfloat16)
    own.projection.requires_grad_(trained)
    logps, (expected, references) = token_logps(own, hidden, ids, VOCABULARY), whole(hidden, own, ids)
    assert logps.dtype == torch.float32
    assert float((logps - expected).abs().max()) < 2 * 2**-5
    ours = gradients(logps, hidden, own)
    assert {gradient.dtype for gradient in ours} == {torch.bfloat16}
    for gradient, reference in zip(ours, references, strict=True):
        assert float((gradient - reference).norm() / reference.norm()) < 0.015
    assert max(shares([gradient.double() for gradient in ours], references)) < 0.03


def test_chunks_of_a_bf16_weight_add_up_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """With chunks of one token: 300 equal gradients of a weight would stop growing in bf16 after 256.

    Two tokens, states of 1 and a weight of 0: p is 1/2, so each scored token 0 adds 1/2 to the weight's gradient,
    150 in all, which bf16 holds exactly; added up in bf16, halves no longer move a sum of 128.
    """
    monkeypatch.setattr(head, "CHUNK_LOGITS", 1)
    own = Head(nn.Linear(1, 2, bias=False).to(torch.bfloat16), 1.0, None)
    nn.init.zeros_(own.projection.weight)  # type: ignore[arg-type]
    hidden = torch.ones(300, 1, dtype=torch.bfloat16, requires_grad=True)
    token_logps(own, hidden, torch.zeros(300, dtype=torch.int64), 2).sum().backward()
    (weight,) = own.projection.parameters()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[150.0], [-150.0]]


@pytest.mark.parametrize(
    ("device", "vocabulary", "rows", "by_autograd"),
    [
        ("cpu", 49_152, 341, 341),  # 2**24 logits
        ("cpu", 128_256, 130, 130),
        ("cpu", 1_000_000, 64, 64),
        (
            "cuda",
            49_152,
            2688,
            640,
        ),  # 2**27 logits are 2,730 rows, 21 times 128 and 42; a quarter is 5 times 128 and 42
        ("cuda", 128_256, 1024, 256),
        ("cuda", 262_144, 512, 128),
        ("cuda", 1_000_000, 512, 128),
    ],
)
def test_rows_of_a_chunk(
    monkeypatch: pytest.MonkeyPatch, device: str, vocabulary: int, rows: int, by_autograd: int
) -> None:
    monkeypatch.undo()
    found = [head.chunk_rows(vocabulary, torch.device(device), way) for way in (False, True)]
    assert found == [rows, by_autograd]
    assert rows * vocabulary <= head.logits_at_once(vocabulary, torch.device(device))


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("rows", [7, 64, TOKENS])
def test_values_do_not_depend_on_rows(monkeypatch: pytest.MonkeyPatch, rows: int, softcap: float | None) -> None:
    """A chunk of a token at a time is what they are compared with."""
    found = []
    for size in (1, rows):
        monkeypatch.setattr(head, "chunk_rows", lambda *_, size=size: size)
        hidden, plain, ids = hidden_and_head(bias=True, scale=1.0)
        own = Head(plain.projection, 1.0, softcap)
        logps = token_logps(own, hidden, ids, VOCABULARY)
        found.append([logps.detach(), *gradients(logps, hidden, own)])
    assert max(shares(found[1], found[0])) < ROUNDED


MEASURE = """
import sys, torch
from torch import nn
from orpo_cli.models.head import Head, token_logps

torch.set_num_threads(1)
tokens, trained = int(sys.argv[1]), sys.argv[2] == "trained"
projection = nn.Linear(64, 128_256, bias=False).requires_grad_(trained)
hidden = torch.randn(tokens, 64).requires_grad_()
ids = torch.randint(0, 128_256, (tokens,))

def highest():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

token_logps(Head(projection, 1.0, None), hidden[:1], ids[:1], 128_256).sum().backward()  # what torch needs once
projection.zero_grad(set_to_none=True)
before = highest()
token_logps(Head(projection, 1.0, None), hidden, ids, 128_256).sum().backward()
print(highest() - before)
"""


def growth(tokens: int, kind: str) -> int:
    """Return by how many bytes the peak of a process grows; freed tensors go back to the system at once."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, str(tokens), kind]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's high-water mark of a process")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["trained", "frozen"])
def test_peak_memory(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of 780 tokens and a vocabulary of 128,256 are 400 MB in fp32, those of 1,560 are 800 MB.

    A chunk of 130 tokens is 67 MB; its logits and the product before live at once, two of them; so do those of a slice
    of the vocabulary. A trained head makes the gradient of its weight besides, 33 MB.
    """
    monkeypatch.undo()
    assert head.KEPT_LOGITS < 780 * 128_256
    chunk, weight, others = 4 * head.CHUNK_LOGITS, 4 * 64 * 128_256, 8_000_000
    bound = others + 2 * chunk + (weight if kind == "trained" else 0)
    found = growth(780, kind)
    assert found < bound
    assert abs(growth(1560, kind) - found) < others
