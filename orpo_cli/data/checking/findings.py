"""Gather what a user should know about preference data before training on it, with counts and examples."""

import re
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orpo_cli.config.data import CheckConfig
from orpo_cli.data.checking.near_duplicates import NearDuplicates
from orpo_cli.data.checking.survey import EXAMPLES, Survey, Trait
from orpo_cli.data.pairs import Source
from orpo_cli.data.prepare import PreparedData
from orpo_cli.data.tokens.store import HASHES, PairStore, TokenizedFile, combined_hash

_VERDICT = re.compile(r"(?i)(?:\b|_)(?:winner|label|score|preference|preferred|rating|verdict|rank)s?(?:\b|_)")
"""Names of columns that may say which of two responses is the better."""

_ONLY_VERDICT = re.compile(r"(?i)^(winner|preference|preferred|verdict|label)$")
"""Names that say so even beside a verdict or scores that are read."""

_OF_PROMPT = re.compile(
    r"(?i)^prompt$|^(\w+\.)?instructions$|^(chat|conversation|dialogue?|previous|prior|past|initial)_?(messages|turns|(reason_?)?steps)$|"
    r"^((available|chat|conversation|dialogue?|previous|prior|past|system|user)_?)?"
    r"(input|context|history|instruction|question|query|passage|document|function|image|system|tool)s?"
    r"(_?(prompt|message|instruction|text)s?)?$"
)
"""Names of columns that may belong into the prompt."""


@dataclass(frozen=True)
class Example:
    """Hold one place where a finding stands.

    Args:
        excerpt: a part of the text that shows it; may be empty.
        like: the earlier pair that it resembles, if that is the finding.
    """

    source: Source
    excerpt: str = ""
    like: Source | None = None


@dataclass(frozen=True)
class Finding:
    """Hold one thing that was found in the data.

    Args:
        name: one of `orpo_cli.config.data.FINDINGS`.
        count: the number of pairs that show it.
        text: a sentence on what it is and what it does to training.
    """

    name: str
    count: int
    text: str
    examples: tuple[Example, ...] = ()


