"""Flags of XLA, libtpu and the CPU's allocator: named groups, and the environment that sets them.

What the user has set is never overridden: a group adds only the flags that are not there. They must
be in the environment before jax is imported, those of the allocator before the process starts. The
verbs that train and measure see to it themselves; for any other program,

  python -m vidgen.dist.flags COMMAND ...       runs COMMAND with the groups of this machine

Every flag was accepted by jaxlib 0.10.2 and 0.12.0.1 or, those of TPUs, by libtpu 0.0.42.1 and
0.0.50.1. XLA ends the process at a flag it does not know, so to other versions none is given.
Gains on TPUs and GPUs are their makers' statements; none was measured here.
"""

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vidgen.errors import ConfigError

ALLOCATOR = "GLIBC_TUNABLES"
# variable -> what separates its settings, what stands before each name
JOINED = {"XLA_FLAGS": (" ", "--"), "LIBTPU_INIT_ARGS": (" ", "--"), ALLOCATOR: (":", "")}
# variable -> the package that reads it, the first and the last version the flags were tried with
TRIED = {
  "XLA_FLAGS": ("jaxlib", (0, 10), (0, 12)),
  "LIBTPU_INIT_ARGS": ("libtpu", (0, 0, 42), (0, 0, 50)),
}


@dataclass(frozen=True)
class Group:
  """Settings of one environment variable that belong together.

  `variable` is one of JOINED, or "" where each setting is a variable of its own. A group that is
  not `default` is set only when it is named. `needs` is a flag of /proc/cpuinfo.
  """

  name: str
  platform: str
  variable: str
  settings: Mapping[str, str]
  reason: str
  source: str
  default: bool = True
  needs: str = ""


# Of a GPU's memory, what jax may take; `vidgen plan` compares with that.
GPU_MEMORY_FRACTION = 0.9

MAXTEXT = "MaxText, benchmarks/xla_flags_library.py"
NVIDIA = "docs.nvidia.com/jax-toolbox, GPU performance"

