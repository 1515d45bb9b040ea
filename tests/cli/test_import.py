"""Settings of other tools become those of a run: keys and values of their own examples of ORPO, and their defaults."""

import dataclasses
import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from orpo_cli.cli.arguments import parse
from orpo_cli.cli.compose import compose_jobs
from orpo_cli.cli.main import main
from orpo_cli.config.keys import dotted, values_of
from orpo_cli.config.load import load_config

AXOLOTL = """
base_model: mistralai/Mistral-7B-v0.1
model_type: MistralForCausalLM
load_in_8bit: false
load_in_4bit: true
strict: false
rl: orpo
orpo_alpha: 0.1
remove_unused_columns: false
chat_template: chatml
datasets:
  - path: argilla/ultrafeedback-binarized-preferences-cleaned
    type: chat_template.argilla
val_set_size: 0.1
output_dir: ./mistral-qlora-orpo-out
adapter: qlora
lora_model_dir:
sequence_len: 4096
sample_packing: false
pad_to_sequence_len: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
lora_target_modules: [gate_proj, down_proj]
wandb_project:
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
fp16:
gradient_checkpointing: true
logging_steps: 1
flash_attention: true
warmup_steps: 10
evals_per_epoch: 4
weight_decay: 0.0
"""
LLAMA_FACTORY = """
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
trust_remote_code: true
stage: dpo
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
pref_beta: 0.2
pref_loss: orpo
dataset: dpo_en_demo
template: llama3
cutoff_len: 2048
output_dir: saves/llama3-8b/lora/dpo
save_steps: 500
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 5.0e-6
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
report_to: none
"""
TRL = """
model_name_or_path: org/gpt2
dataset_name: trl-internal-testing/hh-rlhf-helpful-base-trl-style
per_device_train_batch_size: 4
max_steps: 1000
learning_rate: 8e-5
gradient_accumulation_steps: 2
logging_steps: 10
eval_strategy: steps
eval_steps: 500
output_dir: gpt2-lora-aligned-orpo
optim: rmsprop
warmup_steps: 150
report_to: wandb
logging_first_step: true
use_peft: true
lora_r: 16
lora_alpha: 16
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def imported(text: str) -> dict[str, Any]:
    """Return the values of a run of what `orpo import` makes of these settings, and of which it wrote."""
    Path("theirs.yaml").write_text(text)
    Path("run.yaml").unlink(missing_ok=True)
    assert main(["import", "theirs.yaml"]) == 0
    config = load_config(compose_jobs(parse(["run.yaml"])).jobs[0].config)
    return dict(dotted(values_of(config)))


AXOLOTL_HERE = {
    "model.path": "mistralai/Mistral-7B-v0.1",
    "data.path": "argilla/ultrafeedback-binarized-preferences-cleaned",
    "data.eval_fraction": 0.1,
    "data.max_length": 4096,
    "loss.name": "trl",  # axolotl runs TRL's trainer
    "lambda": 0.1,
    "adapter.name": "lora",
    "adapter.bits": 4,
    "adapter.rank": 32,
    "adapter.alpha": 16,
    "adapter.dropout": 0.05,
    "adapter.targets": ["all-linear"],
    "optimizer.name": "adamw_8bit",
    "optimizer.lr": 2e-4,
    "scheduler.name": "cosine",
    "scheduler.warmup_steps": 10,
    "trainer.epochs": 1,
    "trainer.pairs_per_step": 8,  # 2 in each of 4
    "trainer.gradient_checkpointing": True,
    "trainer.precision": "auto",
    "output_dir": "./mistral-qlora-orpo-out",
}
LLAMA_FACTORY_HERE = {
    "model.path": "meta-llama/Meta-Llama-3-8B-Instruct",
    "data.path": "./dpo_en_demo.json",
    "data.max_length": 2048,
    "loss.name": "orpo",
    "lambda": 0.2,
    "adapter.rank": 8,
    "adapter.alpha": 16,  # twice the rank, its default there
    "adapter.dropout": 0.0,
    "adapter.targets": ["all-linear"],
    "optimizer.lr": 5e-6,
    "scheduler.name": "cosine",
    "scheduler.warmup_ratio": 0.1,
    "trainer.epochs": 3,
    "trainer.pairs_per_step": 8,
    "trainer.save_every": 500,
    "trainer.precision": "bf16",
    "tracker.name": "none",
}
TRL_HERE = {
    "model.path": "org/gpt2",
    "data.path": "trl-internal-testing/hh-rlhf-helpful-base-trl-style",
    "data.eval_split": "test",
    "data.max_length": 1024,
    "loss.name": "trl",
    "lambda": 0.1,
    "adapter.rank": 16,
    "adapter.alpha": 16,
    "adapter.dropout": 0.05,
    "optimizer.name": "adamw",
    "optimizer.lr": 8e-5,
    "scheduler.name": "linear",
    "scheduler.warmup_steps": 150,
    "trainer.max_steps": 1000,
    "trainer.pairs_per_step": 8,
    "trainer.eval_every": 500,
    "trainer.log_every": 10,
    "tracker.name": "wandb",
}


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        (AXOLOTL, AXOLOTL_HERE, (
            "! chat_template: chatml: the tokenizer's own",
            "no equivalent, left out: model_type, pad_to_sequence_len, evals_per_epoch",
        )),
        (LLAMA_FACTORY, LLAMA_FACTORY_HERE, (
            "! dataset: dpo_en_demo stands in no dataset_info.json", "! template: the tokenizer's own chat template",
            "no equivalent, left out: trust_remote_code, do_train",
        )),
        (TRL, TRL_HERE, (
            "! optim: rmsprop has no equivalent; this is AdamW", "the beta of DPO or KTO is another thing",
            "multiply it by the devices that you had",
        )),
    ],
    ids=["axolotl", "LLaMA-Factory", "TRL"],
)  # fmt: skip
def test_the_tools_own_examples(
    theirs: str, ours: dict[str, Any], said: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    values = imported(theirs)
    assert {key: values[key] for key in ours} == ours
    shown, written = capsys.readouterr().out, Path("run.yaml").read_text()
    for sentence in said:
        assert sentence in shown
        assert sentence.removeprefix("! ").removeprefix("no equivalent, left out: ") in written


@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is a peer, installed for comparison")
def test_defaults_of_trl_are_written_down() -> None:
    """They differ from those of a run, and a file of settings does not show them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.orpo import ORPOConfig
    defaults = {field.name: field.default for field in dataclasses.fields(ORPOConfig)}
    values = imported("model_name_or_path: org/model\ndataset_name: org/data\n")
    assert {
        "learning_rate": values["optimizer.lr"],
        "beta": values["lambda"],
        "max_length": values["data.max_length"],
        "num_train_epochs": values["trainer.epochs"],
        "per_device_train_batch_size": values["trainer.pairs_per_step"],
        "lr_scheduler_type": values["scheduler.name"],
        "warmup_steps": values["scheduler.warmup_ratio"],
    }.items() <= defaults.items()
    assert values["adapter.name"] == "none"


