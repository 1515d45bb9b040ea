"""Gather what the card of a run's model says from its configuration and run.json."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orpo_cli.config.adapter import FrozenConfig, LoraConfig, NoAdapterConfig
from orpo_cli.config.config_yaml import from_anywhere
from orpo_cli.config.defaults import differences
from orpo_cli.config.keys import FREE_KEYS, PLACES
from orpo_cli.config.schema import RunConfig
from orpo_cli.models.builtin import ORIGINS
from orpo_cli.quoting import override_of, override_value
from orpo_cli.reporting.card import Base, CardFacts, card
from orpo_cli.reporting.metrics_file import sampled
from orpo_cli.reporting.report_page.settings import formula, ledger, title
from orpo_cli.runs.folder import RunFolder
from orpo_cli.runs.stretches import BEFORE
from orpo_cli.statistics.answers import Answer
from orpo_cli.statistics.evaluation import Evaluation

_BUILTIN = "builtin:"
_OF_THE_RESULT = ("trainer.keep_best", "trainer.eval_every", "trainer.early_stop", "trainer.result")
"""Keys that may change on resume, and that decide which step's weights the model has."""


@dataclass(frozen=True)
class Form:
    """The form in which a model is saved.

    Args:
        library: the library that loads the files: transformers, peft or gguf.
        plain: whether that library alone finds all of it.
        stored: how the weights are stored; nothing where that needs no word.
        place: how a snippet names the model: a placeholder, or an id on the hub.
        end_token: the token that ends an answer.
        chat: whether the model was trained with its chat template.
    """

    library: str
    plain: bool
    place: str
    end_token: str
    chat: bool
    stored: str = ""


@dataclass(frozen=True)
class Result:
    """What is known of the model after a step."""

    step: int
    evaluation: Evaluation | None
    reading: Sequence[str]
    before: Sequence[Answer]
    after: Sequence[Answer]


def answers_after(records: Sequence[dict[str, Any]], step: int) -> Sequence[Answer]:
    """Return the answers in samples.jsonl after a step."""
    found = sampled(records, step)
    return () if found is None else found.answers


def card_of(config: RunConfig, folder: RunFolder, result: Result, form: Form) -> str:
    """Return the card of the model of a run after a step.

    Args:
        config: the configuration that the run ends with.
    """
    record, base = folder.record, base_of_run(folder.record)
    shapes = record.get("data_format", {})
    total = record.get("total_steps", result.step)
    tags = ["orpo", "preference", "preference-optimization"]
    tags += [] if isinstance(config.adapter, NoAdapterConfig) else ["lora"]
    tags += ["gguf"] if form.library == "gguf" else []
    weights = f"after step {result.step:,} of {total:,}" + (f", {form.stored}" if form.stored else "")
    return card(
        CardFacts(
            title=title(config),
            base=base,
            library=form.library,
            tags=tags,
            trained=_trained(config, record),
            weights=weights,
            objective=record.get("objective", ""),
            formula=formula(config.loss, config.lambda_, record.get("router_aux_loss_coef", 0.0)),
            data=[
                (_name(path), shapes.get(path, ""), checksum)
                for path, checksum in record.get("data_sha256", {}).items()
            ],
            datasets=[path for path in config.data.paths if _is_of_the_hub(path)],
            rows=record.get("rows", 0),
            ledger=ledger(record),
            evaluation=result.evaluation,
            reading=result.reading,
            before=result.before,
            after=result.after,
            usage=_usage(base, form),
            versions=record.get("versions", {}),
            command=_command(config, record, total, chooses=result.step < total) + _by_two_schedules(config, folder),
        )
    )


def base_of_run(record: Mapping[str, Any]) -> Base:
    """Return what a run began with, by its run.json."""
    reference = str(record.get("model", {}).get("base", ""))
    adapters = [_name(path) for path in record.get("model", {}).get("adapters", [])]
    merged = f", with the adapters of earlier runs ({', '.join(adapters)})" if adapters else ""
    if reference.startswith(_BUILTIN):
        hub_id, words = ORIGINS.get(reference.removeprefix(_BUILTIN), (None, reference))
        return Base(hub_id, words + merged)
    if Path(reference).is_absolute() or not reference:
        return Base(None, f"the local model {_name(reference)}{merged}")
    return Base(reference, reference + merged)


def _trained(config: RunConfig, record: Mapping[str, Any]) -> str:
    trainer, optimizer = config.trainer, config.optimizer
    match config.adapter:
        case FrozenConfig() as some:
            what = f"of the weights, {some.in_words}"
        case NoAdapterConfig():
            what = "every weight"
        case LoraConfig() as lora:
            what = lora.in_words
        case _:
            what = "the adapter of an earlier run, further"
    return (
        f"{what}; {trainer.pairs_per_step} pairs a step, {optimizer.name}, lr {optimizer.lr:g}, "
        f"{config.scheduler.name} schedule, {record.get('precision', trainer.precision)}, seed {config.seed}"
    )


