"""`orpo check`: every planted fault is found and counted, a clean file is left in peace."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from matrix import rows

from orpo_cli.cli.main import main
from orpo_cli.config.data import FINDINGS

slow = pytest.mark.slow

SUBJECTS = (
    "apples", "bridges", "candles", "deserts", "engines", "forests", "gardens", "harbours", "islands", "journeys",
    "kitchens", "lanterns", "mountains", "notebooks", "oceans", "pencils", "quarries", "rivers", "stations", "theatres",
    "umbrellas", "valleys", "windows", "yards", "zebras", "anchors", "bakeries", "cellars", "dragons", "envelopes",
)  # fmt: skip
QUALITIES = ("old", "bright", "quiet", "narrow", "wooden", "distant", "frozen", "crowded", "gentle", "hidden", "rusty")
VERBS = ("carry", "mend", "paint", "follow", "measure", "forget", "polish", "borrow", "visit", "draw", "count", "sell")


def words(start: int, count: int) -> str:
    """Words that share no triple with those of another start."""
    parts = (SUBJECTS, QUALITIES, VERBS)
    return " ".join(parts[k % 3][(start * 7 + k * (start + 1)) % len(parts[k % 3])] for k in range(count))


def row(number: int, **changed: Any) -> dict[str, Any]:
    """A pair without a fault: chosen is longer as often as it is shorter."""
    longer, shorter = words(number + 100, 12), words(number + 200, 9)
    chosen, rejected = (longer, shorter) if number % 2 else (shorter, longer)
    prompt = f"{QUALITIES[number % 11]} {words(number, 7)} {number}?"
    return {"prompt": prompt, "chosen": f"{chosen}.", "rejected": f"{rejected}."} | changed


CLEAN = [row(number) for number in range(60)]
PLANTED: dict[str, list[Any]] = {
    "empty_field": [row(61, chosen=" ")],
    "identical": [row(62, chosen="the same words", rejected="the same words")],
    "contradictory": [
        row(63, chosen="yes, it is", rejected="no, it is not"), row(63, chosen="no, it is not", rejected="yes, it is"),
    ],
    "duplicates": [row(64), row(64)],
    "near_duplicates": [
        row(65, chosen=words(165, 40)), row(65, chosen=words(165, 40) + " really")
    ],
    "scores_contradict": [row(66, score_chosen=1.0, score_rejected=7.5)],
    "prompt_repeated": [row(67, chosen=row(67)["prompt"] + " They " + words(9, 8))],
    "special_tokens": [row(68, chosen="first <|end|> second")],
    "encoding": [row(69, chosen="the cafÃ© on the corner"), row(70, rejected="a \ufffd in the middle")],
    "language": [row(71, chosen="Это совсем другой язык, чем тот, на котором спросили")],
    "refusals": [row(72 + n, rejected=f"I'm sorry, but I cannot help you with {SUBJECTS[n]}.") for n in range(3)],
    "open_thought": [row(90, chosen=f"<think>\n{words(190, 9)}")],
    "openings": [row(80 + n, rejected=f"Certainly here is {words(300 + n, 9)}") for n in range(6)],
}  # fmt: skip


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in rows), encoding="utf-8")
    return path


def check(*arguments: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    """The JSON report of a check that ends with `code`."""
    assert main(["check", "model=tiny", "--json", *arguments]) == code
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def found(report: dict[str, Any]) -> dict[str, int]:
    return {finding["name"]: finding["count"] for finding in report["findings"]}


def test_a_clean_file_has_no_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = check(f"data={write(tmp_path / 'x.jsonl', CLEAN)}", capsys=capsys)
    assert report["findings"] == []
    assert report["classes"] == {"train/kept": 60}
    assert (report["rows"], report["pairs"]) == (60, 60)


def test_what_a_run_would_note_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plain text in the chat template, with the way to have it otherwise."""
    assert main(["check", "model=tiny", f"data={write(tmp_path / 'x.jsonl', CLEAN)}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "! x.jsonl: 60 pairs of plain text are put into the model's chat template" in said
    assert "data.chat_template=false trains on them as they stand" in said


@pytest.mark.parametrize(
    "column", ["system_message", "systemPrompt", "chat_history", "previous_messages", "available_tools", "instructions"]
)
def test_columns_that_look_like_a_part_of_the_prompt(
    column: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "x.jsonl", [{**item, column: "c", "prompt_id": 7, "source": "s"} for item in CLEAN])
    assert found(check(f"data={path}", capsys=capsys)) == {"unread_text": 60}


def test_a_second_verdict_that_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A score beside a verdict is usual; another verdict is not."""
    rows = [
        {"prompt": item["prompt"], "response_1": item["chosen"], "response_2": item["rejected"], "score_1": 1,
         "score_2": 2, "preference": 1, "helpfulness_score": 3}
        for item in CLEAN
    ]  # fmt: skip
    report = check(f"data={write(tmp_path / 'x.jsonl', rows)}", capsys=capsys)
    assert found(report) == {"unread_verdict": 60}
    assert "'preference'" in report["findings"][0]["text"]


def test_a_column_that_is_ignored_on_purpose_is_no_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.jsonl", [{**item, "image": "cat.png", "context": "c"} for item in CLEAN])
    report = check(f"data={path}", "data.ignore_keys=[image]", capsys=capsys)
    assert found(report) == {"unread_text": 60}
    assert "'context'" in report["findings"][0]["text"]


def test_every_planted_fault_is_found_with_its_count_and_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*CLEAN, *(item for planted in PLANTED.values() for item in planted)]
    path = write(tmp_path / "x.jsonl", rows)
    report = check(f"data={path}", capsys=capsys, code=65)
    assert found(report) == {
        "empty_field": 1,
        "identical": 1,
        "contradictory": 2,
        "duplicates": 1,
        "near_duplicates": 1,
        "scores_contradict": 1,
        "prompt_repeated": 1,
        "special_tokens": 1,
        "double_eos": 1,  # the special token of the tiny model is its end token
        "encoding": 2,
        "language": 1,
        "refusals": 3,
        "open_thought": 1,
        "openings": 6,
    }
    places = {name: rows.index(planted[0]) + 1 for name, planted in PLANTED.items()}
    places |= {"duplicates": rows.index(PLANTED["duplicates"][0]) + 2}
    places |= {"near_duplicates": rows.index(PLANTED["near_duplicates"][1]) + 1}
    for finding in report["findings"]:
        if finding["name"] in places and finding["examples"]:
            assert finding["examples"][0]["source"] == f"{path}:{places[finding['name']]}", finding


@pytest.mark.parametrize("name", rows({name: name for name in PLANTED}, "special_tokens"))
def test_each_fault_alone_is_found_alone(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.jsonl", [*CLEAN, *PLANTED[name]])
    report = check(f"data={path}", capsys=capsys, code=65 if name == "empty_field" else 0)
    assert set(found(report)) - {"double_eos"} == {name}


def test_a_transcript_in_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "\n\nHuman: A name for a cat?\n\nAssistant: A girl?\n\nHuman: Yes.\n\nAssistant:"
    planted = row(60) | {"prompt": prompt}
    whole = {"chosen": f"{prompt} Ada.", "rejected": f"{prompt} Bob."}
    path = write(tmp_path / "x.jsonl", [*CLEAN, planted])
    report = check(f"data={path}", capsys=capsys)
    assert found(report) == {"transcript_prompt": 1}
    assert report["findings"][0]["examples"][0]["source"] == f"{path}:61"
    assert found(check(f"data={path}", "data.chat_template=false", capsys=capsys)) == {}
    assert found(check(f"data={write(tmp_path / 'hh.jsonl', [whole])}", capsys=capsys)) == {}


def test_ratings_of_both_answers_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planted = row(60, chosen_rating=2.0, rejected_rating=4.5)
    report = check(f"data={write(tmp_path / 'x.jsonl', [*CLEAN, planted])}", capsys=capsys)
    assert found(report) == {"scores_contradict": 1}


def test_the_shape_and_columns_of_each_file_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"prompt": "ask", "chosen": "chosen", "rejected": "no"}
    write(tmp_path / "a.jsonl", [{names[key]: value for key, value in item.items()} for item in CLEAN[:30]])
    write(tmp_path / "b.jsonl", CLEAN[30:])
    arguments = ["data=[a.jsonl,b.jsonl]", "data.columns.prompt=ask", "data.columns.rejected=no"]
    files = check(*arguments, capsys=capsys)["files"]
    shown = {name: (file["format"], file["columns"]) for name, file in files.items()}
    assert shown == {"a.jsonl": ("pairs", {"prompt": "ask", "rejected": "no"}), "b.jsonl": ("pairs", {})}
    assert main(["check", "model=tiny", *arguments]) == 0
    screen = capsys.readouterr().out
    assert "a.jsonl (pairs: prompt=ask, rejected=no)" in screen
    assert "b.jsonl (pairs) " in screen


def test_longer_answers_on_one_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(number, chosen=words(number + 100, 14), rejected=words(number + 200, 6)) for number in range(30)]
    (finding,) = check(f"data={write(tmp_path / 'x.jsonl', rows)}", capsys=capsys)["findings"]
    assert (finding["name"], finding["count"]) == ("length_bias", 30)
    assert "chosen is longer than rejected in 100% of the pairs" in finding["text"]


def test_cut_answers_have_no_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.jsonl", [*CLEAN, row(61, chosen="word " * 60)])
    report = check(f"data={path}", "data.max_length=200", "data.length_policy=truncate_response", capsys=capsys)
    assert found(report) == {"missing_eos": 1}
    assert report["classes"] == {"train/kept": 60, "train/response_truncated": 1}


def test_prompts_on_both_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = write(tmp_path / "train.jsonl", CLEAN)
    held = write(tmp_path / "held.jsonl", [row(5, chosen="another answer altogether"), row(99)])
    report = check(f"data={train}", f"data.eval_path={held}", capsys=capsys)
    assert found(report) == {"shared_prompts": 1}
    assert report["findings"][0]["examples"][0]["source"] == f"{held}:1"


def test_columns_the_wrong_way_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": item["chosen"], "chosen": item["prompt"], "rejected": item["rejected"]} for item in CLEAN]
    assert found(check(f"data={write(tmp_path / 'x.jsonl', rows)}", capsys=capsys))["swapped_columns"] == 60


def test_one_answer_to_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [item | {"chosen": "It depends on many things, of course."} for item in CLEAN]
    report = found(check(f"data={write(tmp_path / 'x.jsonl', rows)}", capsys=capsys))
    assert report["repeated_answer"] == 60


def test_invalid_rows_end_with_65_and_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(CLEAN[0]) + "\n{\n" + json.dumps(CLEAN[1]) + "\n", encoding="utf-8")
    assert main(["check", "model=tiny", f"data={path}"]) == 65
    screen = capsys.readouterr()
    assert f"{path}:2:" in screen.out.replace("\n", "")
    assert "nothing found" not in screen.out
    assert "1 of 3 rows are invalid; they are listed above; data.on_bad_row=skip leaves them out" in screen.err


NONE = [
    {"prompt": "1+2=", "chosen": "3", "rejected": "4"}, {"prompt": "2+2=", "chosen": 4, "rejected": 5},
    {"prompt": None, "chosen": "a", "rejected": "b"}, {"prompt": "3+3=", "chosen": None, "rejected": "7"},
    {"prompt": "4+4=", "chosen": "8", "rejected": ""},
]  # fmt: skip


@pytest.mark.parametrize(("on_bad_row", "code"), [("skip", 0), ("error", 65)])
def test_check_and_train_say_the_same_of_invalid_rows(
    on_bad_row: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "x.jsonl", NONE)
    arguments = ["model=tiny", f"data={path}", f"data.on_bad_row={on_bad_row}"]
    assert main(["check", *arguments]) == code
    screen = " ".join(capsys.readouterr().out.split())
    said = [
        f"{path}:2: chosen: expected a text or a list of messages, found a number",
        f"{path}:3: prompt: ", f"{path}:4: chosen: ", f'{path}:5: rejected: empty ("")',
    ]  # fmt: skip
    assert "4 of 5 rows are invalid" in screen
    assert ("and left out (data.on_bad_row=skip)" in screen) is (code == 0)
    assert "nothing found" not in screen
    assert main(["train", *arguments, f"output_dir={tmp_path / 'run'}", "trainer.sample_tokens=0"]) == code
    trained = capsys.readouterr().err
    for problem in said:
        assert problem.replace(" ", "") in screen.replace(" ", "")
        assert problem in trained


def test_a_ranking_is_not_compared_with_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its pairs share their answers; an equal answer twice in it gives equal pairs. Another such row is a finding."""
    long = words(165, 40)
    nearly = {"prompt": words(1, 9), "responses": [long, f"{long} really", "no"], "scores": [3, 2, 1]}
    equal = {"prompt": words(2, 9), "responses": [words(7, 9), words(7, 9), words(8, 9)], "scores": [2, 2, 1]}
    report = check(f"data={write(tmp_path / 'x.jsonl', [nearly, equal])}", capsys=capsys)
    assert report["classes"] == {"train/dropped:tie": 1, "train/kept": 5}
    assert found(report) == {}
    again = nearly | {"responses": [*nearly["responses"][:2], "no, no"]}
    report = check(f"data={write(tmp_path / 'x.jsonl', [nearly, equal, again, equal])}", capsys=capsys)
    assert found(report) == {"duplicates": 3, "near_duplicates": 1}
    examples = {item["name"]: [example["source"] for example in item["examples"]] for item in report["findings"]}
    assert examples["duplicates"] == [f"{tmp_path}/x.jsonl:{line}" for line in (3, 4, 4)]


def test_rows_of_an_array_are_found_by_their_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([*CLEAN, CLEAN[3], row(61, chosen="")]))
    report = check(f"data={path}", "data.on_bad_row=skip", capsys=capsys)
    places = {item["name"]: item["examples"][0]["source"] for item in report["findings"]}
    assert places == {"duplicates": f"{path}:1 row 61", "empty_field": f"{path}:1 row 62"}


@pytest.mark.parametrize(
    ("fail_on", "code"),
    [("[duplicates]", 65), pytest.param("[all]", 65, marks=slow), ("[refusals]", 0), pytest.param("[]", 0, marks=slow)],
)
def test_findings_can_be_fatal(fail_on: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.jsonl", [*CLEAN, *PLANTED["duplicates"]])
    assert main(["check", "model=tiny", f"data={path}", f"check.fail_on={fail_on}"]) == code
    assert ("check.fail_on: duplicates" in capsys.readouterr().err) is (code == 65)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("check.fail_on=[duplicate]", "check.fail_on=duplicate: expected all, or names of empty_field"),
        ("check.fail_no=[]", "check.fail_no"),
        ("check.length_bias=0.2", "check.length_bias=0.2: expected a number above 0.5"),
        ("check.near_duplicates=nan", "check.near_duplicates=nan"),
        ("-m", "-m: a check looks at one configuration"),
        ("lamda=1", "did you mean `lambda`"),
        ("resume=/tmp", "resume=/tmp: a check looks at data"),
    ],
)
def test_wrong_arguments_are_one_line(argument: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "model=tiny", argument]) == 2
    message = capsys.readouterr().err.strip()
    assert said in message
    assert "\n" not in message


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.jsonl", CLEAN)
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    assert main(["check", "model=tiny", f"data={path}"]) == 0
    assert {item.name for item in set(tmp_path.rglob("*")) - before if "cache" not in item.parts} <= {"cache"}


