"""Models and adapters that cannot be trained: refused before the first step, or before they are published.

Rows 23 and 36 to 39 of the faults. tests/models/test_loading.py has more models that are refused.
"""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Orpo, at, records, write_pairs
from safetensors.torch import load_file, save_file

from orpo_cli.cli.main import main
from orpo_cli.models.builtin import builtin_model
from orpo_cli.training.checkpoints import latest_checkpoint
from orpo_cli.training.publication import MANIFEST, write_manifest

Arguments = Callable[..., list[str]]
slow = pytest.mark.slow
pytestmark = pytest.mark.usefixtures("one_thread")


def quiet(_what: str, _done: int, _total: int) -> None:
    """Progress for nobody."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(builtin_model("tiny", quiet), tmp_path / "model"))


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


def with_few_embeddings(model: Path) -> None:
    changed_weights(lambda tensors: tensors.update({"model.embed_tokens.weight": torch.zeros(64, 64)}))(model)
    changed_json("config.json", vocab_size=64, pad_token_id=None, eos_token_id=None)(model)


@dataclass(frozen=True)
class BadModel:
    """Args: says: None where it is no fault, and trains."""

    damage: Callable[[Path], None]
    says: str | None
    chat: bool = False


NAN = changed_weights(lambda tensors: tensors["model.norm.weight"].__setitem__(3, torch.nan))
MISSING = changed_weights(lambda tensors: tensors.pop("model.norm.weight"))


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(BadModel(NAN, "the weight model.norm.weight has values that are not finite"), id="23: NaN"),
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
    code = main(["train", *typed, "trainer.max_steps=1"])
    if row.says is None:
        assert code == 0
        assert all(math.isfinite(value) for value in records(folder)[0].values() if isinstance(value, float))
        return
    assert code == 65
    assert row.says in capfd.readouterr().err
    assert not (folder / "checkpoints").exists()


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


def drop_a_matrix(checkpoint: Path) -> None:
    path = checkpoint / "adapter_model.safetensors"
    save_file(dict(list(load_file(path).items())[1:]), path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(drop_a_matrix, " is missing", id="39: an adapter without one of its matrices"),
        pytest.param(
            changed_json("adapter_config.json", target_modules=["q_proj"]), " is unknown", id="39: for other modules"
        ),
        pytest.param(changed_json("adapter_config.json", r=3), "size mismatch", id="39: of another rank", marks=slow),
    ],
)
def test_an_adapter_that_does_not_fit(
    damage: Callable[[Path], None], says: str, adapted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a manifest that agrees with it; peft itself would start the missing ones anew, and only warn."""
    folder = Path(shutil.copytree(adapted, tmp_path / "run"))
    checkpoint = folder / "checkpoints" / "step-000002"
    damage(checkpoint)
    (checkpoint / MANIFEST).unlink()
    write_manifest(checkpoint)
    assert main(["resume", str(folder)]) == 65
    said = capfd.readouterr().err
    assert "the adapter does not fit the model: " in said
    assert says in said
