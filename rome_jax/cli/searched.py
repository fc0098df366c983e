"""The search of a run, read back: for commands that look at its supernet."""

import pathlib
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from rome_jax import data, errors, files
from rome_jax.cli import prepare as prepare_lib
from rome_jax.cli import run as run_lib
from rome_jax.config import checks, command_line, fields
from rome_jax.methods.method import full_mask
from rome_jax.methods.split import NO_SPLIT
from rome_jax.train import candidates, checkpoint, leaves


class Searched(NamedTuple):
  """What a run's search has left.

  Attributes:
    prepared: config, data and setup of the run, for a single device.
    state: of the newest checkpoint, nested dicts of NumPy arrays; of a search
      that split, the first leaf's.
    leaves: the supernets; of an unsplit search, one.
    steps: of the checkpoint of each.
  """

  prepared: prepare_lib.Prepared
  state: dict[str, Any]
  leaves: list[candidates.Leaf]
  steps: list[int]


def read(workdir: pathlib.Path, config: str | None = None,
         data_dir: str | None = None,
         dataset: data.Dataset | None = None) -> Searched:
  """Reads a run whose search is finished or still running.

  Args:
    workdir: its folder.
    config: a config file, run first for the operations and spaces of one's own
      that it adds.
    data_dir: where the images are now; None: where they were.
    dataset: instead of the one that the run's config names.

  Raises:
    UserError: the folder has no search, or the data have changed.
  """
  found = _config(workdir, config, data_dir)
  prepared = prepare_lib.prepare(found, dataset)
  _check_images(workdir, prepared.dataset)
  run_lib.use_compilation_cache(found.compilation_cache)
  space = prepared.setup.space
  if prepared.search.split == NO_SPLIT:
    state = checkpoint.read_tree(workdir / 'checkpoints' / 'search', 'state')
    one = candidates.Leaf(full_mask(space), state['theta'])
    return Searched(prepared, state, [one], [int(state['step'])])
  read = leaves.read(workdir, space)
  if not read:
    raise errors.UserError(f'the search in {workdir} has not split yet')
  return Searched(
      prepared, read[0][1],
      [candidates.Leaf(mask, state['theta']) for mask, state in read],
      [int(state['step']) for _, state in read])


def _config(workdir: pathlib.Path, file: str | None,
            data_dir: str | None) -> ConfigDict:
  """The run's config, for a single device: these commands spread otherwise."""
  if file is not None:
    command_line.load([f'--config={file}'])
  path = workdir / fields.FILENAME
  if not path.exists():
    raise errors.UserError(
        f'{workdir} is not the folder of a run: it has no {path.name}')
  config = checks.from_json(files.read_json(path))
  if config.genotype:
    raise errors.UserError(
        f'{workdir} has no supernet: its run retrains '
        f'config.genotype={config.genotype}')
  config.mesh.data = config.mesh.sample = 1
  if data_dir is not None:
    config.data_dir = data_dir
  return config


def _check_images(workdir, dataset):
  if run_lib.other_data(workdir, dataset):
    raise errors.UserError(
        f'the images, labels or splits of {dataset.name} have changed since '
        f'the run in {workdir}; give its own with --data-dir')
