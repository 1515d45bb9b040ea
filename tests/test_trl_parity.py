"""`loss=trl` against TRL's ORPOTrainer, by the functions and with the tolerances of scripts/compare_with_trl."""

import importlib.util
import math
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")  # TRL's own
SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "compare_with_trl"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module; without the peer it ends here, in an error and not in a skipped test."""
    loader = SourceFileLoader("compare_with_trl", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def setups(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The same run under each optimizer."""
    folder = tmp_path_factory.mktemp("comparison")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("ORPO_CACHE", str(folder / "cache"))
        model, pairs = script.write_small_llama(folder / "model"), script.write_pairs(folder / "pairs.jsonl")
        rates = script.RANDOM_MODEL_LR
        yield {optimizer: script.set_up(model, pairs, optimizer, lr) for optimizer, lr in rates.items()}


@pytest.fixture(scope="module")
def ours(script: ModuleType, setups: dict[str, Any]) -> dict[str, Any]:
    return {optimizer: script.train_ours(setup) for optimizer, setup in setups.items()}


@pytest.fixture(scope="module")
def trl(script: ModuleType, setups: dict[str, Any]) -> dict[str, Any]:
    return {optimizer: script.train_trl(setup) for optimizer, setup in setups.items()}


def assert_all_hold(checks: list[Any]) -> None:
    assert [check for check in checks if not check.holds] == []


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_steps_of_one_micro_batch(
    script: ModuleType, ours: dict[str, Any], trl: dict[str, Any], optimizer: str
) -> None:
    """32 pairs are 4 steps, each of them one forward pass on both sides."""
    assert ours[optimizer].cut == trl[optimizer].cut == [8, 8, 8, 8]
    checks = script.compare_objective(optimizer, ours[optimizer], trl[optimizer])
    assert len(checks) == (4 if optimizer == "sgd" else 3)
    assert_all_hold(checks)


@pytest.mark.parametrize("pairs_in_one", [4, 2, 1])
def test_cut_steps_stay_the_same(
    script: ModuleType, setups: dict[str, Any], ours: dict[str, Any], pairs_in_one: int
) -> None:
    cut = script.train_ours(setups["sgd"], pairs_in_one)
    assert sum(cut.cut) == 32
    assert len(cut.cut) > 4
    assert_all_hold(script.compare_cut(f"{pairs_in_one} pairs", cut, ours["sgd"]))


def test_the_comparison_sees_an_average_of_averages(
    script: ModuleType, setups: dict[str, Any], trl: dict[str, Any]
) -> None:
    """TRL's cut steps average the nll by micro-batch; what that changes is far outside of what is allowed to us."""
    cut = script.train_trl(setups["sgd"], 2)
    assert cut.cut == [2] * 16
    for check in script.compare_cut("TRL", cut, trl["sgd"]):
        assert check.difference > 10 * check.tolerance, check


def test_the_weights_compared_have_moved(script: ModuleType, setups: dict[str, Any], ours: dict[str, Any]) -> None:
    start = script.AutoModelForCausalLM.from_pretrained(setups["sgd"].files.directory)
    moved = script.weight_difference(ours["sgd"].weights, script.weights_of(start))
    assert moved > 100 * script.WEIGHT_TOLERANCE


def test_a_check_fails_on_nan_and_beyond_its_tolerance(script: ModuleType) -> None:
    differences = [float("nan"), float("inf"), 1.1e-4, 1e-4, 0.0]
    assert [script.Check("loss", value, 1e-4).holds for value in differences] == [False, False, False, True, True]
    for position in range(2):
        losses = [1.0, 1.0]
        losses[position] = float("nan")
        assert math.isnan(script.difference(losses, [1.0, 1.0]))
        assert math.isnan(script.relative_difference(losses, [1.0, 1.0]))


@pytest.mark.slow
def test_the_script_ends_well() -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "FAILED" not in done.stdout
    assert done.stdout.count("TRL 1x8") == 1
