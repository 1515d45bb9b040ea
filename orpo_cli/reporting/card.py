"""The card of a model: README.md beside its weights, for people and, in its first lines, for the model hub.

Nothing in it depends on where or when a run took place, so that equal runs have equal cards.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from orpo_cli.quoting import escaped, harmless
from orpo_cli.reporting.evaluation import number_rows, reasons
from orpo_cli.reporting.summary import SUMMARIZED
from orpo_cli.statistics.answers import Answer
from orpo_cli.statistics.evaluation import Evaluation

SAMPLES_SHOWN = 2
_LONGEST = 1000
"""Characters of a prompt or an answer that are shown."""


@dataclass(frozen=True)
class Base:
    """The model that a run began with.

    Args:
        hub_id: its name on the hub; None where it is not known to be there.
        words: what it is.
    """

    hub_id: str | None
    words: str


@dataclass(frozen=True)
class CardFacts:
    """What a card says.

    Args:
        library: the library that loads the files: transformers, peft or gguf.
        trained: what of the base was trained, and how.
        weights: of which step the weights are, and how they are stored.
        data: name, shape and checksum of each file.
        datasets: those of them that are on the hub.
        ledger: how many pairs ended in which part and class.
        evaluation: what the model gives to held-out pairs; None where that is not known.
        reading: what is to be said of the run.
        before, after: answers of the base and of the model to the same prompts.
        usage: how to use the model, in Markdown.
        command: what makes it again.
    """

    title: str
    base: Base
    library: str
    tags: Sequence[str]
    trained: str
    weights: str
    objective: str
    formula: str
    data: Sequence[tuple[str, str, str]]
    datasets: Sequence[str]
    rows: int
    ledger: Sequence[tuple[str, str, int]]
    evaluation: Evaluation | None
    reading: Sequence[str]
    before: Sequence[Answer]
    after: Sequence[Answer]
    usage: str
    versions: Mapping[str, str]
    command: str


def card(facts: CardFacts) -> str:
    """Return the card of a model, in Markdown with metadata of the hub before it."""
    return "\n".join([*_metadata(facts), *_body(facts)]) + "\n"


def _metadata(facts: CardFacts) -> Iterator[str]:
    """Yield the metadata of the hub; what only the user can say is left to him in a comment."""
    relation = "adapter" if facts.library == "peft" else "finetune"
    values: dict[str, Any] = {
        **({"base_model": facts.base.hub_id, "base_model_relation": relation} if facts.base.hub_id else {}),
        "library_name": facts.library,
        "pipeline_tag": "text-generation",
        "tags": list(facts.tags),
        **({"datasets": list(facts.datasets)} if facts.datasets else {}),
    }
    yield "---"
    yield yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip()
    if not facts.base.hub_id:
        yield "# base_model: ORG/NAME, if the base is on the hub"
    yield "# license: yours to choose, within those of the base model and of the data"
    yield "---"


def _body(facts: CardFacts) -> Iterator[str]:
    yield from ("", f"# {_line(facts.title)}", "")
    yield "A language model fine-tuned on preferences with ORPO (Odds Ratio Preference Optimization, arXiv 2403.07691)."
    yield from ("", f"- Base: {_line(facts.base.words)}", f"- Trained: {_line(facts.trained)}")
    yield f"- Weights: {_line(facts.weights)}"
    yield from _section("How to use it", [facts.usage])
    yield from _section("Objective", [_line(facts.objective), "", *_fenced(facts.formula)])
    yield from _section("Data", _data(facts))
    yield from _section("Held-out results", _results(facts))
    if facts.before and facts.after:
        yield from _section("Samples", _samples(facts.before, facts.after))
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    yield from _section("Made with", [f"{versions}.", "", "Made again by:", "", *_fenced(facts.command)])


def _section(heading: str, lines: Iterable[str]) -> Iterator[str]:
    yield from ("", f"## {heading}", "")
    yield from lines


def _data(facts: CardFacts) -> Iterator[str]:
    yield from _table(["file", "shape", "SHA-256"], [[f"`{_line(name)}`", *rest] for name, *rest in facts.data])
    yield ""
    yield f"{facts.rows:,} rows; what became of their pairs:"
    yield ""
    yield from _table(["part", "class", "pairs"], [[part, name, f"{count:,}"] for part, name, count in facts.ledger])


def _results(facts: CardFacts) -> Iterator[str]:
    evaluation = facts.evaluation
    if evaluation is None:
        yield "No results on held-out pairs are known for this model."
        return
    summary = evaluation.summary
    head = ["", "after", "95 % interval"] + ["before", "95 % interval"] * (evaluation.against is not None)
    yield f"{summary.pairs:,} pairs of {summary.prompts:,} prompts, not trained on; intervals are over prompts."
    yield '"Longer wins" is the accuracy of a rule that takes the response with more tokens for the better one.'
    yield "Nll, margin and logps are in nats a token."
    yield ""
    yield from _table(head, number_rows(evaluation, SUMMARIZED))
    if unsaid := list(reasons(summary)):
        yield from ("", f"{'. '.join(unsaid)}.")
    if facts.reading:
        yield from ("", *(f"- {_line(sentence)}" for sentence in facts.reading))


def _samples(before: Sequence[Answer], after: Sequence[Answer]) -> Iterator[str]:
    yield "Greedy answers, cut at the number of tokens that the run allowed."
    for then, now in list(zip(before, after, strict=False))[:SAMPLES_SHOWN]:
        for name, text in (("Prompt", then.prompt), ("Before training", then.answer), ("After", now.answer)):
            yield from ("", f"{name}:", "", *_fenced(text[:_LONGEST]))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)


def _fenced(text: str) -> list[str]:
    """Return lines that show a text as it is, whatever signs are in it."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", harmless(text), fence]


def _line(text: str) -> str:
    return escaped(text).replace("`", "'")
