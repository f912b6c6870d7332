"""What a pipeline reads: samples by their number, whatever they are stored in.

A sample is a dict: "__shard__" and "__key__" (text), and suffix -> bytes. Every source is a Grain
random access source: `len`, `[i]`, a `repr` that does not change between runs. It is small when it
is sent to a worker process, which opens the files itself.
"""

from typing import Any, Protocol, runtime_checkable

from vidgen.errors import DataError
from vidgen.inputs.quarantine import BadSample

Sample = dict[str, Any]


class NoSuchSplit(DataError):
  """The data set has no such split; one that is there but bad is a DataError of another kind."""


@runtime_checkable  # so that the type checks of the tests can tell a source
class Source(Protocol):
  """Grain's random access source, and what is known of its shards."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Sample:
    """The `index`-th sample.

    Raises:
      BadSample: it is lost or damaged; named by shard and key.
      DataError: the storage failed, and went on failing; likewise.
    """
    ...

  def name(self, index: int) -> tuple[str, str]:
    """Shard and key of a sample, as far as they are known without reading it."""
    ...

  @property
  def shards(self) -> list[str]:
    """The names that "__shard__" takes."""
    ...

  @property
  def problems(self) -> list[BadSample]:
    """What is known to be wrong without reading payloads: damaged shards and lost samples."""
    ...

  def describe(self) -> list[dict[str, Any]]:
    """One dict a shard: "shard", "size" (bytes), "samples", "digest"."""
    ...


def caption_of(sample: Sample) -> str:
  """The caption of a sample, without space around it.

  Raises:
    BadSample: there is none, or it is not UTF-8.
  """
  if "txt" not in sample:
    raise BadSample("missing caption")
  try:
    caption = sample["txt"].decode("utf-8").strip()
  except UnicodeDecodeError as error:
    raise BadSample(f"the caption is not UTF-8: {error}") from error
  if not caption:
    raise BadSample("missing caption: the text is empty")
  return caption
