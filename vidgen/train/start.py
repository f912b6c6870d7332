"""What a run begins with: parameters that are drawn, or another run's and other people's.

`begin` is called where a run has no checkpoint of its own. Parameters are taken by their names from
a checkpoint of another run, of the same stage or another, and from files of weights; position
tables are made to fit. What is in neither is drawn, and what was done with each name is recorded.
The average starts as the parameters, the optimizer from nothing, at step 0.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vidgen import config as cfg
from vidgen.errors import CheckpointError, ConfigError
from vidgen.train import items as it
from vidgen.train.checkpoint import Checkpoints
from vidgen.train.experiment import StartConfig
from vidgen.train.programs import Programs
from vidgen.train.state import TrainState

POSITIONS = re.compile(r"(^|/)positions/[thw]")


@dataclasses.dataclass(frozen=True)
class Plan:
  """What becomes of each parameter by name: those of this stage, and (unused) of the other run."""

  copied: tuple[str, ...] = ()
  expanded: tuple[str, ...] = ()
  fresh: tuple[str, ...] = ()
  unused: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Begun:
  """The state at step 0, and what it was made of: {} where all was drawn."""

  state: TrainState
  record: dict[str, Any]

  @property
  def lines(self) -> list[str]:
    """The record, for people."""
    if not self.record:
      return []
    found = self.record
    lines = []
    if source := found["source"]:
      lines.append(
        f"starts from {source['weights']} of step {source['step']} in {source['workdir']} "
        f"(sha256 {source['digest'][:12]})"
      )
    for part, file in found["files"].items():
      lines.append(f"  {part}: {len(file['arrays'])} arrays of {file['path']}")
    for name, (old, new) in found["expanded"].items():
      lines.append(f"  expanded ({found['positions']}): {name}, {old} -> {new} rows")
    for what in ("copied", "fresh", "unused"):
      names = found[what]
      told = "" if what == "copied" or not names else f": {_some(names)}"
      lines.append(f"  {what}: {len(names)} arrays{told}")
    return lines


def begin(programs: Programs) -> Begun:
  """The first state of a run, as `experiment.start` says, sharded from the start.

  Raises:
    ConfigError: a part that the stage requires from elsewhere comes from nowhere, or a file is of
      no part; before anything is made.
    CheckpointError: the other run or a file is not there, damaged, or does not fit.
  """
  config, wanted = programs.experiment.start, it.flatten(programs.abstract.params)
  _check_parts(config.files, wanted)
  files = {name for name in wanted if _part_of(name, config.files)}
  needed = {name for name in wanted if _part_of(name, programs.stage.required)}
  if not config.workdir:
    _check_required(needed - files)
    if not config.files:
      return Begun(programs.init(), {})
    return _begun(programs, dict, Plan(), source={})
  checkpoints = _open(config.workdir)
  try:
    step = _choose(checkpoints, config.step, workdir=config.workdir)
    have = checkpoints.arrays(config.weights, step=step)
    if not have:
      raise CheckpointError(f"{config.workdir}: step {step} holds no {config.weights!r}")
    plan = make_plan({k: v for k, v in wanted.items() if k not in files}, have, config=config)
    _check_required(needed & set(plan.fresh))
    about = checkpoints.read_config(step)
    source = {
      "workdir": config.workdir,
      "name": about.get("name"),
      "step": step,
      "weights": config.weights,
      "digest": checkpoints.digests(step)[config.weights],
      "stage": about.get("stage", {}).get("name"),
      "config_digest": cfg.digest(about),
    }
    leaves = {
      name: jax.ShapeDtypeStruct(have[name].shape, have[name].dtype, sharding=wanted[name].sharding)
      for name in plan.copied
    } | {name: have[name] for name in plan.expanded}
    restore = functools.partial(
      checkpoints.restore_arrays, config.weights, step=step, leaves=leaves
    )
    return _begun(programs, restore, plan, source=source)
  finally:
    checkpoints.close()


def make_plan(wanted: it.Arrays, have: it.Arrays, *, config: StartConfig) -> Plan:
  """Which arrays of `have` become which of `wanted`; both by name, abstract.

  Raises:
    CheckpointError: shapes differ of what is neither a position table nor to be drawn, or no name
      is in both; all names are told.
  """
  copied, expanded, fresh, wrong = [], [], [], []
  for name in sorted(wanted):
    if name not in have or any(re.search(pattern, name) for pattern in config.fresh):
      fresh.append(name)
    elif have[name].shape == wanted[name].shape:
      copied.append(name)
    elif POSITIONS.search(name) and have[name].shape[1:] == wanted[name].shape[1:]:
      expanded.append(name)
    else:
      wrong.append(f"  {name}: {have[name].shape} there, {wanted[name].shape} here")
  if wrong:
    raise CheckpointError(
      f"{config.workdir}: arrays of other shapes; make the stages agree, or have them drawn anew "
      "by regexes in config.start.fresh:\n" + "\n".join(wrong)
    )
  if not copied and not expanded:
    raise CheckpointError(
      f"{config.workdir}: holds nothing for this stage: {_some(sorted(have))} there, "
      f"{_some(sorted(wanted))} here"
    )
  return Plan(*map(tuple, (copied, expanded, fresh, sorted(set(have) - set(copied + expanded)))))


def expand_rows(
  table: Float[np.ndarray, "n d"], rows: int, *, how: str, drawn: Float[np.ndarray, "{rows} d"]
) -> Float[np.ndarray, "{rows} d"]:
  """A position table of `rows` rows from one of another number of rows, float32.

  "linear": the first and last row stay first and last, what lies between is interpolated evenly.
  "repeat": row i is row floor(i n / rows) of n. "keep": the first rows as they are, the others from
  `drawn` [rows, d]. How Movie Gen expands its tables is not given by the paper (section 3.1.3).
  """
  count = len(table)
  if how == "keep":
    return np.concatenate([table[:rows], drawn[count:]]).astype(np.float32)
  if how == "repeat":
    return table[np.arange(rows) * count // rows].astype(np.float32)
  place = np.linspace(0, count - 1, rows)
  below = np.minimum(place.astype(int), max(count - 2, 0))
  above = np.minimum(below + 1, count - 1)
  share = (place - below)[:, None]
  exact = table.astype(np.float64)
  return ((1 - share) * exact[below] + share * exact[above]).astype(np.float32)


def _begun(
  programs: Programs, restore: Callable[[], it.Arrays], plan: Plan, *, source: dict[str, Any]
) -> Begun:
  """The fresh state with what `restore` gives by name, and the arrays of files, in their places."""
  config, wanted = programs.experiment.start, it.flatten(programs.abstract.params)
  state = programs.init()
  params = it.flatten(state.params)
  # At once, so that the devices never hold more than a training state.
  for replaced in (*jax.tree.leaves(state.ema), *(params[name] for name in plan.copied)):
    replaced.delete()
  found = restore()
  expanded = {}
  for name in plan.expanded:
    drawn = _on_host(programs, params[name])
    table = np.asarray(found[name], np.float32)
    made = expand_rows(table, len(drawn), how=config.positions, drawn=drawn)
    params[name] = _placed(made, wanted[name])
    expanded[name] = [len(table), len(drawn)]
  for name in plan.copied:
    params[name] = _as_wanted(found[name], wanted[name])
  files, given = {}, {*plan.copied, *plan.expanded}
  for part, path in sorted(config.files.items()):
    names = [name for name in params if _part_of(name, config.files) == part]
    drawn = {name: _on_host(programs, params[name]) for name in names}
    read = _read_file(part, Path(path), drawn, programs)
    params |= {name: _placed(array, wanted[name]) for name, array in read.arrays.items()}
    files[part] = {"path": path, "digest": read.digest, "arrays": sorted(read.arrays)}
    given |= set(read.arrays)
  fresh = sorted(set(params) - given)
  _check_required(name for name in fresh if _part_of(name, programs.stage.required))
  params = it.unflatten(state.params, params)
  average = jax.jit(
    lambda tree: jax.tree.map(lambda p: jnp.array(p, programs.experiment.train.ema_dtype), tree),
    out_shardings=programs.shardings.ema,
  )
  record = {
    "source": source,
    "files": files,
    "positions": config.positions,
    "copied": list(plan.copied),
    "expanded": expanded,
    "fresh": fresh,
    "unused": list(plan.unused),
  }
  return Begun(dataclasses.replace(state, params=params, ema=average(params)), record)


@dataclasses.dataclass(frozen=True)
class FileArrays:
  """What a file of weights gives for a part of the parameters: arrays by their whole names."""

  arrays: Mapping[str, np.ndarray]
  digest: str


Reader = Callable[[Path, Mapping[str, np.ndarray], Any], FileArrays]


def _read_export(path: Path, part: Mapping[str, np.ndarray], stage: Any) -> FileArrays:
  """Weights as `vidgen export --to safetensors` writes them: the arrays of the same names."""
  from vidgen.inputs.storage import file_sha256
  from vidgen.interop.safetensors import WEIGHTS, load_safetensors

  _, params = load_safetensors(path)
  file = path / WEIGHTS if path.is_dir() else path
  found = it.flatten(params)
  return FileArrays({name: found[name] for name in part if name in found}, file_sha256(file))


def _read_lpips(path: Path, part: Mapping[str, np.ndarray], stage: Any) -> FileArrays:
  """LPIPS: the `lpips` package's heads for "perceptual", torchvision's trunk for its "trunk"."""
  from vidgen.interop.layout import Layout, load_params
  from vidgen.interop.layouts.lpips import lpips_layout
  from vidgen.interop.weight_files import open_weights

  layout = lpips_layout(stage.perceptual)
  names = {name.partition("/")[2]: name for name in part}
  weights = open_weights(path)
  found = load_params(
    weights,
    Layout({name: layout.sources[name] for name in names}, ignored=layout.ignored),
    like=it.nest({short: it.struct(part[name]) for short, name in names.items()}),
  )
  arrays = {names[short]: np.asarray(array) for short, array in it.flatten(found).items()}
  return FileArrays(arrays, weights.digest)


def _read_autoencoder(path: Path, part: Mapping[str, np.ndarray], stage: Any) -> FileArrays:
  """An image autoencoder in diffusers' folder (AutoencoderKL), inflated: its spatial weights."""
  from vidgen.interop.layout import load_params
  from vidgen.interop.layouts.autoencoder_kl import inflate, layout
  from vidgen.interop.weight_files import open_weights
  from vidgen.nn.partition import unboxed

  network, weights = stage.network.clone(temporal="none"), open_weights(path)
  picture = jax.ShapeDtypeStruct((1, 1, stage.spatial_stride, stage.spatial_stride, 3), np.float32)
  like = unboxed(jax.eval_shape(network.init, jax.random.key(0), picture)["params"])
  drawn = {name.partition("/")[2]: array for name, array in part.items()}
  made = it.flatten(inflate(load_params(weights, layout(network), like=like), it.nest(drawn)))
  return FileArrays(
    {f"autoencoder/{n}": np.asarray(a) for n, a in made.items() if a is not drawn[n]},
    weights.digest,
  )


