"""Flags: what the user set stays, unknown versions get none, and XLA knows every flag."""

import os
import subprocess
import sys

import pytest

from vidgen.dist import flags
from vidgen.errors import ConfigError

NAMES = {platform: [g.name for g in flags.GROUPS if g.platform == platform] for platform in
         ("cpu", "gpu", "tpu")}  # fmt: skip


@pytest.fixture(autouse=True)
def any_machine(monkeypatch):
  """As on a machine that has all that groups ask for."""
  monkeypatch.setattr(flags, "_hindrance", lambda group: "")


def test_groups_are_named_once_and_say_why_and_by_whom():
  assert len({group.name for group in flags.GROUPS}) == len(flags.GROUPS)
  for group in flags.GROUPS:
    assert group.settings and group.reason and group.source
    assert group.name.startswith(group.platform)
    assert group.variable in (*flags.JOINED, "")


def test_what_the_user_set_is_kept_and_what_is_missing_is_added():
  mine = "--xla_gpu_enable_latency_hiding_scheduler=false --xla_dump_to=/tmp/x"
  added, lines = flags.additions({"XLA_FLAGS": mine, "HOME": "/"}, platform="gpu")
  assert added["XLA_FLAGS"].startswith(mine + " --xla_gpu_enable_pipelined_all_gather=true")
  assert added["XLA_FLAGS"].count("latency_hiding_scheduler") == 1
  assert added["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.9"
  assert "HOME" not in added
  assert "flags gpu-scheduler: set already" in lines


def test_a_variable_of_its_own_is_not_overridden():
  added, _ = flags.additions({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}, platform="gpu")
  assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in added


def test_the_allocator_takes_colons_and_keeps_the_users_choice():
  added, _ = flags.additions({"GLIBC_TUNABLES": "glibc.malloc.top_pad=2"}, platform="cpu")
  words = added["GLIBC_TUNABLES"].split(":")
  assert words[0] == "glibc.malloc.top_pad=2" and len(words) == 4


def test_setting_twice_changes_nothing():
  for platform in NAMES:
    first, _ = flags.additions({}, platform=platform)
    assert flags.additions(first, platform=platform)[0] == {}


def test_only_named_groups_are_set_where_groups_are_named():
  added, lines = flags.additions({}, platform="tpu", groups=("tpu-vmem",))
  assert added == {"LIBTPU_INIT_ARGS": "--xla_tpu_scoped_vmem_limit_kib=98304"}
  assert len(lines) == 1
  default, _ = flags.additions({}, platform="tpu")
  assert "vmem" not in default["LIBTPU_INIT_ARGS"]


def test_an_unknown_group_is_refused_and_the_known_ones_are_named():
  with pytest.raises(ConfigError, match="no group 'tpu-vmem' of flags for gpu; known: gpu-sched"):
    flags.additions({}, platform="gpu", groups=("tpu-vmem",))


@pytest.mark.parametrize("version, set_", [("0.9.2", False), ("0.10.2", True), ("0.12.1", True),
                                           ("0.13.0", False), ("1.0.0", False)])  # fmt: skip
def test_an_xla_that_the_flags_were_not_tried_with_gets_none(monkeypatch, version, set_):
  monkeypatch.undo()
  monkeypatch.setattr(flags.importlib.metadata, "version", lambda name: version)
  added, lines = flags.additions({}, platform="gpu", groups=("gpu-scheduler",))
  assert bool(added) == set_
  assert set_ or lines == [f"flags gpu-scheduler: not set, never tried with jaxlib {version}"]


def test_a_processor_without_the_instructions_does_not_get_the_group(monkeypatch):
  monkeypatch.undo()
  monkeypatch.setattr(flags, "_processor", lambda: "flags : sse2 avx2")
  added, lines = flags.additions({}, platform="cpu", groups=("cpu-convolutions",))
  assert not added and lines == ["flags cpu-convolutions: not set, this processor has no avx512f"]


def test_jax_platforms_decides_the_platform():
  assert [flags.platform({"JAX_PLATFORMS": p}) for p in ("cpu", "cuda", "tpu,cpu", "rocm")] == [
    "cpu", "gpu", "tpu", "gpu"
  ]  # fmt: skip


def test_nothing_is_set_once_jax_is_imported(monkeypatch):
  before = dict(os.environ)
  assert flags.apply() == ["flags: not set, jax is imported already"]
  assert dict(os.environ) == before


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
  clean = {k: v for k, v in os.environ.items() if k not in flags.JOINED}
  return subprocess.run(
    [sys.executable, "-c", code],
    env={**clean, "JAX_PLATFORMS": "cpu", **environment},
    capture_output=True, text=True, timeout=120,
  )  # fmt: skip


@pytest.mark.parametrize("platform", ["cpu", "gpu"])  # one parser reads both platforms' flags
def test_the_installed_xla_knows_every_flag(platform):
  added, _ = flags.additions({}, platform=platform, groups=tuple(NAMES[platform]))
  flag_count = sum(len(g.settings) for g in flags.GROUPS
                   if g.platform == platform and g.variable == "XLA_FLAGS")  # fmt: skip
  assert len(added["XLA_FLAGS"].split()) == flag_count
  done = python("import jax; print(jax.numpy.ones(3).sum())", **added)
  assert done.returncode == 0 and done.stdout == "3.0\n", done.stderr


def test_the_installed_xla_ends_at_a_flag_that_it_does_not_know():
  assert python("import jax; jax.devices()", XLA_FLAGS="--xla_no_such_flag=1").returncode != 0


def test_a_command_starts_with_the_allocators_settings_and_apply_says_it_cannot_set_them():
  show = "import os; print(os.environ.get('GLIBC_TUNABLES'))"
  command = [sys.executable, "-m", "vidgen.dist.flags", sys.executable, "-c", show]
  clean = {k: v for k, v in os.environ.items() if k not in flags.JOINED}
  done = subprocess.run(command, env=clean, capture_output=True, text=True, check=True, timeout=60)
  assert "glibc.malloc.arena_max=1:" in done.stdout
  code = (
    "from vidgen.dist.flags import apply; import os; "
    "print(apply()[0], os.environ.get('GLIBC_TUNABLES'))"
  )
  assert python(code).stdout.startswith("flags cpu-allocator: not set, only at the start: ")
  assert python(code).stdout.endswith("None\n")
  assert "set already" in python(code, **{"GLIBC_TUNABLES": done.stdout.strip()}).stdout


def test_a_command_starts_again_once_with_the_settings_of_the_allocator():
  code = (
    "import os, sys; from vidgen.dist import flags; print(os.getpid(), flush=True);"
    "flags.restart();"
    "print(os.environ['GLIBC_TUNABLES'], sys.argv[1])"
  )
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "glibc.malloc.perturb=0"}
  command = [sys.executable, "-c", code, "an argument"]
  out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
  first, again, rest = out.splitlines()
  assert first == again  # the same process
  assert rest.startswith("glibc.malloc.perturb=0:") and rest.endswith(" an argument")
  assert "glibc.malloc.mmap_max=0" in rest
