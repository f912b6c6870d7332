"""Cnn14 as PANNs names its weights."""

from vidgen.interop.layout import Layout, Source
from vidgen.models.cnn14 import Cnn14

FILTERS = "logmel_extractor.melW"  # the mel filters they were trained with
_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}


def cnn14_layout(network: Cnn14) -> Layout:
  """Blocks from 1, two convolutions and two norms each; the front end's constants are ignored."""
  sources = {f"norm/{ours}": Source((f"bn0.{theirs}",)) for ours, theirs in _NORM.items()}
  for block in range(len(network.channels)):
    for layer in range(2):
      theirs = f"conv_block{block + 1}"
      weight = f"{theirs}.conv{layer + 1}.weight"
      sources[f"conv{block}_{layer}/kernel"] = Source((weight,), "o i h w -> h w i o")
      for ours, name in _NORM.items():
        sources[f"norm{block}_{layer}/{ours}"] = Source((f"{theirs}.bn{layer + 1}.{name}",))
  for ours, theirs in (("embedding", "fc1"), ("classes", "fc_audioset")):
    sources[f"{ours}/kernel"] = Source((f"{theirs}.weight",), "o i -> i o")
    sources[f"{ours}/bias"] = Source((f"{theirs}.bias",))
  constants = (r"spectrogram_extractor\..*", r"logmel_extractor\..*", r".*\.num_batches_tracked")
  return Layout(sources, ignored=constants)
