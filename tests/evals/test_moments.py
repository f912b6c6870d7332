"""The sums are exact: any batches, order and number of hosts give the same bits."""

import io
import os
import socket
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from run_gathered import features

from vidgen.errors import DataError
from vidgen.evals import moments as moments_module
from vidgen.evals.frechet import frechet_distance
from vidgen.evals.moments import Moments, from_bytes, gathered, merged, moments_of

FEATURES = np.random.default_rng(0).normal(3, 2, (5000, 6)).astype(np.float32)

any_floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
any_features = arrays.arrays(
  np.float32, st.tuples(st.integers(2, 12), st.just(3)), elements=any_floats
)


def added(features, sizes):
  """In batches of these sizes, over and over."""
  moments, start, i = Moments(features.shape[1]), 0, 0
  while start < len(features):
    moments.add(features[start : start + sizes[i % len(sizes)]])
    start, i = start + sizes[i % len(sizes)], i + 1
  return moments


def bits(moments):
  return moments.digest(), moments.mean().tobytes(), moments.covariance().tobytes()


@pytest.mark.parametrize("sizes", [[1], [16], [7, 1000, 3], [4096], [4999]], ids=str)
def test_batch_size_changes_no_bit(sizes):
  assert bits(added(FEATURES, sizes)) == bits(moments_of(FEATURES))


@pytest.mark.parametrize("hosts", [1, 2, 3, 8, 64])
def test_the_number_of_hosts_changes_no_bit(hosts):
  parts = [moments_of(FEATURES[i::hosts]) for i in range(hosts)]
  assert bits(merged(parts)) == bits(merged(parts[::-1])) == bits(moments_of(FEATURES))


@given(any_features, st.lists(st.integers(1, 5), min_size=1, max_size=4), st.randoms(), st.data())
@settings(max_examples=60, deadline=None)
def test_no_split_and_no_order_of_any_floats_changes_a_bit(features, sizes, random, data):
  order = list(range(len(features)))
  random.shuffle(order)
  cut = data.draw(st.integers(0, len(features)))
  first, second = features[order[:cut]], features[order[cut:]]
  with np.errstate(all="ignore"):  # squares of the largest floats, as float64
    split = merged([added(first, sizes), moments_of(second)])
    assert split.digest() == moments_of(features).digest()
    assert split.mean().tobytes() == moments_of(features).mean().tobytes()
    assert split.covariance().tobytes() == moments_of(features).covariance().tobytes()


