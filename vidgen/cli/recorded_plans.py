"""Plans on record: FILE.plans.json beside a config lists what it was planned for, with the figures.

Who edits the file writes variant, topology and overrides, and where they are not the default,
bucket, program and effort (as the options of `vidgen plan`); the figures are written by
`vidgen plan --recorded FILE`, which compiles each in a process of its own.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vidgen.errors import ConfigError
from vidgen.whole_file import write_whole

# Figures that tell of a change in vidgen or in a config; the others tell of the machine.
EXACT = (
  "devices", "program", "bucket", "batch_size", "accumulate", "mesh", "remat", "attention", "fits",
  "parameters", "hbm_bytes_per_device", "state_bytes_per_device", "model_flops", "executed_flops",
)  # fmt: skip
CLOSE = ("peak_bytes_per_device", "roofline_seconds", "mfu_bound")
TOLERANCE = 0.02  # the same compiler schedules a program a little differently now and then
LIMIT = 1800  # seconds for one plan


def replan(path: Path, *, only: Sequence[int] | None = None, check: bool = False) -> None:
  """Plans the entries of the file (all, or those numbered `only`), and writes or compares.

  Raises:
    ConfigError: the file is no such list, a plan failed, or with `check` a figure has changed.
  """
  entries = read_entries(path)
  chosen = range(len(entries)) if only is None else only
  problems = []
  for index in chosen:
    if not 0 <= index < len(entries):
      raise ConfigError(f"{path}: no entry {index}; there are {len(entries)}")
    entry = entries[index]
    print(f"[{index}] {path.name} {entry['variant']} on {entry['topology']}", flush=True)
    plan = _plan(path, entry)
    if check:
      problems += [f"entry {index}, {line}" for line in drift(entry.get("plan", {}), plan)]
    else:
      entry["plan"] = plan
      write_whole(path, (json.dumps(entries, indent=1) + "\n").encode())
  if problems:
    raise ConfigError(
      f"{path}: plans have changed:\n  " + "\n  ".join(problems) + "\nif that is meant: make plans"
    )


def read_entries(path: Path) -> list[dict[str, Any]]:
  """The entries of a file of plans.

  Raises:
    ConfigError: the file is unreadable, or an entry lacks what says what to plan.
  """
  try:
    entries = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise ConfigError(f"{path}: {error}") from error
  for index, entry in enumerate(entries if isinstance(entries, list) else [None]):
    if not isinstance(entry, dict) or not {"variant", "topology", "overrides"} <= set(entry):
      raise ConfigError(f"{path}: entry {index} has no variant, topology and overrides")
  return entries


def arguments(path: Path, entry: dict[str, Any]) -> list[str]:
  """The command line of `vidgen plan` for an entry."""
  config = path.with_name(path.name.removesuffix(".plans.json") + ".py")
  words = ["--config", f"{config}:{entry['variant']}", "--topology", entry["topology"]]
  for option in ("bucket", "program", "effort"):
    if option in entry:
      words += [f"--{option}", str(entry[option])]
  return words + [f"--config.{key}={value}" for key, value in entry["overrides"].items()]


def _plan(path: Path, entry: dict[str, Any]) -> dict[str, Any]:
  with tempfile.TemporaryDirectory() as scratch:
    out = Path(scratch) / "plan.json"
    command = [sys.executable, "-m", "vidgen.cli", "plan", *arguments(path, entry)]
    # flags that the user has set would be in the figures
    flags = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
    environment = {name: value for name, value in os.environ.items() if name not in flags}
    try:
      done = subprocess.run(
        [*command, "--json", str(out)],
        capture_output=True, text=True, timeout=LIMIT, check=False, env=environment,
      )  # fmt: skip
    except subprocess.TimeoutExpired as error:
      raise ConfigError(f"{path}: {' '.join(command)} took over {LIMIT} s") from error
    if done.returncode:
      last = (done.stderr.strip() or "no message").splitlines()[-1]
      raise ConfigError(f"{path}: {' '.join(command)}: {last}")
    print("\n".join(f"  {line}" for line in done.stdout.splitlines()), flush=True)
    return json.loads(out.read_text())


def drift(recorded: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
  """Lines on what differs, between plans by the same jax."""
  if not recorded:
    yield "nothing is recorded"
    return
  if recorded.keys() != found.keys():
    yield f"other figures: {', '.join(sorted(recorded.keys() ^ found.keys()))}"
    return
  same = recorded["jax"] == found["jax"]
  for name in (*EXACT, *CLOSE):
    was, now = recorded[name], found[name]
    if name in CLOSE:
      # another compiler may do a tenth better or worse
      if not math.isclose(was, now, rel_tol=TOLERANCE if same else 5 * TOLERANCE):
        yield f"{name}: recorded {was:.6g}, now {now:.6g}"
    elif was != now and (same or name not in ("executed_flops", "attention")):
      yield f"{name}: recorded {was}, now {now}"


def table(paths: Sequence[Path]) -> str:
  """The plans on record as a Markdown table."""
  rows = [
    "| config | devices | mesh | peak memory, GiB | roofline, s | MFU at most | compiled in, s |",
    "|---|---|---|---|---|---|---|",
  ]
  for path in paths:
    for entry in read_entries(path):
      plan = entry.get("plan")
      if plan is None:
        continue
      mesh = " x ".join(f"{axis} {n}" for axis, n in plan["mesh"].items() if n > 1)
      what = f"`{path.name.removesuffix('.plans.json')}:{entry['variant']}`"
      if plan["program"] == "sample":
        what += f", {plan['batch_size']} samples"
      memory = f"{plan['peak_bytes_per_device'] / 2**30:.1f}"
      memory += f" of {plan['hbm_bytes_per_device'] / 2**30:.1f}"
      rows.append(
        f"| {what} | {entry['topology']} | {mesh} | {memory} | {plan['roofline_seconds']:.1f} |"
        f" {plan['mfu_bound']:.0%} | {plan['compile_seconds']:.0f} |"
      )
  return "\n".join(rows) + "\n"
