"""A run that starts from an adapter: it is trained further, or merged under a new one; and found again anywhere."""

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from tiny_runs import change_json, gone_back, pairs, same_end, tiny_model, write_pairs
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, MixtralConfig, MixtralForCausalLM

import orpo_cli
from orpo_cli.cli.arguments import parse
from orpo_cli.cli.compose import compose_jobs
from orpo_cli.cli.main import main
from orpo_cli.config.config_yaml import LATER_KEYS
from orpo_cli.data import plan
from orpo_cli.models.builtin import CHATML, builtin_model
from orpo_cli.models.loading import TEMPLATES
from orpo_cli.runs.assembly import Assembly

RATE, EPS, LAMBDA, COUNT = 1e-2, 1e-3, 0.5, 6
"""An eps far above the rounding of gradients, which AdamW would otherwise blow up to whole steps."""


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Path]:
    """`train("lambda=0.2", name="run")` runs on six pairs, all of them in each step, and returns the run's folder."""
    preferences = write_pairs(tmp_path / "prefs.jsonl", COUNT)

    def run(*overrides: str, name: str = "run", code: int = 0) -> Path:
        folder = tmp_path / name
        typed = [
            f"data={preferences}", "data.chat_template=false", f"output_dir={folder}", "trainer.sample_tokens=0",
            f"trainer.pairs_per_step={COUNT}", "trainer.max_steps=4", "trainer.save_every=2", "trainer.precision=fp32",
            "trainer.max_grad_norm=null", f"optimizer.lr={RATE}", f"optimizer.eps={EPS}", "scheduler=constant",
        ]  # fmt: skip
        assert main(["train", *typed, *overrides]) == code
        return folder

    return run


def orpo(*argv: str) -> None:
    assert main(list(argv)) == 0


# The same by hand: peft, torch and the formulas of the paper


def means(model: Any, tokenizer: Any, pair: dict[str, str], answer: str) -> Tensor:
    """The mean log-probability of an answer and its end token, by one plain forward pass."""
    prompt = tokenizer(pair["prompt"], add_special_tokens=False).input_ids
    response = [*tokenizer(pair[answer], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    ids = torch.tensor([prompt + response])
    logps = F.log_softmax(model(ids).logits[0, :-1].float(), -1)
    return logps.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].mean()


def log_odds(logp: Tensor) -> Tensor:
    return logp - torch.log1p(-logp.exp())


def trained_by_hand(model: Any, steps: int | Sequence[Sequence[int]], preference: float) -> Any:
    """Args: steps: how many over all pairs, or the pairs of each."""
    tokenizer = AutoTokenizer.from_pretrained(builtin_model("tiny", lambda *_: None))
    optimizer = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad], RATE, eps=EPS, weight_decay=0.0
    )
    model.train()
    for places in [range(COUNT)] * steps if isinstance(steps, int) else steps:
        optimizer.zero_grad()
        losses = []
        for pair in (pairs(COUNT)[place] for place in places):
            chosen = means(model, tokenizer, pair, "chosen")
            loss = -chosen
            if preference:
                ratio = log_odds(chosen) - log_odds(means(model, tokenizer, pair, "rejected"))
                loss = loss - preference * F.logsigmoid(ratio)
            losses.append(loss)
        torch.stack(losses).mean().backward()
        optimizer.step()
    return model


def base_by_hand() -> Any:
    return AutoModelForCausalLM.from_pretrained(builtin_model("tiny", lambda *_: None), dtype=torch.float32)


def with_lora(model: Any, rank: int, alpha: int) -> Any:
    torch.manual_seed(0)
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, settings)


def assert_same_weights(directory: Path, expected: Any) -> None:
    found = AutoModelForCausalLM.from_pretrained(directory).state_dict()
    weights = expected.state_dict()
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-6, msg=lambda text, at=name: f"{at}: {text}")


SFT = ("model=tiny", "adapter=lora", "adapter.rank=4", "adapter.alpha=8", "loss=sft")


