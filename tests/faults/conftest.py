"""One warm process and one uninterrupted run for all faults of a session."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs import Orpo, write_pairs

STEPS = 6
"""Of the reference run, with a checkpoint after every second one."""


@pytest.fixture(scope="session")
def orpo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orpo]:
    server = Orpo(tmp_path_factory.mktemp("orpo"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """`arguments(folder, "lambda=0.2")`: what to type for a run of six steps in `folder`."""
    preferences = write_pairs(tmp_path_factory.mktemp("data") / "prefs.jsonl")

    def typed(folder: Path, *overrides: str) -> list[str]:
        return [
            "train", "model=tiny", f"data={preferences}", f"output_dir={folder}", "data.eval_fraction=0.25",
            "trainer.pairs_per_step=4", f"trainer.max_steps={STEPS}", "trainer.save_every=2", "trainer.eval_every=3",
            "trainer.sample_tokens=4", "optimizer.lr=1e-3", *overrides,
        ]  # fmt: skip

    return typed


@pytest.fixture(scope="session")
def reference(orpo: Orpo, arguments: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of `arguments` that nothing happened to."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    done = orpo.run(*arguments(folder))
    assert done.code == 0, done.output
    return folder
