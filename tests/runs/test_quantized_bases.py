"""The built-in model in 4 and in 8 bits: trained, resumed, trained further, merged into its plain weights."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import gone_back, records, same_end
from transformers import AutoModelForCausalLM, AutoTokenizer

import orpo_cli as orpo
from orpo_cli.runs.folder import RunFolder
from orpo_cli.runs.verify import verify

HELDOUT = Path(orpo.__file__).parent / "demo" / "heldout.jsonl"
TYPED = (
    "data=demo", "data.eval_path=null", "trainer.max_steps=2", "trainer.save_every=1", "trainer.pairs_per_step=2",
    "trainer.sample_tokens=0", "trainer.precision=fp32", "trainer.device=cpu",
)  # fmt: skip


def trained_and_resumed(folder: Path, *overrides: str) -> orpo.Run:
    """Two steps, of which the second is also taken by a run that was resumed, with the same bytes."""
    run = orpo.train(orpo.configure(*overrides, *TYPED, f"output_dir={folder}"))
    assert [record["kind"] for record in records(folder)] == ["step", "step"]
    assert all(math.isfinite(record["grad_norm"]) and record["grad_norm"] > 0 for record in records(folder))
    resumed = gone_back(folder, folder.with_name(f"{folder.name}-resumed"), 1)
    orpo.resume(resumed)
    assert same_end(resumed, folder)
    assert [part.problem for part in verify(RunFolder(resumed)) if part.problem] == []
    return run


@torch.no_grad()
def logp(model: Any, tokenizer: Any, prompt: str, response: str) -> float:
    """The sum of the log-probabilities of an answer and its end token, by one plain forward pass."""
    asked = [{"role": "user", "content": prompt}]
    answered = [*asked, {"role": "assistant", "content": response}]
    begin = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(answered, return_dict=False)
    end = len(whole) - whole[::-1].index(tokenizer.eos_token_id)  # the template has a line break after it
    ids = torch.tensor([whole[:end]])
    logps = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    return float(logps[len(begin) - 1 :].sum())


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("bits", [4, 8])
def test_built_in_model(bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out pairs get the same from the adapter on the plain base as from the merged model in plain transformers.

    Sums of about 30 tokens in fp32 were less than 0.001 nats apart when this was written.
    """
    monkeypatch.delenv("ORPO_CACHE")  # the converted model is 540 MB; one copy will do
    first = trained_and_resumed(tmp_path / "first", "model=smollm2", "adapter=qlora", f"adapter.bits={bits}")
    further = trained_and_resumed(
        tmp_path / "further", f"model={first.folder}", "adapter=saved", f"adapter.bits={bits}"
    )
    orpo.export(further.folder, f"to={tmp_path / 'merged'}", "merge=true")

    lines = sorted(HELDOUT.read_text(encoding="utf-8").splitlines(), key=len)[:4]
    (tmp_path / "heldout.jsonl").write_text("\n".join(lines), encoding="utf-8")
    typed = f"model={further.folder}", f"data={tmp_path / 'heldout.jsonl'}", "against=null"
    by_adapter = orpo.evaluate(*typed).scored.pairs
    by_base = orpo.evaluate("model=smollm2", *typed[1:], "trainer.precision=fp32").scored.pairs
    assert abs(by_adapter.chosen_logp - by_base.chosen_logp).min() > 0.02  # what was trained can be told from nothing
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    for side, found in (("chosen", by_adapter.chosen_logp), ("rejected", by_adapter.rejected_logp)):
        expected = [logp(merged, tokenizer, row["prompt"], row[side]) for row in map(json.loads, lines)]
        assert found.tolist() == pytest.approx(expected, rel=0, abs=0.005)
