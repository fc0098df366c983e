"""What a run will cost, said before it begins."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax import data, errors, spaces
from rome_jax.cli import run as run_lib
from rome_jax.config import command_line, fields
from rome_jax.config import setup as door
from rome_jax.engine import weights as weights_lib
from rome_jax.families import darts
from rome_jax.train import loop, memory, search

SEARCH = memory.Size('search', 64, 1, 'float32', 16, 32)


def program(needed):
  return loop.Program(lambda carry, batch: carry, 2., needed, needed)


def test_what_does_not_fit_is_refused(monkeypatch):
  monkeypatch.setattr(memory, 'available_bytes', lambda: 1_000_000_000)
  memory.check_memory('the search', program(10**9), SEARCH)
  memory.check_memory('the search', program(None), SEARCH)
  with pytest.raises(errors.UserError, match=re.escape(
      'the search needs 1.50 GB of memory, but 1.00 GB are free; by estimate '
      'one of these makes it fit: config.search.accumulate=2, '
      'config.search.batch_size=38, config.search.channels=8')):
    memory.check_memory('the search', program(1_500_000_000), SEARCH)


# What a program keeps, and settings by the estimate's own law: temporary
# memory times images of a part, channels, samples at once.
@pytest.mark.parametrize('changes, share, settings', [
    (dict(), .9, ["config.search.dtype='bfloat16'",
                  'config.search.accumulate=2',
                  'config.search.batch_size=57']),
    (dict(way='vmap', k=7), .2, ["config.search.samples='scan'",
                                 'config.search.accumulate=8',
                                 'config.search.batch_size=12']),
    # Two groups of devices with three samples each.
    (dict(way='vmap', k=6, groups=2), .3, [
        'config.search.accumulate=4', 'config.search.batch_size=19',
        'config.search.channels=4']),
    # On a CPU recomputation saves nothing.
    (dict(section='retrain', remat='none'), .6, [
        'config.retrain.accumulate=2', 'config.retrain.batch_size=38',
        'config.retrain.channels=8']),
    # Devices that share the batch: parts and batches that they can share.
    (dict(batch_size=48, data_parts=4, accumulate=2, dtype='bfloat16'), .4, [
        'config.search.accumulate=6', 'config.search.batch_size=16',
        'config.search.channels=6']),
    (dict(batch_size=1, dtype='bfloat16'), .01, [
        'config.search.channels=2 (not enough alone)',
        'config.image_size=8 (not enough alone)']),
    (dict(), -.1, ["config.search.dtype='bfloat16' (not enough alone)",
                   'config.search.accumulate=64 (not enough alone)',
                   'config.search.batch_size=1 (not enough alone)'])])
def test_three_settings_that_are_enough(changes, share, settings):
  assert memory.smaller_settings(
      SEARCH._replace(**changes), share) == settings


def test_recomputation_is_a_setting_of_accelerators(monkeypatch):
  monkeypatch.setattr(memory.jax, 'default_backend', lambda: 'gpu')
  retraining = SEARCH._replace(section='retrain', remat='none')
  assert memory.smaller_settings(retraining, .6)[0] == (
      "config.retrain.remat='cells'")


@pytest.mark.slow
def test_the_settings_make_a_search_fit(tiny, monkeypatch):
  """Each is tried; it compiles to a program that is not refused."""
  monkeypatch.setitem(spaces.SPACES, 'tiny', tiny)
  rng = np.random.default_rng(0)
  split = data.ArraySplit(rng.integers(0, 256, (64, 32, 32, 3), np.uint8),
                          np.arange(64, dtype=np.int32) % 4)
  dataset = data.Dataset('npz', split, split, 4, 32, 3, (.5,) * 3, (.25,) * 3)
  config = fields.defaults()
  config.space = 'tiny'
  config.search.update(cells=2, channels=16, batch_size=32, k=4, epochs=1,
                       samples='vmap', augment='none')
  needed = []
  check = memory.check_memory
  monkeypatch.setattr(memory, 'check_memory', lambda name, program, size: (
      needed.append(program.needed_bytes), check(name, program, size)))
  monkeypatch.setattr(memory, 'cost', lambda *args: 'fits')

  def prepare(config):
    search.prepare(door.make_setup(config, dataset),
                   door.search_recipe(config), dataset, config.seed)

  prepare(config)
  available = int(.4 * needed[0])
  monkeypatch.setattr(memory, 'available_bytes', lambda: available)
  with pytest.raises(errors.UserError) as caught:
    prepare(config)
  settings = str(caught.value).split('fit: ')[1].split(', ')
  assert len(settings) == 3
  for setting in settings:
    changed = config.copy_and_resolve_references()
    name, value = setting.removeprefix('config.search.').split('=')
    changed.search[name] = type(changed.search[name])(value.strip("'"))
    prepare(changed)


# ------------------------------------------------------------ samples='auto'


@pytest.mark.parametrize('k, sample, total, way', [
    (7, 1, None, 'scan'), (7, 10, 140, 'vmap'), (7, 10, 139, 'scan'),
    (1, 69, 139, 'vmap')])
def test_way_of_evaluating_k(k, sample, total, way):
  assert memory.samples(k, sample, total) == way


def test_image_bytes_of_a_network_that_keeps_known_arrays():
  """tanh keeps its own output; the product keeps that and the weights."""
  def loss(theta, images):
    hidden = jnp.tanh(images.reshape(len(images), -1) @ theta['one'])
    return (hidden @ theta['two']).sum()

  theta = {'one': jnp.zeros((12, 5)), 'two': jnp.zeros((5, 3))}
  pixels, hidden = 4 * 12, 4 * 5
  found = memory.image_bytes(loss, theta, (2, 2, 3))
  low = memory.KEPT_FACTOR * (pixels + hidden)
  # The derivative 1 - tanh^2 may be kept beside tanh.
  assert int(low) <= found <= low + memory.KEPT_FACTOR * hidden


def test_auto_asks_the_device(tiny, monkeypatch):
  """On this CPU 'scan'; with an accelerator's memory, what fits there."""
  section = fields.defaults().search
  section.update(batch_size=8, k=4)
  network = darts.Supernet(tiny, 2, 4, 3)
  theta = weights_lib.init_supernet(network, 0, 8, 3)

  def chosen(total):
    monkeypatch.setattr(memory, 'accelerator_bytes', lambda: total)
    return search.choose_samples(section, network, theta, 8, 3)

  assert memory.accelerator_bytes() is None and chosen(None) == 'scan'
  assert chosen(10**9) == 'vmap' and chosen(10**6) == 'scan'
  samples = []
  monkeypatch.setattr(
      memory, 'samples', lambda k, each, total: samples.append((k, each)))
  for changes in (dict(), dict(dtype='bfloat16'), dict(accumulate=4)):
    section.update(dtype='float32', accumulate=1)
    section.update(changes)
    chosen(1)
  assert {k for k, _ in samples} == {4}
  full, narrow, quarter = (each for _, each in samples)
  assert quarter == full / 4 and .5 * full <= narrow < .55 * full


