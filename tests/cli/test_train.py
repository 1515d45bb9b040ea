"""`orpo train` from the command line to a model on disk, on the two-layer built-in model."""

import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import DIFFERS, Orpo, change_json, pairs, tiny_model, write_pairs
from transformers import AutoModelForCausalLM, AutoTokenizer

from orpo_cli.cli.main import main


@pytest.fixture
def preferences(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "prefs.jsonl")


@pytest.fixture
def train(tmp_path: Path, preferences: Path) -> Callable[..., Path]:
    """`train("lambda=0.2")` runs `orpo train model=tiny data=prefs.jsonl lambda=0.2` and returns the run's folder."""

    def run(*overrides: str, name: str = "run") -> Path:
        folder = tmp_path / name
        arguments = ["train", "model=tiny", f"data={preferences}", f"output_dir={folder}", "trainer.sample_tokens=4"]
        assert main([*arguments, *overrides]) == 0
        return folder

    return run


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(next(directory.glob("*model.safetensors")))


def without_clock(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in DIFFERS} for record in found]


def test_run_folder_is_complete(train: Callable[..., Path]) -> None:
    folder = train("data.eval_fraction=0.25", "optimizer.lr=1e-3", "trainer.epochs=2")
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "run.json", "ledger.jsonl", "metrics.jsonl", "samples.jsonl", "train.log"} <= names
    assert {"checkpoints", "model"} <= names
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert run["finished"] is True
    assert run["rows"] == sum(run["classes"].values()) == 24
    assert run["classes"] == {"train/kept": 18, "eval/kept": 6}
    assert run["pairs"] == {"train": 18, "eval": 6}
    # 18 pairs are 3 steps an epoch; evaluated before the first step and after the last
    assert [record["step"] for record in records(folder, "step")] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in records(folder, "eval")] == [0, 6]
    baseline, final = records(folder, "eval")
    assert final["loss"] < baseline["loss"]
    assert final["loss"] == pytest.approx(final["nll_loss"] + 0.1 * final["or_loss"], rel=1e-5)
    assert len((folder / "ledger.jsonl").read_text(encoding="utf-8").splitlines()) == 24


