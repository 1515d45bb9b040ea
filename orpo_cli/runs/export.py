"""Export: write the model of a run, after any of its checkpoints, in the form that others load, and send it."""

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from orpo_cli.checkpoints import lookup
from orpo_cli.config.adapter import NoAdapterConfig
from orpo_cli.config.defaults import default_data
from orpo_cli.config.export import ExportConfig
from orpo_cli.config.schema import RunConfig
from orpo_cli.data.pairs import TokenizedPair
from orpo_cli.data.prepare import PreparedData
from orpo_cli.data.progress import OnProgress
from orpo_cli.errors import (
    ConfigError,
    DataError,
    InputNotFoundError,
    ModelError,
    OutputError,
    UnreachableError,
)
from orpo_cli.files.directories import StagedDirectory
from orpo_cli.files.manifest import check_listed
from orpo_cli.files.untrusted import read_text
from orpo_cli.models import adapters
from orpo_cli.models.adapter_files import ADAPTER
from orpo_cli.models.files import fingerprint, loaded_weights
from orpo_cli.models.gguf import Converter, convert, end_token, find_converter
from orpo_cli.models.loading import DTYPES, load_model
from orpo_cli.models.ollama import MODELFILE, modelfile
from orpo_cli.models.saving import CARD, cast_weights, save_model, stop_generation_at, weight_bytes
from orpo_cli.models.stored import load_stored
from orpo_cli.models.weights import dtype_name, main_dtype, stored_weights, take_as_stored
from orpo_cli.runs.assembly import Assembly
from orpo_cli.runs.card import Form, Result, answers_after, card_of
from orpo_cli.runs.export_check import Checked, compared, load_exported, logps_of_run
from orpo_cli.runs.folder import MODEL, RunFolder, refuse_sweep
from orpo_cli.runs.outcome import evaluation_of_run
from orpo_cli.runs.push import push
from orpo_cli.runs.resume import MODEL_FILES

_DEMO = "builtin:demo/train.jsonl"
_PAIRS = 2
"""How many pairs the exported model is compared on."""


