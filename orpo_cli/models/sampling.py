"""Answer prompts in one batch, greedily and as people sample, to show what training did."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from orpo_cli.models.adapters import base_of, idle_adapters_left_out
from orpo_cli.statistics.answers import Answer

TEMPERATURE, TOP_K = 0.7, 50
"""How the second answer to each prompt is drawn."""


@torch.no_grad()
def answers(
    model: Any, tokenizer: Any, prompts: Sequence[tuple[str, list[int]]], end_id: int, max_new_tokens: int, seed: int
) -> list[Answer]:
    """Continue prompts until the end token or the limit; the generators of random numbers stay as they are.

    Args:
        prompts: the words and the token ids of each.
        end_id: the token that ends an answer.
        seed: decides what is drawn.
    """
    from transformers import GenerationConfig

    base, was_training = base_of(model), model.training
    model.eval()
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=True, temperature=TEMPERATURE, top_k=TOP_K,
        eos_token_id=end_id, pad_token_id=end_id, use_cache=True,
    )  # fmt: skip
    ids_of_prompts = [ids for _, ids in prompts]
    inputs, mask = _padded([*ids_of_prompts, *ids_of_prompts], end_id, base.get_input_embeddings().weight.device)
    own, base.generation_config = base.generation_config, GenerationConfig()  # it fills in what `config` leaves open
    try:
        with (
            idle_adapters_left_out(model),
            torch.random.fork_rng([inputs.device] if inputs.device.type == "cuda" else []),
        ):
            torch.manual_seed(seed)
            output = model.generate(
                input_ids=inputs,
                attention_mask=mask,
                generation_config=config,
                logits_processor=[_GreedyRows(len(prompts))],
            )
    finally:
        base.generation_config = own
        model.train(was_training)
    rows = [_until(ids, end_id) for ids in output[:, inputs.shape[1] :].tolist()]
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in rows]
    count = len(prompts)
    return [
        Answer(words, greedy, drawn, ids[-1:] == [end_id], len(ids))
        for (words, _), greedy, drawn, ids in zip(prompts, texts[:count], texts[count:], rows[:count], strict=True)
    ]


class _GreedyRows:
    """Leaves only the likeliest token to the first rows of a batch."""

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def __call__(self, _ids: Tensor, scores: Tensor) -> Tensor:
        first = scores[: self._rows]
        likeliest = torch.full_like(first, -torch.inf)
        likeliest.scatter_(1, first.argmax(1, keepdim=True), 0.0)
        return torch.cat([likeliest, scores[self._rows :]])


def _padded(prompts: Sequence[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return prompts padded on the left, (B, T), and the mask of their own places."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    own = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, own


def _until(ids: list[int], end_id: int) -> list[int]:
    """Return the ids up to the first end token, with it."""
    return ids[: ids.index(end_id) + 1] if end_id in ids else ids
