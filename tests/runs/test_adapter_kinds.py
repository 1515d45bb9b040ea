"""Each kind of adapter, init and option: it trains what it names, is resumed to the byte, verified, merged, loaded."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import rows
from safetensors.torch import load_file
from tiny_runs import gone_back, same_end, write_pairs

import orpo_cli as orpo
from orpo_cli.config.adapter import NoAdapterConfig
from orpo_cli.errors import ConfigError
from orpo_cli.models.builtin import byte_tokenizer
from orpo_cli.runs.folder import RunFolder
from orpo_cli.runs.replay import replay
from orpo_cli.runs.verify import verify

SHAPE = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
ATTENTION = "adapter.targets=[q_proj,k_proj,v_proj,o_proj]"

KINDS: dict[str, tuple[str, ...]] = {
    "lora": ("adapter=lora",),
    "dora": ("adapter=dora",),
    "rslora": ("adapter=rslora",),
    "gaussian": ("adapter=lora", "adapter.init=gaussian"),
    "orthogonal": ("adapter=lora", "adapter.init=orthogonal"),
    "pissa": ("adapter=lora", "adapter.init=pissa"),
    "pissa on bf16": ("adapter=lora", "adapter.init=pissa", "model.dtype=bf16"),
    "olora": ("adapter=rslora", "adapter.init=olora", "adapter.rank_pattern={q_proj:6}"),
    "eva": ("adapter=lora", "adapter.init=eva"),
    "dropout": ("adapter=lora", "adapter.dropout=0.1"),
    "a pattern": ("adapter=lora", r"adapter.targets='.*\.1\..*(q|v)_proj'"),
    "a plain word": ("adapter=lora", "adapter.targets=all-linear"),
    "ranks": ("adapter=lora", "adapter.rank_pattern={q_proj:8}", "adapter.alpha_pattern={v_proj:1}"),
    "both ends": ("adapter=lora", "adapter.modules_to_save=[embed_tokens,lm_head]"),
    "embeddings": ("adapter=lora", "adapter.modules_to_save=[embed_tokens]"),
    "head": ("adapter=lora", "adapter.modules_to_save=[lm_head]"),
    "tokens": ("adapter=lora", "adapter.train_tokens=[a,72]"),
    "4 bits": ("adapter=qlora",),
    "8 bits": ("adapter=qlora", "adapter.bits=8"),
    "4 bits dora": ("adapter=qlora", "adapter.dora=true"),
    "4 bits eva, head, dropout": (
        "adapter=qlora", "adapter.init=eva", "adapter.modules_to_save=[lm_head]", "adapter.dropout=0.1"
    ),
    "frozen": ("adapter=frozen", "adapter.layers=1", "adapter.train=[norm]"),
    "frozen by pattern": ("adapter=frozen", "adapter.layers=0", r"adapter.train='.*\.self_attn\..*'"),
    "full": ("adapter=full",),
}  # fmt: skip
EXPERT_KINDS = {
    "experts": ("adapter=lora", "adapter.targets=[q_proj]", "adapter.target_parameters=[mlp.experts.down_proj]"),
    "experts alone": ("adapter=lora", "adapter.targets=[]", "adapter.target_parameters=[mlp.experts.gate_up_proj]"),
    "experts by pattern": ("adapter=lora", r"adapter.targets='.*\.1\..*(q|down)_proj'"),
}
NOT_ON_EXPERTS = (
    "dora", "orthogonal", "pissa", "pissa on bf16", "olora", "eva", "dropout", "4 bits", "8 bits", "4 bits dora",
    "4 bits eva, head, dropout",
)  # fmt: skip
"""The kinds that experts do not take, so that on a mixture they are on its attention alone."""

LINEAR = r"_proj\.|mlp\.gate\."
TRAINED = {
    "a pattern": r"layers\.1\..*[qv]_proj\.",
    "both ends": f"{LINEAR}|embed_tokens|lm_head",
    "embeddings": f"{LINEAR}|embed_tokens",
    "head": f"{LINEAR}|lm_head",
    "tokens": f"{LINEAR}|embed_tokens",
    "4 bits eva, head, dropout": f"{LINEAR}|lm_head",
    "frozen": r"layers\.1\.|model\.norm\.",
    "frozen by pattern": "self_attn",
    "full": "",
    "experts": r"q_proj\.|experts\..*down_proj",
    "experts alone": r"experts\..*(gate|up)_proj",
    "experts by pattern": r"layers\.1\..*(q|down)_proj",
}
"""What the names of the trained weights have in them; those of the kinds that are not here, LINEAR."""


def _cell(kind: str, words: tuple[str, ...], model: str, layout: str) -> tuple[tuple[str, ...], str, str, str]:
    trained = TRAINED.get(kind, LINEAR)
    if model == "tied":
        trained = trained.replace("lm_head", "embed_tokens")  # one matrix, which is stored as the embeddings
    if model == "moe" and kind in NOT_ON_EXPERTS:
        return (*words, ATTENTION), model, layout, trained.replace(LINEAR, r"self_attn\.._proj\.")
    return words, model, layout, trained


CELLS = {
    f"{kind}, {model}, {layout}": _cell(kind, words, model, layout)
    for model in ("llama", "tied", "moe")
    for kind, words in (KINDS | (EXPERT_KINDS if model == "moe" else {})).items()
    for layout in ("packed", "padded")
} | {
    "embeddings by LoRA, llama, packed": (
        ("adapter=lora", "adapter.targets=[embed_tokens]"), "llama", "packed", "embed_tokens"
    ),
}  # fmt: skip
DAILY = (
    "dora, llama, packed",
    "pissa, tied, packed",
    "olora, moe, padded",
    "tokens, tied, padded",
    "4 bits, llama, packed",
)


def _build(model: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    if model in ("moe", "half"):
        plain = [0] if model == "half" else []
        return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SHAPE, **EXPERTS, mlp_only_layers=plain))
    return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=model == "tied"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of each model."""
    above = tmp_path_factory.mktemp("models")

    def directory(model: str) -> Path:
        if not (above / model).exists():
            _build(model).save_pretrained(above / model)
            byte_tokenizer().save_pretrained(above / model)
        return above / model

    return directory