@dataclass(frozen=True)
class Weights:
    """Where the trained weights are.

    Args:
        directory: a checkpoint, or the model/ of the run.
        step: the step that they are of.
        model_files: the checksum of the base that the run had; None where that is not known.
    """

    directory: Path
    step: int
    model_files: Any


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Args:
        to: the directory.
        step: the step whose weights it has.
        sizes: the size of each file, by name.
        checked: how the model compares with that of the run.
        notes: what the user should know, one line each.
        address: where it was sent to; None where it was not sent.
    """

    to: Path
    step: int
    sizes: Mapping[str, int]
    checked: Checked
    notes: Sequence[str]
    address: str | None


def export(folder: RunFolder, wanted: ExportConfig, on_progress: OnProgress = lambda *_: None) -> Exported:
    """Write the model of a run into a directory, whole or not at all, and send it where that is asked for.

    Raises:
        InputNotFoundError: if this is not the folder of a run, or it has no such checkpoint, or no converter is found.
        ConfigError: if the run has no adapter that could be written by itself, or the folder is that of a sweep.
        OutputError: if the directory is not empty, or a run works in the folder.
        CheckpointError: if the checkpoint, or the model that the run has left, is damaged.
        ModelError: if the base has changed, or the written model is not that of the run.
        UnreachableError: if the hub does not take it; the directory is written by then.
    """
    refuse_sweep(folder.path)
    if not folder.has_begun:
        raise InputNotFoundError(f"{folder.config_yaml}: no such file; orpo export takes the folder of a run")
    to = Path(os.path.expanduser(str(wanted.to))).absolute()  # noqa: PTH111 - a `~` of nobody is a file name
    _refuse_occupied(to)
    merges = _merges(folder.config, wanted)
    is_gguf = wanted.format == "gguf"
    converter = find_converter(wanted.quant or "f16", _again(folder, wanted)) if is_gguf else None
    with folder.undisturbed():
        source = _source(folder, wanted.checkpoint)
        _refuse_without_adapter(folder, source, merges)
        return _Export(folder, wanted, to, merges, source, converter, on_progress).written()


def _refuse_occupied(to: Path) -> None:
    if to.is_symlink() or (to.exists() and not to.is_dir()):
        raise OutputError(f"to={to}: is not a directory; an export is a new one")
    if to.is_dir() and (names := sorted(path.name for path in to.iterdir())):
        raise OutputError(f"to={to}: is not empty (it holds {', '.join(names[:3])}); an export is written to a new one")


def _merges(config: RunConfig, wanted: ExportConfig) -> bool:
    """Return whether a whole model is written."""
    if isinstance(config.adapter, NoAdapterConfig):
        if wanted.merge is not None:
            raise ConfigError(f"merge={str(wanted.merge).lower()}: this run trained every weight, no adapter")
        return True
    return wanted.format == "gguf" or (config.adapter.merge if wanted.merge is None else wanted.merge)


def _again(folder: RunFolder, wanted: ExportConfig) -> str:
    asked = {key: value for key, value in vars(wanted).items() if value not in (None, False) and key != "shard_size"}
    words = [f"{key}={'true' if value is True else value}" for key, value in asked.items()]
    return shlex.join(["orpo", "export", str(folder.path), *words])


def _source(folder: RunFolder, wanted: str | None) -> Weights:
    """Return where the weights are that are asked for."""
    root = folder.checkpoints
    saved = dict(lookup.list_checkpoints(root))
    step = folder.end.get("model_step") if folder.is_finished and wanted is None else None
    if wanted == "best":
        return _verified(_best(root, saved))
    if wanted is not None and wanted.isdecimal():
        if int(wanted) not in saved:
            there = ", ".join(map(str, saved)) or "none"
            raise InputNotFoundError(f"checkpoint={wanted}: {root} has no checkpoint of this step; there are: {there}")
        return _verified(saved[int(wanted)])
    if step is not None and step not in saved:  # the checkpoints may have been removed; the model is there
        check_listed(folder.path, folder.model_files, "the list in run.json")
        return Weights(folder.path / MODEL, int(step), None)
    if step is not None:
        return _verified(saved[step])
    if not saved:
        raise InputNotFoundError(f"{root}: no checkpoint; the run has saved nothing that could be exported")
    path, _ = lookup.latest_checkpoint(root)
    return _verified(path)


def _verified(checkpoint: Path) -> Weights:
    state = lookup.verify(checkpoint)
    return Weights(checkpoint, state.step, state.identity.get(MODEL_FILES))


def _best(root: Path, saved: Mapping[int, Path]) -> Path:
    """Return the checkpoint that BEST names."""
    try:
        name = read_text(root / lookup.BEST, 1000).strip()
    except (OSError, ValueError):
        name = ""
    found = next((path for path in saved.values() if path.name == name), None)
    if found is None:
        raise InputNotFoundError(
            f"checkpoint=best: {root} names no best checkpoint; a run with trainer.keep_best=nll does"
        )
    return found


def _refuse_without_adapter(folder: RunFolder, source: Weights, merges: bool) -> None:
    has_trained_adapter = not isinstance(folder.config.adapter, NoAdapterConfig)
    if has_trained_adapter and not merges and not (source.directory / ADAPTER).is_file():
        raise InputNotFoundError(
            f"merge=false: {source.directory} holds the merged model, and the checkpoints, which have the adapter by "
            "itself, are gone"
        )


class _Export:
    """One export.

    Args:
        to: the directory.
        merges: whether a whole model is written.
        converter: what writes the GGUF file; None for safetensors.
    """

    def __init__(
        self,
        folder: RunFolder,
        wanted: ExportConfig,
        to: Path,
        merges: bool,
        source: Weights,
        converter: Converter | None,
        on_progress: OnProgress,
    ) -> None:
        self.folder, self.wanted, self.to, self.source, self.converter = folder, wanted, to, source, converter
        self.merges = merges
        self.on_progress = on_progress
        self.notes: list[str] = []
        config, base = folder.config, wanted.base
        # nothing is trained, so that it needs neither the device of the run nor its other processes
        trainer = replace(
            config.trainer, device="cpu", precision="fp32", processes=1, keep_best=None, early_stop=None, result="last"
        )
        model = config.model if base is None else replace(config.model, path=base, base=None)
        self.assembly = Assembly(replace(config, model=model, trainer=trainer), on_progress)

    def written(self) -> Exported:
        """Write the model, check it, put it in its place and send it."""
        data = self._data()
        pairs = _some_pairs(data)
        model, expected = self._load(pairs)
        self.on_progress("writing the model", 0, 0)
        draft = StagedDirectory(self.to, weight_bytes(model))
        with draft.writing() as directory:
            place = directory / "safetensors" if self.converter else directory
            dtype = self._save(place, model, data)
            written = logps_of_run(model, pairs)
            del model  # there is room for one
            checked = self._checked(place, pairs, written, expected, dtype)
            if self.converter:
                self._convert(self.converter, place, directory / _file_of(self.converter), data.end_id)
            self._write_words(directory, data, dtype)
            sizes = {
                path.relative_to(directory).as_posix(): path.stat().st_size
                for path in sorted(directory.rglob("*"))
                if path.is_file()
            }
            _refuse_occupied(self.to)
            if self.wanted.dry_run:
                shutil.rmtree(directory)
        address = None
        if not self.wanted.dry_run:
            draft.publish()
            if self.wanted.push is not None:
                self.on_progress(f"sending {self.wanted.push}", 0, 0)
                address = push(self.to, self.wanted.push, self.wanted.public)
        return Exported(self.to, self.source.step, sizes, checked, self.notes, address)

    def _data(self) -> PreparedData:
        """Return the data of the run; where it is not here any more, the demo's, tokenized in the same way."""
        try:
            return self.assembly.data
        except (InputNotFoundError, UnreachableError, DataError, ConfigError) as error:  # changed columns are one
            files = self.assembly.start.files  # a model that is not here is no fault of the data
            self.notes.append(
                f"{files.name}: compared on pairs of the demo, since the run's data is not as it was: {error}"
            )
        config = self.assembly.config
        given = {key: getattr(config.data, key) for key in ("chat_template", "fold_system", "max_length")}
        data = replace(default_data(_DEMO), **given, length_policy="truncate_response")
        self.assembly = Assembly(replace(config, data=data), self.on_progress)
        return self.assembly.data

    def _load(self, pairs: Sequence[TokenizedPair]) -> tuple[Any, list[torch.Tensor]]:
        """Return the model to be saved, and what the model of the run gives to the pairs."""
        start, config = self.assembly.start, self.folder.config
        then = self.source.model_files
        if then is not None and fingerprint(start.files) != then:
            raise ModelError(
                f"model.path={start.files.name}: is not the base that the run began with; give its place: base=DIR"
            )
        self.on_progress("loading the model", 0, 0)
        model: Any
        weights = loaded_weights(self.source.directory)
        if weights:
            model, _ = load_model(start.files, main_dtype(stored_weights(weights)), None, 0, self.source.directory)
            take_as_stored(model, weights)
            return model, logps_of_run(model, pairs)
        base, saved = load_stored(start.files, start.merged), self.source.directory
        model = adapters.add_lora(base, saved, config.seed, start.reference, start.files.revision)
        adapters.load_weights(model, saved)
        expected = logps_of_run(model, pairs)
        return adapters.merged_in_place(model) if self.merges else model, expected

    def _save(self, directory: Path, model: Any, data: PreparedData) -> torch.dtype:
        """Save the model, and return the dtype of most of its weights."""
        wanted = self.wanted.dtype or self.folder.config.model.save_dtype
        if wanted is not None:
            cast_weights(model, DTYPES[wanted], "dtype" if self.wanted.dtype else "model.save_dtype")
        stop_generation_at(model, data.end_id)
        directory.mkdir(exist_ok=True)
        save_model(directory, model, self.assembly.tokenizer, shard_size=self.wanted.shard_size)
        return main_dtype(stored_weights(loaded_weights(directory) or [directory / ADAPTER]))

    def _checked(
        self,
        directory: Path,
        pairs: Sequence[TokenizedPair],
        written: Sequence[torch.Tensor],
        of_run: Sequence[torch.Tensor],
        dtype: torch.dtype,
    ) -> Checked:
        self.on_progress("loading it again", 0, 0)
        start = self.assembly.start
        base: Any = None
        if not self.merges:
            base = load_stored(start.files, start.merged) if start.merged else start.files.directory
            if not start.is_found_by_transformers:
                self.notes.append(
                    "the base of this adapter is put together by orpo; peft alone does not find it: merge=true writes "
                    "the whole model"
                )
            elif Path(start.reference).is_absolute():
                self.notes.append(
                    f"adapter_config.json names the base by its place on this machine, {start.reference}; others have "
                    "to give theirs, or merge=true writes the whole model"
                )
        return compared(load_exported(directory, base), pairs, written, of_run, dtype)

    def _convert(self, converter: Converter, place: Path, file: Path, end_id: int) -> None:
        """Convert the safetensors in `place`, which go then."""
        self.on_progress("converting to GGUF", 0, 0)
        self.notes += convert(converter, place, file)
        shutil.rmtree(place)
        self.notes.append("the comparison is of the model before its conversion; the GGUF file itself was not run")
        if end_token(file) != end_id:
            self.notes.append(
                "the GGUF file names another end token than the one that was trained, "
                f"{self.assembly.tokenizer.convert_ids_to_tokens(end_id)}; the Modelfile stops at that one"
            )

    def _write_words(self, directory: Path, data: PreparedData, dtype: torch.dtype) -> None:
        """Write what people and other programs read beside the weights: the card, and a Modelfile."""
        end = self.assembly.tokenizer.convert_ids_to_tokens(data.end_id)
        if self.merges:
            source = f"./{_file_of(self.converter)}" if self.converter else "."
            text = modelfile(source, self.assembly.tokenizer, end)
            (directory / MODELFILE).write_text(text, encoding="utf-8")
        library = "gguf" if self.converter else "transformers" if self.merges else "peft"
        form = Form(
            library=library,
            plain=self.merges or self.assembly.start.is_found_by_transformers,
            place=self.wanted.push or "DIR",
            end_token=end,
            chat=data.uses_chat_template,
            stored=f"stored in {self.converter.quant if self.converter else dtype_name(dtype)}",
        )
        card = card_of(self.folder.config, self.folder, self._result(), form)
        (directory / CARD).write_text(card, encoding="utf-8")

    def _result(self) -> Result:
        """Return what the run has recorded of the model after this step."""
        folder, step = self.folder, self.source.step
        evaluations = [record for record in folder.records if record["kind"] == "eval"]
        samples = [record for _, record in folder.samples_lines if record is not None]
        is_end = folder.is_finished and folder.end.get("model_step") == step
        reading_ = [str(sentence.get("text", "")) for sentence in folder.record.get("reading", [])] if is_end else []
        after = answers_after(samples, step)
        return Result(step, evaluation_of_run(folder, evaluations, step), reading_, answers_after(samples, 0), after)


def _file_of(converter: Converter) -> str:
    return f"model-{converter.quant}.gguf"


def _some_pairs(data: PreparedData) -> list[TokenizedPair]:
    """Return two pairs, held-out ones where there are any."""
    store = data.evaluation if len(data.evaluation) else data.train
    return [store[index] for index in range(min(_PAIRS, len(store)))]
