"""A genotype found on one data set, retrained on another."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from rome_jax import data, spaces
from rome_jax.cli import describe
from rome_jax.cli import run as run_lib
from rome_jax.config import fields
from rome_jax.spaces import genotypes

TINY = spaces.Space('tiny', ('skip_connect', 'max_pool_3x3'), num_nodes=2)
CELL = ('|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|'
        '+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|')


@pytest.fixture(scope='module', autouse=True)
def quick():
  """The tiny space, and XLA without its costly passes."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(spaces.SPACES, 'tiny', TINY)
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


def tiny_config(**changes):
  config = fields.defaults()
  config.compilation_cache = ''
  config.space = 'tiny'
  for part in (config.search, config.retrain):
    part.cells, part.channels, part.batch_size = 1, 2, 4
    part.epochs = 1
  config.search.k, config.search.max_steps = 1, 2
  for name, value in changes.items():
    setattr(config, name, value)
  return config


def cifar_shaped():
  rng = np.random.default_rng(0)
  return data.Dataset('cifar10', *(
      data.ArraySplit(rng.integers(0, 256, (16, 8, 8, 3), np.uint8),
                      np.arange(16, dtype=np.int32) % 10)
      for _ in range(2)), 10, 8, 3, (.5,) * 3, (.25,) * 3)


def write_photographs(folder, sizes=((40, 60), (64, 48), (33, 90), (50, 50))):
  """ImageNet's layout, JPEGs of two classes and many sizes."""
  rng = np.random.default_rng(1)
  for split in ('train', 'val'):
    for name in ('n01440764', 'n02102040'):
      (folder / split / name).mkdir(parents=True)
      for i, size in enumerate(sizes):
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / split / name / f'{i}.JPEG')


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  """The genotype file of a search on images shaped like CIFAR's."""
  config = tiny_config(method='rome_v2', dataset='cifar10', seed=5)
  config.retrain.seeds = 0
  workdir = tmp_path_factory.mktemp('found') / 'run'
  assert run_lib.run(config, workdir, cifar_shaped()) == 0
  return workdir / 'genotype.json'


def test_from_cifar_to_imagenet(found, tmp_path, capsys):
  write_photographs(tmp_path / 'photographs')
  config = tiny_config(
      dataset='imagenet', data_dir=str(tmp_path / 'photographs'),
      image_size=32, stem='imagenet', genotype=str(found))
  part = config.retrain
  part.augment, part.label_smoothing, part.auxiliary = 'imagenet', .1, True
  part.cutout, part.drop_path = 0, 0.
  assert run_lib.run(config, tmp_path / 'run') == 0

  first, second = (json.loads((path / 'result.json').read_text())
                   for path in (found.parent, tmp_path / 'run'))
  assert second['genotype'] == first['genotype']
  assert 'search' not in second and second['dataset'] == 'imagenet'
  origin = dict(space='tiny', method='rome_v2', dataset='cifar10', seed=5,
                step=2, source=str(found))
  assert second['origin'] == origin
  assert 'origin' not in first
  row, = second['evaluations']
  assert row['kind'] == 'given' and np.isfinite(row['test_loss'])
  # Two classes; the three strided convolutions of the ImageNet stem.
  assert second['params'] == describe.summary(
      genotypes.read(found), TINY, spaces.Sizes(1, 2, 2),
      'imagenet')['params']

  record = genotypes.read(tmp_path / 'run' / 'genotype.json')
  assert record.genotype == genotypes.load(found)
  assert record.info == origin
  page = (tmp_path / 'run' / 'report.html').read_text()
  assert str(found) in page and 'cifar10' in page
  assert 'rome_v2 on imagenet' not in page

  capsys.readouterr()
  assert describe.main([str(tmp_path / 'run' / 'genotype.json')]) == 0
  out = capsys.readouterr().out
  assert (f'source {found}, method rome_v2, dataset cifar10, seed 5, step 2'
          in out)

  # A third run begins with the file of the second.
  third = tiny_config(dataset='digits',
                      genotype=str(tmp_path / 'run' / 'genotype.json'))
  third.retrain.seeds = 0
  assert run_lib.run(third, tmp_path / 'third', cifar_shaped()) == 0
  result = json.loads((tmp_path / 'third' / 'result.json').read_text())
  assert result['origin'] == origin | {
      'source': f'{tmp_path / "run" / "genotype.json"} ({found})'}


def test_a_published_genotype_says_where_it_is_from(tmp_path):
  config = tiny_config(genotype='PDARTS', space='s0')
  config.retrain.seeds = 0
  assert run_lib.run(config, tmp_path, cifar_shaped()) == 0
  origin = json.loads((tmp_path / 'result.json').read_text())['origin']
  assert origin['source'].startswith('PDARTS (')
  assert genotypes.PUBLISHED['PDARTS'].source in origin['source']
  assert origin['space'] == 's0'
  assert origin['dataset'] is origin['seed'] is origin['step'] is None


@pytest.mark.parametrize('text', [CELL, '333132', '6111'])
def test_cells_of_nasbench201(text, tmp_path, capsys):
  config = tiny_config(genotype=text, space='nasbench201')
  config.retrain.cells, config.retrain.channels = 15, 16
  config.retrain.seeds, config.retrain.auxiliary = 0, False
  dataset = cifar_shaped()._replace(image_size=32)
  assert run_lib.run(config, tmp_path, dataset) == 0
  result = json.loads((tmp_path / 'result.json').read_text())
  # The benchmark's best cell of CIFAR-10, 94.37 %.
  assert result['table']['string'] == CELL
  assert result['table']['datasets']['cifar10']['rank'] == 1
  assert result['params'] == result['table']['params']
  assert result['origin']['space'] == 'nasbench201'
  assert result['origin']['source'] == text
  assert 'rank 1 of 15625' in capsys.readouterr().out


@pytest.mark.slow
def test_a_cell_of_nasbench201_is_retrained(tmp_path):
  config = tiny_config(genotype=CELL, space='nasbench201')
  config.retrain.cells, config.retrain.auxiliary = 3, False
  assert run_lib.run(config, tmp_path, cifar_shaped()) == 0
  result = json.loads((tmp_path / 'result.json').read_text())
  assert np.isfinite(result['evaluations'][0]['test_loss'])


@pytest.mark.parametrize('space, genotype, message', [
    ('nasbench201', 'DARTS_V2',
     'DARTS_V2: the genotype has the cells normal, reduce, but '
     'space=nasbench201 has normal'),
    ('s0', CELL, 'has the cells normal, but space=s0 has normal, reduce'),
    ('nasbench1shot1_1', CELL, 'nor_conv_3x3'),
    ('mobile_tiny', '421211', 'avg_pool_3x3'),
    ('nasbench201', '421216', "'421216' must be 6 digits of 0 to 4"),
    ('nasbench201', '|nor_conv_3x3~0|', 'must have 3 groups'),
    ('nasbench201', '20000', 'an index of 0 to 15624'),
    ('s0', 'missing.json', 'cannot read missing.json'),
])
def test_a_genotype_of_another_skeleton(space, genotype, message, tmp_path,
                                        capsys):
  (tmp_path / 'own.py').write_text(
      'from rome_jax import config\nget_config = config.defaults\n')
  code = run_lib.main([
      f'--config={tmp_path / "own.py"}', f'--workdir={tmp_path / "run"}',
      f'--config.space={space}', f'--config.genotype={genotype}'])
  err = capsys.readouterr().err
  assert code == 2 and err.count('\n') == 1
  assert message in err
  assert not (tmp_path / 'run').exists()
