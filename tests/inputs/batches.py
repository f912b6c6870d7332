"""Configs and helpers of the tests that read batches."""

import dataclasses

import numpy as np

from vidgen.inputs.config import Bucket, InputConfig
from vidgen.inputs.text import ByteTokenizer

VIDEO = Bucket(name="video", frames=4, height=16, width=16, fps=4.0)
IMAGE = Bucket(name="image", subset="image", frames=1, height=16, width=16, fps=1.0, weight=0.5)
ONE = InputConfig(buckets=(VIDEO,), text_length=16, caption_dropout=0.0, bad_fraction=1.0)
MIXED = dataclasses.replace(ONE, buckets=(VIDEO, IMAGE))


def take(dataset, count):
  iterator = iter(dataset)
  try:
    return [next(iterator) for _ in range(count)]
  finally:
    iterator.close()


def captions(batches):
  tokenizer = ByteTokenizer()
  return [tokenizer.decode(row) for batch in batches for row in batch["text"].tolist()]


def same(left, right):
  assert len(left) == len(right)
  for a, b in zip(left, right, strict=True):
    assert set(a) == set(b)
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])
