"""How fast images load: threads of the run against processes of grain.

  python -m benchmarks.loading [FOLDER] [--images=20000] [--repeats=5]

Makes a folder of JPEGs like ImageNet's under FOLDER (default: the system's
temporary one), smooth random textures of 400 x 350 pixels and 100 KB in the
median, and deletes it afterwards. Nothing but loading runs: decoding, DARTS'
augmentation of ImageNet at 224 pixels, float32 batches. The ways take turns,
each after a warm-up, on other images each time.

`before` is the threads of 0.1.0's loader, whose colour jitter was Pillow's; all
ways give the same bytes. A rate per core is images per second
of processor time, of this process and its children, which other work on the
machine disturbs less. Prints JSON.
"""

import argparse
import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

from benchmarks import timing
from rome_jax import data
from rome_jax.data import augment, splits

_CLASSES = 50
_TEST_SHARE = .02
_CANVASES = 48  # textures that the images are cut out of
_CANVAS = 1000  # their side in pixels
_WIDTH, _HEIGHT, _SPREAD = 400, 350, .25  # medians; spread of the logarithm
_ROUGHNESS = .95  # amplitude of each octave, of that of the one before
_QUALITY = 95
_SIZE = 224


class Way(NamedTuple):
  """One of those that take turns: who loads, and whether as 0.1.0 did."""

  name: str
  reading: splits.Reading
  before: bool = False


WAYS = (
    Way('before, 1 thread', splits.Reading('threads', 1), True),
    Way('threads 1', splits.Reading('threads', 1)),
    Way('grain 1', splits.Reading('grain', 1)),
    Way('before, 2 threads', splits.Reading('threads', 2), True),
    Way('threads 2', splits.Reading('threads', 2)),
    Way('grain 2', splits.Reading('grain', 2)),
)


# ------------------------------------------------------------------- images


def texture(rng: np.random.Generator, side: int) -> np.ndarray:
  """A smooth random picture [side, side, 3] uint8 with detail at all scales."""
  total = np.zeros((side, side, 3), np.float32)
  cells, amplitude = 2, 1.
  while cells <= side:
    for c in range(3):
      grid = rng.normal(size=(cells + 1, cells + 1)).astype(np.float32)
      total[..., c] += amplitude * np.asarray(
          Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC))
    cells, amplitude = 2 * cells, amplitude * _ROUGHNESS
  gray = total.mean(-1, keepdims=True)
  total = gray + .4 * (total - gray)  # photographs are mostly grayish
  return np.clip(
      118 + 55 * (total - total.mean()) / total.std(), 0, 255).astype(np.uint8)


def make_folder(root: pathlib.Path, count: int) -> dict[str, float]:
  """Writes `count` JPEGs as train/CLASS/ and val/CLASS/; returns medians."""
  rng = np.random.default_rng(0)
  canvases = [Image.fromarray(texture(rng, _CANVAS)) for _ in range(_CANVASES)]

  def write(i):
    rng = np.random.default_rng([1, i])
    width, height = np.clip(np.array([_WIDTH, _HEIGHT]) * np.exp(
        rng.normal(0, _SPREAD, 2)), 100, _CANVAS).astype(int).tolist()
    x, y = (int(rng.integers(0, _CANVAS - side + 1))
            for side in (width, height))
    # At least two test images of each class, however few there are.
    test = i // _CLASSES < max(2, _TEST_SHARE * count / _CLASSES)
    folder = root / ('val' if test else 'train') / f'n{i % _CLASSES:08d}'
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{i:08d}.jpg'
    canvases[i % _CANVASES].crop((x, y, x + width, y + height)).save(
        path, quality=_QUALITY)
    return width, height, path.stat().st_size

  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    found = np.array(list(pool.map(write, range(count))))
  width, height, size = np.median(found, 0).tolist()
  return {'images': count, 'median_width': width, 'median_height': height,
          'median_bytes': size, 'total_bytes': int(found[:, 2].sum())}


# ------------------------------------------------------------------- timing


def color_jitter_before(images, rng, brightness, contrast, saturation, hue):
  """`augment.color_jitter` of colour images as 0.1.0 did it, by Pillow."""
  strengths = np.array([brightness, contrast, saturation])
  factors = rng.uniform(np.maximum(0, 1 - strengths), 1 + strengths,
                        (len(images), 3))
  shifts = rng.uniform(-hue, hue, (len(images), 1))
  orders = rng.permuted(np.tile(np.arange(4), (len(images), 1)), axis=1)
  return np.stack([
      _jitter_before(image, order, amounts) for image, order, amounts
      in zip(images, orders, np.concatenate([factors, shifts], 1))])


def _jitter_before(image, order, amounts):
  enhancers = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color
  picture = Image.fromarray(image)
  for change in order:
    if change < 3:
      picture = enhancers[change](picture).enhance(float(amounts[change]))
    elif amounts[3]:
      h, s, v = picture.convert('HSV').split()
      h = np.asarray(h) + np.uint8(int(amounts[3] * 255) % 256)
      picture = Image.merge('HSV', (Image.fromarray(h), s, v)).convert('RGB')
  return np.asarray(picture)


@contextlib.contextmanager
def _as(way):
  """The augmentation of a way, which threads of this process see."""
  now = augment.color_jitter
  augment.color_jitter = color_jitter_before if way.before else now
  try:
    yield
  finally:
    augment.color_jitter = now


