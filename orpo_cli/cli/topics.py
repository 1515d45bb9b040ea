"""The topics of `orpo help`: what they say stands in the code that does it, so that it cannot grow stale.

Imports no torch.
"""

import ast
import re
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path

import yaml

import orpo_cli
from orpo_cli import errors
from orpo_cli.config.keys import builtin_configs

_OBJECTIVES = """\
loss = nll + lambda * or_loss

  log_odds(y)    = logp_mean(y) - log(1 - exp(logp_mean(y)))
  log_odds_ratio = log_odds(chosen) - log_odds(rejected)
  or_loss        = -log sigmoid(log_odds_ratio)

logp_mean is the mean log-probability of a response's tokens (Hong, Lee, Thorne 2024, arXiv 2403.07691). Tools differ in
the tokens of the nll and in how it is averaged, so a lambda does not carry over from one to another. loss=NAME chooses:
"""

_OF_AN_EVALUATION = [
    (
        "accuracy, balanced",
        "mean of the accuracy of pairs whose chosen response is longer and that of pairs whose rejected one is; one "
        "half for a model that only prefers one length",
    ),
    ("longer wins", 'what the rule "the longer response wins" scores on the same pairs'),
    ("nats", "the unit of a log-probability; one nat more makes a token e = 2.7 times as likely"),
    (
        "saturated",
        "mean of sigmoid(log odds ratio): at 50% the preference term pushes half as hard as it can, at 100% no more",
    ),
]


def topic(name: str) -> str:
    """Return the text of a topic, which is one of `TOPICS`."""
    return TOPICS[name]()


def _metrics() -> str:
    source = (Path(orpo_cli.__file__).parent / "training" / "metrics.py").read_text(encoding="utf-8")
    said = ast.get_docstring(ast.parse(source)) or ""
    rows = re.findall(r"(?m)^\| ([^|]+?) \| (.+) \|$", said)[1:]
    head, other = (
        "The metrics of metrics.jsonl, the screen and the page",
        "At the end of a run and of orpo evaluate, also",
    )
    return "\n".join([head, *_filled(rows), "", other, *_filled(_OF_AN_EVALUATION)]) + "\n"


def _objectives() -> str:
    rows = []
    for path in sorted((builtin_configs() / "loss").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        comment = " ".join(line.removeprefix("# ") for line in text.splitlines()[1:] if line.startswith("#"))
        rows.append((path.stem, f"{comment} [lambda={yaml.safe_load(text)['lambda']:g}]"))
    return "\n".join([_OBJECTIVES, *_filled(rows)]) + "\n"


def _exit_codes() -> str:
    rows = re.findall(r"(?m)^    [|`]-- \w+ +(\d[\d, ]*?)  +(.+)$", errors.__doc__ or "")
    by_code: dict[str, list[str]] = {"0": ["all steps are done, or time was up and a line says so"]}
    by_code["1"] = ["a bug in orpo, or a job of a sweep failed"]
    for code, meaning in rows:
        by_code.setdefault(code, []).append(meaning)
    lines = [(code, "; ".join(meanings)) for code, meanings in by_code.items()]
    return "\n".join(["Exit codes. If one of several processes fails, its code is returned.", *_filled(lines)]) + "\n"


def _filled(rows: list[tuple[str, str]]) -> list[str]:
    """Return lines of a name and what it means, as wide as the terminal."""
    width = min(118, max(60, shutil.get_terminal_size((118, 24)).columns))
    room = min(32, max(len(name) for name, _ in rows))
    lines = []
    for name, meaning in rows:
        head = f"  {name:<{room}} " if len(name) <= room else f"  {name}\n{' ' * (room + 3)}"
        filled = textwrap.fill(meaning, width - room - 3, break_on_hyphens=False)
        lines.append(head + filled.replace("\n", "\n" + " " * (room + 3)))
    return lines


TOPICS: dict[str, Callable[[], str]] = {
    "metrics": _metrics, "objectives": _objectives, "exit-codes": _exit_codes,
}  # fmt: skip