def test_means_of_hosts_and_a_dropped_last_batch_are_told_apart():
  """Two classic mistakes: covariances averaged over hosts, and N / batch rounded down."""
  parts = [moments_of(FEATURES[:3000]), moments_of(FEATURES[3000:])]
  averaged = np.mean([part.covariance() for part in parts], axis=0)
  whole = moments_of(FEATURES)
  assert np.max(np.abs(averaged - whole.covariance())) > 1e-5
  assert moments_of(FEATURES[: 5000 // 16 * 16]).digest() != whole.digest()


def test_plain_sums_would_change_with_the_order():
  """Else the tests above would show nothing."""
  x = FEATURES.astype(np.float64)
  assert (x.T @ x).tobytes() != (x[::-1].T @ x[::-1]).tobytes()


@given(any_features)
@settings(max_examples=30, deadline=None)
def test_mean_and_covariance_are_those_of_fractions(features):
  x = [[Fraction(float(v)) for v in row] for row in features]
  n = len(x)
  means = [sum(column) / n for column in zip(*x, strict=True)]
  moments = moments_of(features)
  np.testing.assert_allclose(moments.mean(), [float(m) for m in means], rtol=1e-15)
  for i in range(3):
    for j in range(3):
      exact = sum((row[i] - means[i]) * (row[j] - means[j]) for row in x) / (n - 1)
      np.testing.assert_allclose(moments.covariance()[i, j], float(exact), rtol=1e-14)


def test_covariance_is_numpys_for_both_divisors():
  moments = moments_of(FEATURES)
  x = FEATURES.astype(np.float64)
  np.testing.assert_allclose(moments.covariance(), np.cov(x, rowvar=False), rtol=1e-11, atol=1e-14)
  np.testing.assert_allclose(
    moments.covariance(divisor="n"), np.cov(x, rowvar=False, ddof=0), rtol=1e-11, atol=1e-14
  )


def test_a_mean_far_from_the_origin_costs_no_precision():
  x = np.random.default_rng(1).integers(-8, 8, (40, 3)).astype(np.float32) / 16
  far = x + np.float32(2**18)
  assert (far - np.float32(2**18) == x).all()
  np.testing.assert_array_equal(moments_of(far).covariance(), moments_of(x).covariance())


def test_features_that_never_change_have_no_covariance():
  moments = moments_of(np.full((10, 4), 0.1, np.float32))
  assert (moments.covariance() == 0).all()
  assert frechet_distance(moments, moments) == 0


def test_the_callers_array_may_be_written_again():
  buffer = np.ones((2, 3), np.float32)
  moments = Moments(3)
  moments.add(buffer)
  buffer[:] = 5
  assert (moments.mean() == 1).all()


def test_a_file_holds_all_of_it():
  data = moments_of(FEATURES).to_bytes()
  read = from_bytes(data, where="stats.npz")
  assert bits(read) == bits(moments_of(FEATURES))
  assert bits(merged([read, moments_of(FEATURES)])) == bits(
    moments_of(np.concatenate([FEATURES, FEATURES]))
  )
  empty = from_bytes(Moments(4).to_bytes(), where="stats.npz")
  assert (empty.count, empty.width, empty.digest()) == (0, 4, Moments(4).digest())


def test_a_damaged_or_foreign_file_is_refused():
  data = bytearray(moments_of(FEATURES).to_bytes())
  for broken in (data[: len(data) // 2], b"", b"PK\x03\x04", data[:200] + b"\0" + data[201:]):
    with pytest.raises(DataError, match="stats.npz"):
      from_bytes(bytes(broken), where="stats.npz")


def test_a_changed_count_is_refused(tmp_path):
  (tmp_path / "stats.npz").write_bytes(moments_of(FEATURES).to_bytes())
  with np.load(tmp_path / "stats.npz", allow_pickle=False) as file:
    held = dict(file)
  np.savez(tmp_path / "changed.npz", **(held | {"count": np.array(4)}))
  with pytest.raises(DataError, match="changed.npz: damaged: its digest differs"):
    from_bytes((tmp_path / "changed.npz").read_bytes(), where="changed.npz")


def test_a_file_that_would_unpack_to_more_than_moments_have_is_refused(tmp_path, monkeypatch):
  with np.load(io.BytesIO(moments_of(FEATURES).to_bytes()), allow_pickle=False) as file:
    held = {name: file[name] for name in file.files if name not in ("digest", "format")}
  wide = held | {"width": np.array(1 << 40)}  # whose triangle no memory holds
  wide["digest"] = np.array(moments_module._digest(wide))
  wide["format"] = np.array(moments_module.FORMAT)
  np.savez(tmp_path / "wide.npz", allow_pickle=False, **wide)
  with pytest.raises(DataError, match=r"wide\.npz: its sums are not those of \d+ features"):
    from_bytes((tmp_path / "wide.npz").read_bytes(), where="wide.npz")
  monkeypatch.setattr(moments_module, "MAX_BYTES", 100)
  with pytest.raises(DataError, match="bytes when unpacked, more than moments have"):
    from_bytes(moments_of(FEATURES).to_bytes(), where="stats.npz")


def test_what_cannot_be_added_is_refused_by_name():
  moments = moments_of(FEATURES)
  bad = FEATURES[:4].copy()
  bad[2, 1] = np.nan
  with pytest.raises(DataError, match="features of sample 5002 are not finite"):
    moments.add(bad)
  with pytest.raises(ValueError, match=r"must be float32 \[b, 6\], not float64 \[4, 6\]"):
    moments.add(FEATURES[:4].astype(np.float64))
  with pytest.raises(ValueError, match=r"not float32 \[4, 5\]"):
    moments.add(FEATURES[:4, :5])
  with pytest.raises(ValueError, match="widths"):
    merged([moments, Moments(5)])
  assert bits(moments) == bits(moments_of(FEATURES))  # nothing of it was taken in


def test_one_sample_has_a_mean_and_no_covariance():
  one = moments_of(FEATURES[:1])
  assert (one.mean() == FEATURES[0]).all()
  with pytest.raises(DataError, match="two samples or more, there are 1"):
    one.covariance()
  with pytest.raises(DataError, match="no sample"):
    Moments(6).mean()
  assert gathered(one) is one


def test_processes_gather_what_one_process_has():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  script = Path(__file__).with_name("run_gathered.py")
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  processes = [
    subprocess.Popen(
      [sys.executable, str(script), address, str(i)],
      stdout=subprocess.PIPE,
      text=True,
      env=environment,
    )
    for i in range(3)
  ]
  said = [process.communicate(timeout=120)[0].split() for process in processes]
  assert [words[-1] for words in said] == [moments_of(features()).digest()] * 3
