"""Saved latents to videos, one after the other and each in pieces."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidgen.config import differences
from vidgen.errors import CheckpointError, ConfigError, DataError
from vidgen.evals import sample_files as files
from vidgen.inputs.storage import file_sha256
from vidgen.train.autoencoder import LoadedAutoencoder

FPS = 24.0  # of a file that no note stands beside
ENCODING = ("dtype", "frames")  # of an autoencoder's identity, how its latents were made


@dataclasses.dataclass(frozen=True)
class Saved:
  """The latents of one video: where they are, and what of them is to be seen."""

  path: Path
  index: int
  frames: int | None
  fps: float


@dataclasses.dataclass(frozen=True)
class Found:
  """Latents to decode, all for the autoencoder of `identity` ({}: nothing is said)."""

  videos: Sequence[Saved]
  identity: Mapping[str, Any]

  @property
  def encoding(self) -> dict[str, Any]:
    """How they were made, as `AutoencoderSource` has it."""
    return {name: self.identity[name] for name in ENCODING if name in self.identity}


def find_latents(path: Path, *, fps: float | None = None, frames: int | None = None) -> Found:
  """The latents of a folder of samples, whose notes are read and hashes compared, or of one file.

  Raises:
    ConfigError: nothing is there, or `fps` or `frames` are given for a folder, which says them.
    DataError: a note is damaged, latents are not those it was written for, or they are for several
      autoencoders; the file is named.
  """
  if path.is_file():
    return Found([Saved(path, 0, frames, FPS if fps is None else fps)], {})
  notes = sorted((path / "latents").glob("*.json"))
  if not notes:
    raise ConfigError(f"--latents {path}: neither a file nor a folder with latents in it")
  if fps is not None or frames is not None:
    raise ConfigError(f"--fps and --frames are of single files; {path} says its own")
  videos, identities = [], []
  for note in notes:
    try:
      found = json.loads(note.read_bytes())
      origin, array = found["origin"], note.with_suffix(".npy")
      videos.append(Saved(array, int(origin["index"]), int(found["frames"]), float(origin["fps"])))
      identities.append(found["autoencoder"])
      if file_sha256(array) != found["sha256"]:
        raise ValueError("the latents are not those it was written for")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
      raise DataError(f"{note}: {type(error).__name__}: {error}; sample it again") from error
  if any(identity != identities[0] for identity in identities):
    raise DataError(f"{path}: holds latents of several autoencoders")
  if not isinstance(identities[0], dict):
    raise ConfigError(f"{path}: these are no autoencoder's latents: `vidgen sample` decodes them")
  return Found(videos, identities[0])


def decode(
  found: Found,
  out: Path,
  *,
  autoencoder: LoadedAutoencoder,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[files.VideoFile]:
  """Writes OUT/<index>.mp4 and .gif of each; only a piece of a video is held at a time.

  Raises:
    CheckpointError: the latents are for another autoencoder.
    ConfigError: they do not hold so many frames.
    DataError: a file is damaged.
    NonFiniteError: a video holds values that are not numbers.
  """
  lines = differences(dict(found.identity), dict(autoencoder.identity)) if found.identity else []
  if lines:
    raise CheckpointError("these latents are for another autoencoder: " + "; ".join(lines))
  out.mkdir(parents=True, exist_ok=True)
  made: list[files.VideoFile] = []
  progress(0, len(found.videos))
  for saved in found.videos:
    latents = _read(saved.path)
    pieces = _pieces(autoencoder, latents, frames=saved.frames)
    made.append(files.write_video(out, saved.index, pieces, fps=saved.fps))
    progress(len(made), len(found.videos))
  return made


def _pieces(
  autoencoder: LoadedAutoencoder, latents: np.ndarray, *, frames: int | None
) -> Iterator[np.ndarray]:
  frames = autoencoder.most_frames(len(latents)) if frames is None else frames
  for piece in autoencoder.stream(latents[None], frames=frames):
    yield np.asarray(piece)[0]


def _read(path: Path) -> np.ndarray:
  """Latents [t, h, w, c], left on the disk until they are used."""
  try:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim != 4 or array.dtype != np.float32 or not array.size:
      raise ValueError(f"{array.dtype} of shape {array.shape}, not float32 [t, h, w, c]")
  except (OSError, ValueError, EOFError, MemoryError, AttributeError) as error:
    raise DataError(f"{path}: no latents: {error}") from error
  return array
