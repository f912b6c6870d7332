"""Video to tokens and back."""

from collections.abc import Sequence

from einops import rearrange
from jaxtyping import Array, Float

Grid = tuple[int, int, int]


def grid_of(shape: Sequence[int], *, patch: Grid) -> Grid:
  """Patches along t, h and w of a video of `shape` t x h x w.

  Raises:
    ValueError: a side is not a multiple of the patch.
  """
  if any(side % p for side, p in zip(shape, patch, strict=True)):
    raise ValueError(f"video of t x h x w {shape} does not divide into patches {patch}")
  return tuple(side // p for side, p in zip(shape, patch, strict=True))  # type: ignore[return-value]  # three in, three out


def patchify(x: Float[Array, "b t h w c"], *, patch: Grid) -> Float[Array, "b s p"]:
  """Cuts a video into tokens of pt * ph * pw * c values, t slowest."""
  t, h, w = patch
  grid_of(x.shape[1:4], patch=patch)
  return rearrange(x, "b (t x) (h y) (w z) c -> b (t h w) (x y z c)", x=t, y=h, z=w)


def unpatchify(x: Float[Array, "b s p"], *, grid: Grid, patch: Grid) -> Float[Array, "b t h w c"]:
  """The inverse of `patchify`; `grid` is the number of patches along t, h and w."""
  (t, h, w), (i, j, k) = grid, patch
  return rearrange(x, "b (t h w) (x y z c) -> b (t x) (h y) (w z) c", t=t, h=h, w=w, x=i, y=j, z=k)


def folded(x: Float[Array, "b t h w c"], patch: int) -> Float[Array, "b t _ _ _"]:
  """Each square of `patch` x `patch` pixels as the channels of one position."""
  b, t, h, w, c = x.shape
  x = x.reshape(b, t, h // patch, patch, w // patch, patch, c).transpose(0, 1, 2, 4, 3, 5, 6)
  return x.reshape(b, t, h // patch, w // patch, patch * patch * c)


def unfolded(x: Float[Array, "b t h w _"], patch: int) -> Float[Array, "b t _ _ c"]:
  """The pixels of what `folded` made."""
  b, t, h, w, c = x.shape
  x = x.reshape(b, t, h, w, patch, patch, c // patch**2).transpose(0, 1, 2, 4, 3, 5, 6)
  return x.reshape(b, t, h * patch, w * patch, c // patch**2)
