"""Generate one greedy answer, to show what training did."""

from typing import Any

import torch

from orpo_cli.models.adapters import base_of


@torch.no_grad()
def greedy_answer(model: Any, tokenizer: Any, prompt_ids: list[int], end_id: int, max_new_tokens: int) -> str:
    """Continue a prompt by the likeliest token until the end token or the limit.

    Args:
        end_id: the token that ends an answer.
    Returns:
        the text without special tokens.
    """
    from transformers import GenerationConfig

    was_training = model.training
    model.eval()
    base = base_of(model)
    inputs = torch.tensor([prompt_ids], device=base.get_input_embeddings().weight.device)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=end_id, pad_token_id=end_id, use_cache=True
    )
    own, base.generation_config = base.generation_config, GenerationConfig()  # it fills in what `config` leaves open
    try:
        output = model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=config)
    finally:
        base.generation_config = own
        model.train(was_training)
    answer: str = tokenizer.decode(output[0, len(prompt_ids) :], skip_special_tokens=True)
    return answer.strip()
