"""FlexAttention: its masks against torch's own, its values against a dense softmax, and how often it is compiled.

There is no GPU here. Values and gradients are computed by what torch makes of the compiled function before it writes
kernels (`aot_eager`), and once by its kernels for a CPU, which have no backward pass.
"""

import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import build, pairs_of
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_rows import LONGEST, PAIRS, SIZE, WINDOWS, dense, inputs, seen_places, some_pairs
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention as of_torch
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode

from orpo_cli.data.collation import packed
from orpo_cli.data.pairs import Lengths
from orpo_cli.models import flex_attention as ours
from orpo_cli.models import shared_prefix
from orpo_cli.models.flex_attention import flex_attention, ranges_of, row_mask, sees
from orpo_cli.models.scorer import Scorer
from orpo_cli.models.shared_prefix import SharedPrefix, attention

CPU = torch.device("cpu")

EXACT = 1e-12
"""Tolerance for values of size 1 in float64: sums of some 50 terms, each rounded to 1e-16; gradients are of size 10."""

MOST_GRAPHS = 4
"""With a gradient and without, for rows of one tile and of more."""

slow = pytest.mark.slow


@given(some_pairs, st.sampled_from(WINDOWS))
@settings(max_examples=50)
def test_rule_of_who_sees_whom(pairs: list[Lengths], window: int | None) -> None:
    ranges = row_mask(pairs, window, CPU).ranges
    places = torch.arange(len(ranges.own))
    rule = sees(ranges)(places, places, places[:, None], places[None, :])
    assert torch.equal(rule, seen_places(pairs, window))


def test_ranges_by_hand() -> None:
    """Prompt 3, chosen 2, rejected 2 after a pair of 3 places; with a window of 3, the second of rejected is at
    position 4 and sees positions 2 to 4: of the prompt its last place, 5."""
    ranges = ranges_of([Lengths(1, 1, 1), Lengths(3, 2, 2)], 3)
    assert [column[3:].tolist() for column in vars(ranges).values()] == [
        [3, 3, 3, 4, 5, 4, 5],
        [3, 3, 3, 6, 6, 6, 6],
        [3, 3, 3, 6, 6, 8, 8],
    ]


long_pairs = st.lists(st.builds(Lengths, *[st.integers(1, 300)] * 3), min_size=1, max_size=3)


@given(long_pairs, st.none() | st.integers(1, 400))
@settings(max_examples=10)
def test_tiles_are_those_of_torch(pairs: list[Lengths], window: int | None) -> None:
    """Which are seen partly and fully, by rows and by keys, each in torch's order."""
    seen = seen_places(pairs, window)
    expected = create_block_mask(lambda _b, _h, q, k: seen[q, k], None, None, len(seen), len(seen), "cpu")
    mask = row_mask(pairs, window, CPU).of(len(seen))
    assert torch.equal(mask.to_dense(), expected.to_dense())
    assert mask.shape == expected.shape
    for own, of_create in zip(mask.as_tuple()[:10], expected.as_tuple()[:10], strict=True):
        assert torch.equal(torch.as_tensor(own), torch.as_tensor(of_create))


def test_tiles_by_hand() -> None:
    """A pair of 256, 256 and 130 places: six tiles. The last has two rows, too few to see a tile whole."""
    mask = row_mask([Lengths(256, 256, 130)], None, CPU).of(642)
    partly = [[0], [1], [2], [3], [4], [0, 1, 4, 5]]
    fully = [[], [0], [0, 1], [0, 1, 2], [0, 1], []]
    found = [
        [row[:count].tolist() for row, count in zip(at[0, 0], number[0, 0], strict=True)]
        for number, at in ((mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices))
    ]
    assert found == [partly, fully]


