"""What a run writes and says before its first step: its first files, its notes, the panel."""

import contextlib
import math
from collections.abc import Mapping
from typing import Any

from orpo_cli.checkpoints.lookup import LATEST
from orpo_cli.config.config_yaml import portable_yaml, resumed_yaml
from orpo_cli.config.keys import LENGTH, PLACES
from orpo_cli.config.schema import RunConfig, TrainerConfig
from orpo_cli.files.manifest import size_and_checksum
from orpo_cli.files.writing import fsync, point, replacing, write_text
from orpo_cli.reporting.completeness import metrics_problem
from orpo_cli.runs import scores
from orpo_cli.runs.assembly import Assembly
from orpo_cli.runs.before_training import digest_of
from orpo_cli.runs.folder import RunFolder
from orpo_cli.runs.record import panel_facts, run_record
from orpo_cli.runs.resume import ResumePoint, changed_settings
from orpo_cli.runs.session import Session, seconds_so_far
from orpo_cli.training.events import RunStarted
from orpo_cli.training.inputs import Training


def begin(
    assembly: Assembly, folder: RunFolder, resume_point: ResumePoint | None, length: Mapping[str, int], session: Session
) -> None:
    """Write the files of a run that are there before its first step.

    config.yaml is changed after run.json: of a finished run that is resumed for longer, none says that it is finished.

    Args:
        length: the number of steps before and now, where it has changed.
    """
    config, data = assembly.config, assembly.data
    if resume_point is not None:
        point(folder.checkpoints / LATEST, resume_point.checkpoint.name)
    resumes, changed, sessions = folder.resumes, dict[str, Any](), {**session.noted, "seconds": 0.0}
    if folder.has_begun:
        changed = changed_settings(config, folder)
        step = 0 if resume_point is None else resume_point.state.step
        resume = {"after_step": step, "changed": changed, **length, "environment": assembly.environment}
        resumes = [*resumes, resume | session.noted]
        sessions = {key: folder.record[key] for key in session.noted if key in folder.record}
        sessions["seconds"] = seconds_so_far(folder.record, folder.records)
    else:
        write_text(folder.config_yaml, portable_yaml(config, folder.path))
    if len(data.evaluation):
        scores.write_pairs(folder.evaluations, scores.columns_of(data.evaluation, assembly.tokenizer))
    with replacing(folder.ledger) as stream:
        stream.writelines(data.ledger.lines())
    before = {"before_training": digest_of(assembly)}
    kept = {"run_id": folder.run_id, "model_files": folder.models, "resumes": resumes, "finished": False}
    files = {"files": {folder.ledger.name: size_and_checksum(folder.ledger)}}
    folder.record = {}
    dropout = {"dropout": config.model.dropout} if assembly.own_dropout else {}
    folder.note(
        **run_record(config, assembly.files, data, assembly.hardware), **dropout, **before, **sessions, **files, **kept
    )
    if changed.keys() & {*PLACES, *LENGTH}:
        write_text(folder.config_yaml, resumed_yaml(folder.saved_config, config))
    fsync(folder.path)
    with contextlib.suppress(PermissionError):  # the parent may be a directory that this user cannot read
        fsync(folder.path.parent)


def notes_on_resume(config: RunConfig, folder: RunFolder, resume_point: ResumePoint | None, steps: int) -> list[str]:
    """Say what of the run so far is done again, has another length, or is missing from its records."""
    if resume_point is None:
        if config.resume is None or not folder.has_begun:
            return []
        lost = max((record["step"] for record in folder.records), default=0)
        again = f"; {lost} steps are done again" if lost > 0 else ""
        return [f"there is no checkpoint to resume from: the run starts at its beginning{again}"]
    problem = metrics_problem(
        folder.metrics, folder.metrics_lines, folder.config, folder.resumes, resume_point.state.step, finished=False
    )
    then, step = resume_point.state.total_steps, resume_point.state.step
    other = f"the run has {steps} steps instead of {then}; step {step + 1} and later ones have the schedule of {steps}"
    length = [other] if steps not in (then, step) else []
    return [*resume_point.notes, *length, *([] if problem is None else [problem])]


def notes_on_best(trainer: TrainerConfig, steps: int) -> list[str]:
    """Say where no step but the last is both evaluated and saved, as the best checkpoint must be."""
    if trainer.keep_best is None or not isinstance(trainer.eval_every, int):
        return []
    if trainer.save_every is not None and math.lcm(trainer.eval_every, trainer.save_every) < steps:
        return []
    saves = "null" if trainer.save_every is None else trainer.save_every
    return [
        f"trainer.keep_best={trainer.keep_best}: trainer.eval_every={trainer.eval_every} and "
        f"trainer.save_every={saves} meet at no step before the last, {steps}; only that can be the best"
    ]


def started(
    assembly: Assembly, training: Training, folder: RunFolder, resume_point: ResumePoint | None, session: Session
) -> RunStarted:
    """Return what is known of a run whose steps begin; run.json gets it too, for whoever watches."""
    steps_done = 0 if resume_point is None else resume_point.state.step
    facts = panel_facts(training, assembly.files, assembly.data, assembly.max_length, steps_done)
    if training.hardware.is_main:
        balancing = training.scoring.balancing
        balance = {} if balancing is None else {"router_aux_loss_coef": balancing.coefficient}
        folder.note(panel=facts, objective=facts["objective"], total_steps=training.total_steps, **balance)
    return RunStarted(
        facts=facts,
        notes=assembly.notes,
        total_steps=training.total_steps,
        steps_done=steps_done,
        held_out=len(training.evaluation),
        began=session.began,
        earlier=earlier(folder, resume_point),
    )


def earlier(folder: RunFolder, resume_point: ResumePoint | None) -> list[dict[str, Any]]:
    """Return the records up to the checkpoint that the run resumes from, but for an evaluation that comes again."""
    if resume_point is None:
        return []
    state = resume_point.state
    last = {"eval": state.step - state.evaluation_due}
    return [part for part in folder.records if part["step"] <= last.get(part["kind"], state.step)]
