"""`vidgen train`, what it does beside training: where compiled programs are kept."""

import jax
import pytest

from vidgen.cli.train import default_cache, keep_compiled


@pytest.fixture
def cache():
  """The setting of jax, put back afterwards."""
  before = jax.config.jax_compilation_cache_dir
  yield lambda folder: jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_compilation_cache_dir", before)


def test_programs_are_kept_with_the_run_unless_the_user_has_a_place(cache, tmp_path):
  cache(None)
  keep_compiled(tmp_path / "compiled")
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compiled")
  keep_compiled(tmp_path / "elsewhere")
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compiled")


def test_programs_for_a_cpu_are_kept_only_if_asked(cache, tmp_path):
  assert default_cache(str(tmp_path)) is None
  cache(None)
  keep_compiled(None)
  assert jax.config.jax_compilation_cache_dir is None