GROUPS = (
  Group(
    "cpu-allocator",
    "cpu",
    ALLOCATOR,
    {
      "glibc.malloc.arena_max": "1",  # arenas of threads are too small for a step, and map it anew
      "glibc.malloc.mmap_max": "0",
      "glibc.malloc.trim_threshold": str(2**34),
      "glibc.malloc.top_pad": str(2**28),
    },
    "memory that a step frees is kept for the next, not given back to the system",
    "measured: the training step of benchmarks/wan.py on two EPYC cores that had other work takes"
    " 2.17 s instead of 2.73 (medians of 7), with no page fault in most steps instead of 206,549;"
    " the process holds a third more",
  ),
  Group(
    "cpu-convolutions",
    "cpu",
    "XLA_FLAGS",
    {
      "xla_cpu_experimental_ynn_fusion_type": (
        "LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
      )
    },
    "convolutions by XLA itself, not YNNPACK; matmuls and reductions stay with it",
    "measured: 2D convolution 53 -> 19 ms on an AVX-512 Xeon; no gain on an EPYC without it",
    needs="avx512f",
  ),
  Group(
    "tpu-async-collectives",
    "tpu",
    "LIBTPU_INIT_ARGS",
    {
      "xla_enable_async_all_gather": "true",
      "xla_enable_async_all_reduce": "true",
      "xla_enable_async_collective_permute": "true",
      "xla_tpu_enable_async_collective_fusion": "true",
      "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
      "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
      "xla_tpu_overlap_compute_collective_tc": "true",
    },
    "parameters are gathered while the layer before them computes",
    MAXTEXT,
  ),
  Group(
    "tpu-data-parallel",
    "tpu",
    "LIBTPU_INIT_ARGS",
    {
      "xla_tpu_enable_data_parallel_all_reduce_opt": "true",
      "xla_tpu_data_parallel_opt_different_sized_ops": "true",
    },
    "gradients are reduced over the data-centre network while the backward pass goes on",
    MAXTEXT,
  ),
  Group(
    "tpu-scheduler",
    "tpu",
    "LIBTPU_INIT_ARGS",
    {
      "xla_tpu_enable_latency_hiding_scheduler": "true",
      "xla_latency_hiding_scheduler_rerun": "2",
    },
    "communication starts as early as memory allows; again with less where it did not fit",
    MAXTEXT + " (the rerun)",
  ),
  Group(
    "tpu-collective-matmul",
    "tpu",
    "LIBTPU_INIT_ARGS",
    {
      "xla_tpu_decompose_all_gather_einsum": "true",
      "xla_tpu_decompose_einsum_reduce_scatter": "true",
    },
    "a tensor-parallel matmul runs on the shards that have arrived; costs memory",
    "Wang et al. 2023, Overlap communication with dependent computation via decomposition",
    default=False,
  ),
  Group(
    "tpu-vmem",
    "tpu",
    "LIBTPU_INIT_ARGS",
    {"xla_tpu_scoped_vmem_limit_kib": "98304"},
    "larger fusions: 96 of v6e's 128 MiB of vector memory, for dense models",
    MAXTEXT + ", DENSE_VMEM_LIMIT",
    default=False,  # right for v6e only
  ),
  Group(
    "gpu-scheduler",
    "gpu",
    "XLA_FLAGS",
    {"xla_gpu_enable_latency_hiding_scheduler": "true"},
    "collectives overlap with compute",
    NVIDIA,
  ),
  Group(
    "gpu-pipelined-collectives",
    "gpu",
    "XLA_FLAGS",
    {
      "xla_gpu_enable_pipelined_all_gather": "true",
      "xla_gpu_enable_pipelined_reduce_scatter": "true",
      "xla_gpu_enable_pipelined_all_reduce": "true",
    },
    "in the scan over layers, a layer's collectives overlap with its neighbours' compute",
    NVIDIA,
  ),
  Group(
    "gpu-combined-collectives",
    "gpu",
    "XLA_FLAGS",
    {
      "xla_gpu_all_gather_combine_threshold_bytes": str(2**27),
      "xla_gpu_reduce_scatter_combine_threshold_bytes": str(2**27),
      "xla_gpu_all_reduce_combine_threshold_bytes": str(2**27),
    },
    "small tensors travel together, which hides NCCL's latency; the size is a choice of ours",
    NVIDIA,
    default=False,
  ),
  Group(
    "gpu-cublas",
    "gpu",
    "XLA_FLAGS",
    {"xla_gpu_enable_triton_gemm": "false"},
    "matmuls by cuBLAS, not Triton: large ones are as quick, and compile without autotuning",
    "NVIDIA/JAX-Toolbox README",
    default=False,
  ),
  Group(
    "gpu-memory",
    "gpu",
    "",
    {"XLA_PYTHON_CLIENT_MEM_FRACTION": str(GPU_MEMORY_FRACTION)},
    "jax takes 90% of the memory instead of 75%; the rest is NCCL's and cuDNN's",
    NVIDIA,
  ),
)


def platform(environment: Mapping[str, str] = os.environ) -> str:
  """cpu, gpu or tpu, found without importing jax: JAX_PLATFORMS, or what devices there are."""
  asked = environment.get("JAX_PLATFORMS", "").split(",")[0].strip()
  if asked:
    return {"cuda": "gpu", "rocm": "gpu"}.get(asked, asked)
  if Path("/dev/nvidiactl").exists() and _installed("jax_cuda12_plugin", "jax_cuda13_plugin"):
    return "gpu"
  if any(Path("/dev").glob("accel*")) or Path("/dev/vfio/0").exists():
    return "tpu" if _installed("libtpu") else "cpu"
  return "cpu"


