"""Models and adapters that cannot be trained: refused before the first step, or before they are published.

Rows 23, 31, 32 and 36 to 39 of the faults. tests/models/test_loading.py has more models that are refused.
"""

import filecmp
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest
import torch
from matrix import rows
from safetensors.torch import load_file, save_file
from tiny_runs import Arguments, Orpo, at, records, sign, tiny_model, write_pairs
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM

from orpo_cli import configure
from orpo_cli.checkpoints.lookup import latest_checkpoint
from orpo_cli.cli.main import main
from orpo_cli.errors import ModelError
from orpo_cli.models.adapter_files import ADAPTER
from orpo_cli.models.weights import rounded_when_merged
from orpo_cli.runs.assembly import Assembly

slow = pytest.mark.slow


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return tiny_model(tmp_path / "model")


def changed_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        path = model / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return damage


def changed_json(name: str, **values: Any) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        kept = json.loads((model / name).read_text(encoding="utf-8")) | values
        (model / name).write_text(
            json.dumps({key: value for key, value in kept.items() if value is not None}), encoding="utf-8"
        )

    return damage


def without_pad_token(model: Path) -> None:
    changed_json("tokenizer_config.json", pad_token=None)(model)
    changed_json("config.json", pad_token_id=None)(model)


def without_quantization(model: Path) -> None:
    path = model / "config.json"
    values = json.loads(path.read_text(encoding="utf-8")) | {"quantization_config": None}
    path.write_text(json.dumps(values), encoding="utf-8")


def with_few_embeddings(model: Path) -> None:
    changed_weights(lambda tensors: tensors.update({"model.embed_tokens.weight": torch.zeros(64, 64)}))(model)
    changed_json("config.json", vocab_size=64, pad_token_id=None, eos_token_id=None)(model)


@dataclass(frozen=True)
class BadModel:
    """Args: says: None where it is no fault, and trains."""

    damage: Callable[[Path], None]
    says: str | None
    chat: bool = False


MATRIX = "model.layers.0.mlp.down_proj.weight"
NAN = changed_weights(lambda tensors: tensors["model.norm.weight"].__setitem__(3, torch.nan))
LARGEST = changed_weights(lambda tensors: tensors["model.norm.weight"].fill_(3e38))
IN_FLOAT8 = changed_weights(lambda tensors: tensors.update({MATRIX: tensors[MATRIX].to(torch.float8_e4m3fn)}))
IN_INT8 = changed_weights(lambda tensors: tensors.update({MATRIX: (tensors[MATRIX] * 127).to(torch.int8)}))
COMPLEX = changed_weights(lambda tensors: tensors.update({MATRIX: tensors[MATRIX].to(torch.complex64)}))
MISSING = changed_weights(lambda tensors: tensors.pop("model.norm.weight"))