def test_available_memory_is_that_of_this_machine():
  assert 10**8 < memory.available_bytes() < 10**14


def test_timing_leaves_the_state_alone():
  """The step donates its argument; the carry is still there afterwards."""
  state = {'x': jnp.arange(3.)}

  def step(state, batch):
    return {'x': state['x'] + batch}, {'sum': state['x'].sum()}

  carry = loop.init_carry(step, state, np.float32(1.))
  compiled = loop.compile_step(step, carry, np.float32(1.))
  phase = loop.Phase('search', 100, 10, 1, lambda i: np.float32(1.), None)
  cost = memory.cost(phase, compiled, carry, np.float32(1.))
  np.testing.assert_array_equal(carry.state['x'], [0, 1, 2])
  assert cost.step_seconds > 0 and cost.steps == 100
  # State, window, count: 3 + 1 + 1 words, and the batch, at least.
  assert cost.needed_bytes >= 4 * 5
  text = str(memory.Cost(
      'search', 19_500, 50.4, 510_000_000, 24 * 10**9, 2.2))
  assert text == (
      'search: compiled in 50 s; memory 0.51 GB of 24.00 GB; 19,500 steps of '
      '2200 ms, about 11.9 h without tests')
  assert str(cost._replace(way='vmap')).startswith('search (vmap over K): ')


