"""What an experiment will be on devices that are not there: compiled, counted and bounded.

The program is the one that trains: `Programs` on a mesh of described devices. Memory and
collectives are the compiler's; FLOPs are counted from the jaxpr, as the compiler's own figures miss
loops and kernels; the time is a roofline, a bound that no run beats, not a prediction.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from vidgen.config import plain
from vidgen.dist.collectives import axes_of, collectives_of, costliest, summary
from vidgen.dist.devices import Device
from vidgen.dist.flags import GPU_MEMORY_FRACTION
from vidgen.dist.flops import flops_of
from vidgen.dist.mesh import make_mesh, on_mesh, resolve_mesh
from vidgen.dist.roofline import communication, hbm_floor, mfu_bound, places_of, step_time
from vidgen.dist.rules import check_promise
from vidgen.dist.topology import Topology, absent_devices
from vidgen.errors import ConfigError
from vidgen.nn.remat import POLICIES
from vidgen.systems import make_stage
from vidgen.systems.sampling import sampling_flops
from vidgen.systems.stage import Stage, step_flops
from vidgen.train.experiment import Experiment, from_plain
from vidgen.train.programs import Programs


@dataclasses.dataclass(frozen=True)
class Plan:
  """A program on a topology. Bytes and FLOPs; seconds.

  fits: the peak is below the memory a program can have; problem: if not, why; remedy: a change of
  the config that was compiled and fits, if one was found. state_bytes_per_device: parameters,
  average and optimizer state as they are laid out. model_flops: of a whole step by the stage's
  formula, forward and backward, nothing twice; executed_flops: of all devices, what is computed
  again included. collectives: by kind, calls and bytes sent by one device in a step. costliest:
  those that send most, named by where they are in the model. roofline_seconds: the longest of
  compute_seconds, memory_seconds and the communication by mesh axis; mfu_bound: model_flops over
  what the devices could do in that time. host_bytes: what is offloaded, where the compiler says.
  What is known only of a compiled program is 0 or empty where the compiler refused it.
  """

  name: str
  topology: str
  devices: int
  program: str
  bucket: str
  batch_size: int
  accumulate: int
  mesh: dict[str, int]
  remat: str
  attention: dict[str, str]
  fits: bool
  problem: str
  parameters: int
  peak_bytes_per_device: int
  hbm_bytes_per_device: int
  state_bytes_per_device: dict[str, int]
  compile_seconds: float
  host_peak_bytes: int
  jax: str
  remedy: str = ""
  argument_bytes_per_device: int = 0
  temporary_bytes_per_device: int = 0
  host_bytes_per_device: int = 0
  model_flops: float = 0.0
  executed_flops: float = 0.0
  collectives: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
  costliest: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  compute_seconds: float = 0.0
  memory_seconds: float = 0.0
  communication_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
  roofline_seconds: float = 0.0
  bound_by: str = ""
  mfu_bound: float = 0.0


def make_plan(
  experiment: Experiment,
  topology: Topology,
  *,
  program: Literal["train", "sample"] = "train",
  bucket: str | None = None,
  batch_size: int | None = None,
  effort: float = 0.0,
) -> Plan:
  """Compiles the train step, or the sampling of `batch_size` samples, for `topology`.

  `bucket` is one of the stage's, by default the one with most FLOPs; samples are of the first.
  `effort`, from -1 to 1, is what the compiler gives to the speed of the program, 0 what it gives
  where a run compiles: at -1 convolutions compile many times faster, and their temporaries take
  more memory, for they are fused with less.

  Raises:
    ConfigError: the compiler is missing, or the experiment does not divide over the devices.
  """
  begin = time.monotonic()
  devices = absent_devices(topology)
  mesh = make_mesh(experiment.mesh, devices=devices)
  stage = make_stage(experiment.stage.name, experiment.stage.fields)
  programs = Programs(experiment, stage=stage, mesh=mesh)
  tolerance = experiment.train.unsharded_tolerance
  check_promise(programs.abstract, programs.shardings, tolerance=tolerance)
  if program == "sample":
    bucket = stage.buckets[0]
    size = batch_size or mesh.shape["data"] * mesh.shape["fsdp"]
  else:
    bucket = bucket or heaviest(stage, programs.specs)
    size = experiment.train.batch_size
  if bucket not in programs.specs:
    raise ConfigError(f"bucket {bucket!r} is not in use; known are {', '.join(programs.specs)}")
  with on_mesh(mesh, rules=experiment.rules, attention=experiment.attention) as choices:
    traced = programs.trace_train(bucket) if program == "train" else programs.trace_sample(size)
    figures = compiled_figures(
      traced,
      mesh=mesh,
      topology=topology,
      model_flops=functools.partial(_model_flops, experiment, stage, program, bucket, size),
      effort=effort,
    )
  return Plan(
    name=experiment.name,
    topology=topology.name,
    devices=len(devices),
    program=program,
    bucket=bucket,
    batch_size=size,
    accumulate=experiment.train.accumulate if program == "train" else 1,
    mesh=dict(mesh.shape),
    remat=remat_of(experiment),
    attention=dict(choices.picked),
    parameters=sum(leaf.size for leaf in jax.tree.leaves(programs.abstract.params)),
    state_bytes_per_device=state_bytes(programs, program),
    compile_seconds=time.monotonic() - begin,
    **figures,
  )


def compiled_figures(
  traced: jax.stages.Traced,
  *,
  mesh: Mesh,
  topology: Topology,
  model_flops: Callable[[], float],
  effort: float = 0.0,
) -> dict[str, Any]:
  """Compiles a program, within `on_mesh`: the fields of a `Plan` that this alone tells.

  Raises:
    ConfigError: a loop of the program has no known length.
  """
  compiled, problem, peak = _compile(traced.lower(), effort)
  device = topology.device
  usable = int(device.hbm_bytes if topology.tpu else device.hbm_bytes * GPU_MEMORY_FRACTION)
  figures: dict[str, Any] = {"peak_bytes_per_device": int(peak)}
  if compiled is not None:
    with _countable():
      executed = flops_of(traced.jaxpr).total
      figures = _figures(
        compiled, mesh=mesh, device=device, model_flops=model_flops(), executed_flops=executed
      )
    peak = figures["peak_bytes_per_device"]
    if peak > usable:
      problem = f"the peak of {_gib(peak)} a device exceeds the {_gib(usable)} a program can have"
  return figures | {
    "fits": not problem,
    "problem": problem,
    "hbm_bytes_per_device": usable,
    "host_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT,
    "jax": jax.__version__,
  }


@contextlib.contextmanager
def _countable() -> Iterator[None]:
  """A loop whose length nobody can know ends the plan with one line."""
  try:
    yield
  except ValueError as error:
    raise ConfigError(f"this program cannot be planned: {error}") from error


def _figures(
  compiled: jax.stages.Compiled,
  *,
  mesh: Mesh,
  device: Device,
  model_flops: float,
  executed_flops: float,
) -> dict[str, Any]:
  """Memory, collectives and the roofline of a compiled program, as fields of a `Plan`."""
  sizes = dict(mesh.shape)
  memory: Any = compiled.memory_analysis()
  found = collectives_of(str(compiled.as_text()))
  places = places_of(mesh.devices, device)
  seconds = communication(found, mesh_shape=sizes, places=places, device=device)
  traffic = hbm_floor(
    arguments=memory.argument_size_in_bytes,
    outputs=memory.output_size_in_bytes,
    # what a collective brings in is written once and read once
    temporaries=sum(c.result_bytes * c.times for c in found),
  )
  count = mesh.devices.size
  bound = step_time(device, flops=executed_flops / count, hbm_bytes=traffic, communication=seconds)
  return {
    "peak_bytes_per_device": memory.peak_memory_in_bytes,
    "argument_bytes_per_device": memory.argument_size_in_bytes,
    "temporary_bytes_per_device": memory.temp_size_in_bytes,
    "host_bytes_per_device": memory.host_argument_size_in_bytes + memory.host_temp_size_in_bytes,
    "model_flops": model_flops,
    "executed_flops": executed_flops,
    "collectives": summary(found),
    "costliest": [_described(c, sizes) for c in costliest(found)],
    "compute_seconds": bound.compute,
    "memory_seconds": bound.memory,
    "communication_seconds": {" x ".join(axes): s for axes, s in seconds.items()},
    "roofline_seconds": bound.overlapped,
    "bound_by": bound.binding,
    "mfu_bound": mfu_bound(
      device, devices=count, model_flops=model_flops, seconds=bound.overlapped
    ),
  }


_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def heaviest(stage: Stage, buckets: Iterable[str]) -> str:
  """The one of the buckets whose examples take most FLOPs."""
  return max(buckets, key=lambda name: stage.flops(stage.batch_spec(1, name)))


def remat_of(experiment: Experiment) -> str:
  """The remat policy of the stage, "" where it has none."""
  return str(experiment.stage.fields.get("remat", ""))


def _model_flops(
  experiment: Experiment, stage: Stage, program: str, bucket: str, batch_size: int
) -> float:
  if program == "train":
    return step_flops(stage, stage.batch_spec(batch_size, bucket))
  return sampling_flops(stage, experiment.sample, batch_size=batch_size)


def _compile(
  lowered: jax.stages.Lowered, effort: float
) -> tuple[jax.stages.Compiled | None, str, float]:
  """The program, or why there is none and the bytes it would take."""
  try:
    options: Any = {"exec_time_optimization_effort": effort} if effort else None
    return lowered.compile(compiler_options=options), "", 0.0
  except jax.errors.JaxRuntimeError as error:
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
      raise
  return None, f"the compiler says: {text.splitlines()[0]}", bytes_needed(text)


def bytes_needed(text: str) -> float:
  """How much of a TPU's memory a refused program wants, as the compiler says; 0 if it does not.

  "... (379.16G) exceeds available HBM (95.74G)", or "Used 108.3G of 95.74G hbm".
  """
  match = re.search(
    r"\(([\d.]+)([KMGT])\) exceeds available HBM|Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", text
  )
  if match is None:
    return 0.0
  amount, unit = match[1] or match[3], match[2] or match[4]
  return float(amount) * 1024 ** ("KMGT".index(unit) + 1)


def bytes_of(tree: Any) -> int:
  """Bytes of a device for arrays of known shardings."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def state_bytes(programs: Programs, program: str = "train") -> dict[str, int]:
  """Bytes of a device for parameters, average and optimizer state; sampling has the average."""
  state = programs.abstract
  parts = {"parameters": state.params, "ema": state.ema, "optimizer": state.opt_state}
  if program == "sample":
    parts = {"ema": state.ema}
  return {name: bytes_of(tree) for name, tree in parts.items()}


