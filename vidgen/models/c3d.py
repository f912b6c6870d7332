"""C3D (Tran et al., "Learning Spatiotemporal Features with 3D Convolutional Networks").

As fine-tuned on UCF-101 for the inception score of videos (Saito et al., TGAN and TGANv2).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from vidgen.nn.convolution import Convolution, for_relu, max_pool
from vidgen.nn.linear import Linear
from vidgen.nn.weights import weight, zeros

FRAMES, SIDE = 16, 112
# Convolutions of each stage by name and width; a pool follows, the first over space only.
STAGES = (
  {"conv1a": 64},
  {"conv2a": 128},
  {"conv3a": 256, "conv3b": 256},
  {"conv4a": 512, "conv4b": 512},
  {"conv5a": 512, "conv5b": 512},
)
HIDDEN = 4096


class C3D(nn.Module):
  """Eight convolutions and three linear layers, for clips of 16 x 112 x 112."""

  classes: int = 101

  def example(self) -> tuple[jax.Array]:
    """An input, for the shapes of the parameters."""
    return (jnp.zeros((1, FRAMES, SIDE, SIDE, 3)),)

  @nn.compact
  def __call__(self, video: Float[Array, "b t h w 3"]) -> dict[str, Float[Array, "b ..."]]:
    """Every layer by name, for RGB video of 0 to 255.

    "conv1a" to "conv5b" before their pools; "pool5", flattened channels first; "fc6" and "fc7"
    after their ReLU; "logits" [b, classes]; "probabilities". The network itself turns RGB into BGR
    and adds `offset`, the negative mean clip of its training data.

    Raises:
      ValueError: the clip is not 16 x 112 x 112.
    """
    if video.shape[1:] != (FRAMES, SIDE, SIDE, 3):
      raise ValueError(f"C3D reads {FRAMES} x {SIDE} x {SIDE} RGB, not {video.shape[1:]}")
    shape = [FRAMES, SIDE, SIDE, 3]
    offset = weight(self, "offset", shape=shape, axes=[None] * 4, init=zeros)
    x, found = video[..., ::-1] + offset, {}
    for i, stage in enumerate(STAGES):
      for name, width in stage.items():
        x = jax.nn.relu(Convolution(width, (3, 3, 3), init=for_relu(4), name=name)(x))
        found[name] = x
      window = (1 if i == 0 else 2, 2, 2)
      # Caffe's pools keep a last row and column that their window does not fill: 7 becomes 4.
      around = [(0, -size % k) for size, k in zip(x.shape[1:-1], window, strict=True)]
      x = max_pool(x, window=window, strides=window, padding=around)
    x = found["pool5"] = rearrange(x, "b t h w c -> b (c t h w)")
    for name in ("fc6", "fc7"):
      x = found[name] = jax.nn.relu(Linear(HIDDEN, (None, None), init=for_relu(1), name=name)(x))
    found["logits"] = Linear(self.classes, (None, None), name="fc8")(x)
    found["probabilities"] = jax.nn.softmax(found["logits"])
    return found
