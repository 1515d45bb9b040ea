"""`trainer.max_time` leaves time for the longest step and the longest save."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from orpo_cli.checkpoints.background import BackgroundSaver
from orpo_cli.machine import time_limit
from orpo_cli.machine.time_limit import TimeLimit

Clock = Callable[[float], None]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """`passes(3)`: three seconds go by; the process is a second old at first."""
    now = [1000.0]
    born = psutil.Process().create_time()
    monkeypatch.setattr(time_limit.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time_limit.time, "time", lambda: born + 1)

    def later(seconds: float) -> None:
        now[0] += seconds

    return later


def stretches(limit: TimeLimit, passes: Clock, seconds: float, saves: int = 1) -> int:
    """Return how many stretches of this length are taken."""
    count = 0
    while True:
        limit.begin_stretch()
        passes(seconds)
        count += 1
        if limit.leaves_no_time(saves):
            return count


def test_the_longest_save_so_far_is_left(passes: Clock) -> None:
    limit = TimeLimit(100)
    limit.saved(30)
    limit.saved(20)
    assert stretches(limit, passes, 1) == 100 - 1 - 30 - 2 + 1
    assert limit.last_save == 20


def test_as_many_saves_as_are_to_come_are_left(passes: Clock) -> None:
    limit = TimeLimit(100)
    limit.saved(30)
    assert stretches(limit, passes, 1, saves=2) == 100 - 1 - 60 - 2 + 1


@pytest.mark.parametrize(("seconds", "left"), [(100, 10), (36_000, 600)])
def test_before_the_first_save_a_tenth_is_left_at_most_ten_minutes(seconds: int, left: int, passes: Clock) -> None:
    assert stretches(TimeLimit(seconds), passes, 1) == seconds - 1 - left - 2 + 1


def test_saves_are_not_part_of_the_longest_stretch(passes: Clock) -> None:
    limit = TimeLimit(100)
    limit.saved(1)
    limit.begin_stretch()
    passes(1)
    assert not limit.leaves_no_time(1)
    passes(50)
    assert stretches(limit, passes, 1) == 100 - 1 - 51 - 1 - 2 + 1


def test_over_is_what_it_took_more(passes: Clock) -> None:
    limit = TimeLimit(10)
    passes(8)
    assert limit.over == 0
    passes(6)
    assert limit.over == 5


def test_the_time_of_a_run_in_several_processes_begins_with_the_one_that_starts_them(
    passes: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began four seconds before this one."""
    monkeypatch.setenv(time_limit.BEGAN, str(psutil.Process().create_time() - 4))
    limit = TimeLimit(10)
    passes(7)
    assert limit.over == pytest.approx(1 + 4 + 7 - 10)


def test_no_limit_is_never_over(passes: Clock) -> None:
    limit = TimeLimit(None)
    passes(1e9)
    assert not limit.leaves_no_time(5)
    assert limit.over == 0


def test_a_save_is_measured_from_its_beginning_to_its_publication(tmp_path: Path) -> None:
    """When its outcome is asked for does not matter; the part before the other steps counts too."""
    clock = time_limit.time
    writer = BackgroundSaver()

    def published() -> Path:
        clock.sleep(0.1)
        return tmp_path

    def begun() -> Callable[[], Path]:
        clock.sleep(0.1)
        return published

    writer.begin(1, begun)
    assert writer.is_busy
    clock.sleep(1.5)
    written = writer.finished(wait=True)
    writer.close(wait=True)
    assert written is not None
    assert not writer.is_busy
    assert 0.2 <= written.seconds < 1.4
