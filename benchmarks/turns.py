"""Entrants that take turns: each a process of its own, on the same cores, timed step by step.

An entrant makes one step when it is told to, so that a machine whose speed drifts treats all alike.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ENVIRONMENT = ("XLA_FLAGS", "GLIBC_TUNABLES", "OMP_WAIT_POLICY")  # what may move the times

Step = Callable[[], Any]


def serve(make: Callable[[], dict[str, Any]], *, warmup: int) -> None:
  """The life of an entrant: says that it is ready, and makes a step for each line it gets.

  `make` gives "step" and facts to be told.
  """
  answers = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)  # what libraries print is no answer
  bare = peak_rss()
  made = make()
  step: Step = made.pop("step")
  for _ in range(warmup):
    step()
  print(json.dumps(made | {"bare_bytes": bare}), file=answers)
  for _ in sys.stdin:
    begin, used = time.perf_counter(), time.process_time()
    step()
    times = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - used}
    print(json.dumps(times | {"peak_bytes": peak_rss()}), file=answers)


def peak_rss() -> int:
  """The most memory this process has held, in bytes."""
  for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith("VmHWM:"):
      return int(line.split()[1]) * 1024
  raise OSError("/proc/self/status has no VmHWM")


class Entrant:
  """One entrant's process; a step for each call of `time`."""

  def __init__(self, name: str, command: list[str]):
    self._process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    self.name = name
    self.facts = self._answer()

  def _answer(self) -> dict[str, Any]:
    assert self._process.stdout
    line = self._process.stdout.readline()
    if not line:
      raise SystemExit(f"{self.name} ended with {self._process.wait()}; its message is above")
    return json.loads(line)

  def time(self) -> tuple[float, float]:
    """Seconds of one step: by the clock, and of all threads on the cores."""
    assert self._process.stdin
    self._process.stdin.write("\n")
    self._process.stdin.flush()
    answer = self._answer()
    self.facts["peak_bytes"] = answer["peak_bytes"]
    return answer["seconds"], answer["cpu_seconds"]

  def close(self) -> None:
    """Ends it."""
    self._process.communicate()


def compare(commands: Mapping[str, list[str]], *, rounds: int) -> dict[str, Any]:
  """Figures of every entrant, by its name, and vidgen's ratio to each other one."""
  with contextlib.ExitStack() as stack:
    entrants = []
    for name, command in commands.items():
      entrants.append(Entrant(name, command))
      stack.callback(entrants[-1].close)
    times: dict[str, list[tuple[float, float]]] = {entrant.name: [] for entrant in entrants}
    for turn in range(rounds):
      for entrant in entrants if turn % 2 == 0 else reversed(entrants):
        times[entrant.name].append(entrant.time())
  figures = {}
  for entrant in entrants:
    clock, cpu = zip(*times[entrant.name], strict=True)
    figures[entrant.name] = {
      **entrant.facts,
      "median_seconds": statistics.median(clock),
      "least_seconds": min(clock),
      "most_seconds": max(clock),
      "median_cpu_seconds": statistics.median(cpu),
      "seconds": clock,
      "cpu_seconds": cpu,
    }
  others = [name for name in times if name != "vidgen" and "vidgen" in times]

  def ratios(key: str) -> dict[str, float]:
    return {name: figures["vidgen"][key] / figures[name][key] for name in others}

  return {
    "entrants": figures,
    "vidgen_over": ratios("median_seconds"),
    "vidgen_over_cpu": ratios("median_cpu_seconds"),
    "vidgen_over_memory": ratios("peak_bytes"),
  }


def lines(found: Mapping[str, Any]) -> list[str]:
  """What `compare` found, a line an entrant."""
  return [
    f"{name:20s} median {figures['median_seconds'] * 1e3:8.1f} ms "
    f"({figures['least_seconds'] * 1e3:.1f} to {figures['most_seconds'] * 1e3:.1f})  "
    f"CPU {figures['median_cpu_seconds'] * 1e3:8.1f} ms  "
    f"peak {figures['peak_bytes'] / 2**20:6.0f} MiB  compiled in "
    f"{figures['compile_seconds']:5.1f} s"
    + (
      f"  vidgen takes {found['vidgen_over'][name]:.3f} of it"
      f" ({found['vidgen_over_cpu'][name]:.3f} of the CPU time)"
      if name in found["vidgen_over"]
      else ""
    )
    for name, figures in found["entrants"].items()
  ]


def add_arguments(
  parser: argparse.ArgumentParser, *, entrants: tuple[str, ...], rounds: int, batch: int
) -> None:
  """The arguments that every comparison has, with its defaults."""
  parser.add_argument("--entrants", nargs="+", choices=entrants, default=list(entrants))
  parser.add_argument(
    "--rounds", type=int, default=rounds, help="steps of each (default: %(default)s)"
  )
  parser.add_argument(
    "--batch", type=int, default=batch, help="samples of a step (default: %(default)s)"
  )
  parser.add_argument("--threads", type=int, default=2, help="cores (default: %(default)s)")
  parser.add_argument("--json", metavar="FILE", help="write the figures there")
  parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)


def pinned(threads: int) -> dict[str, Any]:
  """Pins this process and what it starts to so many cores; what the record says of the machine."""
  cores = sorted(os.sched_getaffinity(0))[:threads]
  os.sched_setaffinity(0, cores)
  os.environ |= {"OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
  os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
  return {
    "cpu": cpu_model(),
    "cores": len(cores),
    "versions": versions(),
    "environment": {name: os.environ.get(name, "") for name in ENVIRONMENT},
  }


def versions() -> dict[str, str]:
  """Of Python and of what takes part."""
  found = {"python": platform.python_version()}
  for name in ("vidgen", "jax", "jaxlib", "flax", "optax", "torch", "diffusers", "transformers"):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found


def cpu_model() -> str:
  """As the system names it."""
  for line in Path("/proc/cpuinfo").read_text().splitlines():
    if line.startswith("model name"):
      return line.partition(":")[2].strip()
  return platform.machine()
