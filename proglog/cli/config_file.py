"""Settings of a command from the file that its `--config-file` names."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from cyclopts import App, ArgumentCollection, CycloptsError
from cyclopts.config import Dict

_READERS: dict[str, Callable[[str], Any]] = {
    ".yaml": yaml.safe_load,
    ".yml": yaml.safe_load,
    ".toml": tomllib.loads,
}


def config_file(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """A source of settings for cyclopts: keys are those of the flags, without the dashes.

    It comes after flags and environment, which win and may name the file. Raises CycloptsError.
    """
    for argument in arguments:
        if argument.name == "--config-file" and argument.tokens:
            path = Path(argument.tokens[-1].value)
            source = Dict(_read(path), source=str(path), use_commands_as_keys=False)
            source(app, commands, arguments)


def _read(path: Path) -> dict[str, Any]:
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise CycloptsError(msg=f"Config file {path}: the name must end in .yaml, .yml or .toml.")
    try:
        settings = reader(path.read_text())
    except OSError as error:
        raise CycloptsError(msg=f"Config file {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise CycloptsError(msg=f"Config file {path}: {error}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise CycloptsError(msg=f"Config file {path}: expected keys with values at the top.")
    return settings