class Largest(TorchDispatchMode):
    """Adds up the bytes of the tensors that operations return."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.bytes += result.nbytes if isinstance(result, Tensor) else 0
        return result


@pytest.mark.parametrize("window", [None, 1000])
def test_memory_of_a_mask(window: int | None) -> None:
    """All that is made of a row of 8,192 places, by numpy and by torch, is far less than a mask of all places."""
    pairs = [Lengths(512, 256, 256)] * 8
    tracemalloc.start()
    try:
        with Largest() as made:
            row_mask(pairs, window, CPU)
        by_numpy = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made.bytes + by_numpy < 8192 * 8192 / 64


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """FlexAttention as torch traces it, with a backward pass, which torch refuses on a CPU for its kernels' sake."""
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")
    traced = torch.compile(ours.attend, fullgraph=True, backend=backend)
    monkeypatch.setattr(ours, "compiled", lambda: traced)
    monkeypatch.setattr(of_torch, "_validate_device", lambda *_: None)
    yield backend
    torch._dynamo.reset()


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_values_and_gradients(compiled: CompileCounterWithBackend, softcap: float | None) -> None:
    """In float64, of values of size 2 and sums of some 50 terms; for all windows by one graph."""
    for window in WINDOWS:
        tensors = inputs(PAIRS)
        mixed = flex_attention(*tensors, row_mask(PAIRS, window, CPU), SIZE**-0.5, softcap)
        row = SharedPrefix(tuple(PAIRS))
        ours_on_cpu, _ = attention(None, *tensors, None, None, 0.0, window, softcap, shared_prefix=row)
        expected = dense(*tensors, seen_places(PAIRS, window), SIZE**-0.5, softcap)
        uneven = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
        by_flex, by_dense = (torch.autograd.grad(output, tensors, uneven) for output in (mixed, expected))
        torch.testing.assert_close(mixed, expected, rtol=0, atol=EXACT)
        torch.testing.assert_close(mixed, ours_on_cpu, rtol=0, atol=EXACT)
        torch.testing.assert_close(by_flex, by_dense, rtol=0, atol=10 * EXACT)
        assert mixed.is_contiguous()  # models view it
    assert compiled.frame_count == 1


@pytest.mark.parametrize("name", ["gemma2", *(pytest.param(name, marks=slow) for name in ("llama", "mistral, window"))])
def test_rows_of_twenty_lengths(
    compiled: CompileCounterWithBackend, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Through a model, with evaluations between: the log-probabilities and gradients of our attention on a CPU."""
    scorer = Scorer(build(name))
    weights = [weight for weight in scorer.parameters() if weight.requires_grad]
    for row in range(20):
        sizes = [(5 + 5 * row, 3 + 2 * row, 4 + 4 * row)] * (1 + row % 3)
        batch, found = packed(pairs_of(sizes), score_prompts=False), []
        scorer.train(row % 4 != 0)
        for devices in ((), ("cpu",)):
            monkeypatch.setattr(shared_prefix, "FLEX_DEVICES", devices)
            with torch.set_grad_enabled(row % 4 != 0), scorer.at_work("packed"):
                logps = scorer(batch)
                gradients = torch.autograd.grad(logps.sum(), weights, allow_unused=True) if scorer.training else ()
            found.append((logps.detach(), gradients))
        torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-4)
        for left, right in zip(found[0][1], found[1][1], strict=True):
            torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4 * float(left.abs().max()))
    assert compiled.frame_count <= MOST_GRAPHS


def test_a_mask_is_made_once_for_all_layers() -> None:
    row = SharedPrefix(tuple(PAIRS))
    first = row.mask(3, CPU)
    assert row.mask(3, CPU) is first
    assert row.masks == {3: first}


def assert_kernels_are_dense() -> None:
    """fp32 of values of size 3, sums of some 20 terms: 1e-5; rows of one tile and of two."""
    for pairs in (PAIRS, [Lengths(60, 70, 33)], PAIRS * 7):
        for window in (None, 3, LONGEST):
            tensors = [tensor.detach().float() for tensor in inputs(pairs, value_size=SIZE)]
            mixed = flex_attention(*tensors, row_mask(pairs, window, CPU), SIZE**-0.5, 1.5)
            expected = dense(*tensors, seen_places(pairs, window), SIZE**-0.5, 1.5)
            torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-5)


@slow
def test_values_of_kernels() -> None:
    """In a process of its own: compiling needs setuptools' distutils, and tests before may have imported another."""
    if not any(map(shutil.which, ("g++", "c++", "clang++"))):
        pytest.skip("FlexAttention on a CPU is compiled, and there is no C++ compiler here")
    code = f"import {Path(__file__).stem} as tests; tests.assert_kernels_are_dense()"
    paths = os.pathsep.join(path for path in sys.path if path)
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths}, check=True)
