"""Translate the settings of TRL, axolotl and LLaMA-Factory, each by its own names and defaults."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orpo_cli.config.defaults import place_of_model
from orpo_cli.config.translated_trainer import (
    lora,
    names,
    one_or_all,
    optimizer,
    pairs_per_step,
    quantized,
    scheduler,
    shared,
    trainer,
    weights_dtype,
    whole_epochs,
)
from orpo_cli.config.translation import Translation
from orpo_cli.errors import ConfigError
from orpo_cli.files.untrusted import read_json

_OWN_TEMPLATE = "the tokenizer's own chat template is used; model.chat_template=FILE brings another"


def translated(settings: Mapping[str, Any], folder: Path) -> Translation:
    """Translate the settings of the tool whose names they have.

    Args:
        folder: where the file of settings stands.
    Raises:
        ConfigError: if they are of none of these tools, or of a kind of training that has no equivalent.
    """
    if "base_model" in settings:
        return _of_axolotl(Translation("axolotl", settings, folder))
    if "stage" in settings and ("finetuning_type" in settings or "cutoff_len" in settings or "template" in settings):
        return _of_llama_factory(Translation("LLaMA-Factory", settings, folder))
    if "model_name_or_path" in settings:
        return _of_trl(Translation("TRL", settings, folder))
    raise ConfigError(
        "expected settings of TRL (model_name_or_path), axolotl (base_model) or LLaMA-Factory (stage, finetuning_type)"
    )


def _of_trl(it: Translation) -> Translation:
    _model(it, it.get("model_name_or_path"), None, "model_name_or_path", "")
    it.move("model_revision", "model.revision")
    weights_dtype(it, "dtype" if it.given.get("dtype") is not None else "torch_dtype")
    it.move("dataset_name", "data.path")
    it.move("dataset_config", "data.subset")
    it.move("dataset_train_split", "data.split")
    it.move("dataset_test_split", "data.eval_split", "test" if it.get("eval_strategy", "no") != "no" else None)
    it.set("loss.name", "trl", "TRL's ORPO, whose nll is over prompt and response")
    if it.get("loss_type") is not None:  # DPO has one, ORPO none
        _from_dpo(it, "beta")
    else:
        it.move("beta", "lambda", 0.1)
        it.differs.append(
            "beta: is the lambda of ORPO; the beta of DPO or KTO is another thing, which has no equivalent"
        )
    it.move("router_aux_loss_coef", "loss.router_aux_loss_coef")
    it.move("max_length", "data.max_length", 1024)
    for name in ("max_prompt_length", "max_completion_length"):
        if it.get(name):
            it.differs.append(f"{name}: there is one limit, data.max_length, for prompt and response together")
    if it.get("disable_dropout", True) is False:
        it.set("model.dropout", True, "disable_dropout: false")
    trainer(it, default_lr=1e-6, default_epochs=3)
    lora(
        it,
        "use_peft",
        uses=bool(it.get("use_peft")),
        rank="lora_r",
        default_rank=16,
        default_alpha=32,
        default_dropout=0.05,
    )
    pairs_per_step(it, "per_device_train_batch_size", "gradient_accumulation_steps", 8)
    quantized(it, {"load_in_4bit": 4, "load_in_8bit": 8})
    return it


def _of_llama_factory(it: Translation) -> Translation:
    stage, loss = it.get("stage"), it.get("pref_loss", "sigmoid")
    if stage not in ("dpo", "sft"):
        raise ConfigError(f"stage: {stage}: orpo trains on preferences (stage: dpo); there is no equivalent of {stage}")
    base, adapter = it.get("model_name_or_path"), it.get("adapter_name_or_path")
    _model(it, base, adapter, "model_name_or_path", "adapter_name_or_path")
    _llama_factory_data(it)
    if stage == "sft":
        _from_sft(it)
    else:
        it.set("loss.name", "orpo", "the nll over the response, averaged per sequence, as pref_loss: orpo has it")
        if loss == "orpo":
            it.move("pref_beta", "lambda", 0.1)
        else:
            _from_dpo(it, "pref_beta")
    it.move("moe_aux_loss_coef", "loss.router_aux_loss_coef")
    it.move("cutoff_len", "data.max_length", 2048)
    _eval_fraction(it, "val_size")
    if it.get("template"):
        it.differs.append(f"template: {_OWN_TEMPLATE}")
    kind = it.get("finetuning_type", "lora")
    if kind not in ("lora", "full", "freeze"):
        it.differs.append(f"finetuning_type: {kind}: there are LoRA, full and freeze; this is LoRA")
    trainer(it, default_lr=5e-5, default_epochs=3)
    lora(
        it,
        "finetuning_type",
        uses=kind not in ("full", "freeze"),
        rank="lora_rank",
        default_rank=8,
        default_alpha=None,
        default_dropout=0.0,
    )
    if kind == "freeze":
        _frozen(it)
    pairs_per_step(it, "per_device_train_batch_size", "gradient_accumulation_steps", 8)
    quantized(it, {"quantization_bit": None})
    return it


def _frozen(it: Translation) -> None:
    layers = int(it.get("freeze_trainable_layers", 2))
    it.set("adapter.name", "frozen", "finetuning_type: freeze")
    it.set("adapter.layers", abs(layers), "freeze_trainable_layers")
    if layers < 0:
        it.differs.append(f"freeze_trainable_layers: {layers}: the last layers are trained here, not the first")
    if extra := it.get("freeze_extra_modules"):
        it.set("adapter.train", names(extra), "freeze_extra_modules")
    if it.get("freeze_trainable_modules", "all") != "all":
        it.differs.append("freeze_trainable_modules: layers are trained as a whole; adapter.train takes names instead")


def _of_axolotl(it: Translation) -> Translation:
    method = it.get("rl")
    if method not in (None, "orpo", "dpo", "ipo", "simpo"):
        raise ConfigError(
            f"rl: {method}: orpo trains on pairs of a chosen and a rejected response; rl: orpo and dpo do"
        )
    _model(it, it.get("base_model"), it.get("lora_model_dir"), "base_model", "lora_model_dir")
    _axolotl_data(it)
    if method is None:
        _from_sft(it)
    else:
        it.set("loss.name", "trl", "axolotl runs TRL's ORPO, whose nll is over prompt and response")
        if method == "orpo":
            it.move("orpo_alpha", "lambda", 0.1)
        else:
            _from_dpo(it, "dpo_beta" if "dpo_beta" in it.given else "rl_beta")
    it.move("sequence_len", "data.max_length")
    _eval_fraction(it, "val_set_size")
    if (template := it.get("chat_template", "tokenizer_default")) != "tokenizer_default":
        it.differs.append(f"chat_template: {template}: {_OWN_TEMPLATE}")
    adapter = it.get("adapter")
    lora(
        it,
        "adapter",
        uses=adapter is not None,
        rank="lora_r",
        default_rank=None,
        default_alpha=None,
        default_dropout=0.0,
    )
    it.move("num_epochs", "trainer.epochs", convert=lambda count: whole_epochs(it, "num_epochs", count))
    optimizer(it, "optimizer", None)
    scheduler(it, "lr_scheduler")
    it.move("early_stopping_patience", "trainer.early_stop")
    it.move("wandb_name", "tracker.run_name")
    if it.get("wandb_project"):
        it.set("tracker.name", "wandb", "wandb_project")
        it.set("tracker.project", it.given["wandb_project"], "wandb_project")
    elif it.get("use_tensorboard"):
        it.set("tracker.name", "tensorboard", "use_tensorboard")
    if it.get("flash_attention"):
        it.differs.append("flash_attention: the packed layout has an attention of its own; nothing is to be set")
    shared(it)
    pairs_per_step(it, "micro_batch_size", "gradient_accumulation_steps", 1)
    quantized(it, {"load_in_4bit": 4, "load_in_8bit": 8})
    if adapter == "qlora" and not it.get("load_in_8bit"):
        it.set("adapter.bits", 4, "adapter: qlora")
    return it


# Model and data


def _model(it: Translation, base: Any, adapter: Any, base_name: str, adapter_name: str) -> None:
    """Start from a model, which may be an option here, or from an adapter that is trained further."""
    place = None if Path(str(base)).exists() else place_of_model(str(base))
    if adapter:
        it.set("model.path", adapter, adapter_name)
        it.set("model.base", place or base, base_name)
    elif place is not None:
        it.set("model.name", base, base_name)
    else:
        it.set("model.path", base, base_name)


def _axolotl_data(it: Translation) -> None:
    sets = [one for one in it.get("datasets", []) if isinstance(one, Mapping)]
    paths: list[Any] = []
    for one in sets:
        files = one.get("data_files")
        paths += files if isinstance(files, list) else [files or one.get("path")]
        if one.get("split") not in (None, "train"):
            it.set("data.split", one["split"], "datasets, split")
        for name in ("field_chosen", "field_rejected", "field_messages"):
            if one.get(name):
                it.set(f"data.columns.{name.removeprefix('field_')}", one[name], f"datasets, {name}")
    paths = list(dict.fromkeys(path for path in paths if path))
    it.set("data.path", one_or_all(paths) or "???", "datasets")
    tests = [one.get("path") for one in it.get("test_datasets", []) if isinstance(one, Mapping)]
    if tests:
        it.set("data.eval_path", one_or_all(tests), "test_datasets")
    if sets:
        it.differs.append("datasets, type: the shape of each file is recognised; orpo check shows how it is read")


def _llama_factory_data(it: Translation) -> None:
    for name, key in (("dataset", "data.path"), ("eval_dataset", "data.eval_path")):
        listed = it.get(name)
        if listed is None:
            continue
        names = [part.strip() for part in listed.split(",")] if isinstance(listed, str) else list(listed)
        places = [_registered(it, one) for one in names]
        it.set(key, one_or_all(places), name)
    it.used.add("dataset_dir")


def _entry(registry: Path, name: str) -> Any:
    try:
        return read_json(registry).get(name)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{registry}: {error}") from None


def _registered(it: Translation, name: str) -> str:
    """Return the file or hub id that dataset_info.json has for a name."""
    folder = Path(str(it.given.get("dataset_dir") or "data"))
    for place in (folder, it.folder / folder, it.folder):
        registry = place / "dataset_info.json"
        if registry.is_file():
            entry = _entry(registry, name)
            if isinstance(entry, dict):
                for field_name, column in (entry.get("columns") or {}).items():
                    if field_name in ("prompt", "chosen", "rejected", "system", "history") and column != field_name:
                        it.set(f"data.columns.{field_name}", column, f"dataset_info.json, {name}")
                found = entry.get("hf_hub_url") or (entry.get("file_name") and str(place / entry["file_name"]))
                if found:
                    return str(found)
    it.differs.append(f"dataset: {name} stands in no dataset_info.json that was found; set data.path to its file")
    return f"./{name}.json"


def _eval_fraction(it: Translation, name: str) -> None:
    share = it.get(name)
    if share is None:
        return
    if share >= 1:
        it.differs.append(
            f"{name}: {share} is a number of rows; data.eval_fraction is a share, here 0.1: set the one you want"
        )
    it.set("data.eval_fraction", 0.1 if share >= 1 else float(share), name)


# The objective of other kinds of training


def _from_sft(it: Translation) -> None:
    it.differs.append(
        "supervised fine-tuning: orpo trains on preferences; each prompt needs a chosen and a rejected response. With "
        "loss=sft only chosen is trained on"
    )


def _from_dpo(it: Translation, beta: str) -> None:
    if it.get(beta) is not None:
        it.differs.append(
            f"{beta}: keeps a model near its reference, which ORPO does not have; lambda is another thing"
        )
    it.set("lambda", 0.1, "the paper's; DPO has no equivalent")
    it.move("label_smoothing" if it.tool == "TRL" else "dpo_label_smoothing", "loss.label_smoothing", convert=float)
    it.differs.append(
        "DPO starts from a model that was fine-tuned before; ORPO does both at once, and takes a higher learning rate"
    )
