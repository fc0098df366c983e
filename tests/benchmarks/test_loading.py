"""The benchmark of loading: what it compares, and the page with its figures."""

import json

import numpy as np

from benchmarks import grid, loading
from rome_jax import data
from rome_jax.data import augment


def test_both_colour_jitters_give_the_same_pixels():
  images = np.stack([
      loading.texture(np.random.default_rng(i), 24) for i in range(40)])
  before, now = (
      jitter(images, np.random.default_rng(1), **augment._JITTER)
      for jitter in (loading.color_jitter_before, augment.color_jitter))
  np.testing.assert_array_equal(before, now)
  assert (before != images).mean() > .9


def test_the_folder_is_one_that_loads(tmp_path, monkeypatch):
  monkeypatch.setattr(loading, '_CANVASES', 2)
  facts = loading.make_folder(tmp_path, 200)
  files = list(tmp_path.rglob('*.jpg'))
  assert facts['images'] == len(files) == 200
  assert facts['total_bytes'] == sum(path.stat().st_size for path in files)
  dataset = data.load('imagenet', str(tmp_path))
  assert len(dataset.train) == len(dataset.test) == 100
  assert dataset.num_classes == 50 and dataset.image_size == 224


def test_the_page_has_the_figures_of_the_file():
  page = (grid.ROOT / 'docs' / 'data.md').read_text()
  found = json.loads(
      (grid.ROOT / 'docs' / 'results' / 'loading.json').read_text())
  for row in found['rows']:
    assert (
        f'| {row["way"]} | {row["images_per_second"]:.0f} | '
        f'{row["per_core"]:.0f} | {row["of_before"]:.2f} '
        f'({row["of_before_min"]:.2f} to {row["of_before_max"]:.2f}) |'
    ) in page
  stages = found['stage_ms']
  assert f'| {" | ".join(f"{ms:.2f}" for ms in stages.values())} |' in page
  now = sum(stages.values()) - stages['jitter_before']
  share = (stages['read_and_decode'] + stages['crop_and_resize']) / now
  assert f'{share:.0%}'.replace('%', ' %') in page
  assert f'{stages["jitter"] / stages["jitter_before"]:.2f} of the time' in page
  assert found['machine']['date'] in page and f'`{found["command"]}`' in (
      page.replace('\n', ' '))
