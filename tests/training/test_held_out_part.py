"""What `trainer.eval_every=auto` evaluates between the first step and the last."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_split_invariance import PAIRS, store_of, training_of
from tiny_runs import Arguments, Orpo, gone_back, records, same_end

from orpo_cli.config.schema import RunConfig
from orpo_cli.training.held_out_part import held_out_part


@pytest.mark.parametrize(
    ("steps", "held_out", "every", "size"),
    [
        (5, 40, 1, 8),  # 4 evaluations between: 0.05 * 3 * 5 * 8 / 4 = 1.5 pairs, at least 8
        (110, 200, 10, 13),  # 10 between: 0.15 * 110 * 8 / 10 = 13.2
        (21, 64, 2, 8),  # after steps 2, 4, ..., 20: ten, and not after each of 20
        (1100, 100, 109, 100),  # 132 pairs would do, there are 100
        (1100, 2000, 109, 132),
        (1, 40, 1, 8),
    ],
)
def test_how_many_and_how_often(
    steps: int, held_out: int, every: int, size: int, compose_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = compose_config("trainer.max_tokens=100", "trainer.pairs_per_step=8")
    store = store_of([PAIRS[0]] * held_out, [1.0] * held_out, tmp_path)
    training = replace(training_of(config, PAIRS, tmp_path), evaluation=store, total_steps=steps)
    part = held_out_part(training)
    assert part is not None
    assert (part.every, len(part.store)) == (every, size)


@pytest.mark.parametrize("every", ["null", "3"])
def test_only_auto_has_one(every: str, compose_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = compose_config(f"trainer.eval_every={every}", "trainer.max_tokens=100")
    assert held_out_part(training_of(config, PAIRS, tmp_path)) is None


def test_a_part_of_a_store_has_the_pairs_that_were_asked_for(tmp_path: Path) -> None:
    import numpy as np

    store = store_of(PAIRS, [1.0 + place for place in range(len(PAIRS))], tmp_path)
    part = store.part(np.array([1, 4, 6]))
    assert [part[place] for place in range(3)] == [PAIRS[1], PAIRS[4], PAIRS[6]]
    assert part.weights.tolist() == [2.0, 5.0, 7.0]


def test_a_run_records_the_part_and_resumes_to_the_same_lines(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """All six held-out pairs: fewer than eight, so the part is all of them, and step 0 and 6 are not computed twice."""
    whole = tmp_path / "whole"
    done = orpo.run(*arguments(whole, "trainer.eval_every=auto"))
    assert done.code == 0, done.output
    lines = records(whole)
    parts = {record["step"]: record for record in lines if record["kind"] == "eval_part"}
    evaluated = {record["step"]: record for record in lines if record["kind"] == "eval"}
    assert (list(parts), list(evaluated)) == ([0, 1, 2, 3, 4, 5, 6], [0, 6])
    for step in (0, 6):
        assert parts[step] == {**evaluated[step], "kind": "eval_part", "pairs": 6}
    folder = gone_back(whole, tmp_path / "run", 4)
    assert orpo.run("resume", str(folder)).code == 0
    assert same_end(folder, whole)
    assert records(folder) == records(whole)
    assert orpo.run("verify", str(folder)).code == 0