def additions(
  environment: Mapping[str, str] = os.environ,
  *,
  platform: str,
  groups: tuple[str, ...] | None = None,
) -> tuple[dict[str, str], list[str]]:
  """The variables to set, and a line for each group: what it sets, or why it does not.

  Args:
    environment: what the user has set.
    platform: cpu, gpu or tpu.
    groups: names of groups; the platform's default ones where None.

  Raises:
    ConfigError: there is no group of that name for the platform.
  """
  chosen = [g for g in GROUPS if g.platform == platform and (g.default or groups is not None)]
  if groups is not None:
    unknown = set(groups) - {group.name for group in chosen}
    if unknown:
      names = ", ".join(group.name for group in chosen) or "none"
      raise ConfigError(f"no group {sorted(unknown)[0]!r} of flags for {platform}; known: {names}")
    chosen = [group for group in chosen if group.name in groups]
  result, lines = dict(environment), []
  for group in chosen:
    reason = _hindrance(group)
    if reason:
      lines.append(f"flags {group.name}: not set, {reason}")
      continue
    added = _merge(result, group)
    lines.append(f"flags {group.name}: {' '.join(added) or 'set already'}")
  return {key: value for key, value in result.items() if environment.get(key) != value}, lines


def apply(groups: tuple[str, ...] | None = None) -> list[str]:
  """Sets this machine's groups in the environment of this process; returns a line for each.

  To be called before jax is imported: afterwards it does nothing but say so. What must be set
  before the process starts is not set, and the line names the command that does it.
  """
  if "jax" in sys.modules:
    return ["flags: not set, jax is imported already"]
  added, lines = additions(platform=platform(), groups=groups)
  if ALLOCATOR in added:
    del added[ALLOCATOR]
    late = "not set, only at the start: python -m vidgen.dist.flags vidgen ..."
    lines = [f"{x.split(':')[0]}: {late}" if "glibc." in x else x for x in lines]
  os.environ.update(added)
  return lines


def restart() -> None:
  """Becomes the same command again with what must be set before a process starts, if anything is.

  The process keeps its number, and what it has printed; all else is as if it began now.
  """
  added, _ = additions(platform=platform())
  if ALLOCATOR in added:
    os.execve(
      sys.executable,
      [sys.executable, *sys.orig_argv[1:]],
      {**os.environ, ALLOCATOR: added[ALLOCATOR]},
    )


def _merge(environment: dict[str, str], group: Group) -> list[str]:
  """Puts those settings of the group into `environment` that are not there; returns them."""
  if not group.variable:
    missing = {k: v for k, v in group.settings.items() if k not in environment}
    environment.update(missing)
    return [f"{name}={value}" for name, value in missing.items()]
  separator, dashes = JOINED[group.variable]
  there = [word for word in environment.get(group.variable, "").split(separator) if word]
  names = {word.lstrip("-").split("=")[0] for word in there}
  missing = [f"{dashes}{k}={v}" for k, v in group.settings.items() if k not in names]
  if missing:
    environment[group.variable] = separator.join(there + missing)
  return missing


def _hindrance(group: Group) -> str:
  """Why the group cannot be set on this machine; empty if it can."""
  if group.needs and group.needs not in _processor():
    return f"this processor has no {group.needs}"
  if group.variable == ALLOCATOR and not _has_glibc():
    return "no glibc"
  if group.variable not in TRIED:
    return ""
  package, first, last = TRIED[group.variable]
  try:
    version = importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return f"{package} is not installed"
  numbers = tuple(int(n) for n in version.split(".")[: len(first)] if n.isdigit())
  return "" if first <= numbers <= last else f"never tried with {package} {version}"


def _processor() -> str:
  """The flags line of /proc/cpuinfo; empty where there is none."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return ""
  return next((line for line in lines if line.startswith("flags")), "")


def _has_glibc() -> bool:
  try:
    return bool(os.confstr("CS_GNU_LIBC_VERSION"))
  except (AttributeError, OSError, ValueError):
    return False


def _installed(*modules: str) -> bool:
  return any(importlib.util.find_spec(module) is not None for module in modules)


def main(command: list[str]) -> None:
  """Becomes `command` in the environment of this machine's groups."""
  if not command:
    sys.exit("usage: python -m vidgen.dist.flags COMMAND ...")
  added, _ = additions(platform=platform())
  os.execvpe(command[0], command, {**os.environ, **added})


if __name__ == "__main__":
  main(sys.argv[1:])
