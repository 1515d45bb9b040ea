"""`push=ORG/NAME` against a local server that speaks the part of the hub's protocol that sending a folder needs."""

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import orpo_cli
from orpo_cli.cli.main import main
from orpo_cli.errors import ConfigError, UnreachableError

TOKEN = "hf_of_nobody"


class Hub(ThreadingHTTPServer):
    """Repositories of models in memory: whether each is private, and the bytes of its files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Request(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def _answer(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _is_refused(self) -> bool:
        self.server.asked.append(f"{self.command} {self.path}")
        if self.headers.get("Authorization") == f"Bearer {TOKEN}" or self.path.startswith("/objects/"):
            return False
        self._body()
        self._answer({"error": "Invalid username or password."}, 401)
        return True

    def do_GET(self) -> None:
        if not self._is_refused():
            name = self.path.removeprefix("/api/models/").partition("?")[0]
            self._answer({"id": name, "private": self.server.private[name], "siblings": [], "tags": []})

    def do_PUT(self) -> None:
        self.server.asked.append(f"PUT {self.path}")
        self.server.objects[self.path.rpartition("/")[2]] = self._body()
        self._answer({})

    def do_POST(self) -> None:
        if self._is_refused():
            return
        body, path = self._body(), self.path.partition("?")[0]
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}"
            is_new = name not in self.server.private
            if is_new:
                is_private = given.get("visibility") == "private" or given.get("private") is True  # earlier versions
                self.server.private[name], self.server.files[name] = is_private, {}
            self._answer({"url": f"{self.server.address}/{name}"}, 200 if is_new else 409)
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.server.address}/objects/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            self._answer({"transfer": "basic", "objects": objects})
        elif path.endswith("/commit/main"):
            self._commit(path.removeprefix("/api/models/").removesuffix("/commit/main"), body)
        else:
            self._answer({"error": path}, 404)

    def _commit(self, name: str, body: bytes) -> None:
        for line in body.splitlines():
            part = json.loads(line)
            value = part["value"]
            if part["key"] == "file":
                self.server.files[name][value["path"]] = base64.b64decode(value["content"])
            elif part["key"] == "lfsFile":
                self.server.files[name][value["path"]] = self.server.objects[value["oid"]]
        self._answer({"commitUrl": f"{self.server.address}/{name}/commit/1", "commitOid": "1" * 40})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(reference: Path, tmp_path: Path) -> Path:
    return shutil.copytree(reference, tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_byte_arrives_in_a_private_repository(hub: Hub, run: Path, tmp_path: Path) -> None:
    exported = orpo_cli.export(run, f"to={tmp_path / 'out'}", "push=me/tuned")
    assert hub.private == {"me/tuned": True}
    sent = {name: data for name, data in hub.files["me/tuned"].items() if name != ".gitattributes"}
    assert sent == contents(tmp_path / "out")
    assert "model.safetensors" in sent
    assert exported.address == f"{hub.address}/me/tuned"
    weights = hashlib.sha256(sent["model.safetensors"]).hexdigest()
    assert any(line.endswith(weights) for line in hub.asked if line.startswith("PUT"))
    assert 'place = "me/tuned"' in sent["README.md"].decode()


def test_public_only_where_that_is_said(hub: Hub, run: Path, tmp_path: Path) -> None:
    orpo_cli.export(run, f"to={tmp_path / 'out'}", "push=me/open", "public=true")
    assert hub.private == {"me/open": False}
    sent, commits = dict(hub.files["me/open"]), len(hub.asked)
    with pytest.raises(ConfigError, match=r"push=me/open: this repository is public: public=true"):
        orpo_cli.export(run, f"to={tmp_path / 'again'}", "push=me/open", "dtype=bf16")
    assert hub.files["me/open"] == sent
    assert not any("commit" in line for line in hub.asked[commits:])


def test_a_dry_run_sends_and_leaves_nothing(
    hub: Hub, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out"
    assert main(["export", str(run), f"to={to}", "push=me/tuned", "dry_run=true"]) == 0
    shown = capfd.readouterr().out.splitlines()
    assert (hub.asked, to.exists(), list(tmp_path.glob(".tmp-*"))) == ([], False, [])
    assert shown[-1].endswith("sent to me/tuned, which is made private where it is not there; nothing was")
    assert main(["export", str(run), f"to={to}"]) == 0
    sizes = {path.name: path.stat().st_size for path in to.iterdir() if path.name != "README.md"}
    told = {line.split()[0]: int(line.split()[1].replace(",", "")) for line in shown[:-1]}
    assert {name: told[name] for name in sizes} == sizes
    assert told.keys() == {*sizes, "README.md"}  # the card names the repository, so that its size is another


@pytest.mark.usefixtures("hub")
def test_a_hub_that_refuses_is_one_line_and_the_export_stays(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    to = tmp_path / "out"
    assert main(["export", str(run), f"to={to}", "push=me/tuned"]) == UnreachableError.exit_code
    said = capfd.readouterr().err.splitlines()[-1]
    assert said == (
        "orpo: error: push=me/tuned: the model hub answers 401: log in with `hf auth login`, with a token that may "
        f"write; the export is in {to}: try again with `hf upload me/tuned {to} --private`"
    )
    assert (to / "model.safetensors").is_file()


def test_a_hub_out_of_reach_is_one_line(
    hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.server_close()
    to = tmp_path / "out"
    assert main(["export", str(run), f"to={to}", "push=me/tuned"]) == UnreachableError.exit_code
    assert "push=me/tuned: the model hub cannot be reached: " in capfd.readouterr().err.splitlines()[-1]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UnreachableError, match=r"the model hub is not asked, since HF_HUB_OFFLINE is set"):
        orpo_cli.export(run, f"to={tmp_path / 'offline'}", "push=me/tuned")
