"""Configs: every wrong key, type or number is an error that names the key by its full path."""

import dataclasses
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from vidgen import config as cfg
from vidgen.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Inner:
  rate: float = 0.1
  mode: Literal["a", "b"] = "a"


@dataclasses.dataclass(frozen=True)
class Outer:
  size: int
  inner: Inner = Inner()
  many: tuple[Inner, ...] = ()
  pair: tuple[int, str] = (1, "x")
  maybe: int | None = None

  def __post_init__(self):
    if self.size < 0:
      raise ValueError(f"size must not be negative, got {self.size}")


def test_builds_nested_dataclasses_with_defaults():
  tree = ConfigDict({"size": 3, "inner": {"rate": 2}, "many": [{"mode": "b"}], "pair": (2, "y")})
  assert cfg.build(Outer, tree) == Outer(3, Inner(2.0), (Inner(mode="b"),), (2, "y"))


@pytest.mark.parametrize(
  ("tree", "message"),
  [
    ({"size": 1, "sise": 2}, "config.sise: unknown key"),
    ({}, "config.size: missing"),
    ({"size": "1"}, "config.size: expected int"),
    ({"size": True}, "config.size: expected int"),
    ({"size": 1.0}, "config.size: expected int"),
    ({"size": -1}, "size must not be negative"),
    ({"size": 1, "inner": {"rate": float("nan")}}, "config.inner.rate: nan is not a finite"),
    ({"size": 1, "inner": {"mode": "c"}}, "config.inner.mode: 'c' is not one of a, b"),
    ({"size": 1, "inner": 5}, "config.inner: expected a group"),
    ({"size": 1, "many": [{"rate": "x"}]}, r"config.many\[0\].rate: expected float"),
    ({"size": 1, "pair": (1,)}, "config.pair: expected 2 values"),
    ({"size": 1, "maybe": "x"}, "config.maybe: expected int"),
  ],
)
def test_bad_trees_are_refused_by_key(tree, message):
  with pytest.raises(ConfigError, match=message):
    cfg.build(Outer, tree)


scalars = (
  st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
trees = st.recursive(
  scalars | st.text(), lambda t: st.lists(t) | st.dictionaries(st.text(), t), max_leaves=20
)


@given(st.dictionaries(st.text(), trees))
def test_digest_ignores_the_order_of_keys(tree):
  turned = dict(reversed(list(tree.items())))
  assert cfg.digest(tree) == cfg.digest(turned)
  assert cfg.differences(tree, turned) == []


def test_differences_name_every_leaf():
  old = {"a": {"b": 1, "c": 2}, "d": [1]}
  assert cfg.differences(old, {"a": {"b": 3, "c": 2}, "e": 4}) == [
    "a.b: 1 -> 3",
    "d: [1] -> '(absent)'",
    "e: '(absent)' -> 4",
  ]


def test_overrides_are_typed_by_the_dataclass_and_named_when_unknown(tmp_path):
  recipe = tmp_path / "recipe.py"
  recipe.write_text(
    "from ml_collections import ConfigDict\n"
    "def get_config(arg='small'):\n"
    "  return ConfigDict({'size': {'small': 1, 'large': 9}[arg]})\n"
  )
  overrides = cfg.parse_overrides(["--config.inner.rate=1e-3", "--config.maybe=4"])
  built = cfg.build(Outer, cfg.load_config(f"{recipe}:large", overrides))
  assert built == Outer(9, Inner(rate=1e-3), maybe=4)
  with pytest.raises(ConfigError, match="config.innner: unknown key"):
    cfg.build(Outer, cfg.load_config(str(recipe), {"innner.rate": 1}))
  with pytest.raises(ConfigError, match="unknown variant 'huge'"):
    cfg.load_config(f"{recipe}:huge")
  with pytest.raises(ConfigError, match="no such file"):
    cfg.load_config(str(tmp_path / "absent.py"))
  with pytest.raises(ConfigError, match="given twice"):
    cfg.parse_overrides(["--config.a=1", "--config.a=2"])
  with pytest.raises(ConfigError, match="unknown argument"):
    cfg.parse_overrides(["--steps=1"])


def test_override_values_are_literals_never_code():
  assert cfg.parse_overrides(["--config.a=__import__('os').getcwd()"]) == {
    "a": "__import__('os').getcwd()"
  }
