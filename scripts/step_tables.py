"""The tables of scripts/bench_step: what was measured of each side, beside TRL's fastest setting."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

LIKE_FOR_LIKE, DEFAULT_LOSS = "orpo packed loss=trl", "orpo packed loss=orpo"


@dataclass(frozen=True)
class Measured:
    """One process.

    Args:
        seconds: of each counted step.
        pairs, tokens: of the counted steps; a prompt's tokens once.
        first_loss: of the run's first step.
        peak: bytes of the process at its highest.
        step_peak: the same during counted steps alone.
        kept: bytes of the process before it had a model, of the weights, their copies, gradients and optimizer state.
        body, head, attention: FLOPs of the counted steps: of ours what they need, of TRL's what it spends.
        rates: FLOP/s of the step's matrix products after the first step and after the last; not measured for TRL.
    """

    seconds: list[float]
    pairs: int
    tokens: int
    first_loss: float
    peak: int
    step_peak: int = 0
    kept: int = 0
    body: float = 0
    head: float = 0
    attention: float = 0
    rates: tuple[float, float] = (0, 0)

    @property
    def pairs_per_second(self) -> float:
        """Over all counted steps."""
        return self.pairs / sum(self.seconds)

    @property
    def flops(self) -> float:
        """Of the counted steps."""
        return self.body + self.head + self.attention

    @property
    def rate(self) -> float:
        """FLOP/s of the matrix products."""
        return statistics.mean(self.rates)


@dataclass(frozen=True)
class Side:
    """The rounds of one side together.

    Args:
        rounds: at least one.
    """

    rounds: list[Measured]

    @property
    def is_ours(self) -> bool:
        """Whether the rates of products were measured."""
        return any(self.rounds[0].rates)

    @property
    def speed(self) -> float:
        """Pairs/s, the median."""
        return statistics.median(one.pairs_per_second for one in self.rounds)

    @property
    def peak(self) -> int:
        """Bytes, the highest."""
        return max(one.peak for one in self.rounds)

    @property
    def flops(self) -> float:
        """Of a pair."""
        return self.rounds[0].flops / self.rounds[0].pairs

    @property
    def rate(self) -> float:
        """FLOP/s of the matrix products, the median."""
        return statistics.median(one.rate for one in self.rounds)

    @property
    def utilisation(self) -> float:
        """Share of that rate which the needed FLOPs reach, the median."""
        return statistics.median(one.flops / sum(one.seconds) / one.rate for one in self.rounds)


COLUMNS = ("pairs/s", "/ best", "/ default", "FLOPs", "reached", "peak GB", "/ best", "/ default", "loss diff", "GEMM",
           "MFU")  # fmt: skip


@dataclass(frozen=True)
class Beside:
    """One of ours beside TRL's best.

    Args:
        speed: pairs/s, times TRL's.
        flops: those that TRL spends, times those that the pairs need.
    """

    speed: float
    flops: float

    @classmethod
    def of(cls, ours: Side, best: Side) -> "Beside":
        """From the measurements of both."""
        return cls(ours.speed / best.speed, best.flops / ours.flops)

    @property
    def reached(self) -> float:
        """The speed-up, as a share of what the FLOPs would give."""
        return self.speed / self.flops


def print_case(
    found: Mapping[str, Side], best: str | None, default: str | None, reference: tuple[float, str] | None
) -> None:
    """Print the table of one case.

    Args:
        best, default: the rows of TRL's fastest setting and of its default, where they were measured.
        reference: the loss that ours are compared with, and a word on it.
    """
    print(f"\n  {'':<30}" + "".join(f"{column:>10}" for column in COLUMNS))
    for name, side in found.items():
        others = [found[peer] if peer else None for peer in (best, default)]
        cells = [f"{side.speed:.3f}", *(f"{side.speed / other.speed:.2f}" if other else "" for other in others)]
        beside = Beside.of(side, found[best]) if best and side.is_ours else None
        cells += [f"{beside.flops:.2f}", f"{beside.reached:.0%}"] if beside else ["", ""]
        cells += [f"{side.peak / 1e9:.2f}", *(f"{side.peak / other.peak:.2f}" if other else "" for other in others)]
        agrees = reference is not None and side.is_ours and "=trl" in name
        cells.append(f"{abs(side.rounds[0].first_loss - reference[0]):.1e}" if reference and agrees else "")
        cells += [f"{side.rate / 1e9:.0f}", f"{side.utilisation:.0%}"] if side.is_ours else []
        spread = [one.pairs_per_second for one in side.rounds]
        rest = f"   {min(spread):.3f} to {max(spread):.3f}" if len(spread) > 1 else ""
        print(f"  {name:<30}" + "".join(f"{cell:>10}" for cell in cells) + rest)
    if best:
        print(f"  / best: {best}; / default: {default or 'not tried'}")
        print("  FLOPs: those that TRL spends at its best, by those that the pairs need; reached: / best, by that")
    if reference:
        print(f"  loss diff: to TRL's {reference[0]:.4f}, {reference[1]}")
    print("  GEMM: GFLOP/s of the step's own products, each alone; MFU: needed FLOP/s as a share of it")
    print("  at the right the slowest and fastest round in pairs/s", flush=True)


MARKDOWN_HEAD = """
| 8 pairs a step, beside TRL's fastest setting | pairs/s, times TRL's | FLOPs of TRL, times those needed \
| the first as a share of the second | peak memory: `orpo` of TRL \
| needed FLOP/s, as a share of the step's own products alone |
|---|---|---|---|---|---|"""


def in_markdown(case: str, found: Mapping[str, Side], best: str | None) -> list[str]:
    """The rows of the packed layout; none without TRL."""
    rows = []
    for name in (LIKE_FOR_LIKE, DEFAULT_LOSS):
        if best and name in found:
            ours, theirs = found[name], found[best]
            beside = Beside.of(ours, theirs)
            memory = f"{ours.peak / 1e9:.1f} of {theirs.peak / 1e9:.1f} GB"
            cells = [f"{beside.speed:.2f}", f"{beside.flops:.2f}", f"{beside.reached:.0%}", memory]
            rows.append(f"| {case}, `{name.split()[-1]}` | {' | '.join(cells)} | {ours.utilisation:.0%} |")
    return rows
