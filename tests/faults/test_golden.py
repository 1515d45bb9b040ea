"""Checkpoints of every version of the format, written by the code of their time (`golden/make.py`), go on today."""

import hashlib
import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from golden.make import HERE, MODEL, PREFERENCES, STEP, arguments
from safetensors.torch import load_file
from tiny_runs import Orpo, digests, gone_back, kill, records

from orpo_cli.checkpoints.lookup import FORMAT_VERSION, READABLE_VERSIONS, STATE, verify
from orpo_cli.errors import CheckpointError
from orpo_cli.files.manifest import MANIFEST

CHECKSUMS: dict[str, Any] = {"sha256": hashlib.sha256, "xxh128": xxhash.xxh3_128}


def edited(checkpoint: Path, **changes: Any) -> None:
    """Change state.json, and the manifest so that it fits."""
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    content = json.dumps(state | changes).encode()
    (checkpoint / STATE).write_bytes(content)
    manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    (kind,) = manifest["files"][STATE].keys() - {"size"}
    manifest["files"][STATE] = {"size": len(content), kind: CHECKSUMS[kind](content).hexdigest()}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    shutil.copy(PREFERENCES, folder)
    return shutil.copytree(MODEL, folder / "model")


@pytest.fixture(scope="module")
def whole(orpo: Orpo, model: Path) -> Path:
    """The folder of the run as it is today, uninterrupted."""
    done = orpo.run(*arguments(model, model.parent / "whole"))
    assert done.code == 0, done.output
    return model.parent / "whole"


def test_52_there_is_one_of_every_version_that_is_read() -> None:
    assert sorted(path.name for path in HERE.glob("step-*")) == [f"step-v{version}" for version in READABLE_VERSIONS]
    assert max(READABLE_VERSIONS) == FORMAT_VERSION


@pytest.mark.parametrize(
    "version", [pytest.param(version, id=f"52: version {version}") for version in READABLE_VERSIONS]
)
def test_a_checkpoint_of_an_earlier_version_goes_on(
    version: int, orpo: Orpo, model: Path, whole: Path, tmp_path: Path
) -> None:
    golden = HERE / f"step-v{version}"
    verify(golden)
    died = orpo.run(*arguments(model, tmp_path / "run"), injections=[kill("orpo_cli.training.run.begin_checkpoint", 2)])
    assert died.code == -signal.SIGKILL
    checkpoint = tmp_path / "run/checkpoints" / STEP
    shutil.rmtree(checkpoint)
    shutil.copytree(golden, checkpoint)
    state = verify(checkpoint)
    assert state.step == 2
    edited(checkpoint, identity=state.identity | {"model.path": str(model)})  # the model is somewhere else now
    done = orpo.run(*arguments(model, tmp_path / "run"), "resume=auto")
    assert done.code == 0, done.output
    assert [record["step"] for record in records(tmp_path / "run")] == [record["step"] for record in records(whole)]
    assert "3" in re.findall(r"step (\d)/5", done.output)
    assert "1" not in re.findall(r"step (\d)/5", done.output)
    ended, expected = (load_file(run / "model/model.safetensors") for run in (tmp_path / "run", whole))
    torch.testing.assert_close(ended, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("version", [1, FORMAT_VERSION + 1, None, "3"])
def test_52_another_version_is_refused_with_those_that_are_read(version: Any, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(HERE / f"step-v{FORMAT_VERSION}", tmp_path / STEP)
    edited(checkpoint, format_version=version)
    with pytest.raises(CheckpointError, match=f"format version {version}; this orpo reads 2 and 3"):
        verify(checkpoint)


@pytest.mark.parametrize("version", [1, 999])
def test_52_a_run_of_another_version_cannot_go_on(version: int, orpo: Orpo, whole: Path, tmp_path: Path) -> None:
    """Version 1 was never part of a release: it is refused as one of the future is, and left as it is."""
    folder = gone_back(whole, tmp_path / "run", 2)
    edited(folder / "checkpoints" / STEP, format_version=version)
    before = digests(folder / "checkpoints"), records(folder)
    done = orpo.run("resume", str(folder))
    assert done.code == 65, done.output
    last = done.output.splitlines()[-1]
    assert f"{STEP}: format version {version}; this orpo reads 2 and 3" in last
    assert ("a later version of orpo wrote it, and can read it" in last) == (version > FORMAT_VERSION)
    assert "Traceback" not in done.output
    assert (digests(folder / "checkpoints"), records(folder)) == before


def test_52_unknown_keys_are_refused(tmp_path: Path) -> None:
    checkpoint = shutil.copytree(HERE / f"step-v{FORMAT_VERSION}", tmp_path / STEP)
    edited(checkpoint, phase="second")
    with pytest.raises(CheckpointError, match="has other keys than version 3"):
        verify(checkpoint)
