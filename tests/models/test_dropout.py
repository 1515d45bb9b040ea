"""The dropout of the model itself: off unless it is asked for, so that layouts and cuts of a step end in the same."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from architectures import Computed, difference, pairs_of
from matrix import rows
from safetensors.torch import load_file
from tiny_runs import Arguments, Orpo, at, change_json, records, same_end

from orpo_cli.config.schema import ModelConfig
from orpo_cli.models import loading
from orpo_cli.models.dropout import dropout_of, switch_off_in_config, write_as_given
from orpo_cli.models.files import find_model
from orpo_cli.models.scorer import Scorer

ASKED = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
"""What GPT-2's own configuration has."""

TOKENIZER = Path(__file__).parents[1] / "faults/golden/model"
LENGTHS = [(9, 12, 7), (5, 3, 14), (14, 2, 2)]
ROUNDED = 1e-5
"""Tolerance as a share of the largest entry, as in test_packed_equals_padded.py."""


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gpt2") / "model"
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_positions=256, n_embd=16, n_layer=2, n_head=2, eos_token_id=1)
    transformers.GPT2LMHeadModel(config).save_pretrained(directory)
    for path in TOKENIZER.glob("token*"):
        shutil.copy(path, directory)
    return directory


def scorer_of(directory: Path, dropout: bool) -> Scorer:
    files = find_model(
        ModelConfig(str(directory), None, "auto", None, None, None, None, None, dropout), lambda *_: None
    )
    return Scorer(loading.load_model(files, torch.float32, None, 60, None, dropout)[0]).train()


