"""Weights in one safetensors file that describes itself, and the same facts as a config.json.

The layout is vidgen's own: an array is named by its path in the parameters, such as
"network/patch_in/bias". The file's metadata holds `format`, `format_version`, `config` (the whole
experiment), `origin` (step, which weights, digests) and `arrays` (shape, dtype and SHA-256 of
each), all as JSON, and the SHA-256 of these; so the file alone is enough to build the stage again.
`config.json` repeats it, with the SHA-256 of the file.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vidgen import config as cfg
from vidgen.errors import CheckpointError, ConfigError
from vidgen.inputs.storage import file_sha256
from vidgen.interop.parameters import Origin, check_finite, matched, named
from vidgen.interop.safetensors_files import SafetensorsFile, write_safetensors
from vidgen.interop.tensors import TensorSpec
from vidgen.systems import make_stage
from vidgen.train.experiment import from_plain
from vidgen.train.manifest import array_sha256
from vidgen.whole_file import write_whole

WEIGHTS = "weights.safetensors"
CONFIG = "config.json"
FORMAT = "vidgen-safetensors"
VERSION = 1


@dataclasses.dataclass(frozen=True)
class ArrayFacts:
  """Shape, dtype and SHA-256 (of the bytes in C order) of one array."""

  shape: tuple[int, ...]
  dtype: str
  sha256: str


def save_safetensors(
  directory: str | Path, params: Any, *, config: Mapping[str, Any], origin: Origin
) -> Path:
  """Writes weights.safetensors and config.json into a folder; returns the path of the former.

  `config` is the experiment as plain JSON, whose stage the parameters must be of.

  Raises:
    CheckpointError: parameters that are not the stage's, or a value that is not finite; nothing is
      written then.
  """
  arrays = named(params)
  _stage_params(config, arrays, where="the parameters")
  check_finite(arrays, where="the parameters")
  facts = {name: _facts(array) for name, array in arrays.items()}
  described = {"config": config, "origin": origin, "arrays": facts}
  metadata = {
    "format": FORMAT,
    "format_version": VERSION,
    **described,
    "metadata_sha256": cfg.digest(described),
  }
  directory = Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  text = {k: v if isinstance(v, str) else cfg.canonical_json(v) for k, v in metadata.items()}
  path = directory / WEIGHTS
  (directory / CONFIG).unlink(missing_ok=True)  # never the facts of other weights
  specs = {name: TensorSpec(array.shape, array.dtype.name) for name, array in arrays.items()}
  sha256 = write_safetensors(path, specs, parts=lambda name: [arrays[name]], metadata=text)
  beside = {**cfg.plain(metadata), "file": WEIGHTS, "sha256": sha256}
  write_whole(directory / CONFIG, (json.dumps(beside, indent=2, sort_keys=True) + "\n").encode())
  return path


def load_safetensors(path: str | Path) -> tuple[dict[str, Any], Any]:
  """The config, as plain JSON, and the parameters, as the stage's tree of numpy arrays.

  `path` is the file or its folder. Where config.json is beside the file, it must agree.

  Raises:
    CheckpointError: a file that is missing, cut short, changed in any bit, of another format, or
      whose arrays are not those of the stage its config describes, or not finite.
  """
  path = Path(path)
  path = path / WEIGHTS if path.is_dir() else path
  if not path.is_file():
    raise CheckpointError(f"{path}: missing")
  described = _described(path)
  if described is not None and file_sha256(path) != described.get("sha256"):
    raise CheckpointError(f"{path}: its sha256 is not that in {CONFIG}: damaged, or not its file")
  file = SafetensorsFile(path)
  text = file.metadata
  if text.get("format") != FORMAT or text.get("format_version") != str(VERSION):
    raise CheckpointError(f"{path}: not weights of format {FORMAT} {VERSION}")
  try:
    metadata = {key: json.loads(text[key]) for key in ("config", "origin", "arrays")}
    if text["metadata_sha256"] != cfg.digest(metadata):
      raise CheckpointError(f"{path}: its metadata is damaged: its sha256 differs")
    facts = cfg.build(_Arrays, {"arrays": metadata["arrays"]}).arrays
    _compare_header(path, file, facts)
    arrays = {name: np.array(file.read(name)) for name in sorted(facts)}
  except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
    raise CheckpointError(f"{path}: damaged: {type(error).__name__}: {error}") from error
  for name, array in arrays.items():
    if _facts(array) != facts[name]:
      raise CheckpointError(f"{path}: array {name}: its sha256 differs from the one recorded")
  if described is not None and any(described.get(k) != v for k, v in metadata.items()):
    raise CheckpointError(f"{path}: {CONFIG} beside it says otherwise")
  check_finite(arrays, where=str(path))
  return metadata["config"], _stage_params(metadata["config"], arrays, where=str(path))


@dataclasses.dataclass(frozen=True)
class _Arrays:
  arrays: dict[str, ArrayFacts]


def _facts(array: np.ndarray) -> ArrayFacts:
  return ArrayFacts(array.shape, array.dtype.name, array_sha256(array))


def _described(path: Path) -> dict | None:
  beside = path.with_name(CONFIG)
  if not beside.is_file():
    return None
  try:
    tree = json.loads(beside.read_bytes())
  except (ValueError, RecursionError) as error:
    raise CheckpointError(f"{beside}: damaged: {error}") from error
  if not isinstance(tree, dict):
    raise CheckpointError(f"{beside}: damaged: not an object")
  return tree


def _compare_header(path: Path, file: SafetensorsFile, facts: Mapping[str, ArrayFacts]) -> None:
  """Refuses arrays that the record lacks, or the other way, before any of them is read."""
  if differing := sorted(set(file.specs) ^ set(facts)):
    raise CheckpointError(f"{path}: array {differing[0]} is in the header or the record, not both")
  for name, fact in facts.items():
    if file.specs[name].shape != fact.shape:
      raise CheckpointError(f"{path}: array {name}: its shape differs from the one recorded")


def _stage_params(
  config: Mapping[str, Any], arrays: Mapping[str, np.ndarray], *, where: str
) -> Any:
  """The arrays as parameters of the stage that `config` describes."""
  try:
    experiment = from_plain(config)
    stage = make_stage(experiment.stage.name, experiment.stage.fields)
  except ConfigError as error:
    raise CheckpointError(f"{where}: the config in it does not build: {error}") from error
  return matched(arrays, like=jax.eval_shape(stage.init, jax.random.key(0)), where=where)
