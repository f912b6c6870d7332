"""VGGish as torchvggish names its weights."""

from vidgen.interop.layout import Layout, Source
from vidgen.models.vggish import VGGish

# Places of the convolutions in their sequence of convolutions, ReLUs and poolings.
_CONVOLUTIONS = {
  "conv0_0": 0,
  "conv1_0": 3,
  "conv2_0": 6,
  "conv2_1": 8,
  "conv3_0": 11,
  "conv3_1": 13,
}
_LINEAR = {"hidden0": 0, "hidden1": 2, "embedding": 4}


def vggish_layout(_: VGGish) -> Layout:
  """`features.N` and `embeddings.N`; the PCA that may lie beside them (`pproc`) is left alone.

  The first linear layer reads time, frequency, channel there too, so it needs no reordering.
  """
  sources = {}
  for name, place in _CONVOLUTIONS.items():
    sources[f"{name}/kernel"] = Source((f"features.{place}.weight",), "o i h w -> h w i o")
    sources[f"{name}/bias"] = Source((f"features.{place}.bias",))
  for name, place in _LINEAR.items():
    sources[f"{name}/kernel"] = Source((f"embeddings.{place}.weight",), "o i -> i o")
    sources[f"{name}/bias"] = Source((f"embeddings.{place}.bias",))
  return Layout(sources, ignored=(r"pproc\..*",))
