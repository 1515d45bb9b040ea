"""Fixtures of all tests."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from orpo_cli.config.keys import builtin_configs
from orpo_cli.config.load import load_config
from orpo_cli.config.schema import RunConfig

signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)
"""A shell starts what it puts into the background deaf to SIGINT, nohup to SIGHUP; runs of tests would inherit that."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of this test's own."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("ORPO_CACHE", str(directory))
    return directory


@pytest.fixture(scope="session")
def compose_config() -> Callable[..., RunConfig]:
    """`compose_config("loss=trl", "lambda=0.2")`: the checked configuration of `orpo train loss=trl lambda=0.2`."""

    def composed(*overrides: str) -> RunConfig:
        OmegaConf.register_new_resolver("orpo.run_dir", lambda _resume, out: out, replace=True)
        with initialize_config_dir(str(builtin_configs()), version_base="1.3"):
            return load_config(compose("train", overrides=list(overrides)))

    return composed


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread: for models of a few thousand weights, where threads only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
