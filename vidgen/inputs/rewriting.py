"""Prompts rewritten before a model reads them, by any text-to-text callable.

Users write shorter and otherwise than the captions that a model was trained on (Movie Gen, section
3.4.1). A `Rewriter` turns one text into another; two are here: a file of rewrites, and an endpoint
on this machine. What a prompt has in quotes is text to be seen in the video, so it must come back
byte for byte, and nothing else may be quoted than words of the prompt. Each prompt is rewritten
once: what was made is kept in a file, which serves as the file of rewrites of any other run.
Prefixes of captions are not a rewriter's: they are put before the rewrite (`vidgen.inputs.prefix`).
"""

import dataclasses
import hashlib
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from vidgen.config import canonical_json
from vidgen.errors import ConfigError, DataError, VidgenError
from vidgen.inputs.embeddings import quoted
from vidgen.inputs.prompts import read_text
from vidgen.whole_file import write_whole

Rewriter = Callable[[str], str]

FILE = "rewrites.jsonl"
LONGEST = 20_000  # characters of a rewrite
HOSTS = ("127.0.0.1", "localhost", "::1")
TIMEOUT = 60.0  # seconds for one prompt
MAX_BYTES = 1 << 20  # of an answer


@dataclasses.dataclass(frozen=True)
class Rewritten:
  """A prompt and what stands for it; with a `problem`, that is the prompt itself."""

  prompt: str
  rewrite: str
  problem: str = ""


class RewriteFile:
  """Rewrites from a file: JSON lines of "prompt" and "rewrite"; other fields are left unread.

  Raises:
    ConfigError: no such file.
    DataError: a line that is no such object, or two rewrites of one prompt; when called, a prompt
      that is not in the file.
  """

  def __init__(self, path: str | Path):
    self._path = Path(path)
    text = read_text(self._path)
    self.name = f"file sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    self._rewrites: dict[str, str] = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
      where = f"rewrites {self._path}, line {number}"
      found = _entry(line)
      if found is None:
        raise DataError(f'{where}: not an object with texts "prompt" and "rewrite"')
      if self._rewrites.setdefault(found.prompt, found.rewrite) != found.rewrite:
        raise DataError(f"{where}: another rewrite of a prompt that has one")

  def __call__(self, prompt: str) -> str:
    """The rewrite of `prompt`."""
    if prompt not in self._rewrites:
      raise DataError(f"{self._path} has no rewrite of it")
    return self._rewrites[prompt]


class HttpRewriter:
  """Rewrites from an endpoint on this machine: POST {"prompt": text}, answered {"rewrite": text}.

  No redirect is followed and no proxy is asked, so that nothing leaves the machine. `timeout` is in
  seconds, of the whole exchange.

  Raises:
    ConfigError: the URL is not plain HTTP to this machine.
    DataError: when called: it cannot be reached, is too slow, or answers otherwise.
  """

  def __init__(self, url: str, *, timeout: float = TIMEOUT, max_bytes: int = MAX_BYTES):
    try:
      parts = urllib.parse.urlsplit(url)
      good = parts.scheme == "http" and parts.hostname in HOSTS and parts.port != 0
    except ValueError:
      good = False
    if not good or "@" in url:
      raise ConfigError(f"rewriter {url!r}: expected http://127.0.0.1:PORT/PATH, on this machine")
    self.name = self._url = url
    self._timeout, self._max_bytes = timeout, max_bytes
    self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay())

  def __call__(self, prompt: str) -> str:
    """The rewrite of `prompt`."""
    request = urllib.request.Request(
      self._url,
      data=json.dumps({"prompt": prompt}).encode(),
      headers={"Content-Type": "application/json", "Accept": "application/json"},
    )
    end = time.monotonic() + self._timeout
    content = b""
    try:
      with self._opener.open(request, timeout=self._timeout) as response:
        while piece := response.read1(1 << 16):
          content += piece
          if len(content) > self._max_bytes:
            raise DataError(f"{self._url} answers with more than {self._max_bytes:,} bytes")
          if time.monotonic() > end:
            raise TimeoutError("timed out")
      answer = json.loads(content)
    except (OSError, ValueError, RecursionError, urllib.error.HTTPError) as error:
      raise DataError(f"{self._url}: {error}") from error
    if not isinstance(answer, dict) or not isinstance(answer.get("rewrite"), str):
      raise DataError(f'{self._url} answers with no object with a text "rewrite"')
    return answer["rewrite"]


