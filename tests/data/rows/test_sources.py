"""Find what a path names: files, folders, patterns, saved datasets, repositories and datasets of the hub."""

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from matrix import rows
from written import as_lines, parquet, table_of, text_row, write

from orpo_cli.data.pairs import Row
from orpo_cli.data.rows import sources
from orpo_cli.data.rows.readers import read_rows
from orpo_cli.data.rows.sources import DatasetChoice, check_exists, find_files
from orpo_cli.errors import ConfigError, DataError, InputNotFoundError, UnreachableError

ONE = DatasetChoice()
pytestmark = pytest.mark.usefixtures("datasets_cache")
GOOD = as_lines([text_row()])


def files(folder: Path, *names: str) -> Path:
    """Make a folder with files of these names, each with one good row."""
    for name in names:
        raw = parquet(table_of([text_row(prompt=name)])) if name.endswith(".parquet") else GOOD
        write(folder / name, raw)
    return folder


def found(path: Path | str, split: str | None = None, subset: str | None = None) -> list[str]:
    """Return the names of the files that a path names, without the folder."""
    return [str(file.path).removeprefix(f"{path}/") for file in find_files(str(path), DatasetChoice(split, subset))]


def prompts(path: Path | str, **dataset: Any) -> list[str]:
    """Return the prompts of all rows that a path names."""
    rows = [row for file in find_files(str(path), DatasetChoice(**dataset)) for row in read_rows(file)]
    assert all(isinstance(row, Row) for row in rows)
    return [row.value["prompt"] for row in rows if isinstance(row, Row)]


# Paths


NOTHING = ["none.json", "none/none.jsonl", "./none", "../none/x", "a/b/c", "none", " ", "~nobody-of-this-name/x"]
NOTHING += ["x\0y", "builtin:none", "org/name.parquet", "org/name.jsonl.gz"]


@pytest.mark.parametrize("path", NOTHING)
def test_a_path_that_names_nothing(path: str) -> None:
    for look in (check_exists, lambda path: find_files(path, ONE)):
        with pytest.raises(InputNotFoundError) as caught:
            look(path)
        assert str(caught.value).startswith(f"{path}: ")


def test_a_path_that_cannot_be_looked_up(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match=r"file name too long"):
        check_exists("x" * 300 + ".json")
    write(tmp_path / "x.jsonl", GOOD)
    with pytest.raises(InputNotFoundError, match=r"no such file"):
        check_exists(f"{tmp_path}/x.jsonl/y.jsonl")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputNotFoundError, match=r"symbolic links"):
        check_exists(f"{tmp_path}/loop")
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "none")
    with pytest.raises(InputNotFoundError, match=r"no such file"):
        check_exists(f"{tmp_path}/gone.jsonl")


def test_a_file_of_any_other_suffix_is_read_as_json(tmp_path: Path) -> None:
    for name in ("x.txt", "x", "x.data.old", "org/name"):
        (file,) = find_files(str(write(tmp_path / name, GOOD)), ONE)
        assert (file.kind, file.packing, len(list(read_rows(file)))) == ("json", "", 1)


def test_a_builtin_file_is_in_the_package() -> None:
    (file,) = find_files("builtin:demo/train.jsonl", ONE)
    package = Path(sources.__file__).parents[2]
    assert file.path == package / "demo" / "train.jsonl"
    (same,) = find_files(str(file.path), ONE)
    assert [row.value for row in read_rows(file)] == [row.value for row in read_rows(same)]  # type: ignore[union-attr]


# Patterns


def test_a_pattern_names_files_in_a_fixed_order(tmp_path: Path) -> None:
    folder = files(tmp_path / "all", "b.jsonl", "a.jsonl", "c.json", ".d.jsonl", "deep/e.jsonl", ".deep/f.jsonl")
    (folder / "g.jsonl").mkdir()
    assert found(f"{folder}/*.jsonl") == [f"{folder}/a.jsonl", f"{folder}/b.jsonl"]
    assert found(f"{folder}/[bc].json*") == [f"{folder}/b.jsonl", f"{folder}/c.json"]
    assert found(f"{folder}/**/*.jsonl") == [f"{folder}/{name}.jsonl" for name in ("a", "b", "deep/e")]
    assert found(f"{folder}/.d*") == [f"{folder}/.d.jsonl"]


