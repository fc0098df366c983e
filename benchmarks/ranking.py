"""How many architectures of NAS-Bench-201 are scored in a second.

  python -m benchmarks.ranking [--cells=3 --channels=8 --image_size=16]
      [--images=512 --batch_size=512] [--number=64] [--norm=recalibrated]

A supernet with random weights on random images; prints one JSON object with
the rate without compilation, and the minutes that all 15,625 cells would take.
The papers' networks are --cells=15 --channels=16 --image_size=32.
"""

import argparse
import json

import jax
import numpy as np

from benchmarks import timing
from rome_jax import families, spaces
from rome_jax.devices import mesh as mesh_lib
from rome_jax.engine import weights
from rome_jax.spaces import Sizes, enumeration
from rome_jax.train import ranking

CLASSES = 10


def measure(cells: int = 3, channels: int = 8, image_size: int = 16,
            images: int = 512, batch_size: int = 512, number: int = 64,
            norm: str = 'batch', dtype: str = 'float32') -> dict:
  """Ranks `number` random cells; a JSON object.

  Args:
    cells, channels, image_size: of the supernet.
    images: scored for every cell, a multiple of `batch_size`.
    batch_size: images in a batch, and in the calibration batch.
    number: cells to score.
    norm, dtype: of `ranking.rank`.
  """
  space = spaces.NASBENCH201
  network = families.supernet(
      space, Sizes(cells, channels, CLASSES, image_size))
  theta = weights.init_supernet(network, 0, image_size, 3)
  rng = np.random.default_rng(0)

  def images_of(count):
    return rng.normal(size=(count, image_size, image_size, 3)).astype(
        np.float32)

  batches = [{'image': images_of(batch_size),
              'label': rng.integers(0, CLASSES, batch_size)}
             for _ in range(images // batch_size)]
  mesh = mesh_lib.make_mesh()
  scores = ranking.rank(
      network, theta, enumeration.distinct(space, number, rng), batches,
      norm=norm, dtype=dtype, mesh=mesh if mesh.size > 1 else None,
      calibration=images_of(batch_size) if norm == 'recalibrated' else None)
  return {
      'cells_per_second': scores.rate,
      'minutes_for_all': enumeration.size(space) / scores.rate / 60,
      'cells': cells, 'channels': channels, 'image_size': image_size,
      'images': images, 'batch_size': batch_size, 'norm': norm, 'dtype': dtype,
      'number': number, 'device': jax.devices()[0].device_kind,
      'devices': jax.device_count(), 'machine': timing.machine()}


def main(argv: list[str] | None = None) -> None:
  """Prints what `measure` says."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  defaults = dict(zip(measure.__annotations__, measure.__defaults__ or ()))
  for name, value in defaults.items():
    parser.add_argument(f'--{name}', type=type(value), default=value)
  print(json.dumps(measure(**vars(parser.parse_args(argv))), indent=2))


if __name__ == '__main__':
  main()