def test_weights_are_not_needed(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.jsonl", CLEAN)
    check(f"data={path}", capsys=capsys)
    (made,) = (cache / "models").glob("tiny-*")
    (made / "model.safetensors").unlink()
    report = check(f"data={path}", capsys=capsys)
    embeddings, attention, mlp, norms = 261 * 64, 2 * 64 * 64 + 2 * 64 * 32, 3 * 64 * 128, 2 * 64
    assert report["plan"]["parameters"] == embeddings + 2 * (attention + mlp + norms) + 64


def test_the_plan_is_for_each_of_the_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.jsonl", CLEAN)
    plan = check(f"data={path}", "trainer.processes=2", "trainer.fit=auto", capsys=capsys)["plan"]
    assert plan["processes"] == 2
    assert main(["check", "model=tiny", f"data={path}", "trainer.processes=2", "trainer.fit=auto"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"about {plan['memory_bytes'] / 1e9:.1f} GB for each of 2 processes" in said
    assert "trainer.fit=auto: nothing changes; the longest pair takes about" in said


@pytest.mark.parametrize(
    ("width", "colour"),
    [(80, True), (120, False), pytest.param(80, False, marks=slow), pytest.param(120, True, marks=slow)],
)
def test_the_screen_shows_everything_in_any_width(
    width: int, colour: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*CLEAN, *(item for planted in PLANTED.values() for item in planted)]
    path = write(tmp_path / "x.jsonl", rows)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR" if colour else "NO_COLOR", "1")
    main(["check", "model=tiny", f"data={path}"])
    screen = capsys.readouterr().out
    assert ("\x1b[" in screen) is colour
    plain = re.sub(r"\x1b\[[0-9;]*m", "", screen)
    assert max(map(len, plain.splitlines())) <= width
    for said in ("orpo check", "train kept", "data.max_length", "one pair as the model sees it", "plan", "⟦<|end|>⟧"):
        assert said in plain
    assert all(name in plain for name in PLANTED)


def test_the_screen_obeys_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.jsonl", [row(1, prompt="q\x1b[2J\u202e", chosen="a\x1b]0;title\x07b"), row(2)])
    assert main(["check", "model=tiny", f"data={path}"]) == 0
    screen = capsys.readouterr().out
    assert r"q\u001b[2J\u202e" in screen
    assert not any(sign in screen for sign in ("\x1b[2J", "\x1b]", "\x07", "\u202e"))


def test_help_names_every_finding_and_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in FINDINGS)
    assert "check.fail_on" in text
    assert "data.columns.prompt" in text


def test_the_plan_of_the_check_is_that_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.jsonl", CLEAN)
    report = check(f"data={path}", "trainer.pairs_per_step=7", "trainer.epochs=2", "adapter=lora", capsys=capsys)
    assert report["plan"]["steps"] == 2 * 9
    assert report["plan"]["pairs"] == 60
    arguments = ["model=tiny", f"data={path}", f"output_dir={tmp_path / 'run'}", "trainer.pairs_per_step=7"]
    arguments += ["trainer.epochs=2", "adapter=lora", "trainer.sample_tokens=0"]
    assert main(["train", *arguments]) == 0
    log = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert f"trained: {report['plan']['trained']:,} of {report['plan']['parameters']:,}" in log
    assert "steps: 18 of 7 pairs" in log


def test_a_sample_is_decoded_part_by_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = {"prompt": [{"role": "user", "content": "Why?"}], "chosen": [{"role": "assistant", "content": "Because."}],
            "rejected": [{"role": "assistant", "content": "No."}]}  # fmt: skip
    report = check(f"data={write(tmp_path / 'x.jsonl', [chat] * 3)}", capsys=capsys)
    assert report["sample"]["prompt"] == [
        {"text": "<|user|>", "is_special": True}, {"text": "Why?", "is_special": False},
        {"text": "<|end|>", "is_special": True}, {"text": "<|assistant|>", "is_special": True},
    ]  # fmt: skip
    assert report["sample"]["chosen"][-1] == {"text": "<|end|>", "is_special": True}


def test_a_check_of_data_without_a_pair_left_shows_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.jsonl", CLEAN)
    report = check(f"data={path}", "data.max_length=20", capsys=capsys)
    assert report["classes"] == {"train/dropped:prompt_too_long": 60}
    assert (report["plan"], report["sample"]) == (None, {"source": "None"})
    assert report["lengths"]["prompt"]["max"] > 20
    assert main(["check", "model=tiny", f"data={path}", "data.max_length=20"]) == 0
    assert "no pair is left to train on" in capsys.readouterr().out


def test_rows_that_no_template_writes_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [item | {"tools": [{"name": "clock"}]} for item in CLEAN[:3]]
    path = write(tmp_path / "x.jsonl", rows)
    assert main(["check", "model=tiny", f"data={path}"]) == 65
    screen = capsys.readouterr()
    assert "the chat template does not write the tools" in " ".join(screen.out.split())
    folder = tmp_path / "run"
    assert main(["train", "model=tiny", f"data={path}", f"output_dir={folder}", "data.on_bad_row=skip"]) == 65
    message = capsys.readouterr().err
    assert "the chat template does not write the tools" in message
    assert "max_length" not in message


def test_an_error_is_json_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.jsonl", [{"prompt": "p", "completion": "c", "label": True}])
    assert "single responses with a label" in check(f"data={path}", capsys=capsys, code=65)["error"]


def test_copies_on_the_other_side_are_no_duplicates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, held = write(tmp_path / "train.jsonl", CLEAN), write(tmp_path / "held.jsonl", CLEAN[:5])
    report = check(f"data={train}", f"data.eval_path={held}", capsys=capsys)
    assert found(report) == {"shared_prompts": 5}
