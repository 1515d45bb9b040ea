"""Makes the checkpoints of `test_golden.py`: `PYTHONPATH=CLONE python tests/faults/golden/make.py`.

CLONE is a clone of this repository at a commit whose `FORMAT_VERSION` a checkpoint is wanted of; it goes to step-vN
beside this file. Those in git were made by: v2 27ada16, v3 the commit that added them. The model has been made once.
"""

import shutil
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL = HERE / "model"
PREFERENCES = HERE / "prefs.jsonl"
WORDS = ("the", "cat", "dog", "house", "moon", "runs", "sleeps", "eats", "bright", "river", "stone", "?")
STEP = "step-000002"


def arguments(model: Path, folder: Path) -> list[str]:
    """What to type for the run."""
    return [
        "train", f"model={model}", f"data={model.parent / PREFERENCES.name}", f"output_dir={folder}",
        "data.chat_template=null",  # the default of those versions
        "trainer.pairs_per_step=4", "trainer.max_steps=5", "trainer.save_every=2", "trainer.keep_last=5",
        "trainer.sample_tokens=4", "trainer.precision=fp32", "trainer.max_tokens=2048", "optimizer.lr=1e-2",
    ]  # fmt: skip


def make_model() -> None:
    """One layer of eight numbers, and a tokenizer of twelve words: the whole directory has a few kilobytes."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(("<unk>", "<end>", *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<end>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(MODEL)
    tokenizer.save_pretrained(MODEL)


def main() -> None:
    from orpo_cli.checkpoints.lookup import FORMAT_VERSION
    from orpo_cli.cli.main import main as orpo

    if not MODEL.exists():
        make_model()
    with tempfile.TemporaryDirectory() as scratch:
        model = shutil.copytree(MODEL, Path(scratch) / "model")
        shutil.copy(PREFERENCES, scratch)
        if (code := orpo(arguments(model, Path(scratch) / "run"))) != 0:
            raise SystemExit(code)
        shutil.copytree(Path(scratch) / "run/checkpoints" / STEP, HERE / f"step-v{FORMAT_VERSION}")


if __name__ == "__main__":
    main()
