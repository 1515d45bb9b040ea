"""README's way from preferences to a model, typed as it stands there, from the built wheel in a new environment.

Only the model is another: `model=tiny adapter=lora` is typed behind the commands that train.
"""

import re
import shlex
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from tiny_runs import pairs

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = README.partition("## From a JSON file to a model\n")[2].strip("\n").partition("\n\n")[0]
COMMANDS = [re.sub(r"\s{2,}#.*", "", line.strip()) for line in BLOCK.splitlines()]
TYPED = {
    "train": ["model=tiny", "adapter=lora", "trainer.sample_tokens=4", "trainer.pairs_per_step=4"],
    "check": ["model=tiny"],
}


def test_the_commands_are_ten_at_most_and_each_is_one() -> None:
    assert 5 <= len(COMMANDS) <= 10
    assert COMMANDS[0].split()[:2] == ["orpo", "init"]
    names = {command.split()[1] for command in COMMANDS}
    assert names >= {"check", "train", "compare", "chat", "generate", "export", "resume"}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of a new environment that holds the wheel; packages that it needs are those of this environment."""
    place = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(place), str(ROOT)], check=True
    )
    [wheel] = place.glob("*.whl")
    venv.create(place / "venv", with_pip=True)
    python = place / "venv" / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    [packages] = (place / "venv" / "lib").glob("python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "venv" / "bin" / "orpo"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_a_file_of_preferences_to_a_model(program: Path, tmp_path: Path) -> None:
    folder = tmp_path

    def run(*words: str, said: str = "") -> str:
        done = subprocess.run(
            [str(program), *words], cwd=folder, input=said, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    for command in COMMANDS:
        words = shlex.split(command.partition(";")[0])[1:]
        said = "When is high tide?\n/base\n" if words[0] == "chat" else ""
        shown = run(*words, *TYPED.get(words[0], []), said=said)
        if words[0] == "init":
            folder = tmp_path / words[1]
            write(folder / "prefs.json")
        if words[0] == "compare":
            assert "leaderboard: 8 held-out pairs of 8 prompts" in shown
    code = (
        "import transformers as t; m = t.AutoModelForCausalLM.from_pretrained('merged'); "
        "ids = t.AutoTokenizer.from_pretrained('merged')('Why?', return_tensors='pt'); "
        "made = m.generate(**ids, max_new_tokens=3, min_new_tokens=3); "
        "print(type(m).__name__, made.shape[1] - ids['input_ids'].shape[1])"
    )
    python = program.parent / "python"
    loaded = subprocess.run([str(python), "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "LlamaForCausalLM 3"
    assert '"step": 40' in (folder / "first" / "metrics.jsonl").read_text()  # 32 pairs by 4, five times
    assert (folder / "lambdas.html").stat().st_size > 100_000
    where = subprocess.run([str(python), "-c", "import orpo_cli; print(orpo_cli.__file__)"], cwd=folder,
                           capture_output=True, text=True, check=True)  # fmt: skip
    assert str(program.parent.parent) in where.stdout


def write(path: Path) -> None:
    import json

    path.write_text(json.dumps(pairs(40)))
