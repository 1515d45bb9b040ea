"""What a user should know about preference data before training on it: each finding with its count and examples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orpo_cli.config.preferences import CheckConfig
from orpo_cli.data.checking.survey import EXAMPLES, Seen, Survey
from orpo_cli.data.pairs import Source
from orpo_cli.data.prepare import PreparedData
from orpo_cli.data.tokens.store import HASHES, PairStore, TokenizedFile, mixed


@dataclass(frozen=True)
class Example:
    """Where a finding stands.

    Args:
        excerpt: of the text that shows it; may be empty.
        like: the earlier pair that it resembles, if that is the finding.
    """

    source: Source
    excerpt: str = ""
    like: Source | None = None


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found.

    Args:
        name: see `orpo_cli.config.preferences.FINDINGS`.
        count: pairs that show it.
        text: what it is and what it does to training, in a sentence.
        examples: the first few places.
    """

    name: str
    count: int
    text: str
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Near:
    """Near duplicates: (pair, earlier pair) for each, and how many pairs were looked at."""

    found: Sequence[tuple[Source, Source]]
    looked_at: int


def findings(data: PreparedData, survey: Survey, near: Near, config: CheckConfig, bos_id: int | None) -> list[Finding]:
    """Everything there is to say, the gravest first; nothing about clean data.

    Args:
        bos_id: the token that begins a text, where the tokenizer has one.
    """
    parts = data.ledger.parts
    rows = [part.file.trainable() for part in parts]
    pairs = PairStore([(part.file, of_file) for part, of_file in zip(parts, rows, strict=True)])
    evaluated = np.repeat([part.split == "eval" for part in parts], [len(of_file) for of_file in rows])
    return [
        *_invalid([part.file for part in parts]),
        *_equal_pairs(pairs, evaluated),
        *_near(near),
        *_tokens(pairs, data.end_id, bos_id),
        *_two_sides(survey, config),
        *_lengths(data, config),
        *_texts(survey),
        *_shared(pairs, evaluated),
    ]


def _invalid(files: Sequence[TokenizedFile]) -> Iterator[Finding]:
    for name, text in (
        ("empty_field", "an empty or blank prompt or answer: there is nothing to learn from it"),
        ("template", "the chat template refuses the row, or writes it differently once it is answered"),
    ):
        count, examples = 0, list[Example]()
        for file in files:
            codes, classes = file.classes()
            if f"invalid:{name}" in classes:
                found = np.flatnonzero(codes == classes.index(f"invalid:{name}"))
                count += len(found)
                examples += [Example(file.source(int(row))) for row in found[:EXAMPLES]]
        if count:
            yield Finding(name, count, text, tuple(examples[:EXAMPLES]))


def _equal_pairs(pairs: PairStore, evaluated: Any) -> Iterator[Finding]:
    prompt, chosen, rejected = map(pairs.column, HASHES)
    same = np.flatnonzero(chosen == rejected)
    if len(same):
        text = "chosen and rejected are the same: the preference term teaches nothing, only the nll does"
        yield Finding("identical", len(same), text, _at(pairs, same))
    forward, backward = mixed(prompt, chosen, rejected), mixed(prompt, rejected, chosen)
    against = np.flatnonzero(np.isin(forward, backward) & (chosen != rejected))
    if len(against):
        text = "the same two answers to the same prompt stand both ways round: the pairs cancel each other"
        yield Finding("contradictory", len(against), text, _at(pairs, against))
    _, first, place = np.unique(forward ^ evaluated.astype(np.uint64), return_index=True, return_inverse=True)
    again = np.flatnonzero(first[place] != np.arange(len(forward)))
    if len(again):
        text = "exact copies of an earlier pair: they count twice in every epoch"
        yield Finding("duplicates", len(again), text, _at(pairs, again))
    yield from _repeated_answers(pairs, prompt, chosen)


def _repeated_answers(pairs: PairStore, prompt: Any, chosen: Any) -> Iterator[Finding]:
    """One answer to many prompts, as a constant column or a stock phrase makes it."""
    distinct = np.unique(np.stack([chosen, prompt]), axis=1)
    answers, prompts = np.unique(distinct[0], return_counts=True)
    if not len(answers) or prompts.max() < max(5, 0.05 * len(chosen)):
        return
    held = np.flatnonzero(chosen == answers[prompts.argmax()])
    text = f"one and the same chosen answer stands under {int(prompts.max()):,} prompts: is it the right column?"
    yield Finding("repeated_answer", len(held), text, _at(pairs, held))


def _near(near: Near) -> Iterator[Finding]:
    if near.found:
        text = f"nearly the same words as an earlier pair (of {near.looked_at:,} looked at)"
        examples = tuple(Example(pair, like=earlier) for pair, earlier in near.found[:EXAMPLES])
        yield Finding("near_duplicates", len(near.found), text, examples)


