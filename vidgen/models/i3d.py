"""I3D: Inception-v1 inflated to video (Carreira and Zisserman, "Quo Vadis, Action Recognition?").

Convolutions have no bias, batch norm has no scale (epsilon 1e-3), all paddings are TensorFlow's
SAME. What the published code names Branch_2 has a 3 x 3 x 3 kernel, as Branch_1 has.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vidgen.nn.convolution import Convolution, FrozenBatchNorm, average_pool, for_relu, max_pool

LEAST_FRAMES = 9  # the last pool needs two steps of time, an eighth of the frames
LEAST_SIDE = 193  # and seven of space, a thirty-second of the pixels

# Outputs of an Inception block: Branch_0; Branch_1 within and out; Branch_2 likewise; Branch_3.
Widths = tuple[int, int, int, int, int, int]
MIXED: dict[str, Widths] = {
  "Mixed_3b": (64, 96, 128, 16, 32, 32),
  "Mixed_3c": (128, 128, 192, 32, 96, 64),
  "Mixed_4b": (192, 96, 208, 16, 48, 64),
  "Mixed_4c": (160, 112, 224, 24, 64, 64),
  "Mixed_4d": (128, 128, 256, 24, 64, 64),
  "Mixed_4e": (112, 144, 288, 32, 64, 64),
  "Mixed_4f": (256, 160, 320, 32, 128, 128),
  "Mixed_5b": (256, 160, 320, 32, 128, 128),
  "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
# Width, kernel (a cube), stride; and window and strides of the pools.
UNITS = {"Conv3d_1a_7x7": (64, 7, 2), "Conv3d_2b_1x1": (64, 1, 1), "Conv3d_2c_3x3": (192, 3, 1)}
POOLS = {
  "MaxPool3d_2a_3x3": ((1, 3, 3), (1, 2, 2)),
  "MaxPool3d_3a_3x3": ((1, 3, 3), (1, 2, 2)),
  "MaxPool3d_4a_3x3": ((3, 3, 3), (2, 2, 2)),
  "MaxPool3d_5a_2x2": ((2, 2, 2), (2, 2, 2)),
}
TRUNK = (
  "Conv3d_1a_7x7",
  "MaxPool3d_2a_3x3",
  "Conv3d_2b_1x1",
  "Conv3d_2c_3x3",
  "MaxPool3d_3a_3x3",
  "Mixed_3b",
  "Mixed_3c",
  "MaxPool3d_4a_3x3",
  "Mixed_4b",
  "Mixed_4c",
  "Mixed_4d",
  "Mixed_4e",
  "Mixed_4f",
  "MaxPool3d_5a_2x2",
  "Mixed_5b",
  "Mixed_5c",
)


class Unit(nn.Module):
  """Convolution, frozen batch norm, ReLU."""

  features: int
  size: int
  stride: int = 1
  epsilon: float = 1e-3

  @nn.compact
  def __call__(self, x: Float[Array, "b t h w i"]) -> Float[Array, "b _ _ _ o"]:
    """Any size; the kernel is a cube."""
    x = Convolution(
      self.features,
      (self.size,) * 3,
      (self.stride,) * 3,
      use_bias=False,
      init=for_relu(4),
      name="conv",
    )(x)
    return jax.nn.relu(FrozenBatchNorm(self.epsilon, use_scale=False, name="norm")(x))


class Mixed(nn.Module):
  """Four branches, concatenated."""

  widths: Widths
  epsilon: float = 1e-3

  @nn.compact
  def __call__(self, x: Float[Array, "b t h w i"]) -> Float[Array, "b t h w o"]:
    """The sides stay."""
    a, b1, b2, c1, c2, d = self.widths

    def unit(width: int, size: int, name: str) -> Unit:
      return Unit(width, size, epsilon=self.epsilon, name=name)

    pooled = max_pool(x, window=(3, 3, 3), padding="SAME")
    branches = [
      unit(a, 1, "b0")(x),
      unit(b2, 3, "b1b")(unit(b1, 1, "b1a")(x)),
      unit(c2, 3, "b2b")(unit(c1, 1, "b2a")(x)),
      unit(d, 1, "b3b")(pooled),
    ]
    return jnp.concatenate(branches, axis=-1)


class I3D(nn.Module):
  """The RGB network of `classes` (400 of Kinetics), as far as `final_endpoint`."""

  classes: int = 400
  epsilon: float = 1e-3
  final_endpoint: str = "Logits"

  def example(self) -> tuple[jax.Array]:
    """An input, for the shapes of the parameters."""
    return (jnp.zeros((1, LEAST_FRAMES, LEAST_SIDE, LEAST_SIDE, 3)),)

  @nn.compact
  def __call__(self, video: Float[Array, "b t h w 3"]) -> dict[str, Float[Array, "b ..."]]:
    """Every endpoint by its published name, for video in [-1, 1], made for 224 x 224.

    After "Logits" [b, t', h', w', classes] come "logits" [b, classes], their mean over positions
    and before the softmax, which Fréchet video distance takes; "probabilities", its softmax; and
    "pool" [b, 1024], what the logits are read from.

    Raises:
      ValueError: an unknown `final_endpoint`, or a video too short or small for the last pool.
    """
    if self.final_endpoint not in (*TRUNK, "Logits"):
      raise ValueError(f"I3D has no endpoint {self.final_endpoint!r}")
    _, t, h, w, _ = video.shape
    if self.final_endpoint == "Logits" and (t < LEAST_FRAMES or min(h, w) < LEAST_SIDE):
      raise ValueError(
        f"I3D needs {LEAST_FRAMES} frames of {LEAST_SIDE} x {LEAST_SIDE}, and got {t} of {h} x {w}"
      )
    x, found = video, {}
    for name in TRUNK:
      if name in POOLS:
        window, strides = POOLS[name]
        x = max_pool(x, window=window, strides=strides, padding="SAME")
      elif name in UNITS:
        width, size, stride = UNITS[name]
        x = Unit(width, size, stride, epsilon=self.epsilon, name=name)(x)
      else:
        x = Mixed(MIXED[name], epsilon=self.epsilon, name=name)(x)
      found[name] = x
      if name == self.final_endpoint:
        return found
    x = average_pool(x, window=(2, 7, 7))
    found["pool"] = x.mean((1, 2, 3))
    x = found["Logits"] = Convolution(self.classes, (1, 1, 1), name="Logits")(x)
    found["logits"] = x.mean((1, 2, 3))
    found["probabilities"] = jax.nn.softmax(found["logits"])
    return found
