"""Refuse a value outside its limits, in one line: the key, the value as typed, and what was expected."""

from importlib.util import find_spec

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


def require_installed(setting: str, package: str, extra: str) -> None:
    """Raise ConfigError unless the package that a setting needs is installed; the message has the command for it."""
    if find_spec(package) is None:
        raise ConfigError(f"{setting}: the package {package} is not installed; pip install 'orpo-cli[{extra}]'")
