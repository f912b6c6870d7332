"""A small text encoder over bytes, trained along with the network that reads it.

Bytes are gathered into words inside the network, so attention runs over words, of which there are
few. Token ids are ByT5's: 0 padding, 1 end of text, 2 unknown, byte + 3.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vidgen.nn.attention import MultiHeadAttention
from vidgen.nn.linear import GatedMLP
from vidgen.nn.norm import RMSNorm
from vidgen.nn.weights import fan_in, normal, weight

VOCABULARY = 259
END = 1
SPACE = ord(" ") + 3


def word_slots(
  tokens: Int[Array, "b l"], mask: Bool[Array, "b l"], *, words: int
) -> tuple[Int[Array, "b l"], Int[Array, "b l"]]:
  """For each byte its word and its place in that word, both from 0; word -1 means none.

  Words are split at spaces, which belong to no word; the end of text is a word of its own. Bytes
  of words past the first `words` belong to none.
  """
  index = jnp.arange(tokens.shape[1])
  space, end = tokens == SPACE, tokens == END
  starts = space | end
  word = jnp.cumsum(starts, axis=1)
  start = jax.lax.cummax(jnp.where(space, index + 1, jnp.where(end, index, 0)), axis=1)
  inside = mask & ~space & (word < words)
  return jnp.where(inside, word, -1), index - start


def words_cut(
  tokens: Int[Array, "b l"], mask: Bool[Array, "b l"], *, words: int
) -> Bool[Array, " b"]:
  """Which texts have more words than `words`, so that `word_slots` drops bytes of theirs.

  The end of text, though a word of its own, does not count: where it alone is dropped, all of the
  text is read.
  """
  word, _ = word_slots(tokens, mask, words=words)
  letters = mask & (tokens != SPACE) & (tokens != END)
  return (letters & (word < 0)).any(axis=1)


class ByteWordEncoder(nn.Module):
  """Bytes to one vector a word, then a small transformer over the words.

  A word's vector is the sum, over its bytes, of a learnt vector for (place in the word, byte):
  words of different spelling differ, and a word costs one look-up a byte. Places past the last
  share its table.
  """

  words: int
  width: int
  layers: int = 1
  heads: int = 4
  mlp_width: int = 256
  places: int = 12

  @nn.compact
  def __call__(
    self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"]
  ) -> tuple[Float[Array, "b v d"], Bool[Array, "b v"]]:
    """Word vectors, float32, and a mask that is True where there is a word."""
    word, place = word_slots(tokens, mask, words=self.words)
    table = weight(
      self,
      "byte_table",
      shape=[self.places, VOCABULARY, self.width],
      axes=[None, None, "embed"],
      init=normal(1.0),
    )
    vectors = table[jnp.minimum(place, self.places - 1), tokens]
    members = jax.nn.one_hot(word, self.words, dtype=jnp.float32)
    x = jnp.einsum("blv,bld->bvd", members, vectors)
    present = members.any(axis=1)
    x = RMSNorm(name="word_norm")(x)
    x = x + weight(
      self, "order_table", shape=[self.words, self.width], axes=[None, "embed"], init=normal(0.02)
    )
    mix = weight(self, "mix", shape=[self.width, self.width], axes=["embed", "mlp"], init=fan_in())
    x = x @ mix
    for i in range(self.layers):
      y = RMSNorm(name=f"attention_norm_{i}")(x)
      attend = MultiHeadAttention(
        heads=self.heads, head_size=self.width // self.heads, name=f"attention_{i}"
      )
      x = x + attend(y, y, mask=present)
      x = x + GatedMLP(self.mlp_width, name=f"mlp_{i}")(RMSNorm(name=f"mlp_norm_{i}")(x))
    return RMSNorm(name="out_norm")(x), present


def word_encoder_flops(encoder: ByteWordEncoder, *, length: int, batch: int = 1) -> float:
  """FLOPs of the matrix products of one pass over texts of `length` bytes, two a multiply-add."""
  d, v = encoder.width, encoder.words
  layer = 4 * v * d * d + 2 * v * v * d + 3 * v * d * encoder.mlp_width
  return 2.0 * batch * (length * v * d + v * d * d + encoder.layers * layer)
