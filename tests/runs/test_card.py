"""The card of a run's model: metadata of the hub, and numbers that are those of run.json."""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from tiny_runs import Arguments, Orpo, digests, tiny_model

import orpo_cli
from orpo_cli.config.schema import RunConfig
from orpo_cli.models.builtin import MAKERS, ORIGINS
from orpo_cli.reporting.evaluation import interval, number
from orpo_cli.runs.card import Form, Result, base_of_run, card_of
from orpo_cli.runs.folder import RunFolder
from orpo_cli.runs.resume import identity
from orpo_cli.statistics.answers import Answer
from orpo_cli.statistics.intervals import Estimate

FORM = Form("transformers", True, "DIR", "<|end|>", True)


def rows_of(text: str) -> dict[str, list[str]]:
    """The cells of each row of the card's tables, by the first."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {cells[0]: cells[1:] for cells in rows}


def card_text(run: Path) -> str:
    return (run / "model" / "README.md").read_text(encoding="utf-8")


def test_its_numbers_are_those_of_run_json(reference: Path) -> None:
    record = json.loads((reference / "run.json").read_text(encoding="utf-8"))
    rows = rows_of(card_text(reference))
    after, before = record["evaluation"], record["evaluation"]["against"]
    names = {"accuracy": "accuracy", "longer wins, tokens": "longer_wins", "nll of chosen": "nll", "margin": "margin"}
    for shown, name in names.items():
        estimates = [Estimate(*(part[name][key] for key in ("value", "low", "high"))) for part in (after, before)]
        assert rows[shown] == [cell for one in estimates for cell in (number(one.value), interval(one))]
    ((path, checksum),) = record["data_sha256"].items()
    assert rows[f"`{Path(path).name}`"] == ["pairs", checksum]
    counts = dict(re.findall(r"^\| (train|held out) \| kept \| (\d+) \|$", card_text(reference), re.MULTILINE))
    assert counts == {"train": str(record["classes"]["train/kept"]), "held out": str(record["classes"]["eval/kept"])}
    for sentence in record["reading"]:
        assert f"- {sentence['text']}" in card_text(reference)
    assert record["objective"] in card_text(reference)
    assert f"transformers {record['versions']['transformers']}" in card_text(reference)


def test_a_card_that_cannot_be_written_costs_no_model(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    typed = arguments(folder, "trainer.max_steps=1", "data.eval_fraction=0")
    done = orpo.run(*typed, injections=[{"function": "orpo_cli.runs.execution.card_of", "call": 1, "effect": "EIO"}])
    assert done.code == 0, done.output
    assert done.output.count("model/README.md was not written: ") == 1
    assert (folder / "model" / "model.safetensors").is_file()
    assert not (folder / "model" / "README.md").exists()
    assert orpo.run("verify", str(folder)).code == 0


def test_every_builtin_model_says_what_it_is() -> None:
    assert ORIGINS.keys() == MAKERS.keys()


def test_its_samples_are_those_of_samples_jsonl(reference: Path) -> None:
    lines = [json.loads(line) for line in (reference / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    text = card_text(reference)
    first = [next(line for line in lines if line["step"] == step) for step in (0, 6)]
    shown = re.findall(r"^(Prompt|Before training|After):\n\n```text\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in shown[:3]] == ["Prompt", "Before training", "After"]
    assert shown[0][1] == first[0]["prompt"]
    assert len(shown) == 6


def test_its_metadata_is_the_hub_s(reference: Path) -> None:
    card = ModelCard.load(reference / "model" / "README.md")
    data = card.data.to_dict()
    assert data == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["orpo", "preference", "preference-optimization"],
    }
    assert re.search(r"^# license: yours to choose", card_text(reference), re.MULTILINE)


@pytest.fixture
def card_for(reference: Path, compose_config: Callable[..., RunConfig]) -> Callable[..., str]:
    """`card_for("adapter=lora", base="org/name")`: the card of a run of other settings, of another base."""

    def made(*words: str, base: str, form: Form = FORM, result: Result | None = None) -> str:
        folder = RunFolder(reference)
        folder.record = folder.record | {"model": {"base": base, "adapters": []}}
        config = compose_config("model=tiny", *words)
        return card_of(config, folder, result or Result(6, None, (), (), ()), form)

    return made


def metadata(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


@pytest.mark.parametrize(
    ("base", "hub_id"),
    [
        ("org/name", "org/name"),
        ("builtin:smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("builtin:tiny", None),
        ("/home/me/llama", None),
    ],
)
def test_only_what_is_on_the_hub_is_named_as_its_id(
    card_for: Callable[..., str], base: str, hub_id: str | None
) -> None:
    values = metadata(card_for("data=demo", base=base))
    assert values.get("base_model") == hub_id
    assert values.get("base_model_relation") == (None if hub_id is None else "finetune")
    adapter = metadata(card_for("data=demo", "adapter=lora", base=base, form=replace(FORM, library="peft")))
    assert adapter["library_name"] == "peft"
    assert adapter.get("base_model_relation") == (None if hub_id is None else "adapter")
    assert "lora" in adapter["tags"]


def test_the_builtin_base_is_named_by_what_it_is() -> None:
    words = base_of_run({"model": {"base": "builtin:smollm2"}}).words
    assert words.startswith("SmolLM2-135M-Instruct, restored from a 4-bit file (SmolLM2-135M-Instruct.Q4_1.gguf in ")


def test_datasets_are_named_where_they_are_on_the_hub(card_for: Callable[..., str], reference: Path) -> None:
    data = f"data=[argilla/ultrafeedback,{reference / 'ledger.jsonl'}]"
    assert metadata(card_for(data, base="org/name"))["datasets"] == ["argilla/ultrafeedback"]
    assert "datasets" not in metadata(card_for("data=demo", base="org/name"))


def test_texts_of_others_stay_texts(card_for: Callable[..., str]) -> None:
    answers = [Answer("```\n# heading", "\x1b[31mred ````")]
    text = card_for("data=demo", base="org/name", result=Result(6, None, ["a `b` \x1b"], answers, answers))
    assert "\x1b" not in text
    assert "\n````text\n```\n# heading\n````\n" in text
    assert "\n`````text\n\\u001b[31mred ````\n`````\n" in text


def test_it_names_no_place_of_this_machine(reference: Path, lora: Path) -> None:
    for run in (reference, lora):
        assert str(run) not in card_text(run)
        assert str(Path.home()) not in card_text(run)
        assert "/tmp/" not in card_text(run)


@pytest.fixture(scope="session")
def lora(orpo: Orpo, arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "run"
    more = ["adapter=lora", "loss=trl", "optimizer=sgd", "seed=3", "data.max_length=300", "data.ignore_keys=[note]"]
    more += ["trainer.max_steps=null", "trainer.epochs=1", "scheduler.warmup_ratio=0.25", "lambda=0.3"]
    more += ["trainer.eval_every=2", "trainer.keep_best=nll", "trainer.result=best"]
    done = orpo.run(*arguments(folder, *more))
    assert done.code == 0, done.output
    return folder


def test_peft_s_empty_card_is_gone(lora: Path) -> None:
    assert "More Information Needed" not in card_text(lora)
    assert [path for path in lora.rglob("README.md") if path.parent.name != "model"] == []


@pytest.fixture(scope="session")
def stopped(orpo: Orpo, arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended before its last step, since nothing became better."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    done = orpo.run(*arguments(folder, "optimizer.lr=1e-30", "trainer.eval_every=1", "trainer.early_stop=2"))
    assert done.code == 0, done.output
    return folder


def test_the_command_makes_the_same_run(
    reference: Path,
    lora: Path,
    stopped: Path,
    monkeypatch: pytest.MonkeyPatch,
    compose_config: Callable[..., RunConfig],
) -> None:
    for run in (reference, lora, stopped):
        config = RunFolder(run).config
        monkeypatch.chdir(Path(config.data.path).parent)
        (line,) = re.findall(r"^orpo train .*$", card_text(run), re.MULTILINE)
        again = compose_config(*shlex.split(line)[2:])
        assert identity(again) == identity(config)
        end = json.loads((run / "run.json").read_text(encoding="utf-8"))["end"]
        assert (again.data.path, again.trainer.max_steps) == (config.data.path, end["total_steps"])
        assert again.model.save_dtype == config.model.save_dtype
        assert (end["step"] < end["total_steps"]) is (run == stopped)
        if run == stopped:
            assert (again.trainer.early_stop, again.trainer.eval_every) == (2, 1)


def test_verify_takes_it_for_a_file_of_the_model(orpo: Orpo, reference: Path) -> None:
    record = json.loads((reference / "run.json").read_text(encoding="utf-8"))
    assert "model/README.md" in record["model_files"]
    assert orpo.run("verify", str(reference)).code == 0


def test_a_run_that_was_killed_and_resumed_has_the_same_card(
    orpo: Orpo, arguments: Arguments, reference: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    first = orpo.run(*arguments(folder, "trainer.max_steps=6"), injections=[_kill_after_step(4)])
    assert first.code != 0
    assert not (folder / "model").exists()
    done = orpo.run("resume", str(folder))
    assert done.code == 0, done.output
    assert digests(folder / "model") == digests(reference / "model")


def _kill_after_step(step: int) -> dict[str, Any]:
    from tiny_runs import kill

    return kill("orpo_cli.training.run._Run._begin_checkpoint", step // 2 + 1)


def test_an_export_has_a_card_of_its_form(reference: Path, lora: Path, tmp_path: Path) -> None:
    orpo_cli.export(reference, f"to={tmp_path / 'out'}", "dtype=bf16")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "- Weights: after step 6 of 6, stored in bfloat16\n" in text
    assert text.replace(", stored in bfloat16", "") == card_text(reference)
    orpo_cli.export(lora, f"to={tmp_path / 'merged'}", "merge=true")
    assert ModelCard.load(tmp_path / "merged" / "README.md").data.library_name == "transformers"


def test_the_snippet_runs(reference: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", card_text(reference), re.DOTALL)
    monkeypatch.chdir(reference)
    exec(code.replace('"DIR"', '"model"').replace("max_new_tokens=200", "max_new_tokens=2"), {})
    assert "Traceback" not in capfd.readouterr().err


def test_a_base_on_this_machine_is_only_named(orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    model, folder = tiny_model(tmp_path / "my-model"), tmp_path / "run"
    done = orpo.run(*arguments(folder, f"model={model}", "adapter=lora", "trainer.max_steps=1", "data.eval_fraction=0"))
    assert done.code == 0, done.output
    text = card_text(folder)
    assert "- Base: the local model my-model\n" in text
    assert str(tmp_path) not in text
    assert 'AutoModelForCausalLM.from_pretrained("BASE_DIR")' in text
    assert "No results on held-out pairs are known" in text
