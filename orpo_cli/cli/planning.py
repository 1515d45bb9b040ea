"""The jobs of a sweep, looked at together before any of them starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orpo_cli.config.load import load_config
from orpo_cli.config.saved import load_saved_config
from orpo_cli.config.schema import AUTO, RunConfig
from orpo_cli.errors import ConfigError, OrpoError

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True)
class JobPlanned:
    """One job of a sweep that has not started.

    Args:
        goes_on: with the run in its folder, where there is one.
        sweep: the folder of the sweep it is of.
        problem: what is wrong with its configuration.
    """

    overrides: list[str]
    folder: Path
    sweep: Path
    is_limited: bool
    goes_on: bool
    problem: ConfigError | None


def planned(cfg: "DictConfig", overrides: list[str], folder: Path, sweep: Path) -> JobPlanned:
    """The job of a composed configuration."""
    resume, problem = cfg.get("resume"), None
    if resume in (None, AUTO):  # that of a run which is named is not known yet
        try:
            _refuse_other_run(load_config(cfg), folder)
        except ConfigError as error:
            problem = error
    is_limited = problem is None and cfg.trainer.get("max_time") is not None
    return JobPlanned(overrides, folder, sweep, is_limited, resume == AUTO, problem)


def check_jobs(jobs: Sequence[JobPlanned]) -> None:
    """Refuse a sweep whose jobs have no folder of their own in that of the sweep, one that would go on in the folder of
    another, and one that has nothing to do.

    Raises:
        ConfigError: it is one of these.
    """
    numbers: dict[Path, int] = {}
    for number, job in enumerate(jobs):
        if job.sweep != jobs[0].sweep:
            raise ConfigError(
                f"job {number}, in {job.sweep}: job 0 is in {jobs[0].sweep}; a sweep has one output_dir, "
                "and hydra.sweep.subdir names its jobs"
            )
        if job.folder.parent.resolve() != job.sweep.resolve():
            raise ConfigError(
                f"job {number}, in {job.folder}: its folder is not directly in that of the sweep, {job.sweep}"
            )
        if (first := numbers.setdefault(job.folder, number)) < number:
            raise ConfigError(f"job {number}, in {job.folder}: so is job {first}; each needs a folder of its own")
    for number, job in enumerate(jobs):
        if job.problem is not None and job.goes_on and (job.folder / "config.yaml").exists():
            raise ConfigError(f"job {number}, in {job.folder}: {job.problem}")
    problems = [job.problem for job in jobs if job.problem is not None]
    if len(problems) == len(jobs):
        raise problems[0]


def _refuse_other_run(config: RunConfig, folder: Path) -> None:
    """Compare with the run in a folder, in all but where data and model are.

    Raises:
        ConfigError: it has other settings.
    """
    from orpo_cli.cli.resume import identity, refuse_changes, wherever_the_model_is

    try:
        then = identity(load_saved_config(folder))
    except OrpoError:  # there is none, or one that the job itself says more of
        return
    if config.resume == AUTO:
        refuse_changes(wherever_the_model_is(then), wherever_the_model_is(identity(config)))
