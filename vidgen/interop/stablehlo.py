"""Export of sampling as a StableHLO program that runs without vidgen.

The folder holds the program (jax.export's serialisation of StableHLO, with a symbolic batch), the
weights beside it (an .npz without pickle: programs have a size limit, and weights are worth reading
alone), manifest.json, a README, and run.py, which needs jax and numpy only. run.py is
`interop/run_exported.py` itself. jax.export reads its files with flatbuffers, which jax does not
bring along, so that small package is copied into the folder too.

What is written is first loaded again as a stranger would, and must give the video that the stage
gives here; otherwise nothing is left in place.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from vidgen import config as cfg
from vidgen.errors import CheckpointError, ConfigError
from vidgen.evals.generation import text_inputs
from vidgen.inputs.prefix import fps_prefix, parts_of, prefixed
from vidgen.inputs.text import ByteTokenizer
from vidgen.interop import run_exported as runner
from vidgen.interop.parameters import Origin, check_finite, matched, named
from vidgen.systems import SampleSettings, Stage
from vidgen.systems.sampling import input_spec, sample, sampled
from vidgen.train.items import unflatten

PLATFORMS = ("cpu", "cuda", "tpu")
TOLERANCE = 1e-5  # of a pixel in [-1, 1], between the stage here and the program as exported
GATE_PROMPTS = ("a red circle moving left on black", "")
GATE_SEED = 7
RUN = "run.py"

README = """# Text to video, exported

A program in StableHLO and its weights. It runs with jax (0.10 or later) and numpy, nothing else:

    python run.py --prompt "{prompt}" --seed 0 --out video.npy

or, from Python, with this folder on the path:

    import run
    video = run.load("THIS FOLDER")(["{prompt}"], seed=0)

`{program}` is read by `jax.export.deserialize` and takes (weights, inputs, seed, index):

- weights: the arrays of `{weights}`, as a dict by name
- inputs: {inputs}
- seed: uint32; index: uint32 [b], the numbers of the samples, which with the seed give the noise