def in_shards(model: Path, folder: str = "", **changed: torch.Tensor) -> None:
    """The weights in two files of unusual names, and their index.

    Args:
        folder: of the second file, inside that of the model.
        changed: weights by name, to be saved instead.
    """
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    (model / folder).mkdir(exist_ok=True)
    names = sorted(tensors)
    parts = {"weights-1.safetensors": names[::2], f"{folder or '.'}/weights-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: changed.get(name, tensors[name]) for name in part}, model / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: str(Path(file)) for file, part in parts.items() for name in part}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def in_shards_with_float8(model: Path) -> None:
    in_shards(model, **{MATRIX: load_file(model / "model.safetensors")[MATRIX].to(torch.float8_e4m3fn)})


def with_a_shard(name: str) -> Callable[[Path], None]:
    """Args: name: of the file in which the index says one weight is."""

    def damage(model: Path) -> None:
        in_shards(model)
        path = model / "model.safetensors.index.json"
        index = json.loads(path.read_text(encoding="utf-8"))
        index["weight_map"][MATRIX] = name
        path.write_text(json.dumps(index), encoding="utf-8")

    return damage


def with_a_stray_file(model: Path) -> None:
    in_shards(model)
    save_file({"model.norm.weight": torch.ones(64).to(torch.float8_e4m3fn)}, model / "model-fp8.safetensors")


QUANTIZED = [
    ("quantization_config", {"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
    ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    ("quantization_config", {"quant_method": "unknown-to-transformers"}, "unknown-to-transformers"),
    ("quantization_config", {}, "quantization_config"),
    ("compression_config", {"quant_method": "compressed-tensors"}, "compressed-tensors"),
    ("text_config", {"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),
]


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(BadModel(NAN, "the weight model.norm.weight has values that are not finite"), id="23: NaN"),
        pytest.param(
            BadModel(LARGEST, "cannot compute a pair: its logits are not finite"),
            id="finite weights, but too large",
        ),
        *(
            pytest.param(
                BadModel(changed_json("config.json", **{key: value}), f"its weights are quantized ({method}), and"),
                id=f"{key}: {method}", marks=() if method in ("fp8", "mxfp4") else slow,
            )
            for key, value, method in QUANTIZED
        ),
        pytest.param(BadModel(without_quantization, None), id="quantization_config: null"),
        pytest.param(BadModel(IN_FLOAT8, f"{MATRIX} is stored as float8_e4m3fn, which cannot be trained"), id="float8"),
        pytest.param(BadModel(IN_INT8, f"the weight {MATRIX} is stored as int8, which"), id="int8", marks=slow),
        pytest.param(BadModel(COMPLEX, f"the weight {MATRIX} is stored as complex64"), id="complex", marks=slow),
        pytest.param(BadModel(in_shards, None), id="shards of unusual names"),
        pytest.param(BadModel(in_shards_with_float8, f"{MATRIX} is stored as float8_e4m3fn"), id="a float8 shard"),
        pytest.param(BadModel(with_a_stray_file, None), id="a float8 file that is not loaded"),
        pytest.param(BadModel(with_a_shard("gone.safetensors"), "names gone.safetensors, which is missing"),
                     id="36: a shard is missing"),
        pytest.param(BadModel(with_a_shard("../x.safetensors"), "names a file outside of its directory: ../x"),
                     id="a shard elsewhere"),
        pytest.param(BadModel(changed_json("config.json", transformers_weights="model.safetensors"),
                              "names its weights by transformers_weights"), id="weights of another name"),
        pytest.param(BadModel(changed_json("config.json", num_attention_heads=0), "config.json: integer modulo by"),
                     id="no heads", marks=slow),
        pytest.param(BadModel(changed_json("config.json", num_hidden_layers="x"), "expected int, got str"),
                     id="layers are no number", marks=slow),
        pytest.param(BadModel(changed_json("config.json", max_position_embeddings=-1), None), id="any position"),
        pytest.param(BadModel(changed_json("config.json", output_attentions=True), "the model could not be saved"),
                     id="cannot be saved again"),
        pytest.param(BadModel(changed_json("config.json", dtype="int8"), None), id="config.json names another dtype"),
        pytest.param(BadModel(MISSING, "weights are missing: model.norm.weight"), id="36: a weight is missing"),
        pytest.param(
            BadModel(with_few_embeddings, "the data has token ids up to 256, the model embeds only 64"),
            id="37: vocabulary larger than the embeddings",
        ),
        pytest.param(BadModel(without_pad_token, None), id="38: no pad token"),
        pytest.param(
            BadModel(changed_json("tokenizer_config.json", eos_token=None), "set eos_token in its tokenizer_config"),
            id="38: no end token",
        ),
        pytest.param(
            BadModel(lambda model: (model / "chat_template.jinja").unlink(), "model.chat_template", chat=True),
            id="38: no chat template",
        ),
    ],
)  # fmt: skip
def test_models(row: BadModel, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Refused before the first step with exit code 65, and nothing of a run is left; or trained all the same."""
    row.damage(model)
    data, folder = write_pairs(tmp_path / "prefs.jsonl", 4), tmp_path / "run"
    if row.chat:
        turns = {key: [{"role": "user" if key == "prompt" else "assistant", "content": key}] for key in
                 ("prompt", "chosen", "rejected")}  # fmt: skip
        data.write_text(json.dumps(turns) + "\n", encoding="utf-8")
    typed = [f"model={model}", f"data={data}", f"output_dir={folder}", "trainer.sample_tokens=0"]
    code = main(["train", *typed, "trainer.max_steps=1", f"data.chat_template={'auto' if row.chat else 'false'}"])
    if row.says is None:
        assert code == 0
        assert all(math.isfinite(value) for value in records(folder)[0].values() if isinstance(value, float))
        return
    assert code == 65
    assert row.says in capfd.readouterr().err
    assert not (folder / "checkpoints").exists()


def test_stored_weights_that_are_not_used_are_said(model: Path, tmp_path: Path) -> None:
    changed_json("config.json", num_hidden_layers=1)(model)
    data = write_pairs(tmp_path / "prefs.jsonl", 4)
    typed = [f"model={model}", f"data={data}", f"output_dir={tmp_path / 'run'}", "trainer.sample_tokens=0"]
    assert main(["train", *typed, "trainer.max_steps=1"]) == 0
    said = "9 stored weights are not in the model that config.json describes: model.layers.1.input_layernorm.weight, "
    assert said in (tmp_path / "run" / "train.log").read_text(encoding="utf-8")


HUB = [
    {"temperature": 0.6, "top_p": 0.9, "do_sample": False},
    {"temperature": 0.0},
    {"pad_token_id": -1, "bos_token_id": 0},
    {"length_penalty": 2.0, "num_beams": 1},
    {"penalty_alpha": 0.6, "top_k": 4},
]


@pytest.mark.parametrize("adapter", ["none", pytest.param("lora", marks=slow)])
@pytest.mark.parametrize(
    "values", rows({" ".join(values): values for values in HUB}, "temperature", "pad_token_id bos_token_id")
)
def test_a_generation_config_of_the_hub_is_saved_as_it_is(
    values: dict[str, Any], adapter: str, model: Path, tmp_path: Path
) -> None:
    """But for the end token; transformers loads all of them, and would save none that was changed."""
    (model / "generation_config.json").write_text(json.dumps(values | {"eos_token_id": 1}), encoding="utf-8")
    data, folder = write_pairs(tmp_path / "prefs.jsonl", 4), tmp_path / "run"
    typed = [f"model={model}", f"data={data}", f"output_dir={folder}", "trainer.sample_tokens=2", f"adapter={adapter}"]
    assert main(["train", *typed, "trainer.max_steps=1"]) == 0
    if adapter == "none":
        saved = json.loads((folder / "model/generation_config.json").read_text(encoding="utf-8"))
        assert saved.items() >= values.items()
        assert saved["eos_token_id"] == [1, 256]


def test_neither_masks_nor_config_json_decide_the_dtype_of_merged_weights(model: Path, tmp_path: Path) -> None:
    masks = {f"model.layers.{layer}.self_attn.masked_bias": torch.ones(600, 600).bool() for layer in (0, 1)}
    changed_weights(lambda tensors: tensors.update({name: tensor.half() for name, tensor in tensors.items()} | masks))(
        model
    )
    data, folder = write_pairs(tmp_path / "prefs.jsonl", 4), tmp_path / "run"
    typed = [f"model={model}", f"data={data}", f"output_dir={folder}", "trainer.sample_tokens=0", "adapter=lora"]
    changed_json("config.json", dtype="int8")(model)
    assert main(["train", *typed, "adapter.merge=true", "trainer.max_steps=1"]) == 0
    assert {tensor.dtype for tensor in load_file(folder / "model/model.safetensors").values()} == {torch.float16}
    assert "not in the model" not in (folder / "train.log").read_text(encoding="utf-8")


def test_what_a_merge_may_round_is_what_no_name_of_the_model_is_known_of() -> None:
    """A router's bias is saved though it is no parameter; it is put back too."""

    class Router(nn.Module):
        base_model_prefix = "model"

        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(4, 4, dtype=torch.bfloat16)
            self.model.register_buffer("correction", torch.zeros(4, dtype=torch.bfloat16))
            self.model.register_buffer("scratch", torch.zeros(4), persistent=False)

    precise = dict.fromkeys(("correction", "model.correction", "model.scratch", "value_head"), torch.zeros(4))
    stored = {"weight": torch.zeros(4, 4, dtype=torch.bfloat16)} | precise
    assert rounded_when_merged(Router(), stored) == ["model.scratch", "value_head"]


@pytest.mark.parametrize(
    "prefix", rows({"names of the whole model": "model.", "without its head's": ""}, "names of the whole model")
)
def test_merged_weights_are_stored_as_those_of_the_base_each_by_itself(
    prefix: str, model: Path, tmp_path: Path
) -> None:
    """In fp32 are a norm, whose values bf16 would round, and a matrix that the adapter changes; the others in bf16."""
    precise = ("model.norm.weight", MATRIX)

    def mixed(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in list(tensors.items()):
            value = tensor + 1e-4 * torch.rand(tensor.shape) if name in precise else tensor.bfloat16()
            del tensors[name]
            tensors[name.replace("model.", prefix)] = value

    changed_weights(mixed)(model)
    changed_json("config.json", dtype="bfloat16")(model)
    before = load_file(model / "model.safetensors")
    data, folder = write_pairs(tmp_path / "prefs.jsonl", 4), tmp_path / "run"
    typed = [f"model={model}", f"data={data}", f"output_dir={folder}", "trainer.sample_tokens=0", "adapter=lora"]
    assert main(["train", *typed, "adapter.merge=true", "trainer.max_steps=1", "optimizer.lr=1e-2"]) == 0
    after = load_file(folder / "model/model.safetensors")
    assert {name: tensor.dtype for name, tensor in after.items()} == {
        name: torch.float32 if name in precise else torch.bfloat16 for name in after
    }
    assert torch.equal(after["model.norm.weight"], before[f"{prefix}norm.weight"])
    moved = after[MATRIX] - before[MATRIX.replace("model.", prefix)]
    assert moved.any()
    assert not torch.equal(moved, moved.bfloat16().float())
    assert json.loads((folder / "model/config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("precise", "note"),
    [
        ("gate", "2 stored weights that the model has under no such name, "
                 "model.layers.0.block_sparse_moe.gate.weight, model.layers.1.block_sparse_moe.gate.weight: "
                 "where it has them under another, they will be rounded to bfloat16"),
        ("experts", None),
    ],
)  # fmt: skip
def test_merged_weights_of_other_names_than_they_are_stored_under(
    precise: str, note: str | None, tmp_path: Path
) -> None:
    """transformers renames the gates of Mixtral and fuses its experts, and saves them as they were. What most of the
    numbers are, all are at least."""
    model = tiny_model(tmp_path / "mixtral")
    config = MixtralConfig(
        vocab_size=512, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=512,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(model)
    changed_weights(
        lambda tensors: tensors.update(
            {name: tensor if precise in name else tensor.bfloat16() for name, tensor in tensors.items()}
        )
    )(model)
    data, folder = write_pairs(tmp_path / "prefs.jsonl", 4), tmp_path / "run"
    typed = [f"model={model}", f"data={data}", f"output_dir={folder}", "trainer.sample_tokens=0", "adapter=lora"]
    assert main(["train", *typed, "adapter.merge=true", "trainer.max_steps=1"]) == 0
    log = (folder / "train.log").read_text(encoding="utf-8")
    assert ("adapter.merge=true" in log) == (note is not None)
    assert note is None or note in " ".join(log.split())
    before, after = load_file(model / "model.safetensors"), load_file(folder / "model/model.safetensors")
    assert after.keys() == before.keys()
    other = {name for name in after if after[name].dtype != before[name].dtype}
    assert {name for name in other if after[name].dtype == torch.bfloat16} == {
        name for name in before if note is not None and precise in name
    }


@pytest.mark.parametrize("damage", [shutil.rmtree, lambda base: (base / "config.json").write_text("{")],
                         ids=["gone", "damaged"])  # fmt: skip
def test_a_base_that_is_gone_when_the_adapter_is_merged(damage: Callable[[Path], Any], model: Path) -> None:
    assembly = Assembly(configure(f"model={model}", "adapter=lora"))
    assert assembly.stored_base().dtype == torch.float32
    damage(model)
    with pytest.raises(ModelError, match="has changed while the adapter was trained"):
        assembly.stored_base()


def test_23_merged_weights_that_are_not_finite(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Stored in fp16, the base is finite, and so is the adapter; their sum is not."""
    largest = torch.finfo(torch.float16).max
    changed_weights(
        lambda tensors: tensors.update(
            {name: tensor.half() if name != MATRIX else (tensor.sign() * largest).half()
             for name, tensor in tensors.items()}
        )
    )(model)  # fmt: skip
    changed_json("config.json", dtype="float16")(model)
    data, folder = write_pairs(tmp_path / "prefs.jsonl", 4), tmp_path / "run"
    typed = [f"model={model}", f"data={data}", f"output_dir={folder}", "trainer.sample_tokens=0", "adapter=lora"]
    assert main(["train", *typed, "adapter.merge=true", "trainer.max_steps=2", "optimizer.lr=1e3"]) == 76
    assert "which is stored in float16, the adapter makes" in capfd.readouterr().err
    assert not (folder / "model").exists()
    assert latest_checkpoint(folder / "checkpoints")[0].name == "step-000002"


def test_16_a_base_that_has_changed_in_a_folder_of_its_own(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    in_shards(model, folder="second")
    data, folder = write_pairs(tmp_path / "prefs.jsonl", 4), tmp_path / "run"
    typed = [f"model={model}", f"data={data}", f"output_dir={folder}", "trainer.sample_tokens=0", "adapter=lora"]
    assert main(["train", *typed, "trainer.max_steps=2"]) == 0
    shutil.rmtree(folder / "model")
    path = model / "second/weights-2.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    assert main(["resume", str(folder)]) == 2
    assert "model files=" in capfd.readouterr().err


PEFT_SAVES = "peft.peft_model.get_peft_model_state_dict"


@pytest.mark.parametrize(
    ("call", "missing", "saved"),
    [
        pytest.param(2, "step-000004", "step-000002", id="39: an empty adapter in a checkpoint"),
        pytest.param(4, "model", "step-000006", id="39: an empty adapter as the result", marks=slow),
    ],
)
def test_an_adapter_that_is_saved_empty(
    call: int, missing: str, saved: str, orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    """The file is read again before it is published; what was saved before stays the newest."""
    folder = tmp_path / "run"
    done = orpo.run(*arguments(folder, "adapter=lora"), injections=[at(PEFT_SAVES, call, "nothing")])
    assert done.code == 65, done.output
    assert "adapter_model.safetensors: 0 tensors were saved, " in done.output
    assert not list(folder.rglob(missing))
    assert latest_checkpoint(folder / "checkpoints")[0].name == saved


@pytest.fixture(scope="module")
def adapted(orpo: Orpo, arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapted") / "run"
    assert orpo.run(*arguments(folder, "adapter=lora", "trainer.max_steps=2")).code == 0
    shutil.rmtree(folder / "model")
    return folder


def not_finite(checkpoint: Path) -> None:
    path = checkpoint / ADAPTER
    tensors = load_file(path)
    next(value for name, value in tensors.items() if "lora_B" in name)[0, 0] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})


def test_23_an_adapter_that_is_not_finite(adapted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(adapted, tmp_path / "run"))
    checkpoint = folder / "checkpoints" / "step-000002"
    not_finite(checkpoint)
    sign(checkpoint)
    assert main(["resume", str(folder)]) == 65
    assert "lora_B.weight has values that are not finite" in capfd.readouterr().err


def drop_a_matrix(checkpoint: Path) -> None:
    path = checkpoint / ADAPTER
    save_file(dict(list(load_file(path).items())[1:]), path, metadata={"format": "pt"})


def name_it_otherwise(checkpoint: Path) -> None:
    path = checkpoint / ADAPTER
    others = {name.replace("q_proj", "other_proj"): tensor for name, tensor in load_file(path).items()}
    save_file(others, path, metadata={"format": "pt"})


def of_another_rank(checkpoint: Path) -> None:
    path = checkpoint / ADAPTER
    tensors = load_file(path)
    name = min(name for name in tensors if "lora_A" in name)
    save_file(tensors | {name: tensors[name][:3].contiguous()}, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(drop_a_matrix, " is missing", id="39: an adapter without one of its matrices"),
        pytest.param(name_it_otherwise, ", expected no such tensor", id="39: for other modules", marks=slow),
        pytest.param(of_another_rank, "lora_A.weight is [3, ", id="39: of another rank", marks=slow),
    ],
)
def test_an_adapter_that_does_not_fit(
    damage: Callable[[Path], None], says: str, adapted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a manifest that agrees with it; peft itself would start the missing ones anew, and only warn."""
    folder = Path(shutil.copytree(adapted, tmp_path / "run"))
    checkpoint = folder / "checkpoints" / "step-000002"
    damage(checkpoint)
    sign(checkpoint)
    assert main(["resume", str(folder)]) == 65
    said = capfd.readouterr().err
    assert "the adapter does not fit the model: " in said
    assert says in said


@pytest.mark.parametrize(
    "said",
    [
        {"lora_alpha": 640, "use_rslora": True, "lora_dropout": 0.5, "r": 3},
        pytest.param(
            {"r": "x", "target_modules": 5, "layer_replication": [[0, 2], [0, 2]], "arrow_config": {"top_k": 1}},
            marks=slow,
        ),
        pytest.param([], marks=slow),
    ],
    ids=["39: of another size", "39: damaged", "39: no object"],
)
def test_what_a_checkpoint_says_of_its_adapter_is_not_believed(said: Any, adapted: Path, tmp_path: Path) -> None:
    """The adapter is built as config.yaml says; only its weights are taken from the checkpoint."""
    folder = Path(shutil.copytree(adapted, tmp_path / "run"))
    checkpoint = folder / "checkpoints" / "step-000002"
    path = checkpoint / "adapter_config.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(whole | said if isinstance(said, dict) else said), encoding="utf-8")
    sign(checkpoint)
    assert main(["resume", str(folder)]) == 0
    saved = json.loads((folder / "model" / path.name).read_text(encoding="utf-8"))
    assert saved | {"base_model_name_or_path": None} == whole | {"base_model_name_or_path": None}
    assert filecmp.cmp(folder / "model" / ADAPTER, checkpoint / ADAPTER, shallow=False)


# The hub


class Hub(BaseHTTPRequestHandler):
    """A hub without models: what it answers is in the name of the organization that is asked for."""

    ANSWERS: ClassVar = {
        "none": (404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}),
        "private": (401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Invalid username or password."}),
        "elder": (404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id: v9"}),
        "gated": (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted"}),
        "broken": (500, {}),
        "token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    }

    def do_GET(self) -> None:
        status, headers = next((self.ANSWERS[name] for name in self.ANSWERS if f"/{name}/" in self.path), (404, {}))
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    """Its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


NO_SUCH_MODEL = "no such directory, and no such model on the hub"
HUB_ANSWERS = [
    pytest.param("none/model", (), 66, NO_SUCH_MODEL, id="31: a wrong id"),
    pytest.param("private/model", (), 66, NO_SUCH_MODEL, id="31: one that strangers may not see", marks=slow),
    pytest.param(
        "elder/model",
        ("model.revision=v9",),
        66,
        f"{NO_SUCH_MODEL} at revision v9",
        id="31: a wrong revision",
        marks=slow,
    ),
    pytest.param("gated/model", (), 69, "access to this model has to be granted on the hub", id="31: a gated one"),
    pytest.param(
        "broken/model", (), 69, "the model hub answers 500 Internal Server Error; give a", id="31: a hub that is broken"
    ),
    pytest.param(
        "token/model", (), 69, "the model hub answers 401 Unauthorized; give a", id="31: a wrong token", marks=slow
    ),
]


@pytest.mark.parametrize(("name", "overrides", "code", "says"), HUB_ANSWERS)
def test_a_hub_that_answers_without_a_model(
    name: str,
    overrides: tuple[str, ...],
    code: int,
    says: str,
    hub: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub)  # what HF_ENDPOINT sets
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    data, folder = write_pairs(tmp_path / "prefs.jsonl", 4), tmp_path / "run"
    assert main(["train", f"model={name}", f"data={data}", f"output_dir={folder}", *overrides]) == code
    [line] = [line for line in capfd.readouterr().err.splitlines() if not line.endswith("...")]
    assert line.startswith(f"orpo: error: model.path={name}: ")
    assert says in line
    assert not folder.exists() or not list(folder.iterdir())


@slow
def test_31_a_wrong_id_by_the_environment(hub: str, tmp_path: Path) -> None:
    """A process of its own, since huggingface_hub reads HF_ENDPOINT as it is loaded."""
    typed = ["train", "model=none/model", f"data={write_pairs(tmp_path / 'prefs.jsonl', 4)}", "output_dir=run"]
    done = subprocess.run(
        [sys.executable, "-m", "orpo_cli", *typed], capture_output=True, text=True, check=False, cwd=tmp_path,
        env=os.environ | {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hub")},
    )  # fmt: skip
    assert done.returncode == 66, done.stderr
    assert f"model.path=none/model: {NO_SUCH_MODEL}" in done.stderr


def test_32_a_directory_of_pickled_weights_only(orpo: Orpo, arguments: Arguments, model: Path, tmp_path: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    done = orpo.run(*arguments(tmp_path / "run", f"model={model}"))
    assert done.code == 65, done.output
    last = done.output.splitlines()[-1]
    assert f"model.path={model}: " in last
    assert "only pickled weights" in last
    assert "convert them to safetensors" in last
    assert "Traceback" not in done.output
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


# The token that ends an answer, where there is no other for padding

END_IN_THE_MIDDLE = [
    {"prompt": "the cat", "chosen": "runs<|end|>and sleeps under a green stone", "rejected": "eats"},
    {"prompt": "the dog sleeps", "chosen": "it<|end|>", "rejected": "it does not, and nobody knows why<|end|>so"},
]


def expected_nll(model: Path) -> float:
    """By transformers, a pair at a time and without padding: every token of the chosen answers and one end of each."""
    tokenizer, causal = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    losses: list[float] = []
    for pair in END_IN_THE_MIDDLE:
        prompt, chosen = (tokenizer(pair[key], add_special_tokens=False)["input_ids"] for key in ("prompt", "chosen"))
        end: int = tokenizer.eos_token_id
        assert end in chosen
        answer = [*chosen, end] if chosen[-1] != end else chosen
        logps = torch.log_softmax(causal(torch.tensor([prompt + answer])).logits[0].detach(), -1)
        losses += [-float(logps[place, token]) for place, token in enumerate(answer, len(prompt) - 1)]
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    ("pad", "layout"),
    [
        pytest.param(None, "padded", id="38: no pad token, padded"),
        pytest.param(None, "packed", id="38: no pad token, packed", marks=slow),
        pytest.param("<|end|>", "padded", id="38: EOS for padding, padded", marks=slow),
        pytest.param("<|end|>", "packed", id="38: EOS for padding, packed"),
    ],
)
def test_the_ends_of_answers_are_learned_and_padding_is_not(
    pad: str | None, layout: str, model: Path, tmp_path: Path
) -> None:
    """Both chosen answers have an end token in their text, the shorter one is filled up with such."""
    changed_json("tokenizer_config.json", pad_token=pad)(model)
    changed_json("config.json", pad_token_id=None)(model)
    data, folder = tmp_path / "prefs.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in END_IN_THE_MIDDLE), encoding="utf-8")
    typed = [f"model={model}", f"data={data}", f"output_dir={folder}", f"trainer.layout={layout}", "loss=orpo"]
    once = [
        "data.chat_template=false",
        "data.eval_fraction=0",
        "trainer.pairs_per_step=2",
        "trainer.max_steps=1",
        "trainer.sample_tokens=0",
    ]
    assert main(["train", *typed, *once, "trainer.precision=fp32"]) == 0
    assert records(folder)[0]["nll"] == pytest.approx(expected_nll(model), rel=1e-5)
