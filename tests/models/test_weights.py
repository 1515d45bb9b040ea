"""Weights are judged by their sums first; no sum may hide what one of its terms is."""

import pytest
import torch

from orpo_cli.models.weights import first_not_finite, tensor_problem

INFINITY = float("inf")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [(float("nan"),), (INFINITY,), (-INFINITY,), (INFINITY, -INFINITY)], ids=str)
def test_what_is_not_finite_is_found_wherever_it_is(bad: tuple[float, ...], dtype: torch.dtype) -> None:
    for place in (0, 517, 1022):
        weight = torch.ones(1024)
        weight[place : place + len(bad)] = torch.tensor(bad)
        assert first_not_finite([("fine", torch.ones(3, dtype=dtype)), ("bad", weight.to(dtype))]) == "bad"
        assert tensor_problem(weight.to(dtype)) == "has values that are not finite"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_finite_numbers_are_finite_where_their_sum_is_not(dtype: torch.dtype) -> None:
    weight = torch.full((64, 64), torch.finfo(dtype).max, dtype=dtype)
    assert not torch.isfinite(weight.sum())
    assert first_not_finite([("largest", weight), ("lowest", -weight), ("none", weight[:0])]) is None
    assert tensor_problem(weight) is None


def test_numbers_without_arithmetic_are_a_problem() -> None:
    problem = "is stored as float8_e4m3fn, which no run saves"
    assert tensor_problem(torch.ones(3).to(torch.float8_e4m3fn)) == problem