# By part of the parameters, what reads its files; an export of vidgen's own is read for any part.
READERS: dict[str, Reader] = {
  "autoencoder": _read_autoencoder,
  "perceptual": _read_lpips,
  "perceptual/trunk": _read_lpips,
}


def _read_file(
  part: str, path: Path, fresh: Mapping[str, np.ndarray], programs: Programs
) -> FileArrays:
  """The arrays of the file at `path` for `part`, of which `fresh` are the drawn ones.

  Raises:
    CheckpointError: it is not there, damaged, or holds other arrays.
  """
  if not path.exists():
    raise CheckpointError(f"config.start.files.{part}: {path}: no such file or folder")
  reader = READERS.get(part)
  if reader is None or _is_export(path):
    reader = _read_export
  read = reader(path, fresh, programs.stage)
  for name, array in read.arrays.items():
    if name not in fresh or fresh[name].shape != array.shape:
      here = fresh[name].shape if name in fresh else "nothing"
      raise CheckpointError(
        f"config.start.files.{part}: {path}: {name}: {array.shape} there, {here} here"
      )
  if not read.arrays:
    raise CheckpointError(f"config.start.files.{part}: {path}: holds nothing of {_some(fresh)}")
  return read


def _is_export(path: Path) -> bool:
  from vidgen.interop.safetensors import FORMAT, WEIGHTS
  from vidgen.interop.safetensors_files import SUFFIX, SafetensorsFile

  file = path / WEIGHTS if path.is_dir() else path
  return (
    file.name.endswith(SUFFIX)
    and file.is_file()
    and SafetensorsFile(file).metadata.get("format") == FORMAT
  )


