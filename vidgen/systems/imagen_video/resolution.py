"""From a clip to the small one that a super-resolution model is given, and back to its size.

What a model is trained on is made here from real clips, and what it is given in the cascade is what
the model before it made: both must have the same kernel. Sides become the means of blocks, of
frames every so manieth stays.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Role = Literal["base", "temporal", "spatial"]


@dataclasses.dataclass(frozen=True)
class Resolution:
  """What a model multiplies: nothing, the frames, or both sides, by `factor`.

  Raises:
    ValueError: a factor that the role does not have.
  """

  role: Role = "base"
  factor: int = 1

  def __post_init__(self):
    if (self.role == "base") != (self.factor == 1) or self.factor < 1:
      raise ValueError(f"role {self.role!r} cannot have a factor of {self.factor}")

  def small_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """t, h and w of the small clip.

    Raises:
      ValueError: they are not multiples of the factor.
    """
    time = self.factor if self.role == "temporal" else 1
    side = self.factor if self.role == "spatial" else 1
    if frames % time or height % side or width % side:
      raise ValueError(
        f"{frames} x {height} x {width} (t x h x w) is not {self.factor} times a smaller clip"
      )
    return frames // time, height // side, width // side

  def large_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """t, h and w of what is made from such a small clip."""
    if self.role == "temporal":
      return frames * self.factor, height, width
    side = self.factor if self.role == "spatial" else 1
    return frames, height * side, width * side

  def small(self, video: Float[Array, "b t h w c"]) -> Float[Array, "b _ _ _ c"]:
    """The small clip of a large one, float32."""
    video = video.astype(jnp.float32)
    if self.role == "temporal":
      return video[:, :: self.factor]
    b, t, h, w, c = video.shape
    blocks = video.reshape(b, t, h // self.factor, self.factor, w // self.factor, self.factor, c)
    return blocks.mean(axis=(3, 5))

  def enlarged(self, small: Float[Array, "b t h w c"]) -> Float[Array, "b _ _ _ c"]:
    """A small clip at the size of the large one: frames repeated, or each frame bilinearly."""
    small = small.astype(jnp.float32)
    if self.role == "temporal":
      return jnp.repeat(small, self.factor, axis=1)
    b, t, h, w, c = small.shape
    shape = (b, t, h * self.factor, w * self.factor, c)
    return jax.image.resize(small, shape, "bilinear", antialias=False)


def shape_text(shape: Sequence[int]) -> str:
  """t x h x w in words."""
  return " x ".join(str(size) for size in shape)
