"""Answer prompts in one batch: greedily, drawn by settings and a seed, or both to show what training did."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import xxhash
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
    ids_of_prompts = [ids for _, ids in prompts]
    device = base_of(model).get_input_embeddings().weight.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        rows = _generated(
            model, [*ids_of_prompts, *ids_of_prompts], [end_id], [_GreedyRows(len(prompts))],
            max_new_tokens=max_new_tokens, do_sample=True, temperature=TEMPERATURE, top_k=TOP_K,
        )  # fmt: skip
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in rows]
    count = len(prompts)
    return [
        Answer(words, greedy, drawn, ids[-1:] == [end_id], len(ids))
        for (words, _), greedy, drawn, ids in zip(prompts, texts[:count], texts[count:], rows[:count], strict=True)
    ]


@dataclass(frozen=True)
class Sampling:
    """How answers are chosen.

    Args:
        temperature: 0 takes the likeliest token each time.
        top_p: the probability that the tokens have together from which one is drawn.
        top_k: the number of likeliest tokens from which one is drawn; None for all.
        seed: decides what is drawn.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int = 0


@torch.no_grad()
def continuations(
    model: Any,
    prompts: Sequence[list[int]],
    end_ids: Sequence[int],
    sampling: Sampling,
    first: int = 0,
    streamer: Any = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> list[list[int]]:
    """Continue prompts until an end token or the limit; nothing that is drawn depends on the batch.

    Args:
        prompts: the token ids of each.
        first: the number of the first prompt; each draws by the seed and its number.
        streamer: told of each token as it comes, where there is one prompt.
        is_stopped: asked after each token whether to end here.
    Returns:
        the token ids of each answer, an end token last where it has ended by itself.
    """
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    processors: list[Any] = []
    if sampling.temperature > 0:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k is not None:
            processors.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            processors.append(TopPLogitsWarper(sampling.top_p))
        processors.append(_Draws([_seed(sampling.seed, number) for number in range(first, first + len(prompts))]))

    def stopped(ids: Tensor, _scores: Tensor, **_others: Any) -> Tensor:
        return torch.full((len(ids),), is_stopped(), device=ids.device)

    return _generated(
        model, prompts, end_ids, processors, streamer=streamer, stopping_criteria=[stopped],
        max_new_tokens=sampling.max_tokens, do_sample=False,
    )  # fmt: skip


def _generated(
    model: Any,
    prompts: Sequence[list[int]],
    end_ids: Sequence[int],
    processors: Sequence[Any],
    streamer: Any = None,
    stopping_criteria: Sequence[Any] = (),
    **settings: Any,
) -> list[list[int]]:
    """Return what `generate` of transformers puts behind each prompt; the model stays as it is."""
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    base, was_training = base_of(model), model.training
    model.eval()
    config = GenerationConfig(eos_token_id=list(end_ids), pad_token_id=end_ids[0], use_cache=True, **settings)
    inputs, mask = _padded(prompts, end_ids[0], base.get_input_embeddings().weight.device)
    own, base.generation_config = base.generation_config, GenerationConfig()  # it fills in what `config` leaves open
    try:
        with idle_adapters_left_out(model):
            output = model.generate(
                input_ids=inputs,
                attention_mask=mask,
                generation_config=config,
                logits_processor=LogitsProcessorList(processors),
                stopping_criteria=StoppingCriteriaList(stopping_criteria),
                streamer=streamer,
            )
    finally:
        base.generation_config = own
        model.train(was_training)
    return [_until(ids, end_ids) for ids in output[:, inputs.shape[1] :].tolist()]


def _seed(seed: int, number: int) -> int:
    """Return a seed for one prompt of many: torch takes 32 bits, and the next seed should not be the next prompt's."""
    return xxhash.xxh32_intdigest(f"{seed} {number}".encode())


class _Draws:
    """Makes the likeliest token one that is drawn, for each row by a seed of its own: the Gumbel-max trick.

    The token with the largest log p - log e, e drawn from the exponential distribution, is drawn with probability p.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, _ids: Tensor, scores: Tensor) -> Tensor:
        drawn = [torch.empty(scores.shape[1]).exponential_(generator=generator) for generator in self._generators]
        noise = torch.stack(drawn).clamp_min_(torch.finfo(torch.float32).tiny)
        return scores.float() - noise.log().to(scores.device)


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


def _until(ids: list[int], end_ids: Sequence[int]) -> list[int]:
    """Return the ids up to the first end token, with it."""
    end = next((place for place, token in enumerate(ids) if token in end_ids), len(ids))
    return ids[: end + 1]
