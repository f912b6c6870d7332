"""Configs: a Python recipe by path, overrides from the command line, typed dataclasses, digests.

A recipe `configs/<system>/<stage>.py` defines `get_config(arg) -> ConfigDict` and states only what
differs from the defaults of the dataclasses in the code. Here the recipe is loaded, overridden,
checked key by key and turned into those dataclasses, whose every field is then known; that full
form, as plain JSON, is what a checkpoint carries (a stored config is read, never executed).
"""

import ast
import dataclasses
import hashlib
import json
import math
import runpy
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from vidgen.errors import ConfigError

T = TypeVar("T")


def load_config(
  spec: str, overrides: Mapping[str, Any] | None = None, *, entry: str = "get_config"
) -> ConfigDict:
  """Reads `FILE.py` or `FILE.py:variant` and applies overrides such as `{"train.steps": 10}`.

  `entry` is the function that the file must define.

  Raises:
    ConfigError: the file is missing or has no such function, the variant is not known to it, or an
      override names a key that the recipe's dataclasses do not have (found later, by `build`).
  """
  path, _, variant = spec.partition(":")
  if not Path(path).is_file():
    raise ConfigError(f"config {path}: no such file")
  try:
    get_config = runpy.run_path(path)[entry]
  except KeyError:
    raise ConfigError(f"config {path}: defines no {entry}(arg)") from None
  except Exception as error:
    raise ConfigError(f"config {path}: {type(error).__name__}: {error}") from error
  try:
    config = get_config(variant) if variant else get_config()
  except (KeyError, ValueError) as error:
    raise ConfigError(f"config {spec}: unknown variant {variant!r}: {error}") from error
  for key, value in (overrides or {}).items():
    _set(config, key, value)
  return config


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
  """Turns `--config.train.steps=10` into `{"train.steps": 10}`; values are Python literals or text.

  Raises:
    ConfigError: an argument has another form.
  """
  overrides: dict[str, Any] = {}
  for argument in arguments:
    key, equals, text = argument.partition("=")
    if not key.startswith("--config.") or not equals:
      raise ConfigError(f"unknown argument {argument!r}; overrides are --config.key=value")
    key = key.removeprefix("--config.")
    if key in overrides:
      raise ConfigError(f"override {key!r} is given twice")
    overrides[key] = _literal(text)
  return overrides


def _literal(text: str) -> Any:
  if text in ("true", "false"):
    return text == "true"
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def _set(config: ConfigDict, key: str, value: Any) -> None:
  node: Any = config
  *parents, last = key.split(".")
  for parent in parents:
    if parent not in node:
      node[parent] = ConfigDict()
    node = node[parent]
    if not isinstance(node, ConfigDict):
      raise ConfigError(f"override {key}: {parent} is a value, not a group")
  with node.unlocked(), node.ignore_type():  # `build` knows the types
    node[last] = value


def build(cls: type[T], tree: Any, *, path: str = "config") -> T:
  """Builds the dataclass `cls` from a mapping, checking names and types all the way down.

  Raises:
    ConfigError: an unknown or missing key, a value of the wrong type, a non-finite number, or what
      the dataclass's own `__post_init__` refuses; the message names the key by its full path.
  """
  if not isinstance(tree, Mapping | ConfigDict):
    raise ConfigError(f"{path}: expected a group of keys, got {tree!r}")
  hints = typing.get_type_hints(cls)
  fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]  # callers pass dataclasses
  unknown = sorted(set(tree) - set(fields))
  if unknown:
    raise ConfigError(f"{path}.{unknown[0]}: unknown key; known are {', '.join(sorted(fields))}")
  values = {}
  for name, field in fields.items():
    if name in tree:
      values[name] = _convert(hints[name], tree[name], f"{path}.{name}")
    elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
      raise ConfigError(f"{path}.{name}: missing")
  try:
    return cls(**values)
  except (ValueError, TypeError) as error:
    raise ConfigError(f"{path}: {error}") from error


def _convert(hint: Any, value: Any, path: str) -> Any:
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if hint is Any:
    return plain(value)
  if origin in (typing.Union, types.UnionType):
    if value is None and type(None) in arguments:
      return None
    errors = []
    for option in (a for a in arguments if a is not type(None)):
      try:
        return _convert(option, value, path)
      except ConfigError as error:
        errors.append(str(error))
    raise ConfigError(errors[0])
  if origin is typing.Literal:
    if value not in arguments:
      raise ConfigError(f"{path}: {value!r} is not one of {', '.join(map(str, arguments))}")
    return value
  if dataclasses.is_dataclass(hint):
    return build(hint, value, path=path)  # type: ignore[arg-type]  # a dataclass, as just seen
  if origin in (tuple, list):
    if not isinstance(value, list | tuple):
      raise ConfigError(f"{path}: expected a list, got {value!r}")
    if origin is tuple and (len(arguments) != 2 or arguments[1] is not Ellipsis):
      if len(arguments) != len(value):
        raise ConfigError(f"{path}: expected {len(arguments)} values, got {len(value)}")
      kinds = arguments
    else:
      kinds = (arguments[0],) * len(value)
    items = (
      _convert(k, v, f"{path}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True))
    )
    return origin(items)
  if origin in (dict, Mapping):
    return {k: _convert(arguments[1], v, f"{path}.{k}") for k, v in dict(value).items()}
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
    raise ConfigError(f"{path}: expected {hint.__name__}, got {value!r}")
  if isinstance(value, float) and not math.isfinite(value):
    raise ConfigError(f"{path}: {value} is not a finite number")
  return value


def plain(tree: Any) -> Any:
  """Dataclasses, ConfigDicts and tuples as the dicts and lists of JSON."""
  if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
    return {f.name: plain(getattr(tree, f.name)) for f in dataclasses.fields(tree) if f.init}
  if isinstance(tree, ConfigDict):
    return plain(tree.to_dict())
  if isinstance(tree, Mapping):
    return {str(k): plain(v) for k, v in tree.items()}
  if isinstance(tree, list | tuple):
    return [plain(v) for v in tree]
  return tree


def canonical_json(tree: Any) -> str:
  """The one text of a tree: sorted keys, no spaces, no non-finite numbers."""
  return json.dumps(plain(tree), sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(tree: Any) -> str:
  """SHA-256, in hex, of `canonical_json(tree)`."""
  return hashlib.sha256(canonical_json(tree).encode()).hexdigest()


def differences(old: Any, new: Any, *, path: str = "") -> list[str]:
  """Lines `key: old -> new` for every leaf in which two plain trees differ."""
  old, new = plain(old), plain(new)
  if isinstance(old, dict) and isinstance(new, dict):
    keys = sorted(set(old) | set(new))
    missing = "(absent)"
    return [
      line
      for k in keys
      for line in differences(
        old.get(k, missing), new.get(k, missing), path=f"{path}.{k}" if path else k
      )
    ]
  return [] if old == new else [f"{path}: {old!r} -> {new!r}"]