def _part_of(name: str, parts: Iterable[str]) -> str:
  """The longest of `parts` that a name lies in, or ""."""
  found = (part for part in parts if name == part or name.startswith(f"{part}/"))
  return max(found, key=len, default="")


def _check_parts(files: Mapping[str, str], wanted: it.Arrays) -> None:
  for part in files:
    if not any(_part_of(name, files) == part for name in wanted):
      known = sorted({name.split("/")[0] for name in wanted})
      raise ConfigError(
        f"config.start.files.{part}: no part of the stage; it has {', '.join(known)}"
      )


def _check_required(missing: Iterable[str]) -> None:
  if parts := sorted({name.split("/")[0] for name in missing}):
    raise ConfigError(
      f"the stage does not train {', '.join(parts)} from nothing, which must come from elsewhere: "
      f"name a file in config.start.files.{parts[0]}, or start from a run that has it"
    )


def _open(workdir: str) -> Checkpoints:
  directory = Path(workdir) / "checkpoints"
  if not directory.is_dir():
    raise CheckpointError(f"config.start.workdir: {workdir}: holds no checkpoints")
  return Checkpoints(directory)


def _choose(checkpoints: Checkpoints, step: int | None, *, workdir: str) -> int:
  steps = checkpoints.steps()
  if not steps or step not in (None, *steps):
    raise CheckpointError(f"config.start: {workdir}: no step {step or ''}; there are {steps}")
  return steps[-1] if step is None else step


def _on_host(programs: Programs, array: jax.Array) -> np.ndarray:
  """The whole of an array, on the host of every process."""
  whole = jax.jit(lambda x: x, out_shardings=programs.replicated)(array)
  return it.host_copy(whole)


def _placed(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
  """`array` on the devices as `like` lies; each process gives the parts that it holds."""
  array = np.asarray(array, like.dtype)
  return jax.make_array_from_callback(like.shape, like.sharding, lambda index: array[index])


def _as_wanted(array: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
  if array.dtype == like.dtype:
    return array
  return jax.jit(lambda x: x.astype(like.dtype), out_shardings=like.sharding)(array)


def _some(names: Iterable[str]) -> str:
  names = list(names)
  more = f" and {len(names) - 6} more" if len(names) > 6 else ""
  return ", ".join(names[:6]) + more
