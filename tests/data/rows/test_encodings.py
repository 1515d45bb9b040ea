"""The encoding that a file which is not UTF-8 is most likely in is named, and nothing is where that is not likely."""

import json
import random
from pathlib import Path

import pytest
from bad_rows import found_in

from orpo_cli.data.pairs import Row
from orpo_cli.data.rows.encodings import likely_encoding
from orpo_cli.data.rows.readers import read_rows
from orpo_cli.data.rows.sources import data_file

SENTENCES = {
    "zh": [
        "中国的首都是哪里？", "请解释一下量子纠缠。",
        "想象你有两枚硬币，它们神奇地联系在一起。", "写一首关于春天的诗。",
        "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
        "他说这个问题很难回答，我也不知道应该怎么办。",
    ],
    "traditional": [
        "中國的首都是哪裡？", "請解釋一下量子糾纏。", "寫一首關於春天的詩。", "舉頭望明月，低頭思故鄉。",
        "他說這個問題很難回答，我也不知道應該怎麼辦。",
    ],
    "ja": [
        "日本の首都はどこですか？", "量子もつれを簡単に説明してください。", "すみません、わかりません。",
        "カタカナのテスト",
        "春についての俳句を書いてください。", "吾輩は猫である。名前はまだ無い。",
    ],
    "ko": [
        "한국의 수도는 어디입니까?", "양자 얽힘을 간단히 설명해 주세요.",
        "봄에 대한 시를 한 편 써 주세요.", "안녕하세요, 반갑습니다.",
    ],
    "ru": ["Столица России?", "Не знаю.", "Объясни квантовую запутанность просто.", "Я и ты не знаем.", "«Привет!»"],
    "western": [
        "Größe?", "Für Schuhe 42", "naïve", "Wie heißt der größte Fluß?", "Ça va très bien. Où êtes-vous allé?",
        "España: ¿cómo estás, señor?", "“quoted” – it’s", "café", "À", "ÄÖÜ", "Ærøskøbing ligger på Ærø",
        "x², 30 °C, 5 €",
    ],
}  # fmt: skip
CODECS = {
    "gbk": ("zh", "GBK"), "gb18030": ("zh", "GBK"), "big5": ("traditional", "BIG5"), "cp932": ("ja", "SHIFT-JIS"),
    "shift_jis": ("ja", "SHIFT-JIS"), "euc_jp": ("ja", "EUC-JP"), "euc_kr": ("ko", "EUC-KR"),
    "cp1251": ("ru", "CP1251"),
    "cp1252": ("western", "CP1252"),
}  # fmt: skip


def first_bad(raw: bytes) -> int:
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return error.start
    raise AssertionError("is UTF-8")


@pytest.mark.parametrize("codec", CODECS)
def test_each_sentence_and_all_together_name_their_encoding(codec: str) -> None:
    language, name = CODECS[codec]
    for text in [*SENTENCES[language], "\n".join(SENTENCES[language] * 200)]:
        raw = json.dumps({"prompt": text, "chosen": "yes", "rejected": "no"}, ensure_ascii=False).encode(codec)
        assert likely_encoding(raw, first_bad(raw)) == name, text


def test_damaged_utf8_is_not_called_another_encoding() -> None:
    for sentences in SENTENCES.values():
        raw = "\n".join(sentences).encode()
        for place in (0, len(raw) // 2):
            damaged = raw[:place] + b"\xe9" + raw[place:]
            assert likely_encoding(damaged, first_bad(damaged)) is None
    assert likely_encoding(b"a\0b", 1) is None


def test_noise_is_seldom_called_the_text_of_a_language() -> None:
    noise = random.Random(0)
    named = [likely_encoding(b"\xff" + noise.randbytes(60), 0) for _ in range(200)]
    assert sum(name is not None for name in named) < 5


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        (
            "x.jsonl",
            '{"prompt": "p", "chosen": "c", "rejected": "r"}\n{"prompt": "Größe", "chosen": "ü", "rejected": ""}',
        ),
        ("x.json", '[{"prompt": "p", "chosen": "c", "rejected": "r"},\n {"prompt": "Größe", "chosen": "ü"}]'),
        ("x.csv", 'prompt,chosen,rejected\nGröße,ü,"ä"'),
    ],
)
def test_it_is_said_once_for_every_kind_of_text(name: str, raw: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(raw.encode("cp1252"))
    _, (problem,) = found_in(tmp_path / name)
    assert problem.startswith(f"{name}:2: not UTF-8: byte 0xf6 at byte ")
    assert problem.endswith(", most likely CP1252; write it as UTF-8: iconv -f CP1252 -t UTF-8 FILE > NEW_FILE")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("separator", [";", ",", "\t"])
def test_a_spreadsheet_may_separate_cells_by_semicolons(separator: str, mark: str, tmp_path: Path) -> None:
    """Excel does where a comma is the decimal sign; what else stands in the header counts outside quotes only."""
    table = [
        ["prompt", "chosen", "rejected", "a,b;c"],
        ["a lake", "Como, I think", "no; idea", ""],
        ["p", "'", "r", "\t"],
    ]
    lines = [separator.join(f'"{cell}"' if set(cell) & set(",;\t") else cell for cell in row) for row in table]
    path = tmp_path / "x.csv"
    path.write_bytes((mark + "\r\n".join(lines)).encode())
    assert [row.value for row in read_rows(data_file(path)) if isinstance(row, Row)] == [
        dict(zip(table[0], row, strict=True)) for row in table[1:]
    ]
