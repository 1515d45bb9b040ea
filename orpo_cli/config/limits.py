"""Refuse a value outside its limits, in one line: the key, the value as typed, and what was expected."""

from orpo_cli.errors import ConfigError


def require(holds: bool, key: str, value: object, expected: str) -> None:
    """Raise ConfigError unless `holds`, which must be written so that NaN fails it."""
    if not holds:
        raise ConfigError(f"{key}={_as_typed(value)}: expected {expected}")


def _as_typed(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def require_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless `value` is one of `choices`."""
    require(value in choices, key, value, "one of " + ", ".join(choices))