def test_names_of_llama_factory_are_looked_up() -> None:
    Path("data").mkdir()
    registry = {
        "mine": {"file_name": "mine.json", "ranking": True, "columns": {"prompt": "question", "chosen": "chosen"}},
        "hub": {"hf_hub_url": "org/prefs"},
    }
    Path("data/dataset_info.json").write_text(json.dumps(registry))
    values = imported(LLAMA_FACTORY.replace("dataset: dpo_en_demo", "dataset: mine,hub"))
    assert values["data.path"] == ["data/mine.json", "org/prefs"]
    assert values["data.columns.prompt"] == "question"


@pytest.mark.parametrize(
    ("text", "key", "value", "said"),
    [
        (LLAMA_FACTORY.replace("pref_loss: orpo", "pref_loss: sigmoid"), "lambda", 0.1, "pref_beta: keeps a model"),
        (LLAMA_FACTORY.replace("stage: dpo", "stage: sft"), "lambda", 0.1, "each prompt needs a chosen and a rejected"),
        (LLAMA_FACTORY.replace("_type: lora", "_type: full"), "adapter.name", "none", "multiply it by the devices"),
        (LLAMA_FACTORY.replace("epochs: 3.0", "epochs: 1.5"), "trainer.epochs", 2, "1.5 is rounded up to whole epochs"),
        (LLAMA_FACTORY + "val_size: 200", "data.eval_fraction", 0.1, "val_size: 200 is a number of rows"),
        (LLAMA_FACTORY + "fp16: true", "trainer.precision", "bf16", "fp16: products are computed in bf16"),
        (LLAMA_FACTORY + "quantization_bit: 4", "adapter.bits", 4, ""),
        (LLAMA_FACTORY + "quantization_bit: 3", "adapter.bits", None, "quantization_bit: the base is not quantized"),
        (LLAMA_FACTORY + "use_dora: true", "adapter.dora", True, ""),
        (LLAMA_FACTORY + "additional_target: a,b", "adapter.modules_to_save", ["a", "b"], ""),
        (LLAMA_FACTORY.replace("_type: lora", "_type: freeze"), "adapter.name", "frozen", ""),
        (AXOLOTL + "peft_use_rslora: true", "adapter.rslora", True, ""),
        (LLAMA_FACTORY + "deepspeed: z3.json", "trainer.processes", 1, "deepspeed: trainer.processes=N"),
        (AXOLOTL.replace("lora_model_dir:", "lora_model_dir: ./sft"), "model.path", "./sft", ""),
        (AXOLOTL.replace("lora_model_dir:", "lora_model_dir: ./sft"), "model.base", "mistralai/Mistral-7B-v0.1", ""),
        (AXOLOTL.replace("wandb_project:", "wandb_project: p"), "tracker.name", "wandb", ""),
        (TRL.replace("warmup_steps: 150", "warmup_steps: 0.1"), "scheduler.warmup_ratio", 0.1, ""),
        (TRL.replace("eval_steps: 500", "eval_steps: 0.1"), "trainer.eval_every", "auto", "eval_steps: 0.1: a share"),
        (TRL + "dtype: bfloat16", "model.dtype", "bf16", ""),
        (TRL + "loss_type: sigmoid\nbeta: 0.05", "lambda", 0.1, "beta: keeps a model"),
        (TRL + "dataset_train_split: train", "data.split", "train", ""),
        (TRL + "run_name: mine", "tracker.run_name", "mine", ""),
        (TRL + "load_best_model_at_end: true", "trainer.result", "best", ""),
        (AXOLOTL + "cosine_min_lr_ratio: 0.1", "scheduler.min_lr_ratio", 0.1, ""),
        (AXOLOTL + "adam_beta2: 0.95", "optimizer.betas", [0.9, 0.95], ""),
        (TRL + "disable_dropout: false", "model.dropout", True, ""),
        (TRL.replace("use_peft: true", "use_peft: false"), "adapter.name", "none", ""),
        (TRL + "loss_type: sigmoid\nlabel_smoothing: 0.1", "loss.label_smoothing", 0.1, ""),
        (AXOLOTL.replace("rl: orpo", "rl: dpo") + "dpo_label_smoothing: 0.1", "loss.label_smoothing", 0.1, ""),
        (TRL + "loss_type: sigmoid\nrouter_aux_loss_coef: 0.01", "loss.router_aux_loss_coef", 0.01, ""),
        (LLAMA_FACTORY + "moe_aux_loss_coef: 0.01", "loss.router_aux_loss_coef", 0.01, ""),
        (AXOLOTL + "dpo_label_smoothing: 0.1", "loss.label_smoothing", 0.0, "evals_per_epoch, dpo_label_smoothing"),
        (TRL.replace("org/gpt2", "tiny") + "dtype: float32", "model.path", "builtin:tiny", ""),
        (TRL.replace("org/gpt2", "gpt2"), "model.path", "gpt2", ""),
        *((TRL.replace("rmsprop", theirs), "optimizer.name", ours, said) for theirs, ours, said in [
            ("adamw_torch_fused", "adamw", ""), ("adamw_8bit", "adamw_8bit", ""), ("lion_32bit", "lion", ""),
            ("paged_adamw_8bit", "paged_adamw_8bit", ""), ("stable_adamw", "stable_adamw", ""),
            ("schedule_free_adamw", "schedule_free_adamw", "lr_scheduler_type: linear: with schedule_free_adamw the"),
            ("paged_adamw_32bit", "adamw", "optim: paged_adamw_32bit: the optimizer's state is kept in fp32"),
            ("lion_8bit", "lion", "optim: lion_8bit: the optimizer's state is kept in fp32"),
            ("schedule_free_sgd", "adamw", "optim: schedule_free_sgd has no equivalent; this is AdamW"),
            ("galore_adamw_8bit", "adamw", "optim: galore_adamw_8bit has no equivalent; this is AdamW"),
            ("sgd\nadam_beta1: 0.8", "sgd", ""),
        ]),
        (TRL.replace("rmsprop", "schedule_free_adamw"), "scheduler.name", "constant", ""),
        (TRL.replace("rmsprop", "schedule_free_adamw"), "scheduler.warmup_steps", 150, ""),
        (TRL.replace("rmsprop", "lion_32bit"), "optimizer.betas", [0.9, 0.999], ""),
        (TRL.replace("rmsprop", "lion_32bit\nadam_beta2: 0.98\nadam_epsilon: 1e-6"), "optimizer.betas", [0.9, 0.98],
         ""),
        (TRL.replace("rmsprop", "stable_adamw"), "optimizer.eps", 1e-8, ""),
    ],
)  # fmt: skip
def test_single_settings(text: str, key: str, value: Any, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = imported(text)
    assert values[key] == value
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("a: 1\n", 2, "expected settings of TRL (model_name_or_path), axolotl (base_model) or LLaMA-Factory"),
        ("base_model: x\nrl: kto\n", 2, "rl: kto: orpo trains on pairs"),
        ("model_name_or_path: x\nstage: ppo\ntemplate: t\n", 2, "stage: ppo: orpo trains on preferences"),
        ("- 1\n", 2, "expected names and their values"),
        ("a: [\n", 2, "theirs.yaml:"),
    ],
)
def test_what_is_refused(text: str, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("theirs.yaml").write_text(text)
    assert main(["import", "theirs.yaml"]) == code
    assert said in capsys.readouterr().err
    assert not Path("run.yaml").exists()
    assert main(["import", "nowhere.yaml"]) == 66


def test_nothing_is_written_over(capsys: pytest.CaptureFixture[str]) -> None:
    Path("theirs.yaml").write_text(TRL)
    Path("run.yaml").write_text("mine")
    assert main(["import", "theirs.yaml"]) == 73
    assert main(["import", "theirs.yaml", "other.yaml"]) == 0
    assert Path("run.yaml").read_text() == "mine"
    assert "then: orpo check other.yaml; orpo train other.yaml\n" in Path("other.yaml").read_text()
    assert "next: orpo check other.yaml" in capsys.readouterr().out
