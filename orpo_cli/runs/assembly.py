"""The one set-up of a run: tokenizer, data, model, scorer and optimizers, each built when it is first asked for."""

import math
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from orpo_cli.checkpoints import lookup
from orpo_cli.checkpoints.optimizer_state import load_optimizer_state
from orpo_cli.config.adapter import LoraConfig
from orpo_cli.config.schema import RunConfig
from orpo_cli.data.collation import padded
from orpo_cli.data.prepare import PreparedData, prepare
from orpo_cli.data.progress import OnProgress
from orpo_cli.data.tokens.file_tokenizer import tokenizer_fingerprint
from orpo_cli.data.tokens.store import PairStore
from orpo_cli.errors import ConfigError, ModelError, is_out_of_memory
from orpo_cli.machine.hardware import Hardware, find_hardware
from orpo_cli.machine.memory import free_memory
from orpo_cli.models import adapters, loading
from orpo_cli.models.adapter_inits import begin_from_data
from orpo_cli.models.dropout import Dropout
from orpo_cli.models.files import ModelFiles, fingerprint, loaded_weights
from orpo_cli.models.layout_check import first_tokens, packed_layout_problem
from orpo_cli.models.new_adapters import token_ids
from orpo_cli.models.router import balancing_of, notes_on_balancing
from orpo_cli.models.scorer import Scorer
from orpo_cli.models.weights import dtype_name, main_dtype, rounded_when_merged, stored_weights
from orpo_cli.quoting import first_few, first_line
from orpo_cli.runs.record import environment
from orpo_cli.runs.resume import MODEL_FILES, ResumePoint, identity
from orpo_cli.runs.run_model import RunModel
from orpo_cli.runs.starting_model import Start, find_start
from orpo_cli.training.fitting import fitted
from orpo_cli.training.footprint import divides, fitting_tokens, footprint, loaded
from orpo_cli.training.inputs import Budget, Scoring, Training, total_steps
from orpo_cli.training.micro_batches import places_in
from orpo_cli.training.optimizers import build_optimizers


def _silent(_what: str, _done: int, _total: int) -> None:
    """Show no progress."""


