"""What every record of a benchmark holds: surroundings, memory, and times as they spread."""

import importlib.metadata
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("vidgen", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")


def surroundings() -> dict[str, Any]:
  """`device`, `devices`, `hardware` and `versions`."""
  import os

  import jax

  device = jax.devices()[0]
  return {
    "device": device.device_kind,
    "devices": jax.device_count(),
    "hardware": {
      "platform": device.platform,
      "cpu": _cpu_model(),
      "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
      "processes": jax.process_count(),
      "xla_flags": os.environ.get("XLA_FLAGS", ""),
    },
    "versions": {"python": platform.python_version(), **_versions()},
  }


def _versions() -> dict[str, str]:
  installed = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
  return {name: installed[name] for name in PACKAGES if name in installed}


def _cpu_model() -> str:
  info = Path("/proc/cpuinfo")
  for line in info.read_text().splitlines() if info.exists() else ():
    if line.startswith("model name"):
      return line.partition(":")[2].strip()
  return platform.processor() or platform.machine()


def memory() -> dict[str, int | None]:
  """The most bytes that this process has held, and its first device (None where it tells not)."""
  import jax

  unit = 1 if sys.platform == "darwin" else 1024
  stats = jax.local_devices()[0].memory_stats() or {}
  return {
    "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    "peak_device_bytes": stats.get("peak_bytes_in_use"),
  }


def spread(seconds: Sequence[float]) -> dict[str, Any]:
  """Median, mean, extremes and quartiles of times in seconds."""
  quarters = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else []
  return {
    "median_seconds": statistics.median(seconds),
    "mean_seconds": statistics.fmean(seconds),
    "least_seconds": min(seconds),
    "most_seconds": max(seconds),
    "quartile_seconds": [quarters[0], quarters[2]] if quarters else [seconds[0]] * 2,
    "count": len(seconds),
  }


def timed(call: Callable[[], Any], *, warmup: int, repeats: int) -> list[float]:
  """Seconds of each of `repeats` calls, each waited for, after `warmup` others."""
  import jax

  times = []
  for _ in range(warmup + repeats):
    begin = time.perf_counter()
    jax.block_until_ready(call())
    times.append(time.perf_counter() - begin)
  return times[warmup:]


def measure_program(
  traced: Any,
  arguments: Sequence[Any],
  *,
  flops: float,
  devices: int,
  peak: float | None,
  warmup: int,
  repeats: int,
) -> dict[str, Any]:
  """Compiles what was traced, runs it on `arguments`, and says what it took.

  `flops` are the model's in one call, `peak` the FLOP/s of one of the `devices` it runs on.
  """
  import jax

  begin = time.perf_counter()
  program = traced.lower().compile()
  compile_seconds = time.perf_counter() - begin
  arguments = jax.device_put(tuple(arguments), program.input_shardings[0])
  times = timed(lambda: program(*arguments), warmup=warmup, repeats=repeats)
  planned = program.memory_analysis()
  return {
    **spread(times),
    "compile_seconds": compile_seconds,
    "temporary_bytes": getattr(planned, "temp_size_in_bytes", None),
    **speed(flops, statistics.median(times), devices=devices, peak=peak),
  }


def speed(flops: float, seconds: float, *, devices: int, peak: float | None) -> dict[str, float]:
  """Model FLOP/s, and where the peak of a device is known, the part of it that this is."""
  found = {"model_flops": flops, "model_flops_per_second": flops / seconds}
  if peak:
    everything = peak * devices
    found |= {"mfu": flops / seconds / everything, "peak_flops_per_second": everything}
  return found


def line(title: str, figures: dict[str, Any]) -> str:
  """One measurement in words."""
  low, high = figures["quartile_seconds"]
  text = (
    f"{title:14s} {figures['median_seconds'] * 1e3:9.2f} ms  "
    f"(half of {figures['count']} within {low * 1e3:.2f} and {high * 1e3:.2f})"
  )
  if "compile_seconds" in figures:
    text += f"  compiled in {figures['compile_seconds']:.1f} s"
  if "model_flops_per_second" in figures:
    text += f"  {figures['model_flops_per_second']:.3e} FLOP/s"
  if "mfu" in figures:
    text += f"  MFU {figures['mfu']:.1%}"
  return text
