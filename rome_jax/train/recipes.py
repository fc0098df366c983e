"""Recipes: what a search and a retraining are told, and the defaults.

This is the one place where a default stands; `config.fields` reads it here
and says what each field means, what it may be and where it is from.
"""

import math
from typing import NamedTuple

from rome_jax import errors
from rome_jax.methods.evolve import SPOS


class SearchRecipe(NamedTuple):
  """How to search: the fields of a config's `search` section.

  The defaults are those of ROME and, where its paper is silent, of DARTS.

  >>> SearchRecipe(k=4).epochs
  50
  """

  cells: int = 8
  channels: int = 16
  epochs: int = 50
  max_steps: int = 0
  batch_size: int = 64
  k: int = 7
  samples: str = 'auto'
  evaluator: str = 'auto'
  dtype: str = 'float32'
  accumulate: int = 1
  sampler: str = 'iid'
  order: str = 'alpha_first'
  theta_reduce: str = 'sum'
  alpha_reduce: str = 'mean'
  tau_start: float = 10.
  tau_end: float = .1
  tau_schedule: str = 'linear'
  tau_per: str = 'epoch'
  lr: float = .05
  lr_end: float = .001
  lr_per: str = 'epoch'
  momentum: float = .9
  nesterov: bool = False
  weight_decay: float = 3e-4
  clip_norm: float = 5.
  alpha_start: int = 0
  alpha_lr: float = 3e-4
  alpha_b1: float = .5
  alpha_b2: float = .999
  alpha_weight_decay: float = 1e-3
  alpha_clip: float = 0.
  alpha_init: float = 1e-3
  beta_init: float = 1e-3
  scalar_gates: bool = False
  fraction_theta: float = .5
  fraction_alpha: float = .5
  augment: str = 'cifar'
  cutout: int = 0
  cutout_ramp: bool = False
  drop_path: float = 0.
  skip_dropout: float = 0.
  stage_cells: str = '5,11,17'
  stage_keep: str = '5,3'
  stage_skip_dropout: str = '0.,0.,0.'
  candidates: int = 0
  evolution: str = 'random'
  population: int = SPOS.population
  parents: str = SPOS.parents
  select: int = SPOS.select
  crossover: int = SPOS.crossover
  mutation: int = SPOS.mutation
  mutation_rate: float = SPOS.mutation_rate
  max_params: int = SPOS.max_params
  max_macs: int = SPOS.max_macs
  calibration: int = 0
  gap_batches: int = -1
  eigenvalue_every: int = 0
  path_law: str = 'shared'
  path_delta: float = 0.
  unbiased: bool = False
  split: str = 'none'
  split_epochs: str = ''
  split_groups: str = '2'
  split_sizes: str = ''
  split_rule: str = 'between'
  split_cells: str = 'normal'
  split_site: int = 0
  split_batches: int = 100
  split_shared: str = 'auto'
  split_soft: bool = False
  split_inherit: str = 'nothing'
  split_choice: str = 'valid'
  split_rungs: str = ''
  split_together: bool = False


class RetrainRecipe(NamedTuple):
  """How to retrain: the fields of a config's `retrain` section.

  The defaults are those of DARTS on CIFAR-10.

  >>> RetrainRecipe(drop_path=.3).epochs
  600
  """

  cells: int = 20
  channels: int = 36
  epochs: int = 600
  batch_size: int = 96
  dtype: str = 'float32'
  accumulate: int = 1
  remat: str = 'none'
  lr: float = .025
  lr_end: float = 0.
  lr_schedule: str = 'cosine'
  warmup_epochs: int = 0
  momentum: float = .9
  nesterov: bool = False
  weight_decay: float = 3e-4
  clip_norm: float = 5.
  drop_path: float = .2
  auxiliary: bool = True
  auxiliary_weight: float = .4
  auxiliary_norm: str = 'darts'
  cutout: int = -1
  label_smoothing: float = 0.
  augment: str = 'cifar'
  seeds: int = 1
  random_architectures: int = 0
  eval_every: int = 1
  eval_batch_size: int = 0
  holdout: float = 0.
  init_from: str = ''
  ema: float = 0.
  rand_augment: int = 0
  rand_magnitude: int = 9
  keep_best: bool = False


def numbers(name: str, text: str, kind: type, low: int) -> tuple:
  """The numbers of a text field of `search`; () of ''.

  Args:
    name: of the field.
    text: numbers separated by commas.
    kind: int or float.
    low: the smallest that is allowed.

  Raises:
    UserError: naming the field, its value and what is allowed.

  >>> numbers('stage_cells', '5,11,17', int, 1)
  (5, 11, 17)
  """
  found = []
  for word in text.split(',') if text.strip() else ():
    try:
      found.append(kind(word))
      if not low <= found[-1] < math.inf:
        raise ValueError
    except ValueError:
      what = 'whole numbers' if kind is int else 'numbers'
      raise errors.UserError(
          f'config.search.{name}={text!r} must be {what} of at least {low} '
          f'separated by commas, not {word.strip()!r}') from None
  return tuple(found)
