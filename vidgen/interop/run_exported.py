"""Runs an exported text-to-video program; needs jax and numpy, and nothing else.

  python run.py --prompt "a red circle moving left on black" --out video.npy

The file lies in the folder that `vidgen export --to stablehlo` wrote, beside manifest.json, which
says what the program takes and gives. Everything is checked before it is used: the SHA-256 of every
file, and name, shape, dtype and values of every weight. Sample i of a seed has the same noise
wherever and with whichever others it is made.
"""

import argparse
import hashlib
import json
import re
import sys
import zipfile
from pathlib import Path

import numpy as np

FORMAT = "vidgen-stablehlo"
VERSION = 1
MANIFEST = "manifest.json"
PROGRAM = "sample.jax_export"
WEIGHTS = "weights.npz"
VENDOR = "vendor"
MAX_MANIFEST_BYTES = 64 << 20


def read_manifest(folder):
  """The manifest of an export, once every file it names is found to be whole.

  Raises:
    ValueError: a file is missing, cut short or changed, or the export is of another format.
  """
  folder = Path(folder)
  path = folder / MANIFEST
  if not path.is_file() or path.stat().st_size > MAX_MANIFEST_BYTES:
    raise ValueError(f"{path}: missing, or too large")
  try:
    manifest = json.loads(path.read_bytes())
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    found = (manifest["format"], manifest["format_version"])
    files, whole = manifest["files"], manifest["sha256"] == json_sha256(body)
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise ValueError(f"{path}: damaged: {type(error).__name__}: {error}") from error
  if found != (FORMAT, VERSION):
    raise ValueError(f"{path}: {found} is not {(FORMAT, VERSION)}, which this program reads")
  if not whole:
    raise ValueError(f"{path}: damaged: it does not match its own sha256")
  if missing := sorted({PROGRAM, WEIGHTS} - set(files)):
    raise ValueError(f"{path}: does not name {missing[0]}")
  for name in files:
    if Path(name).is_absolute() or ".." in Path(name).parts:
      raise ValueError(f"{path}: file {name!r} is outside of the export")
    part = folder / name
    if not part.is_file() or part.stat().st_size != files[name]["size"]:
      raise ValueError(f"{part}: missing, or not of {files[name]['size']} bytes")
    if file_sha256(part) != files[name]["sha256"]:
      raise ValueError(f"{part}: damaged: its sha256 differs from the manifest")
  return manifest


def read_weights(folder, manifest):
  """The weights by name, as the manifest describes them; never unpickled.

  Raises:
    ValueError: a weight is missing, too many, of another shape or dtype, or not finite.
  """
  path = Path(folder) / WEIGHTS
  wanted = manifest["weights"]
  try:
    with zipfile.ZipFile(path) as archive:
      members = archive.infolist()
      most = sum(2**16 + 16 * int(np.prod(w["shape"], dtype=np.int64)) for w in wanted.values())
      if any(m.compress_type != zipfile.ZIP_STORED for m in members) or (
        sum(m.file_size for m in members) > most
      ):
        raise ValueError("it holds more than the manifest says")
    with np.load(path, allow_pickle=False) as archive:
      if set(archive.files) != set(wanted):
        raise ValueError(f"names differ: {sorted(set(archive.files) ^ set(wanted))[:4]}")
      weights = {name: archive[name] for name in sorted(wanted)}
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(f"{path}: damaged: {error}") from error
  for name, array in weights.items():
    found = [list(array.shape), array.dtype.name]
    if found != [wanted[name]["shape"], wanted[name]["dtype"]]:
      raise ValueError(f"{path}: {name}: {found} is not what the manifest says")
    if not np.isfinite(array).all():
      raise ValueError(f"{path}: {name} is not finite")
  return weights


def load(folder):
  """A function (prompts, seed=0, first=0, camera="") -> video [b, t, h, w, c] in [-1, 1].

  Sample k of a call is sample `first + k` of the seed. `camera` is a camera motion, of a model
  whose captions began with one. The video is float32.

  Raises:
    ValueError: as `read_manifest` and `read_weights`.
  """
  folder = Path(folder)
  manifest = read_manifest(folder)
  weights = read_weights(folder, manifest)
  program = load_program(folder)

  def sample(prompts, seed=0, first=0, camera=""):
    inputs = encode(prompts, manifest, camera=camera)
    index = np.arange(first, first + len(prompts), dtype=np.uint32)
    return np.asarray(program.call(weights, inputs, np.uint32(seed), index))

  return sample


def load_program(folder):
  """The program as `jax.export` knows it; `call(weights, inputs, seed, index)` runs it."""
  try:
    import flatbuffers  # noqa: F401  (jax.export reads the file with it, but does not bring it)
  except ImportError:
    sys.path.append(str(Path(folder).resolve() / VENDOR))
  from jax import export

  return export.deserialize(bytearray((Path(folder) / PROGRAM).read_bytes()))


def prefixed(prompt, manifest, camera=""):
  """A prompt behind what the model's captions had before them: the rate, then the camera motion.

  Each stands there once: what the prompt begins with is not repeated, another rate is replaced.

  Raises:
    ValueError: a camera motion, of a model whose captions had none.
  """
  prefix = manifest.get("prefix", {"fps": "", "camera": False})
  if camera and not prefix["camera"]:
    raise ValueError("camera: the model's captions had no camera motion before them")
  rate = prefix["fps"]
  motion = f"{camera.strip().rstrip('.')}. " if camera.strip() else ""
  while rate and (found := re.match(r"FPS-\d+ ", prompt)):
    prompt = prompt[found.end() :]
  if motion and prompt.startswith(motion):
    prompt = prompt[len(motion) :]
  return rate + motion + prompt


def encode(prompts, manifest, camera=""):
  """Prompts as the program takes them: UTF-8 bytes + 3, then 1 for the end, then 0 for padding.

  Before each goes what `prefixed` puts there.
  """
  text = manifest["inputs"]["text"]
  length = text["shape"][1]
  ids = np.zeros((len(prompts), length), np.int32)
  mask = np.zeros((len(prompts), length), bool)
  for row, prompt in enumerate(prompts):
    prompt = prefixed(prompt, manifest, camera)
    tokens = [byte + 3 for byte in prompt.encode("utf-8", "backslashreplace")][: length - 1] + [1]
    ids[row, : len(tokens)] = tokens
    mask[row, : len(tokens)] = True
  fps = np.full(len(prompts), manifest["fps"], np.float32)
  made = {"text": ids, "text_mask": mask, "fps": fps}
  return {name: made[name] for name in manifest["inputs"]}


def json_sha256(tree):
  """SHA-256 of a tree as JSON with sorted keys and no spaces."""
  text = json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)
  return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path):
  """SHA-256 of a file, in hex."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments=None):
  """Samples prompts into one .npy file."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--prompt", action="append", required=True, help="may be repeated")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--first", type=int, default=0, help="number of the first prompt's sample")
  parser.add_argument("--camera", default="", help="camera motion, of a model that knows them")
  parser.add_argument("--out", required=True, help="file for the videos, float32 [b, t, h, w, c]")
  args = parser.parse_args(arguments)
  try:
    sample = load(Path(__file__).resolve().parent)
    video = sample(args.prompt, seed=args.seed, first=args.first, camera=args.camera)
  except ValueError as error:
    sys.exit(f"run.py: {error}")
  with open(args.out, "wb") as file:
    np.save(file, video, allow_pickle=False)
  print(f"{args.out}: {video.dtype} {list(video.shape)}")


if __name__ == "__main__":
  main()
