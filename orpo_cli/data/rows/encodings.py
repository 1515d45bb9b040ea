"""Name the encoding that bytes which are not UTF-8 are most likely in, from what they would say in each.

Every byte string is some text in most encodings, so what counts is how much of it would be what people write: the
script of the encoding's language, in its frequent characters.
"""

import re
from collections.abc import Callable

_LOOKED_AT = 2000
"""Bytes before and behind the first that is not UTF-8."""

_ENOUGH = 0.85
"""The share of frequent characters from which a guess is worth saying; a wrong encoding gives up to 0.75."""

_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
_NO_TEXT = re.compile("[\x00-\x08\x0e-\x1f\x7f\ufffd]")
_KANA = re.compile("[ぁ-んァ-ヶー]")


def _matches(pattern: str) -> Callable[[str], int]:
    """Return a function that counts the characters of a text which a pattern matches."""
    frequent = re.compile(pattern)
    return lambda text: sum(len(found) for found in frequent.findall(text))


_frequent_in_japanese = _matches("[ぁ-んァ-ヶ一-鿿々ー、。「」！？・（）]")


def _japanese(text: str) -> int:
    """Count Japanese as such only with the kana that no sentence is without."""
    frequent = _frequent_in_japanese(text)
    return frequent if 5 * len(_KANA.findall(text)) > frequent else 0


def _chinese(codec: str, last: int) -> Callable[[str], int]:
    """Return a function that counts the characters which a Chinese standard puts first, since they are frequent.

    Args:
        last: the last of the first bytes of these characters.
    """
    return lambda text: sum(b"\xa1" <= char.encode(codec, "ignore")[:1] <= bytes([last]) for char in text)


_WRITTEN: dict[str, tuple[str, Callable[[str], int]]] = {
    "SHIFT-JIS": ("cp932", _japanese),
    "EUC-JP": ("euc_jp", _japanese),
    "EUC-KR": ("cp949", _matches("[가-힣、。？！“”‘’…·]")),
    "GBK": ("gb18030", _chinese("gb2312", 0xD7)),
    "BIG5": ("big5", _chinese("big5", 0xC6)),
    "CP1251": ("cp1251", _matches("(?<![A-Za-z])[А-ЯЁ]?[а-яё]+(?![A-Za-z])|[«»—–№“”]")),
}
"""Name, as iconv knows it -> Python's codec, and what counts the frequent characters of a text."""


_MARKS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""Byte order marks, the longer first."""


def wide_encoding(head: bytes) -> str | None:
    """Return the name of an encoding of two or four bytes a character that a file begins in; None for others."""
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return name
    if len(head) < 4 or not any(head):
        return None
    empty = [set(head[place::4]) == {0} for place in range(4)]
    wide = {(0, 1, 1, 1): "UTF-32LE", (1, 1, 1, 0): "UTF-32BE", (0, 1, 0, 1): "UTF-16LE", (1, 0, 1, 0): "UTF-16BE"}
    return wide.get((empty[0], empty[1], empty[2], empty[3]))


def how_to_convert(encoding: str) -> str:
    """Return the advice for a file in another encoding."""
    return f"most likely {encoding}; write it as UTF-8: iconv -f {encoding} -t UTF-8 FILE > NEW_FILE"


def likely_encoding(raw: bytes, place: int) -> str | None:
    """Return the name of the most likely encoding; None for damaged UTF-8, and where nothing is likely.

    Args:
        place: the first byte that is not UTF-8, or a NUL.
    """
    if raw[place] < 0x80:
        return None
    around = raw[max(0, place - _LOOKED_AT) : place + _LOOKED_AT]
    if place > _LOOKED_AT:
        around = re.sub(rb"\A[\x80-\xff]+", b"", around)  # perhaps from the middle of a character
    as_utf8 = around.decode("utf-8", "replace")
    if 2 * as_utf8.count("\ufffd") <= len(_BEYOND_ASCII.findall(as_utf8)):
        return None
    shares = {name: _share(around, codec, count) for name, (codec, count) in _WRITTEN.items()}
    best = max(shares, key=lambda name: shares[name])
    if shares[best] >= _ENOUGH:
        return best
    return None if _NO_TEXT.search(around.decode("cp1252", "replace")) else "CP1252"


def _share(raw: bytes, codec: str, count: Callable[[str], int]) -> float:
    """Return the share of frequent characters among those beyond ASCII."""
    text = raw.decode(codec, "replace")
    return count(text) / max(1, len(_BEYOND_ASCII.findall(text)))