@pytest.mark.parametrize(
    ("words", "is_said"),
    [
        (["seed=1"], True),
        (["data.max_length=900"], True),
        pytest.param(["data=demo"], False, marks=pytest.mark.slow),
        (["data=prefs.jsonl"], False),
        pytest.param(["data.path=prefs.jsonl"], False, marks=pytest.mark.slow),
    ],
)
def test_who_gives_no_data_is_told_what_is_trained(
    words: list[str],
    is_said: bool,
    preferences: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(preferences.parent)
    few = ["model=tiny", "trainer.max_steps=1", "trainer.sample_tokens=0", "data.eval_path=null", "output_dir=run"]
    assert main(["train", *few, *words]) == 0
    said = "no data= was given, so the built-in demo is trained, which teaches a form"
    assert capsys.readouterr().err.count(said) == is_said


def test_model_loads_with_plain_transformers(train: Callable[..., Path]) -> None:
    folder = train()
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    prompt = tokenizer("the cat", return_tensors="pt")["input_ids"]
    answer = model.generate(prompt, max_new_tokens=3, do_sample=False)
    assert answer.shape == (1, prompt.shape[1] + 3) or tokenizer.eos_token_id in answer
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_generation_stops_at_the_end_token_also_where_responses_were_cut(train: Callable[..., Path]) -> None:
    """With 30 tokens a pair, responses are cut and end in any letter; the model still stops at its end token only."""
    folder = train("data.max_length=30", "data.length_policy=truncate_response")
    assert '"response_truncated"' in (folder / "ledger.jsonl").read_text(encoding="utf-8")
    config = json.loads((folder / "model" / "generation_config.json").read_text(encoding="utf-8"))
    assert config["eos_token_id"] == AutoTokenizer.from_pretrained(folder / "model").eos_token_id


def test_model_is_a_directory_of_the_users(train: Callable[..., Path], tmp_path: Path, preferences: Path) -> None:
    """A trained model is a model: both spellings of a local directory train it further, from the same weights."""
    first = train(name="first")
    metrics = []
    for name, choice in {
        "a": ["model=llama", f"model.path={first / 'model'}"],
        "b": [f"model={first / 'model'}"],
    }.items():
        arguments = [*choice, f"data={preferences}", f"output_dir={tmp_path / name}", "trainer.sample_tokens=0"]
        assert main(["train", *arguments, "lambda=0.1"]) == 0
        metrics.append(without_clock(records(tmp_path / name, "step")))
        assert (tmp_path / name / "model" / "model.safetensors").is_file()
    assert metrics[0] == metrics[1]


def test_lora_saves_an_adapter_and_merges_when_asked(train: Callable[..., Path], tmp_path: Path) -> None:
    """The merged model and the base with the adapter give the same logits, which are not the base's."""
    base = f"model.path={tiny_model(tmp_path / 'base')}"  # transformers knows no built-in model
    common = (base, "adapter=lora", "optimizer.lr=1e-2", "trainer.precision=fp32")
    adapted, merged = train(*common, name="adapter"), train(*common, "adapter.merge=true", name="merged")
    assert (adapted / "model" / "adapter_model.safetensors").is_file()
    assert not (merged / "model" / "adapter_model.safetensors").exists()
    ids = torch.arange(10).unsqueeze(0)
    with torch.no_grad():
        models = [AutoModelForCausalLM.from_pretrained(folder / "model") for folder in (adapted, merged)]
        with_adapter, without = (model(ids).logits for model in models)
        models[0].disable_adapters()
        base = models[0](ids).logits
    # fp32 rounding of W x + B A x against (W + B A) x, in two layers
    torch.testing.assert_close(with_adapter, without, rtol=1e-4, atol=1e-5)
    assert (with_adapter - base).abs().max() > 1e-2


def test_merged_weights_keep_what_was_learned_in_bf16(train: Callable[..., Path], tmp_path: Path) -> None:
    """The base is stored in fp32: in bf16, as it is in training, a change of a thousandth would be rounded away.

    Merged and with the adapter beside it, it is the same model: that of the stored weights.
    """
    start = f"model.path={tiny_model(tmp_path / 'base')}"
    common = (start, "adapter=lora", "optimizer.lr=1e-2", "trainer.precision=bf16")
    adapted, merged = train(*common, name="adapter"), train(*common, "adapter.merge=true", name="merged")
    with_adapter = AutoModelForCausalLM.from_pretrained(adapted / "model")
    base = {name: weight.clone() for name, weight in with_adapter.named_parameters() if "lora" not in name}
    result = load_file(merged / "model" / "model.safetensors")
    assert {weight.dtype for weight in result.values()} == {torch.float32}
    layer = with_adapter.get_submodule("model.layers.0.mlp.up_proj")
    learned = layer.get_delta_weight("default")
    name = "model.layers.0.mlp.up_proj"
    torch.testing.assert_close(result[f"{name}.weight"], base[f"{name}.base_layer.weight"] + learned, rtol=0, atol=1e-6)
    assert torch.equal(result["model.embed_tokens.weight"], base["model.embed_tokens.weight"])


@pytest.mark.parametrize(("more", "said"), [(("metrics.jsonl",), "\n"), ((), "; 2 steps are done again\n")])
def test_run_without_checkpoints_starts_again(more: tuple[str, ...], said: str, train: Callable[..., Path]) -> None:
    whole = train("trainer.max_steps=2")
    expected = weights(whole / "model")
    for gone in ("model", "checkpoints", "samples.jsonl", *more):
        subprocess.run(["rm", "-r", str(whole / gone)], check=True)
    change_json(whole / "run.json", finished=False)
    assert main(["train", f"resume={whole}"]) == 0
    assert all(torch.equal(expected[name], tensor) for name, tensor in weights(whole / "model").items())
    assert f"the run starts at its beginning{said}" in (whole / "train.log").read_text(encoding="utf-8")
    assert [record["step"] for record in records(whole, "step")] == [1, 2]


def test_finished_run_resumed_stays_as_it_was(train: Callable[..., Path]) -> None:
    folder = train("trainer.max_steps=2", "data.eval_fraction=0.25")
    before = {name: (folder / name).read_text(encoding="utf-8") for name in ("metrics.jsonl", "samples.jsonl")}
    assert main(["train", f"resume={folder}"]) == 0
    assert {name: (folder / name).read_text(encoding="utf-8") for name in before} == before


def test_data_files_that_changed_sides_are_refused(
    train: Callable[..., Path], preferences: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(pair) + "\n" for pair in pairs(30)[24:]), encoding="utf-8")
    folder = train(f"data.eval_path={other}", "trainer.max_steps=2")
    shutil.rmtree(folder / "model")  # else there is nothing to do, and no data for it
    assert main(["train", f"resume={folder}", f"data.path={other}", f"data.eval_path={preferences}"]) == 65
    assert "the data has changed" in capfd.readouterr().err


