"""YAML as recipes are written: numbers are numbers, and no key is set twice."""

import re
from collections.abc import Hashable, Mapping
from typing import Any

import yaml

from vit21k.errors import RecipeError


def parse_yaml(text: str, name: str) -> Any:
    """Return what *text* holds.

    Args:
        text: Of a recipe, or of a single value.
        name: What a message calls it.

    Raises:
        RecipeError: It is not YAML, or sets a key twice.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{name} is not YAML: {error}") from error


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Return *values* as YAML, in their order, lists on one line."""
    return yaml.dump(values, Dumper=_PlainDumper, sort_keys=False)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that reads `1e-3` as a number and refuses a repeated key.

    Plain YAML 1.1 reads `1e-3` as text, and keeps the last of two equal keys.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"`{key}` is set twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


class _PlainDumper(yaml.SafeDumper):
    """SafeDumper that writes a list of numbers on one line."""


_PlainDumper.add_representer(
    list,
    lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True),
)


# The dumper has to know, too: it quotes a text that would be read as a number.
for _reader_or_writer in (_StrictLoader, _PlainDumper):
    _reader_or_writer.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d[\d_]*)?\.?\d[\d_]*[eE][-+]?\d+"),
        list("-+.0123456789"),
    )