def words_of(folder: Path, model: Path, *kind: str) -> list[str]:
    """What to type for a run of two steps with a checkpoint after each."""
    data = write_pairs(folder.parent / "prefs.jsonl", 12)
    return [
        f"model={model}", f"data={data}", *kind, "optimizer.lr=0.01", "scheduler.warmup_ratio=0", "trainer.max_steps=2",
        "trainer.save_every=1", "trainer.keep_last=2", "trainer.pairs_per_step=4", "trainer.sample_tokens=0",
        "trainer.precision=fp32", "trainer.device=cpu", f"output_dir={folder}",
    ]  # fmt: skip


def moved(before: Path, after: Path) -> dict[str, list[int]]:
    """Return which rows of which tensors differ between two directories with the same tensors."""
    first, second = (
        {name: value for path in place.glob("*model*.safetensors") for name, value in load_file(path).items()}
        for place in (before, after)
    )
    assert first.keys() == second.keys()
    unlike = {name: (first[name] != second[name]).reshape(len(first[name]), -1).any(1) for name in first}
    return {name: rows.nonzero().flatten().tolist() for name, rows in unlike.items() if rows.any()}


def assert_trained(run: orpo.Run, base: Path, whole: Path, trained: str) -> None:
    """What the run left is another model than its base in the weights that it trained, and in no other.

    From one checkpoint to the next all of them have moved, and so has everything that an adapter saves.

    Args:
        whole: the model that was exported, merged.
        trained: a pattern for parts of the names.
    """
    expected = {name for name in load_file(base / "model.safetensors") if re.search(trained, name)}
    from_base, by_a_step = moved(base, whole), moved(*run.checkpoints)
    assert sorted(from_base) == sorted(expected)
    tokens = getattr(run.config.adapter, "train_tokens", [])
    if tokens:
        ids = sorted(token if isinstance(token, int) else byte_tokenizer().get_vocab()[token] for token in tokens)
        assert from_base["model.embed_tokens.weight"] == ids
    if isinstance(run.config.adapter, NoAdapterConfig):
        assert sorted(by_a_step) == sorted(expected)
        return
    assert by_a_step.keys() == load_file(run.folder / "model" / "adapter_model.safetensors").keys()
    sizes = sum("magnitude" in name for name in by_a_step)
    assert sizes == (len(expected - {"lm_head.weight", "model.embed_tokens.weight"}) if run.config.adapter.dora else 0)