class Assembly:
    """Builds the parts of a run from its configuration, each when it is first asked for; a training anew at each call.

    Args:
        config: the configuration of the run.
        on_progress: called with what is being done, how much of it is done, and how much there is.
        for_training: whether weights and at least one pair are needed; without, tokenizer and config.json will do.
    """

    def __init__(self, config: RunConfig, on_progress: OnProgress = _silent, for_training: bool = True) -> None:
        self.config = config
        self.notes: list[str] = []
        """What the user should know about the parts built so far, one line each."""
        self._on_progress = on_progress
        self._for_training = for_training
        loading.be_quiet()

    @cached_property
    def hardware(self) -> Hardware:
        """Return where the run computes; the processes of a run join here."""
        return find_hardware(self.config.trainer)

    @cached_property
    def start(self) -> Start:
        """Return what the run starts from, fetched from the hub where it is not here."""
        with self.hardware.main_first():
            return find_start(self.config, self._on_progress, weights=self._for_training)

    @cached_property
    def lora(self) -> adapters.Settings | None:
        """Return what the adapter that is trained is made from, its tokens as ids; None where the model is trained."""
        lora = self.start.lora
        if isinstance(lora, LoraConfig) and lora.train_tokens:
            return replace(lora, train_tokens=token_ids(self.tokenizer, lora.train_tokens))
        return lora

    @property
    def files(self) -> ModelFiles:
        """Return the files of the model."""
        return self.start.files

    @property
    def saves_plain_model(self) -> bool:
        """Return whether transformers finds all of model/."""
        return self.config.saves_whole_model or self.start.is_found_by_transformers

    @cached_property
    def tokenizer(self) -> Any:
        """Return the tokenizer, with the chat template of the run."""
        return loading.load_tokenizer(self.files, self.config.model.chat_template)

    @cached_property
    def own_dropout(self) -> Dropout:
        """Return the dropout that the model's own configuration asks for; `model.dropout` says whether it is used."""
        return loading.own_dropout(self.files)

    @cached_property
    def max_length(self) -> int:
        """Return how many tokens a response and its prompt may have: `data.max_length`, or fewer."""
        wanted = self.config.data.max_length
        usable = loading.usable_length(self.files, wanted)
        if usable < wanted:
            self.notes.append(f"data.max_length is {usable}, the positions this model has, instead of {wanted}")
        return usable

    @cached_property
    def data(self) -> PreparedData:
        """Return the tokenized pairs.

        Raises:
            ConfigError: if evaluations are to decide something, and nothing is held out.
        """
        length = self.max_length
        with self.hardware.main_first():
            data = prepare(
                self.config.data,
                self.tokenizer,
                length,
                self._on_progress,
                self._for_training,
                self.config.model.chat_template_args,
            )
            for key in ("keep_best", "early_stop") if self._for_training and len(data.evaluation) == 0 else ():
                if (value := getattr(self.config.trainer, key)) is not None:
                    raise ConfigError(
                        f"trainer.{key}={value}: nothing is held out to measure it on; "
                        "set data.eval_fraction or data.eval_path"
                    )
        self.notes += data.notes
        return data

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Return everything that decides what is computed, by key; it must not change on resume."""
        return identity(self.config) | {
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            MODEL_FILES: fingerprint(self.files),
            "trainer.precision": self.hardware.precision,
            "model.dropout": self.config.model.dropout and bool(self.own_dropout),
        }

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Return what besides can change the last digits."""
        return environment(self.fitted, self.hardware)

    @cached_property
    def model(self) -> RunModel:
        """Return how the model is made; nothing is loaded yet."""
        return RunModel(self.config, self.start, self.lora, self.own_dropout, self.hardware)

    @cached_property
    def skeleton(self) -> Any:
        """Return the model as it will be trained, without weights."""
        return self.model.skeleton()

    @cached_property
    def fitted(self) -> RunConfig:
        """Return the configuration with what `trainer.fit` chooses, in all processes the same."""
        if self.config.trainer.fit is None:
            return self.config
        _ = self.data  # all processes build it together; what follows is the main one's alone
        own = self.fitted_to(self.hardware) if self.hardware.is_main else None
        config, said = self.hardware.from_main(own)
        self.notes.append(said)
        return config

    def fitted_to(self, hardware: Hardware) -> tuple[RunConfig, str]:
        """Return the configuration with what lets it fit there, and a line that says what was chosen and why."""
        train = self.data.train
        longest = places_in(train, self.config.trainer.layout)([train.longest()])
        return fitted(self.config, self.skeleton, longest, hardware, free_memory(hardware.device))

    def training(self, resume_point: ResumePoint | None = None) -> Training:
        """Build all that steps need, as it was at a checkpoint where one is given."""
        data = self.data
        return self.training_on(data.train, data.evaluation, data.highest_token_id, resume_point)

    def training_on(
        self, train: PairStore, evaluation: PairStore, highest_token_id: int, resume_point: ResumePoint | None = None
    ) -> Training:
        """Build all that steps need, for pairs of any origin.

        Args:
            highest_token_id: the highest id in the pairs, which the model has to embed.
        """
        config, stores = self.fitted, [store for store in (train, evaluation) if len(store) > 0]
        checkpoint = None if resume_point is None else resume_point.checkpoint
        fitted_before = None if resume_point is None else resume_point.state.max_tokens
        if divides(config, self.hardware):
            tokens = self.hardware.from_main(self._fitting(fitted_before) if self.hardware.is_main else None)
            source = self._load_model(highest_token_id, checkpoint) if self.hardware.is_main else None
            if source is not None and checkpoint is None:
                self._begin_from(train, source)
            scoring = self._divided(source, stores, tokens)
        else:
            model = self._ready(self.model.on_device(self._load_model(highest_token_id, checkpoint)))
            if checkpoint is None:
                self._begin_from(train, model)
            scoring = self._scoring(config, model, stores)
            scoring.budget.training = self._fitting(fitted_before, model)
        wanted = config.loss.router_aux_loss_coef
        scoring = replace(scoring, balancing=balancing_of(scoring.scorer.model, wanted))
        self.notes += notes_on_balancing(scoring.scorer.model, wanted)
        optimizers = build_optimizers(scoring.scorer.model, config.optimizer)
        if config.optimizer.name == "paged_adamw_8bit" and self.hardware.device.type != "cuda":
            self.notes.append("optimizer=paged_adamw_8bit: only a CUDA device has pages; here it is adamw_8bit")
        training = Training(scoring, optimizers, train, evaluation, total_steps(config, train))
        if resume_point is not None:
            self._restore_optimizers(training, resume_point)
        return training

    def scoring_of(self, store: PairStore) -> Scoring:
        """Build all that scoring pairs needs, with the model that the run starts from."""
        return self._scoring(self.config, self.model_as_it_is(self.data.highest_token_id), [store])

    def model_as_it_is(self, highest_token_id: int = 0) -> Any:
        """Load the model that the run starts from, to be used and not trained."""
        return self.model.on_device(self._load_model(highest_token_id, None, trains=False))

    def _divided(self, source: Any | None, stores: list[PairStore], tokens: int) -> Scoring:
        """Build a scoring of which each process keeps a slice of the weights.

        Args:
            source: the model, which only the main process has loaded.
            tokens: the size of micro-batches.
        """
        from orpo_cli.models import sharding

        config, hardware = self.fitted, self.hardware
        layout = hardware.from_main(None if source is None else self._layout(source, stores))
        model = self._ready(hardware.from_main(None if source is None else sharding.without_weights(source)))
        if not hardware.is_main and balancing_of(model, config.loss.router_aux_loss_coef) is not None:
            loading.load_skeleton(self.files)  # transformers notes what a class can output when it makes a model of it
        scorer = Scorer(model)
        sharding.divide(scorer, hardware)
        sharding.fill(model, source, hardware.device)
        return Scoring(config, scorer, hardware, layout, Budget(tokens, config.trainer.eval_max_tokens))

    def _ready(self, model: Any) -> Any:
        """Return a model that keeps few activations where that is asked for."""
        if self.fitted.trainer.gradient_checkpointing:
            try:
                adapters.base_of(model).gradient_checkpointing_enable({"use_reentrant": False})
            except ValueError as error:
                raise ConfigError(f"trainer.gradient_checkpointing=true: {first_line(error)}") from None
        return model

    def _scoring(self, config: RunConfig, model: Any, stores: list[PairStore]) -> Scoring:
        hardware = self.hardware
        layout, tokens = self._layout(model, stores), config.trainer.eval_max_tokens
        return Scoring(config, Scorer(model, hardware.dtype), hardware, layout, Budget(tokens, tokens))

    def _load_model(self, highest_token_id: int, checkpoint: Path | None, trains: bool = True) -> Any:
        self._on_progress("loading the model", 0, 0)
        model, notes = self.model.load(highest_token_id, checkpoint, trains)
        self.notes += notes
        return model

    def _begin_from(self, train: PairStore, model: Any) -> None:
        """Begin an adapter from the pairs, where the configuration says so."""
        if isinstance(self.lora, LoraConfig) and self.lora.init == "eva":
            self._on_progress("beginning the adapter from the data", 0, 0)
            begin_from_data(model, train)

    def _layout(self, model: Any, stores: list[PairStore]) -> str:
        """Return the layout of the run: packed only where the model's attention can share a prompt."""
        if self.config.trainer.layout == "padded":
            return "padded"
        pairs = [store[index] for store in stores for index in (store.shortest(), store.longest())]
        reason = packed_layout_problem(adapters.base_of(model), pairs)
        if reason is None:
            return "packed"
        self.notes.append(f"layout padded, since this model cannot share a prompt between two responses: {reason}")
        return "padded"

    def _fitting(self, fitted_before: int | None, model: Any = None) -> int:
        """Return the size of micro-batches: as given, else what fitted before the resume, else what memory allows.

        Args:
            model: the model, where its weights have been loaded.
        """
        given = self.config.trainer.max_tokens
        if isinstance(given, int):
            return given
        if fitted_before is not None:
            return fitted_before
        needed = footprint(self.fitted, self.skeleton if model is None else model, self.hardware)
        to_be_loaded = loaded(needed, self.hardware) if model is None else 0
        return fitting_tokens(needed, free_memory(self.hardware.device) - to_be_loaded, self.hardware)

    def _restore_optimizers(self, training: Training, resume_point: ResumePoint) -> None:
        path, taken = resume_point.checkpoint / lookup.OPTIMIZER, resume_point.state.step - resume_point.state.skipped
        without = load_optimizer_state(path, training.scorer.model, training.optimizers, taken)
        if without:
            self.notes.append(
                f"the checkpoint has no optimizer state of {first_few(without)}: no step has changed these weights yet"
            )

    def check_model(self, training: Training) -> None:
        """Compute the beginning of a real pair before any step: is the model causal, is its head as in the scorer?

        The model's own logits are computed whole for it, so that a longer part would take more memory than a step.
        A model whose layout is packed is known to be causal.

        Raises:
            ModelError: if the model sees later tokens, or cannot compute the pair at all.
        """
        name, scorer = self.files.name, training.scorer
        scorer.eval()
        pair = training.train[training.train.shortest()]
        batch = padded([first_tokens(pair)], score_prompts=False).to(self.hardware.device)
        try:
            with scorer.at_work("padded"):
                causal = training.scoring.layout == "packed" or scorer.is_causal(batch)
                difference = scorer.check_head(batch)
            if math.isnan(difference):
                raise ValueError("its logits are not finite")
        except (RuntimeError, IndexError, ValueError, TypeError, AttributeError) as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(f"model.path={name}: cannot compute a pair: {first_line(error)}") from error
        if not causal:
            raise ModelError(f"model.path={name}: its tokens see later ones; preferences need a causal (decoder) model")
        if scorer.whole_logits:
            self.notes.append(
                f"this model's head is computed whole, with more memory: in chunks it differs by {difference:.2g} nat"
            )

    def check_merge(self) -> None:
        """Note what merging the adapter will round, known before training.

        Raises:
            CheckpointError: if a file of weights cannot be read.
            ModelError: if config.json is damaged, or not of a causal language model.
        """
        if not self.config.merges:
            return
        weights = stored_weights(loaded_weights(self.files.directory))
        rounded = rounded_when_merged(loading.load_skeleton(self.files), weights)
        if rounded:
            self.notes.append(
                f"adapter.merge=true: {len(rounded)} stored weights that the model has under no such name, "
                f"{first_few(rounded)}: where it has them under another, they will be rounded to "
                f"{dtype_name(main_dtype(weights))}, in which most are stored"
            )

    def whole_model(self, checkpoint: Path) -> Any:
        """Return the model of the run with the weights of a checkpoint, in main memory."""
        return self._load_model(0, checkpoint)

    def merged(self, model: Any) -> Any:
        """Return the stored base model with the trained adapter merged into it."""
        return adapters.merged(model, self.stored_base())

    def stored_base(self) -> Any:
        """Load the model that the run began with, adapters of earlier runs merged, as precise as it is stored.

        Raises:
            ModelError: if it has changed since the run began.
        """
        return self.model.stored_base(self.identity[MODEL_FILES])
