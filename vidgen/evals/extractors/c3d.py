"""C3D for the inception score of videos, by the protocol of TGANv2 on UCF-101."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vidgen.errors import ConfigError, DataError
from vidgen.evals.extractors import PixelExtractor
from vidgen.evals.resize import resize
from vidgen.interop.layout import load_params
from vidgen.interop.layouts.c3d import c3d_layout
from vidgen.interop.weight_files import open_weights
from vidgen.models.c3d import C3D, FRAMES, SIDE
from vidgen.nn.partition import unboxed

CONVENTIONS = ("ucf101",)
KERNEL = "bilinear_aligned"


def prepared(clips: UInt8[Array | np.ndarray, "b t h w 3"]) -> Float[Array, "b t 112 112 3"]:
  """What the network is given for `clips`: 0 to 255, resized with aligned corners."""
  x = jnp.asarray(clips, jnp.float32)
  return x if x.shape[2:4] == (SIDE, SIDE) else resize(x, height=SIDE, width=SIDE, kernel=KERNEL)


def load_c3d(
  path: str | Path, *, convention: str = "ucf101", batch_size: int = 4
) -> PixelExtractor:
  """C3D of the weights at `path`: uint8 clips [b, 16, h, w, 3] -> three features.

  "logits" [b, 101] and "probabilities" are what IS takes; "features" [b, 4096] is fc7.

  Raises:
    ConfigError: an unknown convention.
    CheckpointError: the file is damaged or not C3D's.
  """
  weights = open_weights(path)
  layout = c3d_layout(C3D(), weights=weights)
  params = load_params(weights, layout, like=_abstract(C3D()))
  return c3d_extractor(params, digest=weights.digest, convention=convention, batch_size=batch_size)


def c3d_extractor(
  params: Any, *, digest: str, convention: str = "ucf101", batch_size: int = 4
) -> PixelExtractor:
  """As `load_c3d`, from parameters at hand."""
  if convention not in CONVENTIONS:
    raise ConfigError(f"C3D: unknown convention {convention!r}; known are {', '.join(CONVENTIONS)}")
  network = C3D()

  def run(params: Any, clips: jax.Array) -> dict[str, jax.Array]:
    found: Any = network.apply({"params": params}, prepared(clips))
    return {
      "features": found["fc7"],
      "logits": found["logits"],
      "probabilities": found["probabilities"],
    }

  return PixelExtractor(
    name="c3d",
    digest=digest,
    run=jax.jit(run),
    params=params,
    facts={
      "convention": convention,
      "weights": "ucf101",
      "feature": "probabilities",
      "resize": KERNEL,
      "fit": "squash",
      "side": SIDE,
      "value_range": [0.0, 255.0],
      "channels": "BGR",
    },
    batch_size=batch_size,
    rank=5,
    check=_check,
  )


def _check(shape: tuple[int, ...]) -> None:
  if shape[1] != FRAMES:
    raise DataError(f"C3D needs clips of {FRAMES} frames, and got {shape[1]}")


def _abstract(network: C3D) -> Any:
  return unboxed(jax.eval_shape(network.init, jax.random.key(0), *network.example()))["params"]