def test_sft_then_orpo_then_resumed_then_merged_is_what_peft_and_torch_do(
    train: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sft = train(*SFT, name="sft")
    whole = train(f"model={sft}", f"lambda={LAMBDA}", "adapter.merge=true", name="whole")
    assert "adapter of " + str(sft) + " trained further: LoRA of rank 4, alpha 8" in capfd.readouterr().err
    resumed = gone_back(whole, tmp_path / "resumed", 2)
    change_json(resumed / "run.json", finished=False, model_files={})
    orpo("resume", str(resumed))
    by_hand = trained_by_hand(with_lora(base_by_hand(), 4, 8), 4, 0.0)
    by_hand = trained_by_hand(by_hand, 4, LAMBDA).merge_and_unload()
    for folder in (whole, resumed):
        assert_same_weights(folder / "model", by_hand)
    for folder in (sft, whole, resumed):
        orpo("verify", str(folder), "--replay", "2")
    said = json.loads((resumed / "run.json").read_text(encoding="utf-8"))["model"]
    assert (said["path"], said["base"], said["adapters"]) == (str(sft), "builtin:tiny", [str(sft / "model")])


@pytest.mark.slow
def test_epochs_of_sft_then_of_orpo_then_one_more_then_merged_are_what_peft_and_torch_do(
    train: Callable[..., Path],
) -> None:
    """Three steps of two pairs an epoch, in the order of each epoch; the optimizer's sums go on in the added one."""
    epochs = ("trainer.max_steps=null", "trainer.pairs_per_step=2", "seed=0")
    order = [step.pairs for step in plan.steps(plan.Epoch.of([COUNT]), 2, 6, seed=0)]
    assert sorted(order[:3]) != sorted(order[3:])
    sft = train(*SFT, *epochs, "trainer.epochs=1", name="sft")
    run = train(f"model={sft}", f"lambda={LAMBDA}", "adapter.merge=true", *epochs, "trainer.epochs=1")
    adapter_of_sft = trained_by_hand(with_lora(base_by_hand(), 4, 8), order[:3], 0.0)
    expected = {
        count: trained_by_hand(copy.deepcopy(adapter_of_sft), order[:count], LAMBDA).merge_and_unload()
        for count in (3, 6)
    }
    assert_same_weights(run / "model", expected[3])
    orpo("resume", str(run), "trainer.epochs=2")
    assert_same_weights(run / "model", expected[6])
    with pytest.raises(AssertionError):
        assert_same_weights(run / "model", expected[3])
    torch.testing.assert_close(logits(orpo_cli.open_run(sft).model()), logits(adapter_of_sft), rtol=0, atol=1e-5)
    for folder in (sft, run):
        orpo("verify", str(folder), "--replay", "2")


@pytest.mark.slow
def test_a_new_adapter_on_top_of_the_merged_weights(train: Callable[..., Path]) -> None:
    """And an adapter on that, whose base is an adapter's directory: three runs, one model."""
    sft = train(*SFT, name="sft")
    second = train(f"model={sft / 'model'}", "adapter=lora", "adapter.rank=2", "adapter.alpha=2", "seed=0", name="two")
    third = train(f"model={second}", f"lambda={LAMBDA}", "adapter.merge=true", name="three")
    note = (
        f"model/ will be an adapter on the merged weights of {sft / 'model'}, which orpo puts together and peft alone"
    )
    assert note in " ".join((second / "train.log").read_text(encoding="utf-8").split())
    weights = load_file(second / "model" / "adapter_model.safetensors")
    assert {min(weight.shape) for weight in weights.values()} == {2}
    merged = trained_by_hand(with_lora(base_by_hand(), 4, 8), 4, 0.0).merge_and_unload()
    by_hand = trained_by_hand(with_lora(merged, 2, 2), 4, 0.1)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        found = orpo_cli.open_run(second).model()
        torch.testing.assert_close(found(ids).logits, by_hand.eval()(ids).logits, rtol=0, atol=1e-5)
    assert_same_weights(third / "model", trained_by_hand(by_hand, 4, LAMBDA).merge_and_unload())
    for folder in (second, third):
        orpo("verify", str(folder), "--replay", "2")


# What is an adapter, and where its base is


def adapter(folder: Path, base: str | None, **settings: Any) -> Path:
    """An adapter as peft saves it, without a tokenizer, whose numbers are not those of a fresh one."""
    torch.manual_seed(1)
    values: dict[str, Any] = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]} | settings
    model = get_peft_model(base_by_hand(), LoraConfig(**values, task_type="CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    model.save_pretrained(folder)
    change_json(folder / "adapter_config.json", base_model_name_or_path=base)
    return folder


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(torch.arange(10)[None]).logits
    return result


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 3}, "layers_to_transform": [1]},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [3, 4]},
    ],
    ids=["LoRA", "rsLoRA", "DoRA", "of several ranks, in one layer", "with the head", "with two tokens"],
)
def test_an_adapter_of_pefts_own_is_trained_by_its_own_settings(
    settings: dict[str, Any], train: Callable[..., Path], tmp_path: Path
) -> None:
    start = adapter(tmp_path / "start", "builtin:tiny", **settings)
    folder = train(f"model={start}", f"lambda={LAMBDA}", "trainer.max_steps=2")
    merged = train(f"model={start}", f"lambda={LAMBDA}", "trainer.max_steps=2", "adapter.merge=true", name="merged")
    by_hand = PeftModel.from_pretrained(base_by_hand(), start, is_trainable=True)
    by_hand = trained_by_hand(by_hand, 2, LAMBDA)
    found = PeftModel.from_pretrained(base_by_hand(), folder / "model")
    for name, weight in by_hand.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], weight, rtol=0, atol=1e-6)
    assert_same_weights(merged / "model", by_hand.merge_and_unload())


