"""`orpo compare` on made runs: who shares a rank, what is refused and in which words, and what is not finished."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_pairs import made_pairs
from made_runs import made_run, with_lambda

import orpo_cli
from orpo_cli.cli.main import main
from orpo_cli.config.schema import RunConfig
from orpo_cli.errors import ConfigError, InputNotFoundError
from orpo_cli.runs.compare import JobOutcome, compare
from orpo_cli.runs.folder import SWEEP, RunFolder
from orpo_cli.statistics.leaderboard import Leaderboard
from orpo_cli.statistics.scored_pairs import ScoredPairs

PAIRS = 100


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return orpo_cli.configure("model=tiny", "data=made.jsonl", "data.eval_fraction=0.25", "optimizer.lr=1e-3")


def won(count: int, nll: float = 1.0, pairs: int = PAIRS) -> ScoredPairs:
    """Pairs of which the first `count` are won; half of the chosen responses are longer, by 10 tokens."""
    tokens = 100 + np.where(np.arange(pairs) % 2, 10, -10)
    chosen = -nll * tokens
    rejected = np.where(np.arange(pairs) < count, -nll - 1, -nll + 1) * 100
    return made_pairs(np.ones(pairs), more_tokens=tokens - 100, chosen_logp=chosen, rejected_logp=rejected)


@pytest.fixture
def sweep(tmp_path: Path, config: RunConfig) -> Path:
    """lambda in {0, 0.1, 0.5, 2} with two seeds each: accuracy rises up to 0.5, and from there nll alone."""
    scores = {0: (50, 51, 1.0), 0.1: (60, 61, 1.05), 0.5: (80, 81, 1.1), 2: (81, 83, 1.8)}
    jobs = [(lambda_, seed, won(found[seed], found[2])) for lambda_, found in scores.items() for seed in (0, 1)]
    for number, (lambda_, seed, pairs) in enumerate(jobs):
        made_run(tmp_path / "sweep" / str(number), with_lambda(config, lambda_, seed), pairs, won(48, 2.0))
    (tmp_path / "sweep" / SWEEP).write_text(json.dumps({"jobs": [str(number) for number in range(8)]}))
    return tmp_path / "sweep"


def lambdas(board: Leaderboard) -> list[tuple[object, int | None]]:
    return [(place.settings["lambda"], place.rank) for place in board.places]


def test_the_first_place_is_shared_where_the_test_cannot_separate(sweep: Path) -> None:
    """0.5 and 2 differ by 1.5 pairs of 100; 0.1 and 0 lack 20 and 30 of those."""
    board = orpo_cli.compare(sweep)
    assert lambdas(board) == [(0.5, 1), (2, 1), (0.1, 3), (0, 4)]
    assert board.winner is None
    assert board.verdict == (
        "lambda=0.5, lambda=2 cannot be told apart by accuracy on 100 pairs of 100 prompts; they stand in the order of "
        "their nll, and more pairs may tell."
    )
    assert (board.keys, board.effects, board.unranked, board.notes) == (("lambda",), (), (), ())


def test_seeds_are_one_recipe(sweep: Path) -> None:
    """80 and 81 of 100: mean 0.805, standard deviation 0.01 / sqrt(2); nll the same for both."""
    first = orpo_cli.compare(sweep).places[0]
    assert (first.folders, first.seeds) == ((str(sweep / "4"), str(sweep / "5")), (0, 1))
    assert first.metrics.accuracy.value == pytest.approx(0.805)
    assert first.spread["accuracy"] == pytest.approx(0.01 / 2**0.5)
    assert (first.metrics.nll.value, first.spread["nll"]) == (pytest.approx(1.1), pytest.approx(0, abs=1e-12))


def test_front_and_the_model_before_training(sweep: Path) -> None:
    board = orpo_cli.compare(sweep)
    assert [place.is_on_front for place in board.places] == [True] * 4
    assert board.before is not None
    assert (board.before.accuracy.value, board.before.nll.value) == (pytest.approx(0.48), pytest.approx(2.0))


def test_another_metric_has_another_first_place(sweep: Path) -> None:
    by_nll = orpo_cli.compare(sweep, by="nll")
    assert lambdas(by_nll) == [(0, 1), (0.1, 2), (0.5, 3), (2, 4)]
    assert by_nll.winner is by_nll.places[0]
    assert by_nll.verdict.startswith(
        "lambda=0 is better by nll than each of the others on 100 pairs of 100 prompts (p <"
    )
    assert lambdas(orpo_cli.compare(sweep, by="balanced_accuracy"))[:2] == [(0.5, 1), (2, 1)]


def test_what_each_of_two_settings_did(tmp_path: Path, config: RunConfig) -> None:
    """lambda 0.1: 60 and 70 of 100 pairs; 1: 80 and 90."""
    folders = []
    for number, (lambda_, lr, count) in enumerate([(0.1, 1e-5, 60), (0.1, 1e-4, 70), (1, 1e-5, 80), (1, 1e-4, 90)]):
        changed = with_lambda(replace(config, optimizer=replace(config.optimizer, lr=lr)), lambda_)
        folders.append(made_run(tmp_path / str(number), changed, won(count)))
    board = orpo_cli.compare(*folders)
    assert {(effect.key, effect.value): (effect.runs, effect.means["accuracy"]) for effect in board.effects} == {
        ("lambda", 0.1): (2, pytest.approx(0.65)),
        ("lambda", 1): (2, pytest.approx(0.85)),
        ("optimizer.lr", 1e-5): (2, pytest.approx(0.7)),
        ("optimizer.lr", 1e-4): (2, pytest.approx(0.8)),
    }
    assert board.winner is not None
    assert board.winner.name == "lambda=1 optimizer.lr=0.0001"
    assert "one seed for each recipe" in board.notes[0]


def test_a_setting_is_judged_among_runs_that_are_alike_in_the_others(tmp_path: Path, config: RunConfig) -> None:
    """lambda 0.1 has 60 of 100 pairs, 1 has 80; another loss at 0.1 has 100, which says nothing of lambda."""
    folders = [
        made_run(tmp_path / "a", with_lambda(config, 0.1), won(60)),
        made_run(tmp_path / "b", with_lambda(config, 1), won(80)),
        made_run(tmp_path / "c", with_lambda(replace(config, loss=replace(config.loss, name="x")), 0.1), won(100)),
    ]
    found = {(effect.key, effect.value): effect.means["accuracy"] for effect in orpo_cli.compare(*folders).effects}
    assert (found["lambda", 0.1], found["lambda", 1]) == (pytest.approx(0.6), pytest.approx(0.8))


def reasons(board: Leaderboard) -> dict[str, str | None]:
    return {Path(run.folder).name: run.reason for run in board.unranked}


OTHER_PAIRS: dict[str, Callable[[Path, RunConfig], Path]] = {
    "other held-out pairs: 80 pairs of made@012345, and not the 100 pairs of made@012345 as {a}": (
        lambda path, config: made_run(path, config, won(40, pairs=80))
    ),
    "other held-out pairs than {a}: as many of the same files, but not the same": (
        lambda path, config: made_run(path, config, won(40), rows=np.arange(PAIRS) + 1)
    ),
    "other held-out pairs: 100 pairs of made@fedcba, and not the 100 pairs of made@012345 as {a}": (
        lambda path, config: made_run(path, config, won(40), digest="fedcba9876543210")
    ),
}


@pytest.mark.parametrize("reason", OTHER_PAIRS)
def test_runs_on_other_held_out_pairs_are_refused_in_words(reason: str, tmp_path: Path, config: RunConfig) -> None:
    for name, lambda_ in (("a", 0.1), ("b", 1)):
        made_run(tmp_path / name, with_lambda(config, lambda_), won(50))
    other = OTHER_PAIRS[reason](tmp_path / "other", with_lambda(config, 2))
    board = orpo_cli.compare(other, tmp_path / "a", tmp_path / "b")
    assert [place.settings["lambda"] for place in board.places] == [0.1, 1]
    assert reasons(board) == {"other": reason.format(a=tmp_path / "a")}


def test_where_no_two_can_be_compared_none_is_ranked(
    tmp_path: Path, config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    made_run(tmp_path / "a", config, won(50))
    made_run(tmp_path / "b", with_lambda(config, 2), won(50, pairs=80))
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 65
    shown = capsys.readouterr()
    assert "Nothing is ranked." in shown.out
    assert "no two of these runs can be ranked by accuracy; the reason is beside each of them" in shown.err


def test_a_loss_is_compared_under_one_objective_only_and_claims_no_rank(sweep: Path, tmp_path: Path) -> None:
    board = orpo_cli.compare(sweep, by="loss")
    assert [place.seeds for place in board.places] == [(0, 1)]
    assert "another objective, orpo: nll + 0.1 x odds ratio, than" in str(reasons(board)["2"])
    config = RunFolder(sweep / "0").config
    made_run(tmp_path / "low", replace(config, optimizer=replace(config.optimizer, lr=1e-9)), won(50), loss=0.5)
    board = orpo_cli.compare(sweep / "0", tmp_path / "low", by="loss")
    assert [(place.rank, place.loss) for place in board.places] == [(None, 0.5), (None, 1.0)]
    assert board.winner is None
    assert "nothing tests" in board.verdict


def test_numbers_a_token_are_not_compared_between_tokenizers(tmp_path: Path, config: RunConfig) -> None:
    made_run(tmp_path / "a", config, won(50))
    made_run(tmp_path / "b", with_lambda(config, 1), won(60))
    fewer = won(55)
    made_run(tmp_path / "other", with_lambda(config, 2), replace(fewer, chosen_tokens=fewer.chosen_tokens - 1))
    folders = [tmp_path / name for name in ("a", "b", "other")]
    by_accuracy = compare(folders)
    assert len(by_accuracy.places) == 3
    assert all(place.is_on_front is None for place in by_accuracy.places)
    assert lambdas(by_accuracy)[0] == (1, 1)
    assert by_accuracy.verdict.endswith("they stand in the order of their accuracy, and more pairs may tell.")
    assert "their nll and margin cannot be compared" in " ".join(by_accuracy.notes)
    by_nll = compare(folders, "nll")
    assert len(by_nll.places) == 2
    assert str(reasons(by_nll)["other"]).startswith(f"other tokens than {tmp_path / 'a'}")


def test_the_same_seed_twice_is_not_two_seeds(tmp_path: Path, config: RunConfig) -> None:
    for name in ("a", "again"):
        made_run(tmp_path / name, config, won(50))
    board = orpo_cli.compare(tmp_path / "a", tmp_path / "again", tmp_path / "a")
    assert [place.seeds for place in board.places] == [(0,)]
    assert reasons(board) == {"again": f"the recipe and the seed of {tmp_path / 'a'}, which is ranked"}


def test_unfinished_and_failed_runs_are_named_and_never_ranked(sweep: Path, config: RunConfig) -> None:
    made_run(sweep / "begun", config, won(99), finished=False)
    made_run(sweep / "saved", config, won(99), finished=False)
    (sweep / "saved" / "checkpoints" / "step-000020").mkdir(parents=True)
    made_run(sweep / "running", config, won(99), finished=False)
    made_run(sweep / "nothing", config, won(99), pairs={"train": 9, "eval": 0}, end={})
    outcomes = {sweep / "dead": JobOutcome("lambda=9", "diverged (exit 76)")}
    with RunFolder(sweep / "running").claimed(resuming=True):
        names = ("begun", "saved", "running", "nothing", "dead")
        board = compare([sweep, *(sweep / name for name in names)], outcomes=outcomes)
    assert len(board.places) == 4
    states = {Path(run.folder).name: (run.name, run.state) for run in board.unranked}
    assert states == {
        "begun": ("", "unfinished, nothing saved"),
        "saved": ("", "unfinished, resumes after step 20"),
        "running": ("", "running"),
        "nothing": ("", "finished"),
        "dead": ("lambda=9", "diverged (exit 76)"),
    }
    assert str(reasons(board)["nothing"]).startswith("held no pairs out")


def test_what_cannot_be_compared_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match=r"holds neither a run nor a sweep; `orpo runs"):
        orpo_cli.compare(tmp_path)
    with pytest.raises(ConfigError, match=r"by=speed: expected one of accuracy, balanced_accuracy, nll, margin, loss"):
        orpo_cli.compare(tmp_path, by="speed")
