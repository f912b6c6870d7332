"""Net win rates from files of votes, `.jsonl` or `.csv`, with "item" and "vote" in each line.

A vote is "ours", "theirs" or "tie". Lines of one item are its raters'.
"""

import collections
import csv
import io
import json
from pathlib import Path
from typing import Any

from vidgen import config as cfg
from vidgen.errors import ConfigError, DataError
from vidgen.evals.features import Facts
from vidgen.evals.protocol import Score
from vidgen.evals.scoring import Session
from vidgen.evals.win_rate import win_rate as rate

VOTES = {"ours": 1, "tie": 0, "theirs": -1}
MAX_BYTES = 256 << 20


def read_votes(path: Path) -> dict[str, list[int]]:
  """Votes by item: 1, 0, -1.

  Raises:
    ConfigError: no such file, or another suffix.
    DataError: a line that is no vote; it is named.
  """
  if not path.is_file():
    raise ConfigError(f"--votes {path}: no such file")
  if path.suffix not in (".jsonl", ".csv"):
    raise ConfigError(f"--votes {path}: must end in .jsonl or .csv")
  if path.stat().st_size > MAX_BYTES:
    raise DataError(f"--votes {path}: larger than {MAX_BYTES} bytes")
  found: dict[str, list[int]] = collections.defaultdict(list)
  number = 0
  try:
    text = path.read_bytes().decode()
    lines: Any
    if path.suffix == ".csv":
      lines = csv.DictReader(io.StringIO(text), strict=True)
    else:
      lines = map(json.loads, text.removesuffix("\n").split("\n"))
    for line in lines:
      if not isinstance(line, dict) or not isinstance(line.get("item"), str):
        raise ValueError('no text "item"')
      if line.get("vote") not in VOTES:
        raise ValueError(f'"vote" is {line.get("vote")!r}, not one of {", ".join(VOTES)}')
      found[line["item"]].append(VOTES[line["vote"]])
      number += 1
  except (ValueError, TypeError, csv.Error, RecursionError) as error:
    raise DataError(f"--votes {path}, after {number} votes: {error}") from error
  if not found:
    raise DataError(f"--votes {path}: holds no vote")
  return dict(found)


def win_rate(session: Session, name: str) -> Score:
  """The net win rate in percent with its interval, items decided by majority (Movie Gen).

  Raises:
    ConfigError: no file of votes.
    DataError: it is damaged.
  """
  if session.settings.votes is None:
    raise ConfigError(f"{name} needs --votes FILE")
  votes = read_votes(session.settings.votes)
  rule, seed = session.own_convention(name), session.settings.seed
  found = rate(votes, rule=rule, seed=seed)
  values = {
    "net": found.net, "low": found.low, "high": found.high, "deviation": found.deviation,
    "win_rate": found.win_rate,
  }  # fmt: skip
  details = {
    "rule": rule, "interval": f"{found.confidence:.0%}, bootstrap over items",
    "bootstrap_seed": seed, "raters": sorted({len(v) for v in votes.values()}),
  }  # fmt: skip
  record = session.record(
    name,
    facts=Facts(len(votes), 0, 0, 0, 0, 0.0),
    samples=cfg.digest({item: sorted(given) for item, given in votes.items()}),
    details=details,
  )
  return Score(values, record)
