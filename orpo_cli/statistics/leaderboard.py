"""Put runs side by side: what can be compared, pooled over seeds, ranked by a paired test; the rest with its reason."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orpo_cli.statistics.comparability import Candidate, Unranked, comparable
from orpo_cli.statistics.intervals import Estimate
from orpo_cli.statistics.pooled import Pooled, contributions, pooled, spread
from orpo_cli.statistics.ranking import Contender, Standing, front, ranked

METRICS = ("accuracy", "balanced_accuracy", "nll", "margin")
BY = (*METRICS, "loss")
"""What runs can be ranked by."""


@dataclass(frozen=True)
class Place:
    """One recipe on the leaderboard.

    Args:
        rank: shared by recipes that cannot be told apart; None where nothing tests the order.
        settings: the settings in which the recipes differ, by key.
        folders, seeds: of its runs.
        metrics: the means over its runs, with intervals.
        values: what each of its runs has, by metric, for each that can be said.
        loss: the mean over its runs, where runs are ordered by it.
        p: see `Standing`.
        is_on_front: whether no other recipe is as good in accuracy and nll and better in one; None where there is no
            other, or nll cannot be compared.
    """

    rank: int | None
    settings: Mapping[str, Any]
    folders: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: Pooled
    values: Mapping[str, Sequence[float]]
    loss: float | None
    p: float | None
    is_on_front: bool | None

    @property
    def name(self) -> str:
        """Return the settings in words."""
        return in_words(self.settings)

    @property
    def spread(self) -> dict[str, float | None]:
        """Return the standard deviation of each metric over its runs; None for one run."""
        return {name: spread(values) for name, values in self.values.items()}


@dataclass(frozen=True)
class Effect:
    """What the runs with one value of a setting have in common.

    Args:
        runs: how many there are.
        means: of each metric over these runs; None where it cannot be said.
    """

    key: str
    value: Any
    runs: int
    means: Mapping[str, float | None]


@dataclass(frozen=True)
class Leaderboard:
    """Runs side by side.

    Args:
        by: the metric that they are ranked by.
        pairs, prompts: the number of held-out pairs that all ranked runs were scored on, and of their prompts.
        keys: the settings in which the ranked runs differ, but for the seed.
        places: one for each recipe, the best first.
        before: the model before training, where all began with the same.
        effects: for each of several keys, what its values have in common.
        unranked: runs that are not ranked, with the reason.
        notes: what a reader should know, one line each.
        has_nll: whether nll and margin can be compared.
    """

    by: str
    pairs: int
    prompts: int
    keys: tuple[str, ...]
    places: tuple[Place, ...]
    before: Pooled | None
    effects: tuple[Effect, ...]
    unranked: tuple[Unranked, ...]
    notes: tuple[str, ...]
    has_nll: bool

    @property
    def winner(self) -> Place | None:
        """Return the recipe that the tests separate from each of the others, if there is one."""
        alone = len(self.places) > 1 and self.places[0].rank is not None and self.places[1].rank != 1
        return self.places[0] if alone else None

    @property
    def verdict(self) -> str:
        """Return in a sentence what the ranks say."""
        if not self.places:
            return "Nothing is ranked."
        on, first = f"on {self.pairs} pairs of {self.prompts} prompts", self.places[0]
        if len(self.places) == 1:
            return f"One recipe, {on}: there is nothing to rank it against."
        if first.rank is None:
            return f"{first.name or 'The first'} has the lowest loss {on}; nothing tests its lead."
        if self.winner is not None:
            p = max(place.p for place in self.places if place.p is not None)
            return f"{first.name} is better by {self.by} than each of the others {on} (p <= {max(p, 1e-4):.2g})."
        tied = [place.name for place in self.places if place.rank == 1]
        names = ", ".join(tied[:4]) + (f" and {len(tied) - 4} more" if len(tied) > 4 else "")
        order = "nll" if self.has_nll else self.by
        return (
            f"{names} cannot be told apart by {self.by} {on}; they stand in the order of their {order}, and more pairs "
            "may tell."
        )


def leaderboard(
    candidates: Sequence[Candidate], unranked: Sequence[Unranked] = (), by: str = "accuracy"
) -> Leaderboard:
    """Rank finished runs.

    Args:
        unranked: runs that are known to be not finished, or not scored.
        by: one of `BY`.
    """
    kept, refused = comparable(candidates, by)
    unranked = [*unranked, *refused]
    if not kept:
        return Leaderboard(by, 0, 0, (), (), None, (), tuple(unranked), (), has_nll=False)
    recipes = _recipes(kept)
    first = kept[0]
    has_nll = len({candidate.tokens for candidate in kept}) == 1
    keys = _keys([runs[0].settings for runs in recipes])
    order = _by_loss(recipes) if by == "loss" else _tested(recipes, by, has_nll)
    metrics = [pooled([run.pairs for run in runs]) for runs in recipes]
    points = [(part.accuracy.value, part.nll.value) for part in metrics]
    on_front: list[bool] | list[None] = front(points) if has_nll and len(points) > 1 else [None] * len(points)
    places = tuple(_place(recipes[s.index], s, metrics[s.index], keys, by, on_front[s.index]) for s in order)
    return Leaderboard(
        by=by,
        pairs=len(first.pairs),
        prompts=first.pairs.prompts,
        keys=keys,
        places=places,
        before=_before(kept),
        effects=_effects(kept, keys) if len(keys) > 1 else (),
        unranked=tuple(unranked),
        notes=tuple(_notes(by, recipes, metrics, has_nll)),
        has_nll=has_nll,
    )


def in_words(settings: Mapping[str, Any]) -> str:
    """Return settings as they are typed, as near as words come."""
    return " ".join(f"{key}={shown(value)}" for key, value in settings.items())


def shown(value: Any) -> str:
    """Return the value of a setting as it is shown."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _recipes(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Return the runs of each recipe, which have the same settings but for the seed."""
    found: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        found.setdefault(candidate.recipe, []).append(candidate)
    return list(found.values())


