"""Inception-v3 for FID, KID and IS, by the conventions under which numbers have been published."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vidgen.errors import ConfigError
from vidgen.evals.extractors import PixelExtractor, random_params
from vidgen.evals.resize import Kernel, resize
from vidgen.interop.layout import load_params
from vidgen.interop.layouts.inception import inception_layout
from vidgen.interop.weight_files import open_weights
from vidgen.models.inception import SIDE, InceptionV3
from vidgen.nn.partition import unboxed


@dataclasses.dataclass(frozen=True)
class Convention:
  """How a published protocol brings uint8 pictures to 299 x 299, aspect ratio not kept.

  kernel: of the resize, whose values are clipped to 0 to 255. A value v becomes
  (v - centre) / half.
  """

  kernel: Kernel
  centre: float
  half: float
  source: str


CONVENTIONS: dict[str, Convention] = {
  "torch-fidelity": Convention(
    kernel="tf1_bilinear",
    centre=128.0,
    half=128.0,
    source="toshas/torch-fidelity: TensorFlow's own graph",
  ),
  "pytorch-fid": Convention(
    kernel="bilinear",
    centre=127.5,
    half=127.5,
    source="mseitzer/pytorch-fid",
  ),
  "clean": Convention(
    kernel="bicubic_antialias",
    centre=128.0,
    half=128.0,
    source="GaParmar/clean-fid, mode clean",
  ),
}


def prepared(
  images: UInt8[Array | np.ndarray, "b h w 3"], convention: Convention
) -> Float[Array, "b 299 299 3"]:
  """What the network is given for `images`."""
  x = jnp.asarray(images, jnp.float32)
  if x.shape[1:3] != (SIDE, SIDE):  # the kernels here leave such pictures as they are
    x = jnp.clip(resize(x, height=SIDE, width=SIDE, kernel=convention.kernel), 0.0, 255.0)
  return (x - convention.centre) / convention.half


def load_inception(
  path: str | Path, *, convention: str = "torch-fidelity", batch_size: int = 16
) -> PixelExtractor:
  """Inception-v3 of the weights at `path`: uint8 pictures [b, h, w, 3] -> six features.

  "2048" is what FID and KID take, "logits_unbiased" what IS takes; see
  `vidgen.models.inception`.

  Raises:
    ConfigError: an unknown convention.
    CheckpointError: the file is damaged or not this Inception's.
  """
  weights = open_weights(path)
  params = load_params(weights, inception_layout(InceptionV3()), like=_abstract(InceptionV3()))
  return inception_extractor(
    params, digest=weights.digest, convention=convention, batch_size=batch_size
  )


def random_inception(seed: int) -> Any:
  """Random parameters: see `random_params`."""
  return random_params(_abstract(InceptionV3()), seed=seed)


def inception_extractor(
  params: Any, *, digest: str, convention: str = "torch-fidelity", batch_size: int = 16
) -> PixelExtractor:
  """As `load_inception`, from parameters at hand."""
  if convention not in CONVENTIONS:
    raise ConfigError(
      f"Inception: unknown convention {convention!r}; known are {', '.join(CONVENTIONS)}"
    )
  chosen = CONVENTIONS[convention]
  network = InceptionV3()

  def run(params: Any, images: jax.Array) -> Any:
    return network.apply({"params": params}, prepared(images, chosen))

  ends = [(value - chosen.centre) / chosen.half for value in (0.0, 255.0)]
  return PixelExtractor(
    name="inception",
    digest=digest,
    run=jax.jit(run),
    params=params,
    facts={
      "convention": convention,
      "weights": "2015-12-05",
      "feature": "2048",
      "resize": chosen.kernel,
      "fit": "squash",
      "side": SIDE,
      "value_range": ends,
    },
    batch_size=batch_size,
    rank=4,
  )


def _abstract(network: InceptionV3) -> Any:
  return unboxed(jax.eval_shape(network.init, jax.random.key(0), *network.example()))["params"]
