"""Resizing as other people's metrics do it, by name, usable inside jit.

A score depends on the kernel with which its samples were brought to the network's size. A kernel
is a matrix for each axis, made once; what is computed is a product of matrices in float32 at full
precision, whatever the device. The `pil_` kernels work on bytes and give Pillow's very bytes.
"""

import functools
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

Kernel = Literal[
  "tf1_bilinear",
  "bilinear",
  "bilinear_aligned",
  "bicubic",
  "bilinear_antialias",
  "bicubic_antialias",
  "pil_bilinear",
  "pil_bicubic",
]
KERNELS: tuple[str, ...] = get_args(Kernel)
PIL_BITS = 22  # fixed point of Pillow's weights for bytes


def resize(
  images: Num[Array | np.ndarray, "*b h w c"], *, height: int, width: int, kernel: Kernel
) -> Num[Array, "*b new_h new_w c"]:
  """Images of another size, the aspect ratio as it comes; float32, neither rounded nor clipped.

  tf1_bilinear: TensorFlow 1's `resize_bilinear`: corner of pixel 0 on corner of pixel 0, two taps.
  bilinear, bicubic: PyTorch's `interpolate` (half-pixel centres, no antialias, a = -0.75).
  bilinear_aligned: the same with `align_corners`, as Chainer resizes.
  bilinear_antialias, bicubic_antialias: the filter grows with the reduction (a = -0.5), as in
    Pillow for float images and PyTorch with `antialias`.
  pil_bilinear, pil_bicubic: Pillow for bytes: uint8 in and out, rounded and clipped after either
    axis, width before height. Pillow 13 and later take the height first where it shrinks much more
    than the width, which gives a few other bytes; where the aspect ratio is kept it is the same.

  Raises:
    ValueError: an unknown kernel, or a `pil_` one for values that are not bytes.
  """
  if kernel not in KERNELS:
    raise ValueError(f"unknown kernel {kernel!r}; known are {', '.join(KERNELS)}")
  h, w = images.shape[-3:-1]
  if kernel.startswith("pil_"):
    if images.dtype != jnp.uint8:
      raise ValueError(f"{kernel} resizes uint8, not {images.dtype}")
    x = _pil_pass("...hwc,vw->...hvc", jnp.asarray(images), w, width, kernel)
    return _pil_pass("...hwc,vh->...vwc", x, h, height, kernel)
  x = jnp.asarray(images).astype(jnp.float32)
  rows, columns = matrix(h, height, kernel), matrix(w, width, kernel)
  x = jnp.einsum("...hwc,vw->...hvc", x, columns, precision=jax.lax.Precision.HIGHEST)
  return jnp.einsum("...hwc,vh->...vwc", x, rows, precision=jax.lax.Precision.HIGHEST)


def short_side(
  height: int, width: int, *, size: int, rounding: Literal["down", "up"] = "down"
) -> tuple[int, int]:
  """The size at which the shorter side is `size`; the longer is rounded "down" as in torchvision.

  "up" is the rule of VideoGPT's FVD.
  """
  short, long = min(height, width), max(height, width)
  # The rounding of `size / short` in "up" is VideoGPT's own, and may add a pixel.
  other = size * long // short if rounding == "down" else math.ceil(long * (size / short))
  return (size, other) if height <= width else (other, size)


def centre_crop(
  images: Num[Array | np.ndarray, "*b h w c"],
  *,
  height: int,
  width: int,
  rounding: Literal["even", "down"] = "even",
) -> Num[Array | np.ndarray, "*b new_h new_w c"]:
  """The middle of images; of half pixels, "even" takes the even offset as torchvision does.

  Raises:
    ValueError: images smaller than the crop.
  """
  h, w = images.shape[-3:-1]
  if h < height or w < width:
    raise ValueError(f"no crop of {height}x{width} in images of {h}x{w}")
  top, left = (
    round(more / 2) if rounding == "even" else more // 2 for more in (h - height, w - width)
  )
  return images[..., top : top + height, left : left + width, :]


