"""A run of seconds, for tests that start real processes."""

import jax
import numpy as np
import orbax.checkpoint as ocp

CONFIG = """
from rome_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.space = 'tiny'
  config.dataset = 'digits'
  config.log_every = 3
  config.checkpoint_every = 4
  config.compilation_cache = {cache!r}
  search = config.search
  search.cells = 2
  search.channels = 2
  search.k = 2
  search.batch_size = 16
  search.max_steps = 30
  search.augment = 'shift'
  search.alpha_lr = .05
  retrain = config.retrain
  retrain.cells = 2
  retrain.channels = 2
  retrain.epochs = 1
  retrain.batch_size = 48
  retrain.augment = 'shift'
  retrain.auxiliary = False
  retrain.cutout = 2
  retrain.seeds = 1
  retrain.drop_path = .2
  return config
"""


def final_arrays(workdir, phase):
  """{leaf: bytes} of a phase's last checkpoint, read without a target."""
  folder = sorted((workdir / 'checkpoints' / phase).iterdir())[-1]
  with ocp.PyTreeCheckpointer() as reader:
    tree = reader.restore(folder / 'state')
  return folder.name, [
      (jax.tree_util.keystr(path), np.asarray(leaf).tobytes())
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
