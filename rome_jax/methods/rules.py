"""Gradient rules: where the gradient of one update comes from.

A rule is (objective, update, state, batches, key) -> ((loss, metrics),
gradients), gradients of `update.params`: of theta, of the architecture, or a
pair of both. `step.Objective` sums over K samples and over devices, so a rule
never sees a sample.
"""

from collections.abc import Mapping
from typing import Any

import jax

from rome_jax.methods.method import State, Update


def first_order(objective: Any, update: Update, state: State,
                batches: Mapping[str, Any], key: jax.Array) -> tuple[Any, Any]:
  """The gradient at the present theta and architecture (DARTS, xi = 0)."""
  return objective.gradient(
      update.params, state.theta, state.arch, batches[update.batch], key,
      state.mask)
