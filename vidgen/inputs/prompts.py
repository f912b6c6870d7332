"""Files of prompts: plain text with one a line, or JSON lines.

Whatever a prompt holds, it stays data: samples are named by their index, never by their prompt.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidgen.errors import ConfigError, DataError

MAX_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A text to sample from, the key of the example it belongs to, and what a sample must show."""

  text: str
  key: str | None = None
  attributes: Mapping[str, Any] | None = None


def read_prompts(path: str | Path) -> list[Prompt]:
  """Reads `.txt` (each line a prompt) or `.jsonl` ("prompt" and, if wanted, "key", "attributes").

  Only a line feed ends a line, so any other character may stand in a prompt. Other fields of a
  JSON line are left unread. SUITE:PATH reads a published suite (`vidgen.inputs.prompt_suites`).

  Raises:
    ConfigError: no such file or suite, or another suffix.
    DataError: not UTF-8, no prompt, an empty line, a line that is no such object, or a key that
      occurs twice; the message names the line.
  """
  suite, colon, place = str(path).partition(":")
  if colon and re.fullmatch(r"[a-z0-9-]+", suite) and not Path(path).exists():
    from vidgen.inputs.prompt_suites import read_suite

    return read_suite(suite, Path(place))
  path = Path(path)
  if path.suffix not in (".txt", ".jsonl") and path.exists():
    raise ConfigError(f"prompts {path}: must end in .txt or .jsonl")
  parse = _json_prompt if path.suffix == ".jsonl" else _text_prompt
  prompts = []
  for number, line in enumerate(read_lines(path), start=1):
    try:
      prompts.append(parse(line))
    except (ValueError, RecursionError) as error:
      raise DataError(f"prompts {path}, line {number}: {error}") from error
  first: dict[str, int] = {}
  for number, prompt in enumerate(prompts, start=1):
    if prompt.key is not None and first.setdefault(prompt.key, number) != number:
      raise DataError(
        f"prompts {path}, line {number}: key {prompt.key!r} is that of line {first[prompt.key]}"
      )
  return prompts


def first_repeated(prompts: Sequence[Prompt]) -> str | None:
  """The first key that occurs twice."""
  seen: set[str] = set()
  for prompt in prompts:
    if prompt.key is not None and prompt.key in seen:
      return prompt.key
    seen.add(prompt.key or "")
  return None


def read_text(path: Path) -> str:
  """The text of a file of prompts.

  Raises:
    ConfigError: no such file.
    DataError: too large, or not UTF-8.
  """
  if not path.is_file():
    raise ConfigError(f"prompts {path}: no such file")
  if path.stat().st_size > MAX_BYTES:
    raise DataError(f"prompts {path}: larger than {MAX_BYTES} bytes")
  try:
    return path.read_bytes().decode()
  except UnicodeDecodeError as error:
    raise DataError(f"prompts {path}: not UTF-8 at byte {error.start}") from error


def read_lines(path: Path) -> list[str]:
  """The lines of a file of prompts, without their ends.

  Raises:
    ConfigError: no such file.
    DataError: too large, not UTF-8, or without a line.
  """
  lines = read_text(path).removesuffix("\n").split("\n")
  if lines == [""]:
    raise DataError(f"prompts {path}: holds no prompt")
  return [line.removesuffix("\r") for line in lines]


def _text_prompt(line: str) -> Prompt:
  if not line.strip():
    raise ValueError('empty; the empty prompt is written in a .jsonl file, as {"prompt": ""}')
  return Prompt(line)


def _json_prompt(line: str) -> Prompt:
  tree = json.loads(line)
  if not isinstance(tree, dict) or not isinstance(tree.get("prompt"), str):
    raise ValueError('not an object with a text "prompt"')
  key, attributes = tree.get("key"), tree.get("attributes")
  if not isinstance(key, str | None) or not isinstance(attributes, dict | None):
    raise ValueError('"key" must be text and "attributes" an object')
  return Prompt(tree["prompt"], key, attributes)
