"""YAML files, bounded: a small one can stand for billions of values, or nest too deeply to be read at all."""

from pathlib import Path
from typing import Any

import yaml

__all__ = ["YamlError", "read_yaml"]

_MOST_BYTES = 4 << 20
_DEEPEST = 40
_MOST_ALIASES = 32


class YamlError(ValueError):
    """A file that is no YAML, or more of it than any of ours."""


def read_yaml(path: Path) -> Any:
    """Read a file with the safe loader: texts, numbers, lists and mappings, nothing else.

    Raises
    ------
    YamlError
        When it is no YAML, too long, nested too deeply, or repeats itself by reference too often.
    OSError
        When it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise YamlError(f"more than {_MOST_BYTES} bytes")
    depth = aliases = 0
    try:
        text = content.decode("utf-8")
        # The parser keeps no tree, whatever the depth.
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            aliases += isinstance(event, yaml.AliasEvent)
            if depth > _DEEPEST or aliases > _MOST_ALIASES:
                raise YamlError(
                    f"nested more than {_DEEPEST} deep, or more than {_MOST_ALIASES} references (*name)"
                )
        return yaml.safe_load(text)
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise YamlError(str(error) or "nested too deeply") from error
