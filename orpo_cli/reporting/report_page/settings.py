"""What was run, for the page of a run: the objective as a formula, facts of run.json, the ledger, what to type next."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orpo_cli.config.schema import LossConfig, RunConfig
from orpo_cli.quoting import chat_command, evaluate_command, resume_command
from orpo_cli.reporting.times import duration
from orpo_cli.training.events import BALANCE


def title(config: RunConfig) -> str:
    """Return the names of model and data, without the directories that they are in."""
    names = [config.model.path, *config.data.paths]
    model, *data = (Path(name.removeprefix("builtin:")).name for name in names)
    return f"{model} on {', '.join(data)}"


def formula(loss: LossConfig, lambda_: float, balance: float = 0.0) -> str:
    """Return the objective as a formula, a line for each part; orpo_cli/losses computes it.

    Args:
        balance: the coefficient of the load-balancing loss, which only a mixture of experts has.
    """
    tokens = "chosen" if loss.nll == "chosen" else "prompt + chosen"
    nll = {
        "sequence": f"mean over pairs of (mean over the tokens of {tokens}: -logp)",
        "token": f"mean over all tokens of {tokens} in the step: -logp",
    }[loss.nll_average]
    routers = {BALANCE: "experts * sum over experts of (share of tokens sent there) * (mean probability)"}
    added, last = (f" + {balance:g} * {BALANCE}", routers) if balance else ("", {})
    if loss.preference == "none":
        return _aligned({"loss": f"nll{added}", "nll": nll, **last})
    odds = loss.preference == "odds_ratio"
    term = "or_loss" if odds else "preference"
    score, ratio = ("log_odds", "log_odds_ratio") if odds else ("logp", "log_ratio")
    smoothing = loss.label_smoothing
    sigmoid = (
        f"-{1 - smoothing:g} log sigmoid({ratio}) - {smoothing:g} log sigmoid(-{ratio})"
        if smoothing
        else f"-log sigmoid({ratio})"
    )
    lines = {
        "loss": f"nll + {lambda_:g} * {term}{added}",
        "nll": nll,
        term: f"mean over pairs of {sigmoid}",
        ratio: f"{score}(chosen) - {score}(rejected)",
        **({"log_odds(y)": "logp(y) - log(1 - exp(logp(y)))"} if odds else {}),
        "logp(y)": f"{'mean' if loss.length_normalized else 'sum'} of the log-probabilities of the tokens of y",
        **last,
    }
    return _aligned(lines)


def _aligned(lines: Mapping[str, str]) -> str:
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}} = {value}" for name, value in lines.items())


def what_was_run(config: RunConfig, record: Mapping[str, Any], skipped: list[int]) -> Iterator[tuple[str, str]]:
    """Yield the facts of a run by their names; those of run.json where it has them.

    Args:
        record: run.json.
        skipped: the steps that were skipped.
    """
    model, machine = record.get("model", {}), record.get("machine", {})
    yield "model", model.get("path", config.model.path)
    if model.get("base") not in (None, model.get("path")):
        yield "base", model["base"]
    if "adapter" in model:
        yield "trained", "every weight" if model["adapter"] == "adapter none" else model["adapter"]
    for path, shape in record.get("data_format", {}).items():
        yield "data", f"{path} ({shape})"
    if "pairs" in record:
        yield "pairs", f"{record['pairs']['train']:,} to train, {record['pairs']['eval']:,} held out"
    if "objective" in record:
        yield "objective", record["objective"]
    yield "step", f"{config.trainer.pairs_per_step} pairs"
    yield "optimizer", f"{config.optimizer.name}, lr {config.optimizer.lr:g}, {config.scheduler.name} schedule"
    yield "seed", str(config.seed)
    if machine:
        precision = record.get("precision", config.trainer.precision)
        threads = f"{machine.get('threads')} threads, {machine.get('cores')} cores"
        yield "machine", f"{machine.get('device')}, {precision}; {machine.get('system')}, {threads}"
    if "versions" in record:
        yield "versions", ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    yield from _when(record)
    if skipped:
        yield "skipped steps", ", ".join(map(str, skipped))


def _when(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the command, the times and the memory of a run; earlier versions did not record them."""
    if record.get("command"):
        yield "command", record["command"]
    for name in ("started", "ended"):
        if name in record:
            yield name, record[name]
    if record.get("seconds") is not None:
        yield "duration", duration(record["seconds"])
    if record.get("peak_memory") is not None:
        yield "peak memory", f"{record['peak_memory'] / 1e9:.2f} GB"
    for folder, commit in record.get("data_commits", {}).items():
        yield "commit of the data", f"{commit} of {folder}"


def resumed(resumes: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield when the run was resumed, and with which settings changed."""
    for entry in resumes:
        changed = ", ".join(f"{key}={value}" for key, value in entry["changed"].items())
        yield "resumed", f"after step {entry['after_step']}" + (f", with {changed}" if changed else "")


def ledger(record: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """Return how many pairs ended in which class."""
    parts = {"train": "train", "eval": "held out"}
    classes = [(*name.split("/", 1), count) for name, count in record.get("classes", {}).items()]
    return [(parts.get(part, part), row_class, count) for part, row_class, count in classes]


def commands(folder: Path, config: RunConfig, is_finished: bool, has_held_out: bool) -> list[tuple[str, str]]:
    """Return what to type next, by what it does."""
    longer = [f"trainer.epochs={config.trainer.epochs + 1:g}"]
    if config.trainer.max_steps is not None:
        longer = [f"trainer.max_steps={config.trainer.max_steps * 2}"]
    again = shlex.join(["orpo", "report", str(folder)])
    if not is_finished:
        return [("Resume the run", resume_command(folder)), ("Write this page again", again)]
    opened = f"import orpo_cli as orpo\n\nrun = orpo.open_run({str(folder)!r})"
    use = f"{opened}\nmodel, tokenizer = run.model(), run.tokenizer()"
    return [
        ("Talk with the model", chat_command(folder)),
        ("Use it in Python", use),
        ("Evaluate it", evaluate_command(folder, has_held_out)),
        ("Train for longer", resume_command(folder, longer)),
        ("Write this page again", again),
    ]