def _keys(settings: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the keys in which recipes differ; of several that differ alike with an option, as those of a loss, one.

    That one is the name of the option, or else the first key of its section. Those of a search differ alike by chance.
    """
    parted: dict[tuple[int, ...], list[str]] = {}
    for key in sorted(dict.fromkeys(key for one in settings for key in one), key=lambda key: not key.endswith(".name")):
        values = [shown(one.get(key)) for one in settings]
        numbers = tuple(values.index(value) for value in values)
        alike = parted.setdefault(numbers, [])
        if any(numbers) and not any(other.endswith(".name") or _section(other) == _section(key) for other in alike):
            alike.append(key)
    names = dict.fromkeys(key for one in settings for key in one)
    differing = {key for alike in parted.values() for key in alike}
    return tuple(key for key in names if key in differing)


def _section(key: str) -> str:
    return key.partition(".")[0]


def _tested(recipes: Sequence[Sequence[Candidate]], by: str, has_nll: bool) -> list[Standing]:
    sign = -1 if by == "nll" else 1
    contenders = []
    for runs in recipes:
        pairs = [run.pairs for run in runs]
        parts = sign * contributions(by, pairs)
        tie = contributions("nll", pairs).sum(1).mean() if has_nll else -parts.sum(1).mean()
        contenders.append(Contender(parts, float(tie)))
    return ranked(contenders, recipes[0][0].pairs.prompt)


def _by_loss(recipes: Sequence[Sequence[Candidate]]) -> list[Standing]:
    losses = [float(np.mean([run.loss for run in runs])) for runs in recipes]
    return [Standing(index, None, None) for index in sorted(range(len(recipes)), key=losses.__getitem__)]


def _place(
    runs: Sequence[Candidate], standing: Standing, metrics: Pooled, keys: Sequence[str], by: str, on_front: bool | None
) -> Place:
    pairs, values = [run.pairs for run in runs], vars(metrics)
    said = [name for name in METRICS if not isinstance(values[name], str)]
    return Place(
        rank=standing.rank,
        settings={key: runs[0].settings.get(key) for key in keys},
        folders=tuple(run.folder for run in runs),
        seeds=tuple(run.seed for run in runs),
        metrics=metrics,
        values={name: contributions(name, pairs).sum(1).tolist() for name in said},
        loss=float(np.mean([run.loss for run in runs])) if by == "loss" else None,
        p=standing.p,
        is_on_front=on_front,
    )


def _before(candidates: Sequence[Candidate]) -> Pooled | None:
    """Return the metrics of the model before training, if all runs began with the same model."""
    models = {shown(candidate.settings.get("model.path")) for candidate in candidates}
    before = next((candidate.before for candidate in candidates if candidate.before is not None), None)
    return pooled([before]) if before is not None and len(models) == 1 else None


def _effects(candidates: Sequence[Candidate], keys: Sequence[str]) -> tuple[Effect, ...]:
    """Return for each value of each key the means over its runs, among runs that are alike in all other keys.

    Only such groups count as have every value: in others, the means would differ by the other keys too. A key of which
    no group has all values, as in a search, is left out.
    """
    found = []
    for key in keys:
        values = {shown(candidate.settings.get(key)): candidate.settings.get(key) for candidate in candidates}
        candidates_alike = _alike_but_for(key, candidates, keys)
        matched = [
            run
            for alike in candidates_alike
            if {shown(one.settings.get(key)) for one in alike} == values.keys()
            for run in alike
        ]
        for word, value in sorted(values.items(), key=lambda item: in_order(item[1])) if matched else ():
            runs = [run for run in matched if shown(run.settings.get(key)) == word]
            metrics = [vars(pooled([run.pairs])) for run in runs]
            means = {name: _mean([part[name] for part in metrics]) for name in METRICS}
            found.append(Effect(key, value, len(runs), means))
    return tuple(found)


def _alike_but_for(key: str, candidates: Sequence[Candidate], keys: Sequence[str]) -> list[list[Candidate]]:
    """Return the runs in groups that differ in nothing but one key, and the seed."""
    groups: dict[tuple[str, ...], list[Candidate]] = {}
    for candidate in candidates:
        rest = tuple(shown(candidate.settings.get(other)) for other in keys if other != key)
        groups.setdefault(rest, []).append(candidate)
    return list(groups.values())


def in_order(value: Any) -> tuple[bool, float, str]:
    """Return what the values of a setting are sorted by: numbers first, by size."""
    is_number = isinstance(value, int | float)
    return not is_number, float(value) if is_number else 0.0, shown(value)


def _mean(estimates: Sequence[Estimate | str]) -> float | None:
    values = [part.value for part in estimates if not isinstance(part, str)]
    return sum(values) / len(values) if len(values) == len(estimates) else None


def _notes(by: str, recipes: Sequence[Sequence[Candidate]], metrics: Sequence[Pooled], has_nll: bool) -> Iterator[str]:
    if by == "loss":
        yield "a loss is recorded for a run as a whole, so nothing tests the order, and no rank is claimed"
    elif len(recipes) > 1 and all(len(runs) == 1 for runs in recipes):
        yield (
            "one seed for each recipe: what is told apart are these models, on other prompts; add seeds "
            "(seed=0,1,2) to tell recipes apart"
        )
    if not has_nll:
        yield "the models cut the responses into different tokens: their nll and margin cannot be compared"
    yield from dict.fromkeys(reason for part in metrics if isinstance(reason := part.balanced_accuracy, str))
