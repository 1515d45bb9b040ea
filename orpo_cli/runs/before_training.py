"""What held-out pairs score before training, taken from another job of the same sweep where that has computed it."""

import hashlib
import json

from orpo_cli.models.router import balancing_of
from orpo_cli.runs.assembly import Assembly
from orpo_cli.runs.folder import SWEEP, RunFolder
from orpo_cli.runs.resume import MODEL_FILES
from orpo_cli.runs.scores import read_scored
from orpo_cli.training.events import PairLogps

_DECISIVE = {MODEL_FILES, "tokenizer", "trainer.precision", "adapter.name"}
"""The settings, beside those of model and data, that decide it: a new adapter of any rank changes nothing yet."""


def digest_of(assembly: Assembly) -> str:
    """Return the digest of everything that decides, to the last digit, what the pairs score before the first step."""
    identity = assembly.identity.items()
    settings = {key: value for key, value in identity if key.startswith(("model.", "data.")) or key in _DECISIVE}
    conditions = {**assembly.environment, "tokens at once": assembly.config.trainer.eval_max_tokens}
    text = json.dumps([settings, conditions, assembly.data.sha256], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def known_scores(assembly: Assembly, folder: RunFolder) -> PairLogps | None:
    """Return what another job of the sweep has computed; None where there is none, or the loss needs more than that.

    It does where prompts are scored too, or experts are to be balanced.
    """
    if assembly.config.loss.nll != "chosen" or not (folder.path.parent / SWEEP).is_file():
        return None
    digest = digest_of(assembly)
    for path in sorted(folder.path.parent.iterdir()):
        other = RunFolder(path)
        if path == folder.path or other.record.get("before_training") != digest:
            continue
        found = read_scored(other.evaluations, "", 0, {})
        if found is not None and len(found.pairs) == len(assembly.data.evaluation):
            if balancing_of(assembly.skeleton, assembly.config.loss.router_aux_loss_coef) is not None:
                return None
            assembly.notes.append(
                f"the evaluation before the first step is that of job {path.name}: the model is the same"
            )
            return PairLogps(tuple(found.pairs.chosen_logp.tolist()), tuple(found.pairs.rejected_logp.tolist()))
    return None
