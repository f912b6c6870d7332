"""Writes the README's conformance table: runs every parity check and says how well it agrees.

  python tests/write_conformance.py [--check]

A test module that has `CASES` (see `conformance.py`) is a part of the table. With `--check` nothing
is run or written; the rows there must be those of the cases.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
TESTS = Path(__file__).resolve().parent
README = TESTS.parent / "README.md"
HEAD = "| module | reference | config | largest absolute error | cosine | test |"
RULE = "|---|---|---|---|---|---|"


def cases() -> Iterator[tuple[str, object]]:
  """(test file, case), in the order of the files."""
  sys.path[:0] = [path for path in (str(TESTS), str(TESTS.parent)) if path not in sys.path]
  for path in sorted(TESTS.glob("*/**/test_*.py")):
    if "CASES" not in path.read_text():
      continue
    if str(path.parent) not in sys.path:
      sys.path.insert(0, str(path.parent))
    for case in importlib.import_module(path.stem).CASES:
      yield str(path.relative_to(TESTS.parent)), case


def facts(file: str, case) -> tuple[str, str, str, str]:
  """What a row says that is not measured."""
  return f"`{case.module}`", case.reference, case.config, f"`{file}`"


def rows() -> list[list[str]]:
  """The table of the README, without its head; cells by row."""
  text = README.read_text()
  if HEAD not in text:
    return []
  lines = text[text.index(HEAD) :].split("\n")[2:]
  table = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
  return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--check", action="store_true")
  args = parser.parse_args()
  if args.check:
    want = [facts(file, case) for file, case in cases()]
    have = [(module, reference, config, test) for module, reference, config, _, _, test in rows()]
    for row in sorted(set(want) ^ set(have)):
      print(f"{'missing' if row in want else 'too many'}: {' | '.join(row)}")
    return int(want != have)
  from conformance import measure

  lines = [HEAD, RULE]
  for file, case in cases():
    got = measure(case.run())
    module, reference, config, test = facts(file, case)
    lines.append(
      f"| {module} | {reference} | {config} | {got.absolute:.1e} | {got.cosine:.9f} | {test} |"
    )
    print(lines[-1], flush=True)
  text = README.read_text()
  start = text.index(HEAD)
  end = text.index("\n\n", start)
  README.write_text(text[:start] + "\n".join(lines) + text[end:])
  return 0


if __name__ == "__main__":
  sys.exit(main())