@pytest.mark.parametrize("bits", [4, 8])
def test_on_a_quantized_base_it_is_what_peft_and_bitsandbytes_train(
    bits: int, train: Callable[..., Path], tmp_path: Path
) -> None:
    start = adapter(tmp_path / "start", "builtin:tiny")
    whole = train(f"model={start}", "adapter=saved", f"adapter.bits={bits}", f"lambda={LAMBDA}", name="whole")
    resumed = gone_back(whole, tmp_path / "resumed", 2)
    orpo("resume", str(resumed))
    assert same_end(resumed, whole)
    orpo("verify", str(resumed), "--replay", "2")
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    base = AutoModelForCausalLM.from_pretrained(
        builtin_model("tiny", lambda *_: None), dtype=torch.float32,
        quantization_config=four if bits == 4 else BitsAndBytesConfig(load_in_8bit=True),
    )  # fmt: skip
    by_hand = trained_by_hand(PeftModel.from_pretrained(base, start, is_trainable=True), 4, LAMBDA)
    saved = load_file(whole / "model" / "adapter_model.safetensors")
    for name, weight in get_peft_model_state_dict(by_hand).items():
        torch.testing.assert_close(saved.pop(name), weight, rtol=0, atol=1e-6)
    assert not saved


def test_an_adapter_on_the_experts_of_a_mixture(train: Callable[..., Path], tmp_path: Path) -> None:
    """peft keeps it as adapters on parameters, of other ranks than the rest."""
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    config = MixtralConfig(vocab_size=512, hidden_size=32, intermediate_size=32, **sizes)
    MixtralForCausalLM(config).save_pretrained(base := tiny_model(tmp_path / "mixtral"))
    first = train(f"model={base}", "adapter=lora", "adapter.rank=2", "trainer.max_steps=1", name="first")
    further = train(f"model={first}", "trainer.max_steps=2", name="further")
    merged = train(f"model={first}", "trainer.max_steps=2", "adapter.merge=true", name="merged")
    start, with_adapter = (orpo_cli.open_run(folder).model() for folder in (first, further))
    whole = logits(AutoModelForCausalLM.from_pretrained(merged / "model"))
    torch.testing.assert_close(logits(with_adapter), whole, rtol=0, atol=1e-5)
    assert (logits(start) - whole).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"modules_to_save": ["embed_tokens"]},
            "the adapter does not fit the model: base_model.model.model.embed_",
        ),
        ({"bias": "all"}, "bias=all: an adapter of this kind is not trained or merged here"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa: an adapter of this kind"),
        ({"some_day": {"a": 1}}, "some_day={'a': 1}: an adapter of this kind"),
        ({"peft_type": "IA3"}, "is an adapter of kind IA3; only LoRA is trained further or merged here"),
        ({"task_type": "SEQ_CLS"}, "is an adapter for SEQ_CLS, not for a causal language model"),
        (
            {"r": 3},
            "the adapter does not fit the model: base_model.model.model.layers.0.mlp.down_proj.lora_A",
        ),
        ({"r": "x"}, "the adapter does not fit the model: "),
        ({"target_modules": ["nowhere"]}, "the adapter does not fit the model: Target modules"),
    ],
)
def test_other_adapters_are_refused_in_one_line(
    change: dict[str, Any], said: str, train: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    start = adapter(tmp_path / "start", "builtin:tiny")
    change_json(start / "adapter_config.json", **change)
    train(f"model={start}", code=65)
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("orpo: error:")]
    assert said in line


