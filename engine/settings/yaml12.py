"""Reads and writes YAML 1.2 as plain data, on top of PyYAML, which implements YAML 1.1.

PyYAML's safe loader reads `1e-3` as a string, `010` as 8 and `no` as False, and silently keeps the last of two equal
keys. Here `1e-3` is a float, `010` is ten, only true and false are booleans, and a repeated key is an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache
from textwrap import shorten
from typing import Any, NoReturn

import yaml

from engine.settings.types import at_key, has_free_keys, is_text, of_entries

KEY = r"[A-Za-z_][A-Za-z0-9_]*"
NULL, NULLS = "tag:yaml.org,2002:null", r"(~|null|Null|NULL|)\Z"
MAX_DEPTH = 30  # of nested sections and lists
MAX_LENGTH = 250_000  # characters: a second or two of reading


class BadYAML(Exception):
    """A text is not YAML that is accepted here: the problem, and the line it is in, counted from 1."""

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(problem)
        self.problem, self.line = shorten(problem, 200, placeholder=" ..."), line


def parse(text: str, types: Sequence[Any] = ()) -> Any:
    """Returns the data of a YAML text; None for an empty one.

    Args:
        text: the YAML.
        types: what the data may be, such as a settings class. Where only a text is possible, what stands there without
            quotes is that text, also if it looks like a number: `name: 010` is "010". Null stays null.

    Raises:
        BadYAML: the text is not YAML, is too long, or uses anchors, tags or repeated keys.
    """
    return deepcopy(_parsed(text, tuple(types)))


@lru_cache(maxsize=32)  # a tool reads a run's settings several times, and PyYAML takes 10 ms for them
def _parsed(text: str, types: tuple[Any, ...]) -> Any:
    loader = None
    if len(text) > MAX_LENGTH:
        raise BadYAML(f"longer than {MAX_LENGTH:,} characters, which no settings are", 1)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _fit(node, types)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = ", ".join(filter(None, (error.context, error.problem)))
        problem += "; indent with spaces" if r"'\t'" in problem else ""
        raise BadYAML(problem, mark.line + 1) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise BadYAML(f"the character {chr(error.character)!r} is not allowed", line) from None
    except (ValueError, OverflowError):  # PyYAML does not check the number in "\UFFFFFFFF"
        raise BadYAML("an escape with \\ that is no character", loader.line + 1) from None


def dump(data: Any) -> str:
    """Returns YAML that `parse` and YAML 1.1 readers read as the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def is_null(text: str) -> bool:
    """Returns whether YAML reads a word as null."""
    return bool(re.match(NULLS, text))


class _Loader(yaml.SafeLoader):
    """Loads plain YAML 1.2 data; anchors, tags and repeated keys are errors."""

    yaml_implicit_resolvers: dict = {}  # not YAML 1.1's
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        event = self.peek_event()
        if event.anchor is not None:  # also where it is an alias
            _fail("anchors (&) and aliases (*) are not read; write the value out", event)
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            _fail(f"the tag {tag} is not read; write the plain value", event)
        if self.depth == MAX_DEPTH:
            _fail(f"nested deeper than {MAX_DEPTH} levels", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        lines: dict[str, int] = {}
        for key_node, _ in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if key in lines:
                _fail(f"{key} stands here twice, first on line {lines[key]}; keep one", key_node)
            lines[key] = line
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        try:
            return int(node.value)
        except ValueError:  # Python converts no more than 4300 digits
            _fail("a number of too many digits", node)


def _fit(node: yaml.Node, types: Sequence[Any]) -> None:
    """Checks the keys of a tree, and makes texts of its plain numbers and words where `types` allow a text only."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                _fail("a list or section is not a key; keys are letters, digits and _, and sections are nested", key)
            if not (re.fullmatch(KEY, key.value) or has_free_keys(types)):
                _fail(f"{key.value!r} is not a key; keys are letters, digits and _, and sections are nested", key)
            _fit(value, at_key(types, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            _fit(entry, of_entries(types))
    elif node.tag != NULL and is_text(types):
        node.tag = "tag:yaml.org,2002:str"


class _Dumper(yaml.SafeDumper):
    """Quotes strings that YAML 1.1 or 1.2 would read as something else than a string."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, text: str) -> yaml.Node:
        # PyYAML folds a line break such as U+0085 in single quotes and reads it back as another.
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
for _tag, _pattern in {
    "null": NULLS,
    "bool": r"(true|True|TRUE|false|False|FALSE)\Z",
    "int": r"[-+]?[0-9]+\Z",
    "float": r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z",
}.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), None)


def _fail(problem: str, where: yaml.Event | yaml.Node) -> NoReturn:
    raise BadYAML(problem, where.start_mark.line + 1)
