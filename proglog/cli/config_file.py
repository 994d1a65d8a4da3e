"""Settings of a command from the file that its `--config-file` names."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_origin

import yaml
from cyclopts import App, Argument, ArgumentCollection, CycloptsError
from cyclopts.config import Dict
from yaml.error import MarkedYAMLError


def _read_yaml(text: str) -> Any:
    """As yaml.safe_load, which takes the last of several values for a key. Raises YAMLError."""
    top = yaml.compose(text, yaml.SafeLoader)
    seen: list[object] = []
    for key, _ in top.value if isinstance(top, yaml.MappingNode) else ():
        if key.value in seen:
            raise MarkedYAMLError(problem=f"{key.value} is set twice", problem_mark=key.start_mark)
        seen.append(key.value)
    return yaml.safe_load(text)


_READERS: dict[str, Callable[[str], Any]] = {
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
    ".toml": tomllib.loads,
}


def config_file(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """A source of settings for cyclopts: keys are those of the flags, without the dashes.

    It comes after flags and environment, which win and may name the file. Raises CycloptsError.
    """
    for argument in arguments:
        if argument.name == "--config-file" and argument.tokens:
            path = Path(argument.tokens[-1].value)
            settings = _read(path)
            known = {each.name.removeprefix("--"): each for each in arguments}
            del known["config-file"]
            _check(path, settings, known)
            source = Dict(settings, source=str(path), use_commands_as_keys=False)
            source(app, commands, arguments)


def _check(path: Path, settings: dict[str, Any], arguments: Mapping[str, Argument]) -> None:
    """What cyclopts is more lenient about: other spellings of a key, and numbers for words."""
    for key, value in settings.items():
        if key not in arguments:
            close = difflib.get_close_matches(str(key), arguments, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise CycloptsError(msg=f"Config file {path}: unknown key {key!r}.{hint}")
        items = value if isinstance(value, list) else [value]
        words = all(isinstance(item, str) for item in items)
        if get_origin(arguments[key].hint) is tuple and not words:
            raise CycloptsError(
                msg=f"Config file {path}: {key}: expected words: with commas between, or in a list."
            )


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
