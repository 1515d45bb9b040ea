"""Generate: what a model answers to prompts, beside what the model answers that it began with."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from orpo_cli.config.generation import GenerationConfig
from orpo_cli.config.schema import RunConfig
from orpo_cli.data.pairs import Message, ProblemError
from orpo_cli.data.progress import OnProgress
from orpo_cli.data.prompts import Prompt
from orpo_cli.data.tokens.chat_template import ChatTemplate
from orpo_cli.data.tokens.rendering import is_chat, render_prompt
from orpo_cli.data.tokens.tokenization import TokenizationSettings, prompt_ids
from orpo_cli.errors import DataError, OutOfMemoryError, is_out_of_memory
from orpo_cli.machine.memory import peak_in_words
from orpo_cli.models.adapters import base_of
from orpo_cli.models.loading import end_tokens, usable_length
from orpo_cli.models.precision import CastWeights
from orpo_cli.models.sampling import Sampling, continuations
from orpo_cli.runs.assembly import Assembly
from orpo_cli.runs.starting_model import as_it_is, find_model_files, model_against

OnText = Callable[[str], None]
"""Called with each piece of an answer as it comes."""

TUNED, BASE = "tuned", "base"


@dataclass(frozen=True)
class Generated:
    """A prompt and the answers to it.

    Args:
        base: the answer of the model to compare with; None where there is none.
    """

    prompt: Prompt
    base: str | None
    tuned: str


class Answerer:
    """A model that answers prompts as it saw them in training, until the token that ended an answer there.

    Args:
        config: the model, and the settings that decide how it sees a prompt.
        has_messages: whether the prompts are conversations; where no setting says it, this decides.
    """

    def __init__(self, config: RunConfig, has_messages: bool, on_progress: OnProgress) -> None:
        self._assembly = Assembly(as_it_is(config, on_progress), on_progress)
        self.name = config.model.path
        self._without_adapter = False
        self._tokenizer = self._assembly.tokenizer
        self._template = self._template_of(config, has_messages)
        self._settings = TokenizationSettings.of(self._tokenizer, self._template, sys.maxsize, "error")
        self._positions = usable_length(self._assembly.files, sys.maxsize)

    @property
    def is_chat(self) -> bool:
        """Return whether the model is asked through its chat template."""
        return self._template is not None

    def _template_of(self, config: RunConfig, has_messages: bool) -> ChatTemplate | None:
        if not is_chat(has_messages, config.data.chat_template, self._tokenizer):
            return None
        return ChatTemplate(self._tokenizer, config.model.chat_template_args, config.data.fold_system)

    @cached_property
    def _model(self) -> Any:
        return self._assembly.model_as_it_is()

    @cached_property
    def _weights(self) -> CastWeights:
        """Return what lets an adapter, whose weights are fp32, compute in the precision of its base, as in training."""
        return CastWeights(self._model, self._assembly.hardware.dtype)

    def load(self) -> None:
        """Load the model; without this, it is loaded when it is first to answer."""
        _ = self._model

    @property
    def _ends(self) -> list[int]:
        """Return the tokens that end an answer: the one of the training first, then the model's own."""
        ends = (self._settings.end_id, *end_tokens(base_of(self._model).generation_config))
        return [token for token in dict.fromkeys(ends) if token is not None]

    def without_adapter(self) -> "Answerer":
        """Return the same model as it answers without its adapter; the weights are in memory once."""
        self.load()  # what is loaded now is the other's too
        other = copy(self)
        other._without_adapter = True
        return other

    def ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the token ids of prompts as the model sees them.

        Raises:
            DataError: if the chat template refuses one, or it leaves the model no room for an answer.
        """
        texts = []
        for number, prompt in enumerate(prompts, 1):
            try:
                texts.append(render_prompt(prompt, self._template))
            except ProblemError as error:
                raise DataError(f"prompt {number}: {error}") from None
        found = prompt_ids(texts, self._settings)
        for number, ids in enumerate(found, 1):
            if not 0 < len(ids) < self._positions:
                takes = f"{self.name} has {self._positions:,} positions for prompt and answer"
                raise DataError(f"prompt {number}: {len(ids):,} tokens; {takes}")
        return found

    def answers(
        self, prompts: Sequence[Prompt], sampling: Sampling, batch_size: int, on_progress: OnProgress = lambda *_: None
    ) -> Iterator[str]:
        """Yield the answer to each prompt.

        Raises:
            DataError: as `ids` does.
            OutOfMemoryError: if memory runs out.
        """
        ids = self.ids(prompts)
        self.load()
        on_progress(f"answering with {self._shown_name}", 0, len(ids))
        for first in range(0, len(ids), batch_size):
            batch = ids[first : first + batch_size]
            fits = max(map(len, batch)) + sampling.max_tokens <= self._positions
            for number, part in enumerate([batch] if fits else [[one] for one in batch], first):
                yield from map(self._decoded, self._continued(part, sampling, number))
            on_progress(f"answering with {self._shown_name}", first + len(batch), len(ids))

    def streamed(
        self,
        prompt: Prompt,
        sampling: Sampling,
        on_text: OnText,
        number: int = 0,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> str:
        """Return the answer to a prompt, whose pieces are told as they come.

        Args:
            number: that of the prompt, which draws by it and the seed.
            is_stopped: asked after each token whether to end the answer here.
        Raises:
            DataError: as `ids` does.
            OutOfMemoryError: if memory runs out.
        """
        from transformers import TextStreamer

        streamer: Any = TextStreamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True)
        streamer.on_finalized_text = lambda text, **_: on_text(text)
        (answer,) = self._continued(self.ids([prompt]), sampling, number, streamer=streamer, is_stopped=is_stopped)
        return self._decoded(answer)

    @property
    def _shown_name(self) -> str:
        return f"{self.name} without its adapter" if self._without_adapter else self.name

    def _continued(self, prompts: list[list[int]], sampling: Sampling, first: int, **how: Any) -> list[list[int]]:
        room = self._positions - max(map(len, prompts))
        limited = replace(sampling, max_tokens=min(sampling.max_tokens, room))
        adapter = self._model.disable_adapter() if self._without_adapter else contextlib.nullcontext()
        try:
            with adapter, self._weights:
                return continuations(self._model, prompts, self._ends, limited, first, **how)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            peak, at_once = peak_in_words(self._assembly.hardware.device), f"{len(prompts)} prompts at once"
            raise OutOfMemoryError(
                f"out of memory while {self.name} answered {at_once}; {peak}. Set batch_size or max_tokens to less"
            ) from error

    def _decoded(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()


def sampling_of(config: RunConfig, wanted: GenerationConfig) -> Sampling:
    """Return how answers are chosen, as a configuration says it."""
    return Sampling(wanted.max_tokens, wanted.temperature, wanted.top_p, wanted.top_k, config.seed)


def answerers(
    config: RunConfig, against: str | None, has_messages: bool, on_progress: OnProgress
) -> Iterator[tuple[str, Answerer]]:
    """Yield the model to compare with, if there is one, and then the model itself, each loaded when it is its turn.

    A caller that lets the first one go has one model in memory at a time.

    Args:
        against: the name of the model to compare with; `auto` is what the run, or the adapter, began with.
    """
    if against is not None and (other := config_against(config, against, on_progress)) is not None:
        if is_under_adapter(config, other, on_progress):
            tuned = Answerer(config, has_messages, on_progress)
            yield BASE, tuned.without_adapter()
            yield TUNED, tuned
            return
        yield BASE, Answerer(other, has_messages, on_progress)
    yield TUNED, Answerer(config, has_messages, on_progress)


def config_against(config: RunConfig, against: str, on_progress: OnProgress) -> RunConfig | None:
    """Return the configuration of the model to compare with; None where nothing says which it is."""
    model = model_against(config.model, against, on_progress)
    return None if model is None else replace(config, model=model)


def is_under_adapter(config: RunConfig, other: RunConfig, on_progress: OnProgress) -> bool:
    """Return whether a model is another with one adapter more, so that it is the other without it."""
    tuned, base = (find_model_files(part.model, on_progress) for part in (config, other))
    return bool(tuned.adapters) and (tuned.directory, tuned.adapters[:-1]) == (base.directory, base.adapters)


def generate(
    config: RunConfig, wanted: GenerationConfig, prompts: Sequence[Prompt], on_progress: OnProgress = lambda *_: None
) -> Iterator[Generated]:
    """Yield the answers to each prompt, with one model in memory at a time.

    Args:
        config: the model, and the settings that decide how it sees a prompt.
        prompts: at least one; the first decides whether they are conversations, where no setting says it.
    Raises:
        DataError: if the chat template refuses a prompt, or it leaves the model no room for an answer.
        OutOfMemoryError: if memory runs out.
    """
    sampling, of_base = sampling_of(config, wanted), [None] * len(prompts)
    found: Any
    for name, answerer in answerers(config, wanted.compared_with, not prompts[0].is_text, on_progress):
        found = answerer.answers(prompts, sampling, wanted.batch_size, on_progress)
        if name == BASE:
            of_base = list(found)
        else:
            yield from (Generated(*parts) for parts in zip(prompts, of_base, found, strict=True))
        del answerer, found


class Conversation:
    """A conversation with a model, which is asked with all that was said before.

    Args:
        config: the model, and the settings that decide how it sees a prompt.
    """

    def __init__(self, config: RunConfig, wanted: GenerationConfig, on_progress: OnProgress) -> None:
        self._config, self._wanted = config, wanted
        self._sampling = sampling_of(config, wanted)
        self._base: Answerer | None = None
        self.tuned = Answerer(config, True, on_progress)
        self.tuned.load()
        self._said: tuple[Message, ...] = ()
        self._asked: tuple[Message, ...] = ()

    @property
    def has_begun(self) -> bool:
        """Return whether something was asked."""
        return bool(self._asked)

    def reset(self) -> None:
        """Forget what was said."""
        self._said = self._asked = ()

    def say(self, text: str, on_text: OnText, is_stopped: Callable[[], bool] = lambda: False) -> str:
        """Return the answer to a message, whose pieces are told as they come; a message without one is not kept.

        Raises:
            DataError: if the conversation leaves the model no room for an answer; the message is not kept.
        """
        before, self._asked = self._asked, (*self._said, Message("user", text))
        try:
            answer = self.say_as(self.tuned, on_text, is_stopped)
        except BaseException:
            self._asked = before
            raise
        if answer:
            self._said = (*self._asked, Message("assistant", answer))
        return answer

    def base(self, on_progress: OnProgress) -> Answerer | None:
        """Return the model to compare with, loaded when it is first asked for; None where nothing says which it is."""
        if self._base is None and (against := self._wanted.compared_with) is not None:
            other = config_against(self._config, against, on_progress)
            if other is not None:
                shared = is_under_adapter(self._config, other, on_progress)
                self._base = self.tuned.without_adapter() if shared else Answerer(other, True, on_progress)
                self._base.load()
        return self._base

    def say_as(self, model: Answerer, on_text: OnText, is_stopped: Callable[[], bool] = lambda: False) -> str:
        """Return what a model answers to the last message; it is no part of the conversation.

        Raises:
            DataError: if the conversation leaves the model no room for an answer.
        """
        turn = sum(message.role == "user" for message in self._asked) - 1
        return model.streamed(Prompt(self._asked), self._sampling, on_text, turn, is_stopped)
