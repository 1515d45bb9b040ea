"""Two processes resume each kind of run to the same bytes, with each optimizer that can; the others are refused."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from matrix import rows
from several import run_several
from tiny_runs import Arguments, Orpo, digests, gone_back, same_end, tiny_mixture

from orpo_cli.config.optimization import OPTIMIZERS, WHOLE_WEIGHTS
from orpo_cli.config.schema import RunConfig
from orpo_cli.errors import ConfigError

TWO_STEPS = (
    "trainer.processes=2", "trainer.max_steps=2", "trainer.save_every=1", "trainer.keep_last=2",
    "trainer.sample_tokens=0", "trainer.eval_every=null",
)  # fmt: skip

OF_OPTIMIZERS = {name: (f"optimizer={name}", "optimizer.lr=1e-3") for name in OPTIMIZERS} | {
    "sgd": ("optimizer=sgd", "optimizer.lr=1e-2", "optimizer.momentum=0.9"),
    "stable_adamw": ("optimizer=stable_adamw", "optimizer.layer_lr_decay=0.8"),
    "schedule_free_adamw": ("optimizer=schedule_free_adamw", "scheduler.warmup_steps=2"),
}
EXPERTS = "adapter.target_parameters=[mlp.experts.down_proj]"
BF16 = "trainer.precision=bf16"
OF_ADAPTERS = {
    "LoRA": ("adapter=lora",),
    "DoRA": ("adapter=dora",),
    "DoRA, saved in bf16": ("adapter=dora", "model.save_dtype=bf16"),
    "merged": ("adapter=lora", "adapter.merge=true"),
    "rsLoRA, dropout": ("adapter=rslora", "adapter.dropout=0.1"),
    "PiSSA": ("adapter=lora", "adapter.init=pissa"),
    "OLoRA, bf16": ("adapter=lora", "adapter.init=olora", BF16),
    "EVA": ("adapter=lora", "adapter.init=eva"),
    "embeddings and head": ("adapter=lora", "adapter.modules_to_save=[embed_tokens,lm_head]"),
    "DoRA, head, bf16": ("adapter=dora", "adapter.modules_to_save=[lm_head]", BF16),
    "tokens": ("adapter=lora", "adapter.train_tokens=[7,101]"),
    "frozen": ("adapter=frozen", "adapter.layers=1", "adapter.train=[norm]"),
    "experts": ("adapter=lora", "adapter.targets=[q_proj]", EXPERTS),
}  # fmt: skip
WHOLE = {
    "4 bits": ("adapter=qlora",),
    "4 bits, DoRA, head": ("adapter=qlora", "adapter.dora=true", "adapter.modules_to_save=[lm_head]"),
    "8 bits": ("adapter=qlora", "adapter.bits=8"),
}
"""Bases of whose weights each process needs all."""

DIVIDED = {name: words for name, words in OF_OPTIMIZERS.items() if name not in WHOLE_WEIGHTS} | OF_ADAPTERS
CASES = {f"ddp, {name}": ("ddp", words) for name, words in (OF_OPTIMIZERS | OF_ADAPTERS | WHOLE).items()} | {
    f"fsdp, {name}": ("fsdp", words) for name, words in DIVIDED.items()
}
REFUSED = {name: (OF_OPTIMIZERS[name], f"optimizer={name}: {why} needs") for name, why in WHOLE_WEIGHTS.items()} | {
    name: (words, "whole in each process") for name, words in WHOLE.items()
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("parallel", "words"), rows(CASES, "fsdp, DoRA"))
def test_the_same_bytes(parallel: str, words: Sequence[str], orpo: Orpo, arguments: Arguments, tmp_path: Path) -> None:
    """One whole run of two steps, and one that begins again after the first; one process saves the same, too."""
    mixture = [f"model={tiny_mixture(tmp_path / 'mixture')}"] if EXPERTS in words else []
    precision = [] if BF16 in words else ["trainer.precision=fp32"]
    typed = *TWO_STEPS, *words, *mixture, *precision, f"trainer.parallel={parallel}"
    whole = tmp_path / "whole"
    run_several(orpo, arguments(whole, *typed))
    resumed = gone_back(whole, tmp_path / "resumed", 1)
    said = run_several(orpo, ["train", f"resume={resumed}"])
    assert "resuming after step 1" in said
    assert "equal to rounding only" not in said
    assert same_end(resumed, whole)
    if parallel == "fsdp":
        saves_adapter = (whole / "model" / "adapter_config.json").exists()
        assert ("loading the model" in said.rpartition("writing the model")[2]) != saves_adapter
        one = gone_back(whole, tmp_path / "one", 2)
        done = orpo.run("train", f"resume={one}", "trainer.processes=1")
        assert done.code == 0, done.output
        assert digests(one / "model") == digests(whole / "model")


@pytest.mark.parametrize(("words", "said"), [pytest.param(*row, id=name) for name, row in REFUSED.items()])
def test_what_cannot_be_divided_is_refused(
    words: Sequence[str], said: str, compose_config: Callable[..., RunConfig]
) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        compose_config(*words, "trainer.parallel=fsdp")
    assert "choose " in str(refused.value)
    assert "\n" not in str(refused.value)
