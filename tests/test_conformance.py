"""The README's conformance table, and how agreement is measured."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conformance import Case, check, measure

ROOT = Path(__file__).resolve().parent.parent


def test_the_readme_has_a_row_for_every_parity_check_and_no_other():
  command = [sys.executable, "tests/write_conformance.py", "--check"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout + done.stderr


def test_the_worst_of_all_pairs_is_what_counts():
  exact = np.array([3.0, 4.0])
  got = measure({"exact": (exact, exact), "off": (exact * [1, 1.5], exact)})
  assert got.absolute == 2 and got.relative == 0.5 and 0.9 < got.cosine < 1


@pytest.mark.parametrize(
  "ours", [np.ones(3), np.array([1.0, np.nan]), np.array([1.0, 1.1])], ids=["shape", "nan", "value"]
)
def test_a_check_fails_for_another_shape_value_or_number(ours):
  with pytest.raises(AssertionError):
    check(Case("module", "reference", "config", 1e-2, lambda: {"out": (ours, np.ones(2))}))


def test_a_check_of_nothing_fails():
  with pytest.raises(ValueError, match="nothing"):
    check(Case("module", "reference", "config", 1.0, dict))