@pytest.mark.parametrize("pattern", ["*.csv", "none/*", "[x", "**x/*", "g*", "x[!]", "*\0"])
def test_a_pattern_that_matches_nothing(pattern: str, tmp_path: Path) -> None:
    folder = files(tmp_path / "all", "a.jsonl")
    (folder / "g.jsonl").mkdir()
    for look in (check_exists, lambda path: find_files(path, ONE)):
        with pytest.raises(InputNotFoundError, match=r"no file matches this pattern"):
            look(f"{folder}/{pattern}")


def test_a_file_whose_name_is_a_pattern_is_that_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x[1].jsonl", GOOD)
    write(tmp_path / "x1.jsonl", GOOD)
    assert [file.path for file in find_files(str(path), ONE)] == [path]


# Folders


@pytest.mark.parametrize("names", [(), ("README.txt", "x.pkl"), (".x.jsonl", "_x.jsonl"), ("deep/README.txt",)])
def test_a_folder_without_files_of_preferences(names: tuple[str, ...], tmp_path: Path) -> None:
    folder = files(tmp_path / "all", *names)
    folder.mkdir(exist_ok=True)
    said = r"all: a folder without files of preferences \(\.json, \.jsonl, \.ndjson, \.csv, \.tsv, \.parquet, \.arrow\)"
    with pytest.raises(InputNotFoundError, match=said):
        find_files(str(folder), ONE)


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (("train.jsonl", "test.jsonl"), "test, train"),
        (("train.parquet", "validation.parquet"), "train, validation"),
        (("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "val.parquet"), "train, val"),
        (("hh_training.csv", "hh_dev.csv"), "dev, training"),
        (("Train.jsonl", "Eval.jsonl"), "eval, train"),
        (("x.train.jsonl.gz", "x.held_out.jsonl.gz"), "held_out, train"),
        (("all.jsonl", "train.jsonl", "testing.jsonl"), "testing, train"),
        (("train_prefs.jsonl", "test_prefs.jsonl"), "test, train"),
    ],
)
def test_a_folder_of_several_splits_asks_which(names: tuple[str, ...], listed: str, tmp_path: Path) -> None:
    folder = files(tmp_path / "all", *names)
    with pytest.raises(ConfigError) as caught:
        find_files(str(folder), ONE)
    assert f"the folder's files are named after splits ({listed}); data.split=train takes one of them" in str(
        caught.value
    )


@pytest.mark.parametrize(
    "names", [("train-1.jsonl", "train-2.jsonl"), ("protest.jsonl", "training-set.jsonl"), ("test.csv",)]
)
def test_a_folder_of_one_split_is_taken_whole(names: tuple[str, ...], tmp_path: Path) -> None:
    assert found(files(tmp_path / "all", *names)) == sorted(names)


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ["a-train.jsonl", "train_prefs-00000-of-00001.parquet", "train_sft.csv"]),
        ("train_prefs", ["train_prefs-00000-of-00001.parquet"]),
        ("train_sft", ["train_sft.csv"]),
        ("validation", ["b.val.jsonl.gz"]),
        ("dev", ["b.val.jsonl.gz"]),
        ("test", ["TEST.jsonl"]),
    ],
)
def test_a_split_of_a_folder_is_found_by_name(split: str, names: list[str], tmp_path: Path) -> None:
    """A split is found by its whole name, or else by the words that are usual for it."""
    all_names = [
        "a-train.jsonl",
        "train_prefs-00000-of-00001.parquet",
        "train_sft.csv",
        "b.val.jsonl.gz",
        "TEST.jsonl",
        "c.jsonl",
    ]
    assert found(files(tmp_path / "all", *all_names), split) == names