@functools.lru_cache(maxsize=256)
def matrix(length: int, new_length: int, kernel: Kernel) -> Float[np.ndarray, "new old"]:
  """float32 weights of every old pixel (columns) in every new one (rows) along one axis."""
  if kernel.startswith("pil_") or kernel.endswith("_antialias"):
    weights = _antialiased(length, new_length, cubic="bicubic" in kernel)
  elif kernel == "bicubic":
    weights = _cubic_taps(length, new_length)
  else:
    weights = _linear_taps(length, new_length, kernel)
  weights = weights.astype(np.float32)
  weights.setflags(write=False)  # it is shared
  return weights


def _linear_taps(length: int, new_length: int, kernel: str) -> np.ndarray:
  """Two taps a pixel; positions in float32, as the originals compute them."""
  new = np.arange(new_length, dtype=np.float32)
  if kernel == "bilinear_aligned":
    scale = np.float32(length - 1) / np.float32(max(new_length - 1, 1))
    place = new * scale
  else:
    scale = np.float32(length) / np.float32(new_length)
    half = np.float32(0.5)
    place = new * scale if kernel == "tf1_bilinear" else (new + half) * scale - half
  place = np.maximum(place, np.float32(0))
  low = np.minimum(np.floor(place).astype(int), length - 1)
  high = np.minimum(low + 1, length - 1)
  part = place - low.astype(np.float32)
  weights = np.zeros((new_length, length))
  rows = np.arange(new_length)
  np.add.at(weights, (rows, low), np.float32(1) - part)
  np.add.at(weights, (rows, high), part)
  return weights


def _cubic_taps(length: int, new_length: int) -> np.ndarray:
  """Four taps a pixel; beyond the border lies the border's pixel."""
  scale = np.float32(length) / np.float32(new_length)
  place = (np.arange(new_length, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
  low = np.floor(place)
  weights = np.zeros((new_length, length))
  for tap in range(-1, 3):
    column = np.clip(low.astype(int) + tap, 0, length - 1)
    distance = (place - low).astype(np.float64) - tap
    np.add.at(weights, (np.arange(new_length), column), _cubic(distance, a=-0.75))
  return weights


def _antialiased(length: int, new_length: int, *, cubic: bool) -> np.ndarray:
  """float64 weights of Pillow's filters: what falls outside is cut, the rest sums to 1."""
  scale = length / new_length
  wide = max(scale, 1.0)
  reach = (2.0 if cubic else 1.0) * wide
  weights = np.zeros((new_length, length))
  for i in range(new_length):
    centre = (i + 0.5) * scale
    first, last = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), length)
    distance = (np.arange(first, last) - centre + 0.5) / wide
    row = _cubic(distance, a=-0.5) if cubic else np.maximum(1 - np.abs(distance), 0)
    weights[i, first:last] = row / row.sum()
  return weights


def _cubic(x: np.ndarray, *, a: float) -> np.ndarray:
  """Keys' cubic convolution kernel."""
  x = np.abs(x)
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = (((x - 5) * x + 8) * x - 4) * a
  return np.where(x < 1, near, np.where(x < 2, far, 0.0))


@functools.lru_cache(maxsize=256)
def _fixed_point(length: int, new_length: int, kernel: str) -> Int[np.ndarray, "3 new old"]:
  """Pillow's integer weights in three digits of eight bits, the lowest first."""
  weights = _antialiased(length, new_length, cubic="bicubic" in kernel) * 2.0**PIL_BITS
  fixed = np.trunc(weights + np.where(weights < 0, -0.5, 0.5)).astype(np.int64)
  digits = []
  for _ in range(3):
    digit = (fixed + 128) % 256 - 128
    digits.append(digit)
    fixed = (fixed - digit) // 256
  return np.stack(digits)


def _pil_pass(equation: str, x: Array, length: int, new_length: int, kernel: str) -> Array:
  """One axis. Bytes times signed bytes, and few of them: exact in float32, on any device."""
  if length == new_length:
    return x
  digits = _fixed_point(length, new_length, kernel)
  if np.count_nonzero(digits, axis=2).max() > 512:
    raise ValueError(f"{kernel}: {length} to {new_length} pixels is more than is exact")
  total = jnp.int32(1 << (PIL_BITS - 1))
  for place, digit in enumerate(digits):
    part = jnp.einsum(
      equation,
      x.astype(jnp.float32),
      digit.astype(np.float32),
      precision=jax.lax.Precision.HIGHEST,
    )
    total = total + (part.astype(jnp.int32) << (8 * place))
  return jnp.clip(total >> PIL_BITS, 0, 255).astype(jnp.uint8)
