"""Trains four leaves one by one and side by side on forced CPU devices.

  python four_leaves.py

Prints whether weights, metrics and genotype are the same, bit for bit.
"""

import json
import os
import pathlib
import sys
import tempfile

os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=2'
os.environ['JAX_PLATFORMS'] = 'cpu'
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import tiny_plan  # noqa: E402  after the environment is set
from stopping import StopAfter  # noqa: E402
from tiny_run import final_arrays  # noqa: E402

from rome_jax import spaces  # noqa: E402
from rome_jax.devices import mesh as mesh_lib  # noqa: E402
from rome_jax.methods import table  # noqa: E402
from rome_jax.train import loop, metrics, plans, recipes  # noqa: E402

SPACE = spaces.Space(
    'split', ('avg_pool_3x3', 'skip_connect', 'nor_conv_1x1', 'nor_conv_3x3'),
    num_nodes=1)
RECIPE = recipes.SearchRecipe(
    cells=1, channels=2, epochs=2, batch_size=4, k=1, lr=.025, lr_end=0.,
    alpha_lr=.1, augment='none', split='few_shot', split_epochs='1')


def go(workdir, mesh, **fields):
  """{phase: (lines, arrays)} and the genotype of a search on a mesh."""
  setup = tiny_plan.setup_of(table.gdas, SPACE)._replace(mesh=mesh)
  with metrics.MetricsWriter(workdir, tensorboard=False) as writer:
    found = plans.run(
        setup, RECIPE._replace(**fields), recipes.RetrainRecipe(),
        tiny_plan.dataset(), 5, loop.Settings(workdir, 2, 2, 2), writer,
        StopAfter())
  lines = tiny_plan.lines(workdir)
  return found.genotype, {
      name: ([row for row in lines if row['phase'] == name],
             final_arrays(workdir, name))
      for name in ('search/root', *(f'search/leaf-0{i}' for i in range(1, 5)))}


if __name__ == '__main__':
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    turn = go(root / 'turn', mesh_lib.make_mesh(1, 1))
    together = go(root / 'together', mesh_lib.make_mesh(1, 2),
                  split_together=True)
  print(json.dumps({'genotype': turn[0] == together[0],
                    **{name: turn[1][name] == together[1][name]
                       for name in turn[1]}}))
