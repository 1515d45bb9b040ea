"""The help of each command: groups and options from `configs/`, keys and meanings from the schema.

Imports neither Hydra nor torch.
"""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from orpo_cli.config import data, evaluation, export, schema
from orpo_cli.config.keys import FREE_KEYS, SECTIONS, builtin_configs, nested_kinds

_HEAD = """\
orpo train [FILE.yaml] [FLAGS] [KEY=VALUE ...]: fine-tune a language model on preferences with ORPO

  orpo train                                            the built-in model and preferences
  orpo train model=DIR_OR_HUB_ID data=FILE lambda=0.1   your own: a file, folder, pattern, list, hub id, or - for a pipe
  orpo train optimizer=muon optimizer.lr=1e-4           another option of a group, another value of a key
  orpo train -m lambda=0.05,0.1 optimizer.lr=1e-5,2e-5  a sweep over all combinations
  orpo train -m 'lambda=interval(0.05,1)' sweep.trials=20    a search: each run learns from those before
  orpo train +experiment=mistral_orpo_beta data=FILE    a recipe
  orpo train my.yaml lambda=0.2                         a file of the same keys; what is typed behind it wins
  orpo train ... output_dir=DIR resume=auto             resume what is in DIR, or begin there: for jobs that restart
  orpo resume RUN_DIR [KEY=VALUE ...]                   resume a run from its last checkpoint, or a sweep

Flags
  -m, --multirun       sweep over comma-separated values; each job has its own folder and process
  --cfg job            print the composed configuration and stop; --resolve fills in references, --package GROUP selects
  --info               print how it was composed and stop
  --config-dir DIR     add your own groups and options
  --config-name NAME   another root than train.yaml

A file of settings is plain YAML of the keys below, without a defaults list: `model: ./dir`, `data: prefs.json`,
`optimizer: {name: sgd, lr: 1e-3}`, `lambda: 0.1`. It means what the same words would mean here; paths start from the
current directory. Another option typed behind it (optimizer=adamw) replaces the whole section of the file.
"""


_CHECK_HEAD = """\
orpo check [FILE.yaml] [FLAGS] [KEY=VALUE ...]: what is in preference data, and what training would make of it

  orpo check data=FILE                                  the tokens of the built-in model
  orpo check data=FILE model=DIR_OR_HUB_ID              of yours; its weights are not loaded
  orpo check data=FILE check.fail_on=[duplicates,refusals]   ends with 65 where one of these is found
  orpo check data=FILE --json                           for machines

Takes every key of `orpo train`, and its file of settings, so that it sees what a run with the same would see. Ends
with 0, or with 65 where rows are invalid.
"""


_EVALUATE_HEAD = """\
orpo evaluate [FILE.yaml] [FLAGS] [KEY=VALUE ...]: what a model gives to held-out pairs, with intervals

  orpo evaluate model=RUN_DIR                           on the pairs that the run held out, against what it began with
  orpo evaluate model=RUN_DIR data=FILE                 on all pairs of another file
  orpo evaluate model=DIR_OR_HUB_ID data=FILE against=MODEL   any model against any other
  orpo evaluate model=RUN_DIR --json                    one object for machines
  orpo evaluate model=RUN_DIR scores=pairs.parquet      what each pair scored

Takes every key of `orpo train` that says what is scored and how: model, data, loss, trainer.eval_max_tokens, .device,
.precision. With data.eval_fraction or data.eval_path only the pairs that these hold out are scored. Of a run it takes
how it cut its own data into tokens. Nothing is trained. docs/evaluation.md explains the numbers.
"""


_RESUME = f"""\
orpo resume RUN_DIR [KEY=VALUE ...]: resume a run from its last whole checkpoint, or a sweep

  orpo resume RUN_DIR                            the same steps, to the byte, as if it had not ended
  orpo resume RUN_DIR trainer.max_time=2h        with other values of keys that decide nothing that is computed
  orpo resume RUN_DIR trainer.epochs=3           for longer: the steps taken stay, the rest have the longer schedule
  orpo resume RUN_DIR model.path=DIR             the same model, moved; data.path and data.eval_path likewise
  orpo resume SWEEP_DIR                          the jobs that are not finished
  orpo resume SWEEP_DIR sweep.trials=40          of a search: more trials
  orpo train ... output_dir=DIR resume=auto      begins in DIR, or resumes there: for jobs that are restarted

A finished run is left alone, unless it is asked for more steps or another trainer.result; its model stays until the new
end. Changed data, model files and other keys are refused with the difference. Keys that may change:

{chr(10).join(f"  {key}" for key in FREE_KEYS)}
"""


_VERIFY = """\
orpo verify RUN_DIR [--replay N]: whether a run's checkpoints, records and model are whole

  orpo verify RUN_DIR               checksums, finite weights, an adapter that has learned, no step missing or twice
  orpo verify RUN_DIR --replay 3    takes 3 steps again from a checkpoint and compares them with what was recorded

Ends with 0, or with 65 where something is not as it should be. Changes nothing.
"""


_COMPARE = """\
orpo compare DIR... [--by METRIC] [--html FILE] [--csv FILE] [--markdown FILE] [--latex FILE] [--json]: runs compared

  orpo compare SWEEP_DIR                    the jobs of a sweep
  orpo compare RUN_DIR RUN_DIR SWEEP_DIR    any runs that were scored on the same held-out pairs
  orpo compare SWEEP_DIR --by nll           ranked by another metric: accuracy, balanced_accuracy, nll, margin, loss
  orpo compare SWEEP_DIR --csv runs.csv --markdown runs.md --latex runs.tex     for a spreadsheet, a page, a paper
  orpo compare SWEEP_DIR --html runs.html   a page with figures, each of which can be saved as SVG
  orpo compare SWEEP_DIR --json             one object for machines

Runs that differ in nothing but the seed are one recipe. Recipes that a paired test cannot tell apart share a rank, and
stand there in the order of their nll. Runs that cannot be compared, or have not finished, are named and never ranked.
Ends with 0, or with 65 where none of the finished runs can be ranked. docs/compare.md explains the table.
"""


