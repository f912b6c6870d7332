"""Inception-v3 of FID as torch-fidelity and pytorch-fid distribute it.

`weights-inception-2015-12-05-6726825d.pth` and `pt_inception-2015-12-05-6726825d.pth` are the same
conversion under the same names.
"""

from vidgen.interop.layout import Layout, Source
from vidgen.models.inception import BLOCKS, REDUCTIONS, STEM, InceptionV3


def inception_layout(network: InceptionV3) -> Layout:
  """Their blocks and branches bear the names of ours."""
  units = [name for name, of in STEM.items() if of is not None]
  for block, fields in BLOCKS.items():
    units += [f"{block}/{unit[0]}" for branch in fields["branches"] for unit in branch]
    units.append(f"{block}/branch_pool")
  for block, branches in REDUCTIONS.items():
    units += [f"{block}/{unit[0]}" for branch in branches for unit in branch]
  sources = {
    "fc_kernel": Source(("fc.weight",), "o i -> i o"),
    "fc_bias": Source(("fc.bias",)),
  }
  for path in units:
    theirs = path.replace("/", ".")
    sources[f"{path}/conv/kernel"] = Source((f"{theirs}.conv.weight",), "o i h w -> h w i o")
    for ours, name in (
      ("scale", "weight"),
      ("bias", "bias"),
      ("mean", "running_mean"),
      ("variance", "running_var"),
    ):
      sources[f"{path}/bn/{ours}"] = Source((f"{theirs}.bn.{name}",))
  return Layout(sources, ignored=(r".*\.num_batches_tracked",))