def test_sample_prompt_of_an_array_on_one_line(train: Callable[..., Path], tmp_path: Path) -> None:
    """All rows stand on line 1, and the first is invalid; the prompts are those of the valid rows, before and after."""
    rows = [{"prompt": "", "chosen": "a", "rejected": "b"}, *pairs(6)]
    array = tmp_path / "one.json"
    array.write_text(json.dumps(rows), encoding="utf-8")
    folder = train(f"data={array}", "data.on_bad_row=skip", "trainer.max_steps=1")
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [sample["prompt"] for sample in samples] == [row["prompt"] for row in rows[1:]] * 2


def test_adapter_on_a_tied_head_is_refused(
    tmp_path: Path, preferences: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["model=tiny", f"data={preferences}", f"output_dir={tmp_path / 'run'}", "adapter=lora"]
    assert main(["train", *arguments, "adapter.targets=[lm_head]"]) == 2
    assert "share their weights" in capfd.readouterr().err


def test_model_that_sees_later_tokens_is_refused(
    tmp_path: Path, preferences: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """BERT with a language-model head that nobody told to be a decoder."""
    from transformers import BertConfig, BertLMHeadModel

    from orpo_cli.models.builtin import byte_tokenizer

    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertLMHeadModel(BertConfig(vocab_size=len(tokenizer), initializer_range=1.0, **sizes)).save_pretrained(
        tmp_path / "bert"
    )
    tokenizer.save_pretrained(tmp_path / "bert")
    arguments = [f"model={tmp_path / 'bert'}", f"data={preferences}", f"output_dir={tmp_path / 'run'}"]
    assert main(["train", *arguments]) == 65
    assert "its tokens see later ones" in capfd.readouterr().err


def test_folder_of_another_run_is_refused(train: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    folder = train("trainer.max_steps=1")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(["train", "model=tiny", f"output_dir={folder}"]) == 73
    assert "is not empty" in capfd.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.xdist_group("alone")
def test_signal_to_a_sweep_reaches_its_job(tmp_path: Path, preferences: Path, orpo: Orpo) -> None:
    """SIGTERM to the parent alone: the running job saves, the next one is not begun."""
    sweep = tmp_path / "sweep"
    arguments = ["-m", "seed=1,2", "model=tiny", f"data={preferences}", "trainer.max_steps=5000", f"output_dir={sweep}"]
    run = orpo.start("train", *arguments)
    run.wait_for((sweep / "0" / "metrics.jsonl").is_file)
    run.signal(signal.SIGTERM)
    assert run.wait().code == 143
    assert (sweep / "0" / "checkpoints" / "LATEST").is_file()
    assert not (sweep / "1").is_dir() or not any((sweep / "1").iterdir())


@pytest.mark.usefixtures("warm_jobs")
def test_two_processes_take_the_same_steps(train: Callable[..., Path]) -> None:
    """The same pairs a step, gradients summed: equal to the order of fp32 additions (1e-6 of a log-probability of 5).

    SGD, since AdamW divides small gradients by their own size and would amplify that rounding.
    """
    common = (
        "trainer.precision=fp32",
        "optimizer=sgd",
        "optimizer.lr=0.1",
        "data.eval_fraction=0.25",
        "trainer.max_steps=3",
    )
    one, two = train(*common, name="one"), train(*common, "trainer.processes=2", "trainer.fit=auto", name="two")
    for kind in ("step", "eval"):
        for left, right in zip(without_clock(records(one, kind)), without_clock(records(two, kind)), strict=True):
            left.pop("kind"), right.pop("kind")
            assert left == pytest.approx(right, rel=1e-5, abs=5e-6)


@pytest.mark.usefixtures("warm_jobs")
def test_sweep_makes_a_folder_for_each_job(
    tmp_path: Path, preferences: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-m", "lambda=0.05,0.2", "model=tiny", f"data={preferences}", "trainer.max_steps=1"]
    assert main(["train", *arguments, f"output_dir={tmp_path / 'sweep'}", "trainer.sample_tokens=0"]) == 0
    for job, value in enumerate((0.05, 0.2)):
        folder = tmp_path / "sweep" / str(job)
        assert f"lambda: {value}" in (folder / "config.yaml").read_text(encoding="utf-8")
        assert (folder / "model" / "model.safetensors").is_file()
    assert "Nothing is ranked." in capfd.readouterr().err  # nothing was held out