def typed(arguments: Arguments, folder: Path, model: Path, *overrides: str) -> list[str]:
    return [*arguments(folder, f"model.path={model}", "trainer.precision=fp32", "optimizer=sgd", *overrides)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model/model.safetensors")


def test_without_it_layouts_have_the_same_gradient(gpt2: Path) -> None:
    scorer, pairs = scorer_of(gpt2, dropout=False), pairs_of(LENGTHS)
    packed, padded = (Computed(scorer, layout, pairs) for layout in ("packed", "padded"))
    assert float((packed.logps - padded.logps).abs().max()) < ROUNDED * float(padded.logps.abs().max())
    assert difference(packed.gradients, padded.gradients) < ROUNDED


def test_with_it_each_pass_draws_anew(gpt2: Path) -> None:
    """Dropping a tenth of everything moves a log-probability by far more than the 1e-6 of rounding."""
    scorer, pairs = scorer_of(gpt2, dropout=True), pairs_of(LENGTHS)
    first, second = (Computed(scorer, "packed", pairs).logps for _ in range(2))
    assert float((first - second).abs().max()) > 1e-2
    assert torch.equal(*(Computed(scorer.eval(), "packed", pairs).logps for _ in range(2)))


@pytest.mark.parametrize(
    ("family", "asked"),
    [
        ("Falcon", {"hidden_dropout": 0.1, "attention_dropout": 0.2}),  # read from the configuration at each pass
        ("GPTNeoX", {"hidden_dropout": 0.1, "attention_dropout": 0.2}),
        ("OPT", {"dropout": 0.1, "attention_dropout": 0.2, "layerdrop": 0.5}),  # of whole layers, too
        ("Llama", {"attention_dropout": 0.2}),
    ],
)
def test_of_every_kind(family: str, asked: dict[str, float], tmp_path: Path) -> None:
    """Two passes in training are equal only where nothing draws; and config.json keeps what it had."""
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    own = {"ffn_dim": 32, "word_embed_proj_dim": 16} if family == "OPT" else {"intermediate_size": 32}
    config = getattr(transformers, f"{family}Config")(**sizes | own)
    for key, value in asked.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(tmp_path / "model")
    assert dropout_of(config) == asked
    for dropout in (False, True):
        scorer = scorer_of(tmp_path / "model", dropout)
        logps = [Computed(scorer, "padded", pairs_of(LENGTHS)).logps for _ in range(2)]
        assert torch.equal(*logps) != dropout


def test_in_a_part_of_a_configuration(tmp_path: Path) -> None:
    """As in models of text and images: switched off there, and written back there."""
    text = {"attention_dropout": 0.2, "num_hidden_layers": 1, "layer_types": ["full_attention"]}
    config = transformers.Gemma3Config(text_config=text)
    assert dropout_of(config) == {"text_config.attention_dropout": 0.2}
    switch_off_in_config(config)
    config.save_pretrained(tmp_path)
    assert dropout_of(transformers.AutoConfig.from_pretrained(tmp_path)) == {}
    write_as_given(tmp_path / "config.json", {"text_config.attention_dropout": 0.2})
    assert dropout_of(transformers.AutoConfig.from_pretrained(tmp_path)) == {"text_config.attention_dropout": 0.2}


def test_dropout_of_other_heads_is_none() -> None:
    """A causal language model has no classifier: nothing is to be said of a Pythia, whose dropout is 0."""
    assert dropout_of(transformers.GPTNeoXConfig(classifier_dropout=0.1)) == {}


def test_a_run_is_without_it_says_so_and_leaves_it_to_the_user(
    gpt2: Path, orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    folders = tmp_path / "packed", tmp_path / "padded", tmp_path / "cut"
    for folder, override in zip(folders, ("packed", "padded", "packed trainer.max_tokens=1"), strict=True):
        done = orpo.run(*typed(arguments, folder, gpt2, *f"trainer.layout={override}".split()))
        assert done.code == 0, done.output
        said = " ".join(done.output.split())
        assert "own configuration is off: resid_pdrop 0.1, embd_pdrop 0.1, attn_pdrop 0.1; model.dropout=true" in said
        assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["dropout"] is False
        saved = [json.loads(path.read_text(encoding="utf-8")) for path in folder.rglob("config.json")]
        assert len(saved) == 3  # of two checkpoints and the model
        assert all(config.items() >= ASKED.items() for config in saved)
        assert dropout_of(transformers.AutoConfig.from_pretrained(folder / "model")) == ASKED
    for folder in folders[1:]:
        torch.testing.assert_close(weights(folder), weights(folders[0]), rtol=1e-5, atol=1e-6)


def test_a_run_that_asks_for_it_has_it(gpt2: Path, orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """Then other micro-batches draw others: the first step's loss differs by far more than the 1e-7 of rounding."""
    losses = []
    for name, override in {"whole": "auto", "cut": "1"}.items():
        overrides = "model.dropout=true", f"trainer.max_tokens={override}"
        done = orpo.run(*typed(arguments, tmp_path / name, gpt2, *overrides))
        assert done.code == 0, done.output
        assert "own configuration is on, and depends on how a step is cut: resid_pdrop 0.1" in " ".join(
            done.output.split()
        )
        assert json.loads((tmp_path / name / "run.json").read_text(encoding="utf-8"))["dropout"] is True
        losses += [record["loss"] for record in records(tmp_path / name) if record["kind"] == "step"][:1]
    assert abs(losses[0] - losses[1]) > 1e-4


def of_an_earlier_version(folder: Path) -> None:
    """Take the key out of config.yaml and of the checkpoints' identities, as a run of then has them."""
    saved = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    del saved["model"]["dropout"]
    (folder / "config.yaml").write_text(yaml.safe_dump(saved), encoding="utf-8")


RESUMED: dict[str, Callable[[list[str], Path], list[str]]] = {
    "orpo resume": lambda _, folder: ["resume", str(folder)],
    "resume=auto": lambda begun, _: [word for word in begun if "dropout" not in word] + ["resume=auto"],
}


@pytest.mark.parametrize("how", rows({how: how for how in RESUMED}, next(iter(RESUMED))))
def test_a_run_of_an_earlier_version_keeps_it(
    how: str, gpt2: Path, orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    """It had it on, though nobody had asked: to the last byte it ends as a run that has asked."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert orpo.run(*typed(arguments, whole, gpt2, "model.dropout=true")).code == 0
    begun = typed(arguments, folder, gpt2, "model.dropout=true")
    assert orpo.run(*begun, injections=[at("orpo_cli.training.loop._update", 3, "SIGTERM")]).code == 143
    of_an_earlier_version(folder)
    done = orpo.run(*RESUMED[how](begun, folder))
    assert done.code == 0, done.output
    assert same_end(folder, whole)
    assert orpo.run("verify", str(folder)).code == 0


def test_what_is_typed_is_not_what_an_earlier_version_did(
    gpt2: Path, orpo: Orpo, arguments: Arguments, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    begun = typed(arguments, folder, gpt2, "model.dropout=true")
    assert orpo.run(*begun, injections=[at("orpo_cli.training.loop._update", 3, "SIGTERM")]).code == 143
    of_an_earlier_version(folder)
    done = orpo.run(*begun[:-1], "model.dropout=false", "resume=auto")
    assert done.code == 2
    assert "model.dropout=False (was True): cannot change on resume" in done.output


def test_lora_on_such_a_model_is_without_it_too(gpt2: Path, orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """The merged model has the configuration of its base."""
    base = shutil.copytree(gpt2, tmp_path / "base")
    change_json(base / "config.json", attn_pdrop=0.3)
    ends = []
    for name, layout in {"a": "packed", "b": "padded"}.items():
        overrides = "adapter=lora", "adapter.targets=[c_attn]", "adapter.merge=true", f"trainer.layout={layout}"
        done = orpo.run(*typed(arguments, tmp_path / name, base, "adapter.dropout=0", *overrides))
        assert done.code == 0, done.output
        config = json.loads((tmp_path / name / "model/config.json").read_text(encoding="utf-8"))
        assert config.items() >= (ASKED | {"attn_pdrop": 0.3}).items()
        ends.append(weights(tmp_path / name))
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)