def _described(collective: Any, mesh_shape: dict[str, int]) -> dict[str, Any]:
  return {
    "kind": collective.kind,
    "of": collective.op_name,
    "axes": list(axes_of(collective, mesh_shape)),
    "times": collective.times,
    "bytes": int(collective.total_bytes),
  }


def _gib(size: float) -> str:
  return f"{size / 2**30:.1f} GiB"


def changed(experiment: Experiment, changes: dict[str, Any]) -> Experiment:
  """`experiment` with the values of dotted keys such as "mesh.context" replaced.

  Raises:
    ConfigError: as `experiment.resolve`.
  """
  tree = plain(experiment)
  for key, value in changes.items():
    *path, last = key.split(".")
    node = tree
    for name in path:
      node = node[name]
    node[last] = value
  return from_plain(tree)


def remedies(experiment: Experiment, devices: int, *, slices: int = 1) -> Iterator[dict[str, Any]]:
  """Changes that lower the memory of a step on so many devices, the cheapest first."""
  train = experiment.train
  sizes = resolve_mesh(experiment.mesh, devices, slices=slices)
  shards = sizes["data"] * sizes["fsdp"]
  part = train.batch_size // train.accumulate // shards
  accumulate = {"train.accumulate": train.batch_size // shards} if part > 1 else {}
  if accumulate:
    yield accumulate
  remat = {"stage.fields.remat": "full"} if remat_of(experiment) in set(POLICIES) - {"full"} else {}
  if remat:
    yield accumulate | remat
  if sizes["data"] > slices:
    yield accumulate | remat | {"mesh.data": 1, "mesh.fsdp": -1}
  for context in (2, 4, 8):
    more = sizes["context"] * context
    if shards % context == 0:
      split = {"mesh.data": 1, "mesh.fsdp": -1, "mesh.context": more}
      fewer = {"train.accumulate": train.batch_size // (shards // context)}
      yield remat | split | fewer


def find_remedy(
  experiment: Experiment,
  topology: Topology,
  plan: Plan,
  *,
  bucket: str | None = None,
  most: int = 3,
  effort: float = 0.0,
) -> Plan:
  """`plan` with a remedy, if one of the first `most` changes fits; each is compiled."""
  options = remedies(experiment, plan.devices, slices=topology.slices)
  for index, changes in enumerate(options):
    if index == most:
      break
    try:
      other = changed(experiment, changes)
      if make_plan(other, topology, bucket=bucket, effort=effort).fits:
        flags = " ".join(f"--config.{key}={value}" for key, value in changes.items())
        return dataclasses.replace(plan, remedy=flags)
    except ConfigError:
      continue
  return plan


def candidates(experiment: Experiment, topology: Topology, devices: int) -> list[dict[str, Any]]:
  """Meshes to try, the least split sample first.

  A micro-batch has one example for each shard of the batch, as long ones need.
  """
  train, each = experiment.train, devices // topology.slices
  heads = experiment.stage.fields.get("heads", each)
  found = []
  for context, tensor in itertools.product((1, 2, 4, 8, 16), (1, 2, 4, 8)):
    shards, rest = divmod(each, tensor * context)
    total = shards * topology.slices
    if rest or not shards or heads % tensor or train.batch_size % total:
      continue
    mesh = {"mesh.data": 1, "mesh.fsdp": -1, "mesh.context": context, "mesh.tensor": tensor}
    parts = {"train.accumulate": train.batch_size // total}
    found.append((context * tensor, mesh | parts))
  return [changes for _, changes in sorted(found, key=lambda pair: pair[0])]
