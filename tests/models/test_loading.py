"""A model that cannot be trained is refused before the first step, in one line that says why."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file

from orpo_cli.config.schema import ModelConfig
from orpo_cli.errors import ConfigError, InputNotFoundError, ModelError, OrpoError, UnreachableError
from orpo_cli.models import loading
from orpo_cli.models.builtin import builtin_model
from orpo_cli.models.files import ModelFiles, find_model


def quiet(_what: str, _done: int, _total: int) -> None:
    """Progress for nobody."""


def find(path: Path | str) -> ModelFiles:
    return find_model(ModelConfig(str(path), None, "auto", None, None, None, None, None, dropout=False), quiet)


def load(path: Path | str) -> Any:
    files = find(path)
    loading.usable_length(files, 64)
    loading.load_tokenizer(files, None)
    return loading.load_model(files, torch.float32, None, highest_token_id=260)[0]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    directory = tmp_path / "model"
    builtin_model("tiny", quiet).rename(directory)
    return directory


def change_weights(directory: Path, change: Any) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def change_config(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def test_a_directory_with_accents_and_spaces_loads(tiny: Path, tmp_path: Path) -> None:
    odd = tiny.rename(tmp_path / "modèle (très = petit) é")
    assert sum(parameter.numel() for parameter in load(odd).parameters()) == 90_752


def test_a_directory_of_the_hubs_cache_goes_by_its_name(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    tiny.rename(snapshot)
    assert (find(snapshot).reference, find(snapshot).revision) == (str(snapshot), None)  # of another cache
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    files = find(snapshot)
    assert (files.reference, files.revision) == ("org/name", commit)
    assert snapshot_download(files.reference, revision=files.revision) == str(snapshot)


def test_the_tiny_model_is_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_file(builtin_model("tiny", quiet) / "model.safetensors")
    monkeypatch.setenv("ORPO_CACHE", str(tmp_path / "another"))
    second = load_file(builtin_model("tiny", quiet) / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_missing_weights(tiny: Path) -> None:
    change_weights(tiny, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(ModelError, match=r"weights are missing: model\.norm\.weight"):
        load(tiny)


def test_weights_that_are_not_finite(tiny: Path) -> None:
    change_weights(tiny, lambda tensors: tensors["model.norm.weight"].__setitem__(3, torch.nan))
    with pytest.raises(ModelError, match=r"model\.norm\.weight has values that are not finite"):
        load(tiny)


def test_token_ids_beyond_the_embeddings(tiny: Path) -> None:
    change_weights(tiny, lambda tensors: tensors.update({"model.embed_tokens.weight": torch.zeros(64, 64)}))
    change_config(tiny, vocab_size=64, pad_token_id=None, eos_token_id=None)
    with pytest.raises(ModelError, match=r"the data has token ids up to 260, the model embeds only 64"):
        load(tiny)


def test_damaged_weights(tiny: Path) -> None:
    path = tiny / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(tiny)


def test_weights_are_those_that_were_loaded_whatever_becomes_of_the_file(tiny: Path) -> None:
    model = load(tiny)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    path = tiny / "model.safetensors"
    with path.open("r+b") as file:  # in its place, as `cp` over it would
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


class Marker:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


def test_pickled_weights_are_refused_unread(tiny: Path, tmp_path: Path) -> None:
    (tiny / "model.safetensors").unlink()
    (tiny / "pytorch_model.bin").write_bytes(pickle.dumps(Marker(tmp_path / "ran")))
    with pytest.raises(ModelError, match="only pickled weights"):
        load(tiny)
    assert not (tmp_path / "ran").exists()


def test_remote_code_is_never_run(tiny: Path, tmp_path: Path) -> None:
    change_config(tiny, model_type="unheard_of", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"})
    (tiny / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    with pytest.raises(ModelError):
        load(tiny)
    assert not (tmp_path / "ran").exists()


def test_encoder_decoder_models_are_refused(tiny: Path) -> None:
    change_config(tiny, model_type="t5", architectures=["T5ForConditionalGeneration"])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(tiny)


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("./nowhere", InputNotFoundError, "no such directory"),
        ("/no/such/place", InputNotFoundError, "no such directory"),
        ("a/b/c", InputNotFoundError, "no such directory"),
        ("builtin:huge", ConfigError, "built in are smollm2, tiny"),
        ("meta-llama/Llama-3.2-1B", UnreachableError, "the model hub cannot be reached"),
    ],
)
def test_where_there_is_no_model(
    path: str, error: type[OrpoError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(error, match=message):
        find(path)


def test_a_file_or_an_empty_directory_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputNotFoundError, match="is a file"):
        find(tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"no config\.json"):
        find(tmp_path)


def test_chat_template_of_the_users(tiny: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    assert loading.load_tokenizer(find(tiny), str(template)).chat_template == "{{ messages[0]['content'] }}"
    zephyr = loading.load_tokenizer(find(tiny), "builtin:zephyr")
    turns = [{"role": "user", "content": "Hi"}]
    # the format of the Zephyr models, the end token being this tokenizer's own
    assert zephyr.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
        "<|user|>\nHi<|end|>\n<|assistant|>\n"
    )
    with pytest.raises(InputNotFoundError, match=r"model\.chat_template=nowhere\.jinja: no such file"):
        loading.load_tokenizer(find(tiny), "nowhere.jinja")