_RUNS = """\
orpo runs [DIR]: the runs below a directory, `outputs` by default, the newest last

  finished      has taken its steps and left its model
  running       holds the lock of its folder
  stopped       was ended by a search, since another of its trials is better
  unfinished    can be resumed where a step is saved: orpo resume RUN_DIR
"""


_REPORT = """\
orpo report DIR: write report.html, the page of a run or of a sweep, into its folder again

  orpo report RUN_DIR               what was run, curves, margins, answers, the reading, what to type next
  orpo report SWEEP_DIR             places, accuracy against nll, what each setting did, curves of all runs

A run or a sweep that ends has written it already. Of one that has not ended, the page shows what there is so far. One
file that needs no other and asks the network for nothing. Prints its path.
"""


_WATCH = """\
orpo watch RUN_DIR: show a run from its files, as its own screen does

  orpo watch RUN_DIR                one that works, here or in another window: follows it and ends when it does
  orpo watch RUN_DIR                one that has ended: its numbers, figures and summary

Ctrl-C ends the watching, not the run. Writes nothing.
"""


_EXPORT_HEAD = """\
orpo export RUN_DIR to=DIR [KEY=VALUE ...]: write the model of a run in the form that others load

  orpo export RUN_DIR to=DIR                            as the run has left it, with end token, tokenizer, template
  orpo export RUN_DIR to=DIR merge=true dtype=bf16      a LoRA adapter merged into the weights, rounded to bf16
  orpo export RUN_DIR to=DIR checkpoint=best            after the best step, the last one, or step N; finished or not
  orpo export RUN_DIR to=DIR format=gguf quant=q8_0     one file for llama.cpp and Ollama; $LLAMA_CPP is llama.cpp
  orpo export RUN_DIR to=DIR push=ORG/NAME              sent to the model hub as well, where only you see it
  orpo export RUN_DIR to=DIR push=ORG/NAME dry_run=true    shows what would be sent, and sends nothing

A whole model gets an Ollama Modelfile, and every export a card (README.md). Before the export is put in its place it is
loaded with transformers, or peft, and compared with the run's model on two of its pairs. Prints the directory.
"""


_TEXTS = {
    "resume": _RESUME, "verify": _VERIFY, "compare": _COMPARE, "runs": _RUNS, "watch": _WATCH, "report": _REPORT,
}  # fmt: skip


def command_help(name: str) -> str:
    """Return the whole help text of a command."""
    composed = {"train": _train_help, "check": _check_help, "evaluate": _evaluate_help, "export": _export_help}
    return composed.get(name, lambda: _TEXTS[name])()


def _export_help() -> str:
    return "\n".join([_EXPORT_HEAD, "Keys", *_documented_keys(export.ExportConfig, "")]) + "\n"


def _check_help() -> str:
    findings = [f"  {name:<18} {meaning}" for name, meaning in data.FINDINGS.items()]
    keys = [*_documented_keys(data.CheckConfig, "check."), *_documented_keys(data.DataConfig, "data.")]
    return "\n".join([_CHECK_HEAD, "Findings", *findings, "", "Keys", *keys]) + "\n"


def _evaluate_help() -> str:
    keys = [*_documented_keys(evaluation.EvaluationConfig, ""), *_documented_keys(data.DataConfig, "data.")]
    return "\n".join([_EVALUATE_HEAD, "Keys", *keys]) + "\n"


def _train_help() -> str:
    return "\n".join([_HEAD, "Groups and their options", *_options(), "", "Keys", *_keys()]) + "\n"


def _options() -> Iterator[str]:
    root = builtin_configs()
    for group in [*SECTIONS, "experiment"]:
        names = sorted(path.stem for path in (root / group).glob("*.yaml"))
        default = _default_option(root, group)
        marked = [f"{name} (default)" if name == default else name for name in names]
        yield f"  {group + '=':<14}" + ", ".join(marked)


def _default_option(root: Path, group: str) -> str | None:
    found = re.search(rf"^\s*- {group}: (\w+)", (root / "train.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    return found.group(1) if found else None


def _keys() -> Iterator[str]:
    yield from _documented_keys(schema.RootConfig, "")
    for section, kinds in SECTIONS.items():
        variants = list(dict.fromkeys(kinds.values())) if isinstance(kinds, dict) else [kinds]
        seen: set[str] = set()
        for kind in variants:
            lines = [line for line in _documented_keys(kind, f"{section}.") if line not in seen]
            seen.update(lines)
            yield from lines


def key_meanings(kind: type) -> dict[str, str]:
    """Return the `key: meaning` lines of a configuration class's docstring."""
    return dict(re.findall(r"^    (\w+): (.+)$", kind.__doc__ or "", re.MULTILINE))


def _documented_keys(kind: type, prefix: str) -> Iterator[str]:
    inside = nested_kinds(kind)
    for key, meaning in key_meanings(kind).items():
        if key in inside:
            yield from _documented_keys(inside[key], f"{prefix}{key}.")
            continue
        yield textwrap.fill(meaning, width=118, initial_indent=f"  {prefix + key:<32} ", subsequent_indent=" " * 35)