@pytest.mark.parametrize(("kind", "model", "layout", "trained"), rows(CELLS, *DAILY))
def test_every_kind(
    kind: tuple[str, ...], model: str, layout: str, trained: str, place: Callable[[str], Path], tmp_path: Path
) -> None:
    """`export` compares adapter and stored base with the merged model, loaded again by plain transformers."""
    words = words_of(tmp_path / "whole", place(model), *kind, f"trainer.layout={layout}")
    whole = orpo.train(orpo.configure(*words))
    resumed = gone_back(whole.folder, tmp_path / "resumed", 1)
    orpo.train(orpo.configure(*words[:-1], f"output_dir={resumed}", "resume=auto"))
    assert same_end(resumed, whole.folder)
    inspected = [*verify(RunFolder(resumed)), *replay(RunFolder(resumed), 2, lambda *_: None)]
    assert [part.problem for part in inspected if part.problem] == []
    is_adapter = (whole.folder / "model" / "adapter_config.json").exists()
    checked = orpo.export(whole.folder, f"to={tmp_path / 'merged'}", *(["merge=true"] if is_adapter else [])).checked
    assert checked.difference < 1e-4
    if is_adapter:
        assert whole.model().peft_config["default"].peft_type == "LORA"
    assert_trained(whole, place(model), tmp_path / "merged", trained)


WRONG = {
    "pissa and dora": (("adapter=dora", "adapter.init=pissa"), "adapter.init=pissa with adapter.dora=true: this init"),
    "olora in bits": (("adapter=qlora", "adapter.init=olora"), "adapter.init=olora with adapter.bits=4: this init"),
    "orthogonal in bits": (("adapter=qlora", "adapter.init=orthogonal"), "adapter.init=orthogonal with adapter.bits=4"),
    "odd orthogonal": (("adapter=lora", "adapter.init=orthogonal", "adapter.rank=3"), "needs an even rank, not 3"),
    "bits divided": (("adapter=qlora", "trainer.parallel=fsdp"), "trainer.parallel=fsdp with adapter.bits=4"),
    "dora in 8 bits": (("adapter=dora", "adapter.bits=8"), "DoRA needs a base in 4 bits, or as it is"),
    "more than a matrix has": (("adapter=lora", "adapter.init=pissa", "adapter.rank=33"), "has no 33 directions"),
    "embeddings and pissa": (("adapter=lora", "adapter.init=pissa", "adapter.targets=[embed_tokens]"), "leave it out"),
    "a quantized module": (("adapter=qlora", "adapter.modules_to_save=[q_proj]"), "let adapter.targets name it"),
    "eva of too many": (("adapter=lora", "adapter.init=eva", "adapter.rank=65"), "lower adapter.rank, or set"),
    "tokens twice": (("adapter=lora", "adapter.train_tokens=[a]", "adapter.modules_to_save=[embed_tokens]"), "leave"),
    "a rank of no target": (("adapter=lora", ATTENTION, "adapter.rank_pattern={up_proj:2}"), "is called up_proj"),
    "a module by pattern": (("adapter=lora", "adapter.modules_to_save=['*norm']"), "the model has no *norm"),
    "three bits": (("adapter=qlora", "adapter.bits=3"), "adapter.bits=3: expected 4, 8 or null"),
    "an unknown init": (("adapter=lora", "adapter.init=svd"), "adapter.init=svd: expected one of default, gaussian"),
    "a pattern in a list": (("adapter=lora", "adapter.targets=['.*q']"), ".*q is a pattern, which stands alone"),
    "a bad pattern": (("adapter=lora", "adapter.targets='(q'"), "adapter.targets=(q: is no regular expression"),
    "no target": (("adapter=lora", "adapter.targets=[]"), "adapter.targets=[]: expected at least one module name"),
    "an unknown target": (("adapter=lora", "adapter.targets=[c_attn]"), "linear layers here: down_proj, gate_proj"),
    "an unknown module": (("adapter=lora", "adapter.modules_to_save=[wte]"), "the model has no wte"),
    "an unknown weight": (("adapter=lora", "adapter.target_parameters=[w1]"), "the model has no w1"),
    "an unknown rank": (("adapter=lora", "adapter.rank_pattern={c_attn:4}"), "is called c_attn"),
    "an unknown token": (("adapter=lora", "adapter.train_tokens=[zzz]"), "zzz is no token of this model's tokenizer"),
    "too many layers": (("adapter=frozen", "adapter.layers=9"), "adapter.layers=9: the model has 2 layers"),
    "nothing trained": (("adapter=frozen", "adapter.layers=0"), "expected a module name where layers is 0"),
    "an unknown part": (("adapter=frozen", "adapter.train=[wte]"), "adapter.train=wte: no weight has such a name"),
    "experts in dora": (("adapter=dora", "model=moe"), "plain LoRA alone; name other layers: adapter.targets=[k_proj"),
    "dora by pattern": (("adapter=dora", "adapter.targets='.*_proj'", "model=moe"), "take plain LoRA alone; name"),
    "no layer of a mixture": (("adapter=lora", "adapter.targets='.*c_attn'", "model=moe"), "linear layers here: k_"),
    "of a mixture's other layers": (
        ("adapter=lora", r"adapter.targets='.*\.0\..*down_proj'", "model=half"), "fits model.layers.0.mlp.down_proj, "
    ),
    "experts and pissa": (("adapter=lora", "adapter.init=pissa", "model=moe"), "adapter.init=pissa: the experts"),
    "experts in 4 bits": (("adapter=qlora", "model=moe"), "adapter.bits=4: the experts of this model"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "said"), rows(WRONG, *WRONG))
