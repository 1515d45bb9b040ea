"""Imports go one way: see `ROOMS`."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import orpo_cli

ROOT = Path(orpo_cli.__file__).parent
ROOMS = [
    "errors", "quoting", "files", "config", "machine", "data", "losses", "statistics", "models", "checkpoints",
    "training", "reporting", "runs", "cli", "interface",
]  # fmt: skip
"""From the ground up: a module imports from its own room and from rooms before it."""

HOMES = {
    "argparse": ("cli/",),
    "hydra": ("cli/",),
    "omegaconf": ("cli/", "config/load.py", "config/config_yaml.py"),
    "rich": ("reporting/", "cli/"),
}
"""Package -> where it may be imported."""

FILES = sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Modules named by the import statements of a file, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "orpo_cli" and len(parts) > 1 and parts[1] in ROOMS else None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    own = room_of("orpo_cli." + ".".join(path.relative_to(ROOT).with_suffix("").parts))
    for module in imports(path):
        room = room_of(module)
        if own is not None and room is not None:
            assert ROOMS.index(room) <= ROOMS.index(own), f"{path}: {own} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_stay_in_their_rooms(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    for module in imports(path):
        homes = HOMES.get(module.split(".")[0])
        assert homes is None or place.startswith(homes), f"{place} imports {module}"


@pytest.mark.parametrize("name", ["adapter", "data", "limits", "optimization", "schema", "tracking"])
def test_schema_knows_only_itself_and_errors(name: str) -> None:
    ours = {module for module in imports(ROOT / "config" / f"{name}.py") if module.startswith("orpo_cli")}
    known = ("adapter", "data", "limits", "optimization", "tracking")
    rooms = ("orpo_cli.errors.ConfigError", *(f"orpo_cli.config.{module}" for module in known))
    assert all(module.startswith(rooms) for module in ours)


def test_losses_know_only_the_schema_and_batches() -> None:
    for path in (ROOT / "losses").glob("*.py"):
        ours = {module.rsplit(".", 1)[0] for module in imports(path) if module.startswith("orpo_cli")}
        known = {"config.schema", "data.collation", "data.pairs", "errors", "losses"}
        assert ours <= {f"orpo_cli.{module}" for module in known}


def test_reporting_knows_only_the_records_of_training() -> None:
    records = ("orpo_cli.training.events.", "orpo_cli.training.estimate.RunEstimate")
    for path in (ROOT / "reporting").rglob("*.py"):
        of_training = {module for module in imports(path) if module.startswith("orpo_cli.training")}
        assert all(module.startswith(records) for module in of_training), path


def test_no_import_comes_back_to_where_it_began() -> None:
    """Imports inside functions count too."""
    names = {path: "orpo_cli." + ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES}
    graph: dict[str, set[str]] = {}
    for path, name in names.items():
        found = {known for module in imports(path) for known in (module, module.rpartition(".")[0])}
        graph[name] = found & set(names.values()) - {name}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_peft_is_imported_where_it_is_used() -> None:
    """It takes a second to import and only LoRA needs it."""
    for path in FILES:
        at_top = [ast.unparse(node) for node in ast.parse(path.read_text(encoding="utf-8")).body]
        assert not any(line.startswith(("from peft", "import peft")) for line in at_top), path


def test_every_directory_is_a_room() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders | {"errors", "quoting", "interface"} == set(ROOMS)
    assert len(FILES) >= 40