and returns video {video}, values in [-1, 1], {fps:g} frames a second. The batch b is free.
Platforms: {platforms}.
Sampler: {settings}.
{prefix}`manifest.json` says all this for programs, with the SHA-256 of every file; `run.py` checks
them.
`vendor/flatbuffers` (Google, Apache-2.0) is used where that package is not installed.
"""


def export_stablehlo(
  directory: str | Path,
  *,
  stage: Stage,
  params: Any,
  settings: SampleSettings,
  fps: float,
  config: Mapping[str, Any],
  origin: Origin,
  platforms: Sequence[str] = PLATFORMS,
) -> dict[str, Any]:
  """Writes the export into `directory`, replacing an older export, and returns its manifest.

  `config` is the experiment as plain JSON. Where the program cannot be lowered for all
  `platforms`, it is for the present one alone, and the manifest says why.

  Raises:
    ConfigError: `directory` holds something else, or the stage reads what run.py cannot make.
    CheckpointError: weights that are not finite or not the stage's, or a program that does not
      give the stage's video; `directory` is left as it was.
  """
  directory = Path(directory)
  if directory.exists() and any(directory.iterdir()):
    if not _is_export(directory):
      raise ConfigError(f"{directory}: not empty and not an export; give another --out")
  tokenizer = config["inputs"]["tokenizer"]
  if tokenizer != "byte":
    raise ConfigError(
      f"config.inputs.tokenizer: run.py has no tokenizer {tokenizer!r}, only 'byte'"
    )
  video = sampled(stage, settings).get("video")
  if video is None:
    raise ConfigError("this stage makes latents of an autoencoder, which run.py cannot decode")
  prefix = parts_of(config["inputs"].get("prefix", ()), frames=video.shape[1])
  texts = [prefixed(prompt, parts=prefix, fps=fps) for prompt in GATE_PROMPTS]
  inputs = text_inputs(stage, texts, tokenizer=ByteTokenizer(), fps=fps)
  weights = named(params)
  like = jax.eval_shape(stage.init, jax.random.key(0))
  matched(weights, like=like, where="the parameters")
  check_finite(weights, where="the parameters")

  def program(weights, inputs, seed, index):
    params = unflatten(like, weights)
    return sample(params, inputs, seed, index, stage=stage, settings=settings)["video"]

  index = np.arange(len(GATE_PROMPTS), dtype=np.uint32)
  ours = np.asarray(jax.jit(program)(weights, inputs, np.uint32(GATE_SEED), index))
  exported, left_out = _export(program, weights, stage, platforms)
  staging = directory.with_name(f".{directory.name}.writing")
  shutil.rmtree(staging, ignore_errors=True)
  staging.mkdir(parents=True)
  try:
    (staging / runner.PROGRAM).write_bytes(exported.serialize())
    np.savez(staging / runner.WEIGHTS, allow_pickle=False, **weights)
    shutil.copy(runner.__file__, staging / RUN)
    _copy_flatbuffers(staging)
    spec = input_spec(stage, 1)
    manifest = {
      "format": runner.FORMAT,
      "format_version": runner.VERSION,
      "jax": jax.__version__,
      "calling_convention": exported.calling_convention_version,
      "platforms": list(exported.platforms),
      "platforms_left_out": left_out,
      "config": cfg.plain(config),
      "origin": cfg.plain(origin),
      "settings": dataclasses.asdict(settings),
      "tokenizer": "UTF-8 bytes + 3; 1 ends the text, 0 pads",
      "fps": fps,
      "prefix": {
        "fps": fps_prefix(fps) if "fps" in prefix else "",
        "camera": "camera" in prefix,
      },
      "inputs": {
        name: {"shape": ["b", *array.shape[1:]], "dtype": np.dtype(array.dtype).name}
        for name, array in spec.items()
      },
      "seed": {"shape": [], "dtype": "uint32"},
      "index": {"shape": ["b"], "dtype": "uint32"},
      "video": {"shape": ["b", *ours.shape[1:]], "dtype": ours.dtype.name, "range": [-1, 1]},
      "weights": {
        name: {"shape": list(array.shape), "dtype": array.dtype.name}
        for name, array in weights.items()
      },
      "parity": {"prompts": list(GATE_PROMPTS), "seed": GATE_SEED, "tolerance": TOLERANCE},
    }
    (staging / "README.md").write_text(_readme(manifest))
    manifest["files"] = {
      path.relative_to(staging).as_posix(): {
        "size": path.stat().st_size,
        "sha256": runner.file_sha256(path),
      }
      for path in sorted(staging.rglob("*"))
      if path.is_file()
    }
    _write_manifest(staging, manifest)
    manifest["parity"]["difference"] = _gate(staging, ours)
    _write_manifest(staging, manifest)
    shutil.rmtree(directory, ignore_errors=True)
    staging.rename(directory)
  finally:
    shutil.rmtree(staging, ignore_errors=True)
  return manifest


def _is_export(directory: Path) -> bool:
  """Whether an older export lies there; checkpoints and others have a manifest.json, too."""
  try:
    return json.loads((directory / runner.MANIFEST).read_text())["format"] == runner.FORMAT
  except (OSError, ValueError, KeyError, TypeError):
    return False


def _export(
  program: Any, weights: Mapping[str, np.ndarray], stage: Stage, platforms: Sequence[str]
) -> tuple[export.Exported, str]:
  """The program for all platforms, or for this one and the reason why."""
  (batch,) = export.symbolic_shape("b")
  arguments = (
    {name: jax.ShapeDtypeStruct(w.shape, w.dtype) for name, w in weights.items()},
    {
      name: jax.ShapeDtypeStruct((batch, *array.shape[1:]), array.dtype)
      for name, array in input_spec(stage, 1).items()
    },
    jax.ShapeDtypeStruct((), jnp.uint32),
    jax.ShapeDtypeStruct((batch,), jnp.uint32),
  )
  try:
    return export.export(jax.jit(program), platforms=list(platforms))(*arguments), ""
  except Exception as error:  # a kernel of one platform: each fails in a way of its own
    here = export.default_export_platform()
    reason = f"not for all of {', '.join(platforms)}: {type(error).__name__}: {error}"
    return export.export(jax.jit(program), platforms=[here])(*arguments), reason.splitlines()[0]


def _gate(folder: Path, ours: np.ndarray) -> float:
  """The largest difference between `ours` and what the written files give, loaded anew."""
  try:
    theirs = runner.load(folder)(GATE_PROMPTS, seed=GATE_SEED)
  except ValueError as error:
    raise CheckpointError(f"the export does not load: {error}") from error
  difference = float(np.max(np.abs(theirs - ours))) if theirs.shape == ours.shape else float("inf")
  if not difference <= TOLERANCE:  # also when it is not a number
    raise CheckpointError(
      f"the exported program's video differs by {difference} from the stage's, more than"
      f" {TOLERANCE}; nothing was exported"
    )
  return difference


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
  manifest.pop("sha256", None)
  manifest["sha256"] = runner.json_sha256(manifest)
  (folder / runner.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _copy_flatbuffers(folder: Path) -> None:
  target = folder / runner.VENDOR / "flatbuffers"
  target.mkdir(parents=True)
  for path in sorted(Path(flatbuffers.__file__).parent.glob("*.py")):
    shutil.copy(path, target / path.name)


def _readme(manifest: Mapping[str, Any]) -> str:
  def spell(array: Mapping[str, Any]) -> str:
    return f"{array['dtype']} [{', '.join(map(str, array['shape']))}]"

  found = manifest["prefix"]
  begins = [f"`{found['fps']}`"] * bool(found["fps"])
  begins += ["a camera motion (`camera`, `--camera`), where there is one,"] * found["camera"]
  return README.format(
    prefix=f"run.py puts {' and '.join(begins)} before every prompt.\n" if begins else "",
    prompt=GATE_PROMPTS[0],
    program=runner.PROGRAM,
    weights=runner.WEIGHTS,
    inputs=", ".join(f"{name} {spell(array)}" for name, array in manifest["inputs"].items()),
    video=spell(manifest["video"]),
    fps=manifest["fps"],
    platforms=", ".join(manifest["platforms"]),
    settings=", ".join(f"{k} {v}" for k, v in manifest["settings"].items()),
  )