class _Stay(urllib.request.HTTPRedirectHandler):
  """An answer that points elsewhere is an error."""

  def redirect_request(self, *_: Any, **__: Any) -> None:
    """No request follows."""


def rewrite_all(
  prompts: Sequence[str],
  *,
  rewriter: Rewriter,
  cache: Path | None = None,
  failure: Literal["error", "prompt"] = "error",
) -> list[Rewritten]:
  """The rewrite of every prompt, equal ones rewritten once.

  Args:
    prompts: texts.
    rewriter: is asked for each that is new; a `name` that it may have says who made a rewrite.
    cache: a file to keep rewrites in as they are made; the same rewriter's are taken from it.
    failure: what a rewrite that failed or lost a quote means: an error, or the prompt as it is.

  Raises:
    DataError: with "error", names the prompt and the problem.
  """
  by = str(getattr(rewriter, "name", getattr(rewriter, "__name__", type(rewriter).__name__)))
  known = {} if cache is None else _cached(cache, by=by)
  found = []
  for number, prompt in enumerate(prompts):
    if prompt not in known:
      known[prompt] = made = _rewritten(prompt, rewriter)
      if made.problem and failure == "error":
        raise DataError(f"prompt {number} is not rewritten: {made.problem}: {prompt[:120]!r}")
      if cache is not None:
        with open(cache, "a", encoding="utf-8") as file:
          file.write(canonical_json({**dataclasses.asdict(made), "by": by}) + "\n")
    found.append(known[prompt])
  return found


def _rewritten(prompt: str, rewriter: Rewriter) -> Rewritten:
  try:
    rewrite = rewriter(prompt)
  except VidgenError as error:
    return Rewritten(prompt, prompt, str(error))
  problem = problem_of(prompt, rewrite)
  return Rewritten(prompt, prompt if problem else rewrite.strip(), problem)


def problem_of(prompt: str, rewrite: str) -> str:
  """Why `rewrite` cannot stand for `prompt`; "" if it can."""
  if not rewrite.strip():
    return "the rewrite is empty"
  if len(rewrite) > LONGEST:
    return f"the rewrite is longer than {LONGEST:,} characters"
  rest, after = quoted(prompt), quoted(rewrite)
  for span in after:
    if rest and span == rest[0]:
      rest = rest[1:]
    elif span not in prompt:
      return f"the rewrite quotes {span[:60]!r}, which is not in the prompt"
  if rest:
    return f"the rewrite does not quote {rest[0][:60]!r} as the prompt does"
  return ""


def _cached(path: Path, *, by: str) -> dict[str, Rewritten]:
  """What is kept at `path` of the rewriter `by`; a line that a kill left in two is cut off."""
  if not path.exists():
    return {}
  lines = path.read_bytes().decode("utf-8", "replace").split("\n")
  entries = [(line, entry) for line in lines if (entry := _entry(line)) is not None]
  whole = "".join(f"{line}\n" for line, _ in entries).encode()
  if whole != path.read_bytes():
    write_whole(path, whole)
  return {e.prompt: e for line, e in entries if json.loads(line).get("by") == by}


def _entry(line: str) -> Rewritten | None:
  try:
    tree = json.loads(line)
    found = Rewritten(tree["prompt"], tree["rewrite"], tree.get("problem", ""))
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
    return None
  return found if all(isinstance(v, str) for v in dataclasses.astuple(found)) else None