def test_a_split_that_a_folder_lacks_is_an_error_that_lists_those_it_has(tmp_path: Path) -> None:
    folder = files(tmp_path / "all", "train.jsonl", "val.jsonl")
    with pytest.raises(ConfigError, match=r"has no split test: .*; choose one with data.split: train, val$"):
        find_files(str(folder), DatasetChoice(split="test"))
    folder = files(tmp_path / "one", "a.jsonl")
    with pytest.raises(ConfigError, match=r"has no split train: .*; choose one with data.split: none$"):
        find_files(str(folder), DatasetChoice(split="train"))


# Saved by `datasets`


def saved(path: Path, **counts: int) -> Path:
    """Make a folder with a saved dataset of as many rows, or with one for each split."""
    import datasets

    made = {
        split: datasets.Dataset.from_list([text_row(prompt=f"{split} {place}") for place in range(count)])
        if count
        else datasets.Dataset.from_dict({"prompt": [], "chosen": [], "rejected": []})
        for split, count in counts.items()
    }
    (made["one"] if "one" in made else datasets.DatasetDict(made)).save_to_disk(path)
    return path


def test_splits_of_a_saved_dataset(tmp_path: Path) -> None:
    path = saved(tmp_path / "saved", train=2, test=1)
    assert prompts(path, split="train") == ["train 0", "train 1"]
    assert prompts(path, split="test") == ["test 0"]
    (file,) = find_files(str(path), DatasetChoice(split="test"))
    assert file.name == f"{path}[test]"
    with pytest.raises(ConfigError, match=r"has several splits; choose one with data.split: train, test$"):
        find_files(str(path), ONE)
    with pytest.raises(ConfigError, match=r"has no split dev; choose one with data.split: train, test$"):
        find_files(str(path), DatasetChoice(split="dev"))
    assert prompts(saved(tmp_path / "only", dev=1)) == ["dev 0"]
    with pytest.raises(ConfigError, match=r"has no split dev: it was saved as one; leave data.split out$"):
        find_files(str(saved(tmp_path / "one", one=1)), DatasetChoice(split="dev"))


def test_the_files_of_a_saved_dataset_are_told_apart(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list([text_row(prompt=str(place)) for place in range(5)])
    rows.save_to_disk(tmp_path / "saved", num_shards=2)
    assert prompts(tmp_path / "saved") == list("01234")
    names = [file.name for file in find_files(str(tmp_path / "saved"), ONE)]
    assert names == [f"{tmp_path}/saved/data-0000{number}-of-00002.arrow" for number in range(2)]


def test_a_saved_dataset_of_selected_rows_holds_these(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list([text_row(prompt=str(place)) for place in range(5)])
    rows.select([3, 1]).save_to_disk(tmp_path / "saved")
    assert prompts(tmp_path / "saved") == ["3", "1"]


def test_a_saved_dataset_without_rows_has_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"saved: no rows$"):
        prompts(saved(tmp_path / "saved", one=0))
    path = saved(tmp_path / "splits", train=0, test=1)
    with pytest.raises(DataError, match=r"splits: no rows$"):
        prompts(path, split="train")
    assert prompts(path, split="test") == ["test 0"]


DAMAGES = [b"", b"{", b"[]", b"{}", b'{"_data_files": 1}', b'{"splits": 1}', b"\xff", b"[" * 9999]


@pytest.mark.parametrize("raw", rows({str(raw[:20]): raw for raw in DAMAGES}, "b'{'", "b'[]'"))
@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json", "train/state.json"])
def test_a_damaged_saved_dataset_ends_with_its_name(name: str, raw: bytes, tmp_path: Path) -> None:
    path = saved(tmp_path / "saved", **{"one" if name == "state.json" else "train": 1})
    write(path / name, raw)
    with pytest.raises(DataError) as caught:
        find_files(str(path), ONE)
    said = f"saved by `datasets`, but {name.rpartition('/')[2]} is missing, damaged, or of another version"
    assert str(caught.value) == f"{path}: {said}"


def test_a_saved_dataset_without_a_split_that_it_lists_ends_with_its_name(tmp_path: Path) -> None:
    path = saved(tmp_path / "saved", train=1)
    for names in (["none"], ["../elsewhere"], [7]):
        write(path / "dataset_dict.json", json.dumps({"splits": names}).encode())
        with pytest.raises(DataError, match=r"saved by `datasets`, but [a-z_]+.json is missing, damaged"):
            find_files(str(path), ONE)


def test_a_saved_selection_of_an_old_version_is_refused(tmp_path: Path) -> None:
    """Its rows are chosen by a second file, without which other rows would be read."""
    path = saved(tmp_path / "saved", one=3)
    state = json.loads((path / "state.json").read_text())
    write(path / "state.json", json.dumps(state | {"_indices_data_files": [{"filename": "indices.arrow"}]}).encode())
    with pytest.raises(DataError, match=r"state.json is missing, damaged, or of another version"):
        find_files(str(path), ONE)


def test_a_saved_dataset_whose_file_is_cut_or_gone_ends_with_its_name(tmp_path: Path) -> None:
    path = saved(tmp_path / "saved", one=1)
    (file,) = path.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"saved"):
        prompts(path)
    file.unlink()
    with pytest.raises(DataError, match=r"saved: .*No such file"):
        prompts(path)