def _usage(base: Base, form: Form) -> str:
    if form.library == "gguf":
        return (
            "`ollama create NAME -f Modelfile` in this folder, then `ollama run NAME`; or give the .gguf file to any "
            f"other program built on llama.cpp. Answers end with `{form.end_token}`."
        )
    if not form.plain:
        return (
            "This adapter belongs on a base that only orpo puts together: `orpo export RUN_DIR to=DIR merge=true` "
            "writes the whole model, or in Python:\n\n```python\nimport orpo_cli as orpo\n\n"
            'run = orpo.open_run("RUN_DIR")\nmodel, tokenizer = run.model(), run.tokenizer()\n```'
        )
    place = f'"{form.place}"'
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", "", f"place = {place}"]
    if form.library == "peft":
        lines = ["from peft import PeftModel", *lines]
        lines += [
            f'base = AutoModelForCausalLM.from_pretrained("{base.hub_id or "BASE_DIR"}")',
            "model = PeftModel.from_pretrained(base, place)",
        ]
    else:
        lines += ["model = AutoModelForCausalLM.from_pretrained(place)"]
    lines += ["tokenizer = AutoTokenizer.from_pretrained(place)"]
    if form.chat:
        lines += [
            'chat = [{"role": "user", "content": "Why is the sky blue?"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    chat, add_generation_prompt=True, return_tensors="pt", return_dict=True',
            ")",
        ]
    else:
        lines += ['inputs = tokenizer("Why is the sky blue?", return_tensors="pt")']
    lines += [
        f'end = tokenizer.convert_tokens_to_ids("{form.end_token}")',
        "answer = model.generate(**inputs, max_new_tokens=200, eos_token_id=end)",
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    code = "\n".join(lines)
    return f"`orpo chat {form.place}`, or with transformers:\n\n```python\n{code}\n```"


def _command(config: RunConfig, record: Mapping[str, Any], steps: int, chooses: bool) -> str:
    """Return the command that trains the same: every key that decides the result and is not its default.

    Args:
        chooses: whether the weights are those of an earlier step than the last, as some keys may decide.
    """
    left_out = {*FREE_KEYS, *PLACES, "output_dir", "resume"} - {"model.save_dtype"}
    left_out -= set(_OF_THE_RESULT) if chooses else set()
    left_out |= set() if "dropout" in record else {"model.dropout"}  # of a model that has none
    arguments = "model.chat_template_args"
    words = [f"model={_place(config.model.path)}", f"data={_places(config.data.paths)}"]
    if config.data.eval_path is not None:
        words.append(f"data.eval_path={_places(config.data.eval_paths)}")
    if config.model.base is not None:
        words.append(f"model.base={_place(config.model.base)}")
    words += [f"{key}={value}" for key in ("model.revision",) if (value := config.model.revision) is not None]
    words += [
        f"{part.key}={_value(part.value)}"
        for part in differences(replace(config, output_dir=""))
        if part.key not in left_out and not part.key.startswith(arguments)
    ]
    if config.model.chat_template_args:
        words.append(f"{arguments}={_value(config.model.chat_template_args)}")
    return shlex.join(["orpo", "train", *words, f"trainer.max_steps={steps}"])


def _by_two_schedules(config: RunConfig, folder: RunFolder) -> str:
    """Return what the command does otherwise where a run was resumed for longer, with a schedule that has an end."""
    longer = any(BEFORE in resume for resume in folder.resumes)
    if not longer or config.scheduler.name == "constant":
        return ""
    return "\n# the run was resumed for longer; this takes all steps by the schedule of the longer run"


def _value(value: Any) -> str:
    """Return a value in Hydra's grammar, a plain word without quotes."""
    return override_of(value, lambda text: text if text.replace("_", "").isalnum() else override_value(text))


def _places(paths: Sequence[str]) -> str:
    named = [_place(path) for path in paths]
    return named[0] if len(named) == 1 else f"[{','.join(named)}]"


def _place(path: str) -> str:
    """Return the place of data or a model as a command names it; of what is on this machine, only its name."""
    return path if path.startswith(_BUILTIN) or _is_of_the_hub(path) else f"./{_name(path)}"


def _is_of_the_hub(path: str) -> bool:
    """Return whether a path of a configuration is an id of the hub: what is on this machine is found there."""
    return not (path.startswith(_BUILTIN) or Path(from_anywhere(path)).is_absolute())


def _name(path: str) -> str:
    return Path(str(path).removeprefix(_BUILTIN)).name