def findings(
    data: PreparedData,
    survey: Survey,
    near: NearDuplicates,
    config: CheckConfig,
    bos_id: int | None,
    ignored: Container[str],
) -> list[Finding]:
    """Return everything there is to say, the gravest first; nothing about clean data.

    Args:
        bos_id: the token that begins a text, where the tokenizer has one.
        ignored: the columns that the configuration leaves out.
    """
    parts = data.ledger.parts
    rows = [part.file.trainable() for part in parts]
    pairs = PairStore([(part.file, of_file) for part, of_file in zip(parts, rows, strict=True)])
    evaluated = np.repeat([part.split == "eval" for part in parts], [len(of_file) for of_file in rows])
    return [
        *_invalid([part.file for part in parts]),
        *_equal_pairs(pairs, evaluated, _numbered_rows([part.file for part in parts], rows)),
        *_near(near),
        *_tokens(pairs, data.end_id, bos_id),
        *_two_sides(survey, config),
        *_lengths(data, config),
        *_texts(survey),
        *_transcripts(survey, data.uses_chat_template),
        *_shared(pairs, evaluated),
        *_of_files([part.file for part in parts], ignored),
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


def _of_files(files: Sequence[TokenizedFile], ignored: Container[str]) -> Iterator[Finding]:
    """Find what is known of whole files: unread verdicts, and thoughts that the chat template leaves out."""
    for name, pattern, text in (
        ("unread_verdict", _VERDICT, "looks like a verdict and is not read: does it say which response is the better?"),
        ("unread_text", _OF_PROMPT, "looks like a part of the prompt and is not read: the model does not see it"),
    ):
        unread: Counter[str] = Counter()
        for file in files:
            has_verdict = name == "unread_verdict" and file.notes["format"] in ("rankings", "verdict")
            sought = _ONLY_VERDICT if has_verdict else pattern
            keys = file.notes["unread_keys"]
            unread.update({key: rows for key, rows in keys.items() if sought.search(key) and key not in ignored})
        for key, rows in unread.items():
            yield Finding(name, rows, f"the column {key!r} {text}")
    if thoughts := sum(file.notes["pairs"].get("earlier_thoughts", 0) for file in files):
        text = "the chat template leaves out the thoughts of earlier answers, in training as at generation"
        yield Finding("earlier_thoughts", thoughts, text)


def _flagged(pairs: PairStore, flags: Any, name: str, text: str) -> Iterator[Finding]:
    """Yield a finding about the pairs with a flag, if there are any."""
    places = np.flatnonzero(flags)
    if len(places):
        examples = tuple(Example(pairs.source(int(place))) for place in places[:EXAMPLES])
        yield Finding(name, len(places), text, examples)


def _numbered_rows(files: Sequence[TokenizedFile], pairs: Sequence[Any]) -> Any:
    """Return the number of the row that each pair comes from; a ranking gives several pairs."""
    starts = [file.column("pair") == 0 for file in files]
    ends = np.cumsum([0, *(int(start.sum()) for start in starts)])
    numbers = (end + np.cumsum(start)[of_file] for end, start, of_file in zip(ends, starts, pairs, strict=False))
    return np.concatenate([np.empty(0, np.int64), *numbers])


def _equal_pairs(pairs: PairStore, evaluated: Any, rows: Any) -> Iterator[Finding]:
    prompt, chosen, rejected = map(pairs.column, HASHES)
    text = "chosen and rejected are the same: the preference term teaches nothing, only the nll does"
    yield from _flagged(pairs, chosen == rejected, "identical", text)
    forward, backward = combined_hash(prompt, chosen, rejected), combined_hash(prompt, rejected, chosen)
    text = "the same two answers to the same prompt stand both ways round: the pairs cancel each other"
    yield from _flagged(pairs, np.isin(forward, backward) & (chosen != rejected), "contradictory", text)
    _, first, place = np.unique(forward ^ evaluated.astype(np.uint64), return_index=True, return_inverse=True)
    text = "exact copies of an earlier pair: they count twice in every epoch"
    yield from _flagged(pairs, rows[first[place]] != rows, "duplicates", text)
    yield from _repeated_answers(pairs, prompt, chosen)


def _repeated_answers(pairs: PairStore, prompt: Any, chosen: Any) -> Iterator[Finding]:
    """Find one answer under many prompts: a constant column, or a stock phrase."""
    distinct = np.unique(np.stack([chosen, prompt]), axis=1)
    answers, prompts = np.unique(distinct[0], return_counts=True)
    if len(answers) and prompts.max() >= max(5, 0.05 * len(chosen)):
        count = int(prompts.max())
        text = f"one and the same chosen answer stands under {count:,} prompts: is it the right column?"
        yield from _flagged(pairs, chosen == answers[prompts.argmax()], "repeated_answer", text)


def _near(near: NearDuplicates) -> Iterator[Finding]:
    if near.found:
        text = f"nearly the same words as an earlier row (of {near.looked_at:,} looked at)"
        examples = tuple(Example(pair, like=earlier) for pair, earlier in near.found[:EXAMPLES])
        yield Finding("near_duplicates", len(near.found), text, examples)


def _tokens(pairs: PairStore, end_id: int, bos_id: int | None) -> Iterator[Finding]:
    text = (
        "a token would span the end of the prompt and the answer; the two are tokenized apart "
        "(a space or newline at the end of the prompt, or at the start of the answers, avoids it)"
    )
    yield from _flagged(pairs, pairs.column("boundary_merged"), "boundary_merges", text)
    text = "a text of the data holds a special token of the tokenizer, which is read as that token"
    yield from _flagged(pairs, pairs.column("control_tokens"), "special_tokens", text)
    edges = pairs.edges(bos_id, end_id)
    for name, text in (
        ("double_bos", "the prompt begins with the same token twice: data and tokenizer both add it"),
        ("double_eos", "the prompt or answer holds an end token before its end: the model learns to stop there"),
        ("missing_eos", "an answer does not end in the end token (it was cut): the model does not learn to stop there"),
    ):
        yield from _flagged(pairs, edges[name], name, text)


def _two_sides(survey: Survey, config: CheckConfig) -> Iterator[Finding]:
    """Find what stands much more often on one side: the model may learn it instead of what was preferred."""
    chosen, rejected = (survey.trait(f"refusal_{side}") for side in ("chosen", "rejected"))
    low, high = sorted((chosen, rejected), key=lambda trait: trait.count)
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
        ("open_thought", 0.0, "an answer's thought (<think>) never ends: the model learns to think without an answer"),
        ("prompt_repeated", 0.0, "an answer repeats the whole prompt at its start: is the prompt in it already?"),
        ("encoding", 0.0, "damaged characters (a wrong encoding, U+FFFD, control characters)"),
        ("language", 0.0, "chosen and rejected are written in different scripts"),
        ("swapped_columns", 0.5, "the chosen answers are questions and the prompts are not: are the columns swapped?"),
    ):
        trait = survey.trait(name)
        if trait.count > least * survey.pairs and trait.count >= (5 if least else 1):
            yield Finding(name, trait.count, text, _shown(trait))


def _transcripts(survey: Survey, uses_chat_template: bool) -> Iterator[Finding]:
    trait = survey.trait("transcript_prompt")
    if trait.count and uses_chat_template:
        text = (
            "the prompt is a transcript of Human: and Assistant: turns, which the chat template puts into one message "
            "of the user; data.chat_template=false trains on it as it stands"
        )
        yield Finding("transcript_prompt", trait.count, text, _shown(trait))


def _shown(trait: Trait) -> tuple[Example, ...]:
    return tuple(Example(source, excerpt) for source, excerpt in trait.examples)


def _shared(pairs: PairStore, evaluated: Any) -> Iterator[Finding]:
    prompts = pairs.column("prompt_hash")
    text = "pairs to evaluate on whose prompt is also trained on: the results will look better than they are"
    yield from _flagged(pairs, evaluated & np.isin(prompts, prompts[~evaluated]), "shared_prompts", text)