# Laid out as a repository of the hub


def repository(path: Path, front: Any, *names: str) -> Path:
    files(path, *names)
    write(path / "README.md", f"---\n{yaml.safe_dump(front)}---\n# Preferences\n".encode())
    return path


def configurations(**splits: dict[str, str]) -> dict[str, Any]:
    """Return front matter: name of a configuration -> split -> pattern of its files."""
    return {
        "configs": [
            {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in files.items()]}
            for name, files in splits.items()
        ]
    }


def test_a_readme_says_which_file_is_which_split(tmp_path: Path) -> None:
    front = configurations(default={"good": "a.parquet", "other": "b.parquet"})
    path = repository(tmp_path / "repo", front, "a.parquet", "b.parquet")
    assert prompts(path, split="good") == ["a.parquet"]
    assert prompts(path, split="other") == ["b.parquet"]
    with pytest.raises(ConfigError, match=r"has several splits; choose one with data.split: good, other$"):
        find_files(str(path), ONE)
    with pytest.raises(ConfigError, match=r"has no split train; choose one with data.split: good, other$"):
        find_files(str(path), DatasetChoice(split="train"))


def test_a_repository_of_several_configurations_asks_which(tmp_path: Path) -> None:
    front = configurations(short={"train": "data/a-*"}, long={"train": "data/b-*"})
    path = repository(tmp_path / "repo", front, "data/a-1.parquet", "data/b-1.parquet")
    assert prompts(path, subset="long") == ["data/b-1.parquet"]
    with pytest.raises(ConfigError, match=r"data.subset=None: Config name is missing.*\['short', 'long'\]"):
        find_files(str(path), ONE)
    with pytest.raises(ConfigError, match=r"data.subset=none: BuilderConfig 'none' not found.*\['short', 'long'\]"):
        find_files(str(path), DatasetChoice(subset="none"))


def test_a_readme_without_configurations_says_nothing(tmp_path: Path) -> None:
    for front in ({"license": "mit"}, {"license": "mit", "dataset_info": [{"config_name": "default"}]}):
        path = repository(tmp_path / "repo", front, "a.jsonl", "b.jsonl")
        assert found(path) == ["a.jsonl", "b.jsonl"]


def test_files_in_folders_below_are_found_as_a_repository_has_them(tmp_path: Path) -> None:
    path = files(tmp_path / "repo", "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet")
    assert prompts(path, split="test") == ["data/test-00000-of-00001.parquet"]
    with pytest.raises(ConfigError, match=r"has several splits; choose one with data.split: train, test$"):
        find_files(str(path), ONE)


