"""I3D for video metrics, by the conventions under which numbers have been published.

Fréchet video distances of different conventions are not comparable: they differ in the resize, the
crop, the range, the weights, and the divisor of the covariance.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vidgen.errors import ConfigError, DataError
from vidgen.evals.extractors import PixelExtractor, random_params
from vidgen.evals.resize import Kernel, centre_crop, resize, short_side
from vidgen.interop.layout import load_params
from vidgen.interop.layouts.i3d import i3d_layout, spelling_of, without_scale
from vidgen.interop.weight_files import open_weights
from vidgen.models.i3d import I3D, LEAST_FRAMES
from vidgen.nn.partition import unboxed

SIDE = 224
FEATURES = ("logits", "pool", "probabilities")


@dataclasses.dataclass(frozen=True)
class Convention:
  """How a published protocol brings uint8 frames to the network, and what it does with features.

  kernel: of the resize to 224 x 224. fit: "squash" changes the aspect ratio, "crop" resizes the
  short side and takes the centre. through: a size that frames are squashed to first, 0 for none.
  value_range: what 0 and 255 become. covariance: its divisor. weights: the layout that the
  protocol's weights come in. source: where it is written down.
  """

  kernel: Kernel
  fit: Literal["squash", "crop"]
  value_range: tuple[float, float]
  covariance: Literal["n-1", "n"]
  weights: str
  source: str
  through: int = 0


CONVENTIONS: dict[str, Convention] = {
  "reference": Convention(
    kernel="tf1_bilinear",
    fit="squash",
    value_range=(-1.0, 1.0),
    covariance="n-1",
    weights="kinetics-i3d-pytorch",
    source="google-research/frechet_video_distance",
  ),
  # The range is a slip that stayed, as numbers had been published under it.
  "videogpt": Convention(
    kernel="bilinear",
    fit="crop",
    value_range=(-0.5, 0.5),
    covariance="n-1",
    weights="pytorch-i3d",
    source="wilson1yan/VideoGPT, videogpt/fvd/fvd.py",
  ),
  "tats": Convention(
    kernel="bilinear",
    fit="squash",
    value_range=(-1.0, 1.0),
    covariance="n-1",
    weights="pytorch-i3d",
    source="songweige/TATS, tats/fvd/fvd.py",
  ),
  "cd-fvd": Convention(
    kernel="bilinear",
    fit="squash",
    value_range=(-1.0, 1.0),
    covariance="n",
    weights="pytorch-i3d",
    source="songweige/content-debiased-fvd",
  ),
  "stylegan-v": Convention(
    kernel="bilinear",
    fit="squash",
    value_range=(-1.0, 1.0),
    covariance="n",
    weights="kinetics-i3d-pytorch",
    source="universome/stylegan-v, src/metrics/frechet_video_distance.py",
  ),
  "magvit": Convention(
    kernel="tf1_bilinear",
    fit="squash",
    value_range=(-1.0, 1.0),
    covariance="n-1",
    weights="kinetics-i3d-pytorch",
    source="google-research/magvit, videogvt/tools/compute_fvd.py",
    through=64,
  ),
}


def prepared(
  clips: UInt8[Array | np.ndarray, "b t h w 3"], convention: Convention
) -> Float[Array, "b t 224 224 3"]:
  """What the network is given for `clips`."""
  x = jnp.asarray(clips, jnp.float32)
  if convention.through:
    x = _resized(x, convention.through, convention.through, convention.kernel)
  if convention.fit == "crop":
    height, width = short_side(x.shape[2], x.shape[3], size=SIDE, rounding="up")
    x = _resized(x, height, width, convention.kernel)
    x = jnp.asarray(centre_crop(x, height=SIDE, width=SIDE, rounding="down"))
  else:
    x = _resized(x, SIDE, SIDE, convention.kernel)
  low, high = convention.value_range
  return x * ((high - low) / 255) + low


def _resized(x: jax.Array, height: int, width: int, kernel: Kernel) -> jax.Array:
  same = x.shape[2:4] == (height, width)  # the kernels here leave such frames as they are
  return x if same else resize(x, height=height, width=width, kernel=kernel)


def load_i3d(
  path: str | Path, *, convention: str = "reference", batch_size: int = 4
) -> PixelExtractor:
  """I3D of the weights at `path`: uint8 clips [b, t, h, w, 3] -> "logits", "pool", "probabilities".

  Both public variants are known by their names: see `vidgen.interop.layouts.i3d`. The digest is
  that of the file.

  Raises:
    ConfigError: an unknown convention.
    CheckpointError: the file is damaged or not I3D's.
  """
  weights = open_weights(path)
  layout = i3d_layout(I3D(), spelling=spelling_of(weights))
  params = load_params(without_scale(weights), layout, like=_abstract(I3D()))
  return i3d_extractor(
    params,
    digest=weights.digest,
    weights=spelling_of(weights),
    convention=convention,
    batch_size=batch_size,
  )


def random_i3d(seed: int) -> Any:
  """Random parameters: see `random_params`."""
  return random_params(_abstract(I3D()), seed=seed)


def i3d_extractor(
  params: Any,
  *,
  digest: str,
  weights: str,
  convention: str = "reference",
  batch_size: int = 4,
) -> PixelExtractor:
  """As `load_i3d`, from parameters at hand; `weights` says in the record whose they are."""
  if convention not in CONVENTIONS:
    raise ConfigError(f"I3D: unknown convention {convention!r}; known are {', '.join(CONVENTIONS)}")
  chosen = CONVENTIONS[convention]
  network = I3D()

  def run(params: Any, clips: jax.Array) -> dict[str, jax.Array]:
    found = network.apply({"params": params}, prepared(clips, chosen))
    return {name: found[name] for name in FEATURES}  # type: ignore[index]  # apply's type is loose

  return PixelExtractor(
    name="i3d",
    digest=digest,
    run=jax.jit(run),
    params=params,
    facts={
      "convention": convention,
      "weights": weights,
      "feature": "logits",
      "resize": chosen.kernel,
      "resize_through": chosen.through,
      "fit": chosen.fit,
      "side": SIDE,
      "value_range": list(chosen.value_range),
      "covariance": chosen.covariance,
    },
    batch_size=batch_size,
    rank=5,
    check=_check,
  )


def _check(shape: tuple[int, ...]) -> None:
  if shape[1] < LEAST_FRAMES:
    raise DataError(f"I3D needs clips of {LEAST_FRAMES} frames at least, and got {shape[1]}")


def _abstract(network: I3D) -> Any:
  return unboxed(jax.eval_shape(network.init, jax.random.key(0), *network.example()))["params"]