def _cpu_seconds():
  """Processor time of this process and its living children (Linux)."""
  tick, total = os.sysconf('SC_CLK_TCK'), time.process_time()
  for child in multiprocessing.active_children():
    fields = pathlib.Path(f'/proc/{child.pid}/stat').read_text()
    user, system = fields.rpartition(')')[2].split()[11:13]
    total += (int(user) + int(system)) / tick
  return total


def measure(dataset: data.Dataset, way: Way, batch: int, start: int,
            count: int) -> tuple[float, float]:
  """(images/s, images per second of processor time) of `count` batches."""
  workers = way.reading.workers
  batches = data.Batches(
      splits.read_by(dataset, way.reading).train, None, batch, 0,
      data.make_transform('imagenet', dataset, train=True))
  ready = 3 * workers  # those that processes may have in hand
  with _as(way), data.prefetch(
      batches, start, start + 2 * ready + count) as ahead:
    for _ in range(ready):
      next(ahead)
    began, cpu = time.perf_counter(), _cpu_seconds()
    for _ in range(count):
      next(ahead)
    cpu, seconds = _cpu_seconds() - cpu, time.perf_counter() - began
  return batch * count / seconds, batch * count / cpu


def compare(dataset: data.Dataset, batch: int, count: int,
            repeats: int) -> list[dict]:
  """A row for each way, with the medians of `repeats` turns."""
  found: dict[str, list] = {way.name: [] for way in WAYS}
  start = 0
  for turn in range(repeats + 1):  # The first is a warm-up.
    for way in WAYS:
      rates = measure(dataset, way, batch, start, count)
      print(f'{turn}: {way.name}: {rates[0]:.0f} images/s, {rates[1]:.0f} per '
            'core', file=sys.stderr, flush=True)
      if turn:
        found[way.name].append(rates)
      start += count + 6 * way.reading.workers
  rows = []
  for way in WAYS:
    wall, core = zip(*found[way.name])
    # The ways of one turn met the same other work.
    before = found[next(other.name for other in WAYS if other.before and (
        other.reading.workers == way.reading.workers))]
    ratios = [mine / other for mine, (_, other) in zip(core, before)]
    rows.append({
        'way': way.name, 'images_per_second': statistics.median(wall),
        'per_core': statistics.median(core), 'per_core_min': min(core),
        'per_core_max': max(core), 'of_before': statistics.median(ratios),
        'of_before_min': min(ratios), 'of_before_max': max(ratios)})
  return rows


def stages(dataset: data.Dataset, count: int) -> dict[str, float]:
  """Milliseconds of processor time per image of each stage, in one thread."""
  rng = np.random.default_rng(0)
  spent = dict.fromkeys(
      ('read_and_decode', 'crop_and_resize', 'flip', 'jitter_before', 'jitter',
       'normalise'), 0.)

  def timed(name, call, *args, **options):
    began = time.process_time()
    result = call(*args, **options)
    spent[name] += 1e3 * (time.process_time() - began) / count
    return result

  for _ in range(0, count, 16):
    images = timed('read_and_decode', dataset.train.get,
                   rng.integers(0, len(dataset.train), 16))
    images = timed('crop_and_resize', augment.random_resized_crop, images, rng,
                   _SIZE)
    images = timed('flip', augment.flip, images, rng)
    timed('jitter_before', color_jitter_before, images, rng,
          **augment._JITTER)
    images = timed('jitter', augment.color_jitter, images, rng,
                   **augment._JITTER)
    timed('normalise', augment.normalize, images, dataset.mean, dataset.std)
  return spent


def _parse(argv):
  parser = argparse.ArgumentParser(
      prog='python -m benchmarks.loading', description=__doc__.splitlines()[0])
  parser.add_argument('folder', nargs='?', help='where the images are made')
  parser.add_argument('--images', type=int, default=20_000)
  parser.add_argument('--batch', type=int, default=64)
  parser.add_argument('--batches', type=int, default=12, help='in a turn')
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--quick', action='store_true',
                      help='tiny sizes: whether it works, not how fast')
  args = parser.parse_args(argv)
  if args.quick:
    args.images, args.batch, args.batches, args.repeats = 200, 8, 2, 1
  return args


def main(argv=None) -> int:
  """Prints the document of results."""
  args = _parse(argv)
  root = pathlib.Path(tempfile.mkdtemp(prefix='loading', dir=args.folder))
  try:
    facts = make_folder(root, args.images)
    print(f'made {facts}', file=sys.stderr, flush=True)
    dataset = data.load('imagenet', str(root))
    # Read once, so that every way finds the files in memory.
    for path in root.rglob('*.jpg'):
      path.read_bytes()
    stage = stages(dataset, 32 if args.quick else 640)
    rows = compare(dataset, args.batch, args.batches, args.repeats)
  finally:
    shutil.rmtree(root)
  flags = sys.argv[1:] if argv is None else argv
  print(json.dumps({
      'command': ' '.join(['python -m benchmarks.loading', *(
          flag for flag in flags if flag.startswith('--'))]),
      'machine': timing.machine(), 'folder': facts,
      'batch': args.batch, 'batches': args.batches, 'repeats': args.repeats,
      'stage_ms': stage, 'rows': rows}, indent=2))
  return 0


if __name__ == '__main__':
  sys.exit(main())