def test_a_folder_may_be_called_like_a_kind_of_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path / "parquet", "data/a.parquet")
    monkeypatch.chdir(tmp_path)
    assert prompts("parquet") == prompts("./parquet") == ["data/a.parquet"]


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("data/a.parquet", b"garbage"),
        ("data/a.jsonl", b"{"),
        ("data/a.csv", b'prompt\n"'),
        ("data/a.jsonl.gz", b"garbage"),
        ("data/a.json", b""),
        ("repo.py", b"raise SystemExit"),
        ("README.md", b"---\nconfigs: 7\n---\n"),
        ("README.md", b"---\nconfigs:\n- config_name: default\n  data_files: none*\n---\n"),
        ("README.md", b"---\nconfigs:\n- {\n---\n"),
    ],
)
def test_a_damaged_repository_ends_with_its_name(name: str, raw: bytes, tmp_path: Path) -> None:
    path = files(tmp_path / "repo", "data/b.parquet") if name.endswith((".py", ".md")) else tmp_path / "repo"
    write(path / name, raw)
    with pytest.raises((DataError, ConfigError)) as caught:
        prompts(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_text_of_a_repository_that_is_not_utf8_is_named_with_its_row(tmp_path: Path) -> None:
    """`datasets` takes it, and would fail when the row is used."""
    raw = as_lines([text_row(), text_row("ca@e")]).replace(b"@", b"\xe9")
    path = write(tmp_path / "repo" / "data" / "a.jsonl", raw).parents[1]
    (file,) = find_files(str(path), ONE)
    first, second = read_rows(file)
    assert isinstance(first, Row)
    assert str(second) == f"{path}[train]:2: prompt: not UTF-8: byte 0xe9"


def test_a_repository_is_read_again_when_its_files_change(tmp_path: Path) -> None:
    path = files(tmp_path / "repo", "data/a.parquet")
    assert prompts(path) == ["data/a.parquet"]
    write(path / "data" / "a.parquet", parquet(table_of([text_row(prompt="changed")])))
    os.utime(path / "data" / "a.parquet", (1, 1))
    assert prompts(path) == ["changed"]


def test_values_of_mixed_types_come_through_a_repository_as_they_are(tmp_path: Path) -> None:
    """`datasets` keeps such a column as JSON texts, in which a text has its quotes."""
    rows = [
        text_row(chosen="c"),
        text_row() | {"chosen": [{"role": "assistant", "content": "c"}]},
        text_row() | {"chosen": 7},
    ]
    path = write(tmp_path / "repo" / "data" / "a.jsonl", as_lines(rows)).parents[1]
    (file,) = find_files(str(path), ONE)
    assert [row.value for row in read_rows(file) if isinstance(row, Row)] == rows


# The hub


class Hub(BaseHTTPRequestHandler):
    """Answer as a hub with one dataset of two splits, of which it has two revisions; and what else a hub may answer."""

    COMMITS = ("1" * 40, "2" * 40)
    FRONT = (
        f"---\n{yaml.safe_dump(configurations(default={'train': 'train.jsonl', 'test': 'test.jsonl'}))}---\n".encode()
    )

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        if "/org/gated" in path:
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"}, with_body)
        if "/org/broken" in path:
            return self._send(500, b"{}", {}, with_body)
        if not path.startswith(("/api/datasets/org/name", "/datasets/org/name")):
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)
        commit = next((one for one in self.COMMITS if one in path), self.COMMITS[1])
        if "/revision/" in path and not path.endswith(("/main", *self.COMMITS)):
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body)
        contents = {
            "README.md": self.FRONT,
            "train.jsonl": as_lines([text_row(prompt=f"train of {commit[0]}")]),
            "test.jsonl": as_lines([text_row(prompt=f"test of {commit[0]}")]),
        }
        if path.startswith("/api/"):
            return self._send(200, json.dumps(self._api(path, commit, contents)).encode(), {}, with_body)
        name = path.rpartition("/")[2]
        if name not in contents:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, with_body)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{commit[:8]}-{name}"'}
        return self._send(200, contents[name], headers, with_body)

    @staticmethod
    def _api(path: str, commit: str, contents: dict[str, bytes]) -> Any:
        listed = [
            {"type": "file", "path": name, "oid": f"{commit[:8]}{name}", "size": len(raw)}
            for name, raw in contents.items()
        ]
        if "/tree/" in path or "/paths-info/" in path:
            return listed
        siblings = [{"rfilename": name} for name in contents]
        return {"id": "org/name", "sha": commit, "siblings": siblings, "tags": [], "private": False}

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(with_body=True)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what HF_ENDPOINT sets."""
    import datasets
    import huggingface_hub

    resolve = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + resolve)


@pytest.fixture
def _hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    at(f"http://127.0.0.1:{server.server_port}", monkeypatch)
    yield
    server.shutdown()
    server.server_close()


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    at("http://127.0.0.1:9", monkeypatch)  # the port of discard, where nobody listens


UNREACHABLE = "org/name: no such file here, and the dataset hub cannot be reached; give a file or folder: data=PATH"


@pytest.mark.usefixtures("_no_network")
def test_a_hub_that_cannot_be_reached(capfd: pytest.CaptureFixture[str]) -> None:
    check_exists("org/name")
    with pytest.raises(UnreachableError) as caught:
        find_files("org/name", ONE)
    assert (str(caught.value), caught.value.exit_code) == (UNREACHABLE, 69)
    assert capfd.readouterr() == ("", "")


def test_a_hub_that_may_not_be_asked(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The test sets what HF_HUB_OFFLINE=1 sets."""
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UnreachableError) as caught:
        find_files("org/name", ONE)
    assert str(caught.value) == UNREACHABLE
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("_hub")
@pytest.mark.parametrize(
    ("path", "revision", "error", "said"),
    [
        ("org/none", None, InputNotFoundError, "org/none: no such file, and no such dataset on the hub"),
        (
            "org/name",
            "none",
            InputNotFoundError,
            "org/name: no such file, and no such dataset on the hub at revision none",
        ),
        ("org/gated", None, UnreachableError, "data.path=org/gated: access to this dataset has to be granted"),
        ("org/broken", None, UnreachableError, "org/broken: no such file here, and the dataset hub cannot be reached"),
        ("org/--", None, InputNotFoundError, "org/--: no such file"),
    ],
)
def test_what_the_hub_does_not_have(path: str, revision: str | None, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        find_files(path, DatasetChoice(revision=revision))
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("_hub")
def test_a_dataset_of_the_hub() -> None:
    assert prompts("org/name", split="train") == ["train of 2"]
    assert prompts("org/name", split="test", revision="1" * 40) == ["test of 1"]
    (file,) = find_files("org/name", DatasetChoice(split="train"))
    assert file.name == "org/name[train]"
    with pytest.raises(ConfigError, match=r"org/name: has several splits; choose one with data.split: train, test$"):
        find_files("org/name", ONE)
    with pytest.raises(ConfigError, match=r"org/name: has no split dev; choose one with data.split: train, test$"):
        find_files("org/name", DatasetChoice(split="dev"))


@pytest.mark.usefixtures("_hub")
def test_what_was_fetched_is_there_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is of the commit that is asked for, or of any where none is."""
    assert prompts("org/name", split="train", revision="1" * 40) == ["train of 1"]
    at("http://127.0.0.1:9", monkeypatch)
    assert prompts("org/name", split="train") == ["train of 1"]
    assert prompts("org/name", split="train", revision="1" * 40) == ["train of 1"]
    with pytest.raises(UnreachableError, match=r"the copy that was fetched before is of another revision$"):
        find_files("org/name", DatasetChoice(split="train", revision="2" * 40))


@pytest.mark.parametrize("changed", [{"split": "test"}, {"eval_split": "test"}, {"subset": "x"}, {"revision": "main"}])
def test_a_split_of_a_plain_file_is_refused(changed: dict[str, str], tmp_path: Path) -> None:
    from preferences import prepared

    path = write(tmp_path / "x.jsonl", b'{"prompt": "p", "chosen": "c", "rejected": "r"}\n')
    with pytest.raises(ConfigError, match=f"data.{next(iter(changed))}=.*is a file"):
        prepared(str(path), **changed)