def test_pickled_adapters_are_refused(
    train: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    start = adapter(tmp_path / "start", "builtin:tiny")
    (start / "adapter_model.safetensors").rename(start / "adapter_model.bin")
    train(f"model={start}", code=65)
    assert "no adapter_model.safetensors; adapters are read from safetensors only" in capfd.readouterr().err


@pytest.mark.parametrize("named", ["absolute", "beside the adapter", "from here", "model.base", "builtin"])
def test_where_the_base_is_found(
    named: str, train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_model(tmp_path / "place" / "base")
    monkeypatch.chdir(tmp_path / "place")
    names = {
        "absolute": str(base), "beside the adapter": "../place/base", "from here": "base", "builtin": "builtin:tiny",
    }  # fmt: skip
    start = adapter(tmp_path / "start", names.get(named, "/nowhere/base"))
    if named == "beside the adapter":
        monkeypatch.chdir(tmp_path)
    more = ["model.base=./base"] if named == "model.base" else []
    folder = train(f"model={start}", "trainer.max_steps=2", *more)
    saved = json.loads((folder / "model" / "adapter_config.json").read_text(encoding="utf-8"))
    found = saved["base_model_name_or_path"]
    assert found == "builtin:tiny" if named == "builtin" else Path(found).samefile(base) and Path(found).is_absolute()
    if named != "from here":
        monkeypatch.chdir("/")
    shutil.rmtree(folder / "model")
    change_json(folder / "run.json", finished=False, model_files={})
    orpo("resume", str(folder))
    again = json.loads((folder / "model" / "adapter_config.json").read_text(encoding="utf-8"))
    assert again == saved
    orpo("verify", str(folder), "--replay", "1")


@pytest.mark.parametrize(
    ("base", "code", "said"),
    [
        ("/nowhere/base", 66, "the base model of its adapter, /nowhere/base: no such directory; give its place: model"),
        (None, 66, "its adapter_config.json names no base model; give model.base=DIR"),
        ("org/name", 69, "the base model of its adapter, org/name: no such directory here, and the model hub"),
    ],
)  # fmt: skip
def test_a_missing_base_is_one_line_that_says_model_base(
    base: str, code: int, said: str, train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    train(f"model={adapter(tmp_path / 'start', base)}", code=code)
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("orpo: error:")]
    assert said in line
    assert "model.base=DIR" in line


def test_a_built_in_base_is_found_on_another_machine(
    train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whose cache is elsewhere; and what the end of the run prints works there."""
    sft = train(*SFT, name="sft")
    said = capfd.readouterr().err.partition("in Python:\n")[2].partition("\nprint(")
    code = said[0] + said[1] + said[2].splitlines()[0]
    expected = logits(orpo_cli.open_run(sft).model())
    monkeypatch.setenv("ORPO_CACHE", str(tmp_path / "another"))
    shutil.rmtree(tmp_path / "cache")
    assert torch.equal(logits(orpo_cli.open_run(sft).model()), expected)
    exec(code, {})
    assert capfd.readouterr().out.strip()


def test_the_run_of_a_whole_model_means_its_model(train: Callable[..., Path]) -> None:
    first = train("model=tiny", "loss=sft", name="first")
    second = train(f"model={first}", f"lambda={LAMBDA}", name="second")
    by_hand = trained_by_hand(trained_by_hand(base_by_hand(), 4, 0.0), 4, LAMBDA)
    assert_same_weights(second / "model", by_hand)
    third = train(f"model={first}", "adapter=lora", "trainer.max_steps=2", name="third")
    saved = json.loads((third / "model" / "adapter_config.json").read_text(encoding="utf-8"))
    assert saved["base_model_name_or_path"] == str(first / "model")


def test_a_checkpoint_is_a_start_too(train: Callable[..., Path]) -> None:
    sft = train(*SFT, name="sft")
    folder = train(f"model={sft / 'checkpoints' / 'step-000002'}", f"lambda={LAMBDA}", "adapter.merge=true")
    by_hand = trained_by_hand(trained_by_hand(with_lora(base_by_hand(), 4, 8), 2, 0.0), 4, LAMBDA)
    assert_same_weights(folder / "model", by_hand.merge_and_unload())


def test_an_adapter_that_was_moved_or_changed(
    train: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    start = adapter(tmp_path / "start", "builtin:tiny")
    whole = train(f"model={start}", name="whole")
    folder = gone_back(whole, tmp_path / "run", 2)
    change_json(folder / "run.json", finished=False, model_files={})
    moved = start.rename(tmp_path / "moved")
    assert main(["resume", str(folder)]) == 66
    other = shutil.copytree(moved, tmp_path / "other")
    change_json(other / "adapter_config.json", lora_alpha=9)
    assert main(["resume", str(folder), f"model.path={other}"]) == 2
    assert "model files=" in capfd.readouterr().err
    orpo("resume", str(folder), f"model.path={moved}")
    name = "adapter_model.safetensors"
    assert (folder / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()
    orpo("resume", str(folder), f"model.path={moved}")  # finished: left alone
    assert main(["resume", str(folder), f"model.path={other}"]) == 2


def test_a_run_of_a_version_without_these_keys_is_resumed_and_verified(
    train: Callable[..., Path], tmp_path: Path
) -> None:
    whole = train("model=tiny", "adapter=lora", name="whole")
    old = gone_back(whole, tmp_path / "old", 2)
    change_json(old / "run.json", finished=False, model_files={})
    text = (old / "config.yaml").read_text(encoding="utf-8")
    saved = yaml.safe_load(text)
    for key in ("base", "save_dtype"):
        assert LATER_KEYS[f"model.{key}"] is saved["model"].pop(key) is None
    (old / "config.yaml").write_text(yaml.safe_dump(saved, sort_keys=False), encoding="utf-8")
    orpo("verify", str(old))
    orpo("resume", str(old), "trainer.log_every=1")
    orpo("verify", str(old), "--replay", "2")
    name = "adapter_model.safetensors"
    assert (old / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["model={adapter}", "adapter=none"], "is an adapter; adapter=saved trains it further, adapter=lora puts"),
        (["model=tiny", "adapter=saved"], "adapter=saved: model.path=builtin:tiny is no adapter; adapter=lora makes"),
        (["model=tiny", "model.base=builtin:tiny"], "holds no adapter, which alone has a base"),
        (["-m", "model={adapter},{whole}"], "is an adapter, others are whole models"),
    ],
)
def test_words_that_do_not_go_together(
    typed: Sequence[str], said: str, train: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    start, whole = adapter(tmp_path / "start", "builtin:tiny"), tiny_model(tmp_path / "whole")
    train(*(word.format(adapter=start, whole=whole) for word in typed), code=2)
    assert said in capfd.readouterr().err.replace("\n", " ")


def test_the_configuration_says_which_adapter(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    start = adapter(tmp_path / "start", "builtin:tiny")
    for words in ([f"model={start}"], ["model=tiny", f"model.path={start}"], [f"model={start}", "adapter=saved"]):
        config = orpo_cli.configure(*words)
        assert (config.adapter.name, config.optimizer.lr) == ("saved", 2e-4)
    assert orpo_cli.configure(f"model={start}", "adapter=lora").adapter.name == "lora"
    orpo("train", f"model={start}", "--cfg", "job")
    assert "\n  name: saved  " in capfd.readouterr().out


def test_check_reads_an_adapter(tmp_path: Path) -> None:
    """Without loading it: 2 layers x rank 2 x (q_proj 64 + 64, down_proj 128 + 64)."""
    start = adapter(tmp_path / "start", "builtin:tiny")
    report = orpo_cli.check(f"model={start}", f"data={write_pairs(tmp_path / 'prefs.jsonl', 6)}")
    assert report.estimate is not None
    assert report.estimate.trained == 2 * 2 * (64 + 64 + 128 + 64)


def test_a_sweep_of_adapters_trains_each_further(tmp_path: Path) -> None:
    first, second = (adapter(tmp_path / name, "builtin:tiny") for name in ("first", "second"))
    jobs = compose_jobs(parse(["-m", f"model={first},{second}", "lambda=0.1,0.2"])).jobs
    assert [(job.config.model.path, job.config.adapter.name) for job in jobs] == [
        (str(place), "saved") for place in (first, second) for _ in range(2)
    ]


def test_a_run_without_its_model_is_no_start(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sft = train(*SFT, "trainer.max_steps=2", name="sft")
    shutil.rmtree(sft / "model")
    monkeypatch.chdir(sft.parent)
    train("model=./sft", code=66)
    said = " ".join(capfd.readouterr().err.split())
    assert "model.path=./sft: this run has not left its model yet: orpo resume sft; or begin with one of its" in said


def test_the_tokenizer_is_the_adapters_own(train: Callable[..., Path]) -> None:
    """With the chat template that it was trained with; one without a tokenizer has that of its base."""
    sft = train(*SFT, "model.chat_template=builtin:zephyr", "trainer.max_steps=1", name="sft")
    template = Assembly(orpo_cli.configure(f"model={sft}")).tokenizer.chat_template
    assert template == (TEMPLATES / "zephyr.jinja").read_text(encoding="utf-8")
    bare = adapter(sft.parent / "bare", "builtin:tiny")
    assert Assembly(orpo_cli.configure(f"model={bare}")).tokenizer.chat_template == CHATML
