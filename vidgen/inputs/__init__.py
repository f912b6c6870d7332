"""Inputs: shards to batches. `pipeline.make_dataset` is the way in; `check` reads a set whole.

Sources give random access over tar, ArrayRecord and TFDS; `loader` decodes and quarantines;
`order` says which example stands where, as a function of seed and position alone. `streams` are
what frozen text encoders read of captions; `embed` writes what they make of them beside the data.
"""