def _tokens(pairs: PairStore, end_id: int, bos_id: int | None) -> Iterator[Finding]:
    merged = np.flatnonzero(pairs.column("boundary_merged"))
    if len(merged):
        text = (
            "a token would span the end of the prompt and the answer; the two are tokenized apart "
            "(a space or newline at the end of the prompt, or at the start of the answers, avoids it)"
        )
        yield Finding("boundary_merges", len(merged), text, _at(pairs, merged))
    control = np.flatnonzero(pairs.column("control_tokens"))
    if len(control):
        text = "a text of the data holds a special token of the tokenizer, which is read as that token"
        yield Finding("special_tokens", len(control), text, _at(pairs, control))
    edges = pairs.edges(bos_id, end_id)
    for name, text in (
        ("double_bos", "the prompt begins with the same token twice: data and tokenizer both put a beginning there"),
        ("double_eos", "the prompt or answer holds an end token before its end: the model learns to stop there"),
        ("missing_eos", "an answer does not end in the end token (it was cut): the model does not learn to stop there"),
    ):
        found = np.flatnonzero(edges[name])
        if len(found):
            yield Finding(name, len(found), text, _at(pairs, found))


def _two_sides(survey: Survey, config: CheckConfig) -> Iterator[Finding]:
    """What stands much more often on one side: the model may learn it instead of what was preferred."""
    chosen, rejected = (survey.traits.get(f"refusal_{side}", Seen()) for side in ("chosen", "rejected"))
    low, high = sorted((chosen, rejected), key=lambda seen: seen.count)
    if high.count >= max(2, config.one_sided * survey.pairs) and high.count >= 2 * max(1, low.count):
        side = "chosen" if high is chosen else "rejected"
        text = f"refusals or apologies: {chosen.count:,} of the chosen and {rejected.count:,} of the rejected answers"
        text += "; are the columns swapped?" if side == "chosen" else ""
        yield Finding("refusals", high.count, text, _shown(high))
    common: list[tuple[int, str, int, int]] = []
    for opening in {*survey.openings[0], *survey.openings[1]}:
        here, there = survey.openings[0][opening], survey.openings[1][opening]
        most, least = max(here, there), min(here, there)
        if most >= max(5, 5 * config.one_sided * survey.pairs) and most >= 4 * max(1, least):
            common.append((most, opening, here, there))
    for most, opening, here, there in sorted(common, reverse=True)[:EXAMPLES]:
        text = f"answers begin with {opening!r}: {here:,} of the chosen and {there:,} of the rejected"
        yield Finding("openings", most, text)


def _lengths(data: PreparedData, config: CheckConfig) -> Iterator[Finding]:
    tokens = data.train.token_counts
    longer, shorter = int((tokens[:, 1] > tokens[:, 2]).sum()), int((tokens[:, 1] < tokens[:, 2]).sum())
    share = max(longer, shorter) / max(1, len(tokens))
    if len(tokens) >= 20 and share >= config.length_bias:
        which = "longer" if longer > shorter else "shorter"
        text = f"chosen is {which} than rejected in {share:.0%} of the pairs: the model may learn length instead"
        yield Finding("length_bias", max(longer, shorter), text)


def _texts(survey: Survey) -> Iterator[Finding]:
    for name, least, text in (
        ("scores_contradict", 0.0, "chosen has the lower score: are the columns swapped?"),
        ("prompt_repeated", 0.0, "an answer repeats the whole prompt at its start: is the prompt in it already?"),
        ("encoding", 0.0, "damaged characters (a wrong encoding, U+FFFD, control characters)"),
        ("language", 0.0, "chosen and rejected are written in different scripts"),
        ("swapped_columns", 0.5, "the chosen answers are questions and the prompts are not: are the columns swapped?"),
    ):
        seen = survey.traits.get(name, Seen())
        if seen.count > least * survey.pairs and seen.count >= (5 if least else 1):
            yield Finding(name, seen.count, text, _shown(seen))


def _shown(seen: Seen) -> tuple[Example, ...]:
    return tuple(Example(source, excerpt) for source, excerpt in seen.examples)


def _shared(pairs: PairStore, evaluated: Any) -> Iterator[Finding]:
    prompts = pairs.column("prompt_hash")
    shared = np.flatnonzero(evaluated & np.isin(prompts, prompts[~evaluated]))
    if len(shared):
        text = "pairs to evaluate on whose prompt is also trained on: the figures will flatter"
        yield Finding("shared_prompts", len(shared), text, _at(pairs, shared))


def _at(pairs: PairStore, places: Any) -> tuple[Example, ...]:
    """Where the first of some pairs stand."""
    return tuple(Example(pairs.source(int(place))) for place in places[:EXAMPLES])