def test_the_flag():
  loaded = command_line.load(['--config=quickstart', '--dry-run'])
  assert loaded.options.dry_run
  assert not command_line.load(['--config=quickstart']).options.dry_run


@pytest.mark.slow
def test_plan_of_a_whole_run(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  config = command_line.load(['--config=quickstart']).config
  config.compilation_cache = ''
  config.search.cells = config.retrain.cells = 3
  config.search.channels = config.retrain.channels = 2
  assert run_lib.show_cost(config) == 0
  lines = capsys.readouterr().err
  assert 'search (scan over K): compiled in' in lines
  for phase in ('search', 'retrain/derived-0'):
    assert re.search(
        rf'{phase}: loading alone takes \d+ ms a step, [\d,]+ images/s', lines)
  assert not list(tmp_path.iterdir())


def test_images_that_do_not_fit_are_refused_before_they_are_read(monkeypatch):
  """By hand: 2 batches of 16 images of 1000 x 1000 x 3, three float32 copies.

  12 bytes * 32 * 3e6 = 1.152 GB. With .9 GB, of which .9 may be used, sides up
  to sqrt(.81e9 / 1152) = 838 and batches up to .81e9 / 72e6 = 11 fit.
  """
  monkeypatch.setattr(memory, 'host_bytes', lambda: 1_152_000_000)
  memory.check_data(50_000, 1000, 3, 2, 16, 'search', decoded=False)
  monkeypatch.setattr(memory, 'host_bytes', lambda: 900_000_000)
  with pytest.raises(errors.UserError, match=re.escape(
      'images of 1000 x 1000 x 3 need 1.15 GB of memory in batches of '
      'config.search.batch_size=16, but 0.90 GB are free; by estimate one of '
      'these makes them fit: config.image_size=838, '
      'config.search.batch_size=11')):
    memory.check_data(50_000, 1000, 3, 2, 16, 'search', decoded=False)
  monkeypatch.setattr(memory, 'host_bytes', lambda: None)
  memory.check_data(50_000, 1000, 3, 2, 16, 'search', decoded=False)


def test_decoded_images_count_twice(monkeypatch):
  """2 * 1,000 * 100**2 = 20 MB; the batch of one image adds .12 MB."""
  monkeypatch.setattr(memory, 'host_bytes', lambda: 20_120_000)
  memory.check_data(1000, 100, 1, 1, 1, 'retrain', decoded=True)
  monkeypatch.setattr(memory, 'host_bytes', lambda: 20_119_999)
  with pytest.raises(errors.UserError, match=r'image_size=94$'):  # .9 ** .5
    memory.check_data(1000, 100, 1, 1, 1, 'retrain', decoded=True)


@pytest.mark.parametrize('flags, words', [
    (['--config.image_size=512'], 'config.search.batch_size='),
    (['--config.image_size=512', '--config.genotype=DARTS_V2'],
     'config.retrain.batch_size='),
    (['--config.image_size=4096', '--config.search.batch_size=1'],
     'config.image_size=')])
def test_large_images_are_refused_at_the_door(flags, words, monkeypatch,
                                              capsys):
  monkeypatch.setattr(memory, 'host_bytes', lambda: 100_000_000)
  assert run_lib.main(['--config=quickstart', '--check']) == 0
  assert capsys.readouterr().err == ''
  assert run_lib.main(['--config=quickstart', '--check', *flags]) == 2
  err = capsys.readouterr().err
  assert words in err and err.count('\n') == 1


def test_a_file_of_arrays_that_does_not_fit(tmp_path, monkeypatch, capsys):
  """Zeros: 1.2 MB of images in a file of a few kB."""
  path = tmp_path / 'set.npz'
  np.savez_compressed(path, images=np.zeros((300, 64, 64), np.uint8),
                      labels=np.arange(300) % 3)
  assert path.stat().st_size < 20_000
  flags = ['--config=quickstart', '--check', '--config.dataset=npz',
           f'--config.data_dir={path}']
  monkeypatch.setattr(memory, 'host_bytes', lambda: 1_000_000)
  assert run_lib.main(flags) == 2
  assert f'the arrays of {path} need 0.00 GB' in capsys.readouterr().err
