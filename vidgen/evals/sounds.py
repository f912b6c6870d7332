"""Scores of sounds: FAD, FD over PANNs, and the divergence of classes heard in pairs."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vidgen.errors import ConfigError
from vidgen.evals.audio_divergence import (
  MINIMUM_WINDOWS,
  frechet_audio_distance,
  kl_divergence,
  paired,
)
from vidgen.evals.folders import MediaSet
from vidgen.evals.frechet import frechet_distance
from vidgen.evals.protocol import Score
from vidgen.evals.scoring import Measured, Session


def fad(session: Session, name: str) -> Score:
  """The Frechet audio distance, over windows of VGGish.

  Raises:
    ConfigError: a divisor other than n - 1 is asked for, with which nobody measures it.
    DataError: too few windows, or sounds that cannot be read.
  """
  if session.settings.covariance == "n":
    raise ConfigError(f"--covariance n: {name} is measured with n-1")
  fake, real = session.sampled(name), session.referenced(name)
  least = 2 if session.settings.allow_small else MINIMUM_WINDOWS
  value = frechet_audio_distance(real.sums, fake.sums, minimum=least)
  return _score(session, name, {name: value}, fake, real, {"covariance": "n-1"})


def fd_panns(session: Session, name: str) -> Score:
  """The Frechet distance over whole sounds in the features of Cnn14.

  Raises:
    DataError: too few sounds, or some that cannot be read.
  """
  fake, real = session.sampled(name), session.referenced(name)
  session.guard(name, fake.sums.count, real.sums.count)
  divisor: Any = session.settings.covariance or "n-1"
  value = frechet_distance(real.sums, fake.sums, divisor=divisor)
  return _score(session, name, {name: value}, fake, real, {"covariance": divisor})


def audio_kl(session: Session, name: str) -> Score:
  """KL of the classes heard in a sound from those in the sound of the same name, in nats.

  Raises:
    DataError: sounds without their pair, or that cannot be read.
  """
  form = session.own_convention(name)
  fakes, reals, unpaired = session.pairs(name)
  fake, real = session.sampled(name), session.referenced(name)
  missing = "count" if session.settings.allow_missing else "refuse"
  pairs = paired(_named(reals, real), _named(fakes, fake), missing=missing)
  found = kl_divergence(pairs.real, pairs.fake, form=form)
  values = {name: found.forward, "reverse": found.reverse, "both": found.both}
  details = {"form": form, "pairs": found.count, "unpaired": unpaired + len(pairs.missing)}
  return _score(session, name, values, fake, real, details)


def _named(media: MediaSet, measured: Measured) -> Mapping[str, np.ndarray]:
  names = media.names
  return {names[i]: row for i, row in zip(measured.owners, measured.table, strict=True)}


def _score(
  session: Session,
  name: str,
  values: dict[str, float],
  fake: Measured,
  real: Measured,
  details: dict[str, Any],
) -> Score:
  record = session.record(
    name,
    facts=fake.facts,
    samples=fake.digest,
    reference=real.digest,
    extractor=session.extractor(name),
    details={"n_fake": fake.rows_count, "n_real": real.rows_count,
             "missing_real": real.facts.missing, "statistics": "float64", **details},
  )  # fmt: skip
  return Score(values, record)