def test_wrong_combinations_end_in_a_line(
    kind: tuple[str, ...], said: str, place: Callable[[str], Path], tmp_path: Path
) -> None:
    model = next((word.removeprefix("model=") for word in kind if word.startswith("model=")), "llama")
    words = words_of(tmp_path / "run", place(model), *(word for word in kind if word != f"model={model}"))
    with pytest.raises(ConfigError) as refused:
        orpo.train(orpo.configure(*words))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("bits", ["4", pytest.param("8", marks=pytest.mark.slow)])
def test_a_run_on_a_quantized_base_is_merged_into_the_stored_one(
    bits: str, place: Callable[[str], Path], tmp_path: Path
) -> None:
    """The model is what the export of the adapter is, whose log-probabilities are compared."""
    words = words_of(tmp_path / "apart", place("llama"), "adapter=qlora", f"adapter.bits={bits}")
    orpo.export(orpo.train(orpo.configure(*words)).folder, f"to={tmp_path / 'exported'}", "merge=true")
    run = orpo.train(orpo.configure(*words[:-1], "adapter.merge=true", f"output_dir={tmp_path / 'merged'}"))
    exported, merged = (load_file(path / "model.safetensors") for path in (tmp_path / "exported", run.folder / "model"))
    assert exported.keys() == merged.keys()
    assert all(torch.equal(exported[name], weight) for name, weight in merged.items())


def test_eva_of_pairs_too_short_for_its_rank(place: Callable[[str], Path], tmp_path: Path) -> None:
    """peft would go through them for ever."""
    words = words_of(tmp_path / "run", place("llama"), "adapter=lora", "adapter.init=eva", "adapter.rank=32")
    (tmp_path / "prefs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="1 pairs of the data have fewer than 32 tokens"):
        orpo.train(orpo.configure(*words, "data.eval_fraction=0", "trainer.eval_every=null"))


@pytest.mark.parametrize("kind", ["both ends", "tokens"])
def test_whole_modules_answer_on_a_base_of_less_precision(
    kind: str, place: Callable[[str], Path], tmp_path: Path
) -> None:
    """They are fp32 and the base is bf16, which answering has to bring together, as training does."""
    words = words_of(tmp_path / "run", place("llama"), *KINDS[kind])
    run = orpo.train(orpo.configure(*(word.replace("precision=fp32", "precision=bf16") for word in words)))
    answers = orpo.generate(f"model={run.folder}", "prompt=the cat", "max_tokens=3")
    assert len(answers) == 1
