"""From pictures of any size to the square that a vision transformer reads."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vidgen.evals.resize import Kernel, centre_crop, resize, short_side


@dataclasses.dataclass(frozen=True)
class Crop:
  """How uint8 pictures become a network's square of `side` pixels.

  fit: "centre" brings the shorter side to `short_side` and takes the middle; "squash" forgets the
  aspect ratio. values: "bytes" are rounded after the resize, as where bytes are resized to bytes;
  "floats" are what the kernel gives, beyond 0 to 255 too. mean, std: of values in [0, 1].
  """

  side: int
  short_side: int
  kernel: Kernel
  fit: Literal["centre", "squash"]
  values: Literal["bytes", "floats"]
  mean: tuple[float, float, float]
  std: tuple[float, float, float]

  def __call__(self, images: UInt8[Array, "b h w 3"]) -> Float[Array, "b _ _ 3"]:
    """What the network is given for `images`."""
    height, width = self.side, self.side
    if self.fit == "centre":
      height, width = short_side(*images.shape[1:3], size=self.short_side)
    x = resize(images, height=height, width=width, kernel=self.kernel).astype(jnp.float32)
    if self.fit == "centre":
      x = jnp.asarray(centre_crop(x, height=self.side, width=self.side))
    if self.values == "bytes":
      x = jnp.round(jnp.clip(x, 0.0, 255.0))
    return (x / 255.0 - jnp.asarray(self.mean)) / jnp.asarray(self.std)

  def facts(self) -> dict[str, Any]:
    """Plain values for a protocol record; `value_range` is that of what `mean` is taken from."""
    facts = dataclasses.asdict(self)
    facts |= {"resize": facts.pop("kernel"), "value_range": [0.0, 1.0]}
    return facts | {"mean": list(self.mean), "std": list(self.std)}
