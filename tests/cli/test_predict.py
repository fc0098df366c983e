"""Predictions on image files, against the test transform and the network."""

import csv

import jax
import numpy as np
import pytest
from PIL import Image

from rome_jax import data, errors, families, spaces
from rome_jax.cli import predict
from rome_jax.cli.trained import About, Trained
from rome_jax.engine import weights
from rome_jax.spaces import Sizes, genotypes


@pytest.fixture(scope='module', params=['cifar', 'imagenet'])
def trained(request):
  genotype = genotypes.random(spaces.NASBENCH201, np.random.default_rng(0))
  net = families.build(genotype, spaces.NASBENCH201, Sizes(3, 4, 3, 16, 3))
  variables = weights.initialise(net, 0, np.zeros((2, 16, 16, 3), np.float32))
  return Trained(net, variables, About(
      genotype, ('ant', 'bee', 'cat'), (.4,) * 3, (.2,) * 3, 16, 3, {},
      request.param))


@pytest.fixture
def folder(tmp_path):
  rng = np.random.default_rng(1)
  (tmp_path / 'more').mkdir()
  for i, name in enumerate(('b.png', 'a.png', 'more/c.png')):
    Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), np.uint8)).save(
        tmp_path / name)
  (tmp_path / 'notes.txt').write_text('no image')
  return tmp_path


def test_files_and_folders(folder):
  found = predict.images_of([str(folder / 'b.png'), str(folder)])
  assert [p.name for p in found] == ['b.png', 'a.png', 'b.png', 'c.png']


def test_probabilities_are_those_of_the_test_transform(trained, folder):
  paths = predict.images_of([str(folder)])
  found = predict.predict(trained, paths)
  transform = data.make_transform(
      trained.about.augment, trained.about, train=False)
  images = [np.asarray(Image.open(path)) for path in paths]
  logits = trained.network.apply(trained.variables, transform(images))
  np.testing.assert_allclose(found, jax.nn.softmax(logits), atol=1e-6)
  np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
  # Alone or in company, from an array or a file.
  np.testing.assert_allclose(
      predict.predict(trained, images[1:2])[0], found[1], atol=1e-6)


def test_the_command(trained, folder, monkeypatch, capsys):
  monkeypatch.setattr(predict.trained_lib, 'load', lambda *given: trained)
  assert predict.main(
      ['run', str(folder), '--top=2', f'--csv={folder / "out.csv"}']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 6 and lines[0].startswith(str(folder / 'a.png'))
  rows = list(csv.reader((folder / 'out.csv').read_text().splitlines()))
  assert rows[0] == ['file', 'class', 'probability'] and len(rows) == 7
  assert float(rows[1][2]) >= float(rows[2][2])


@pytest.mark.parametrize('target, words', [
    ('none.png', 'does not exist'), ('notes.txt', 'is not a readable image'),
    ('empty', 'has no images')])
def test_mistakes(trained, folder, monkeypatch, capsys, target, words):
  (folder / 'empty').mkdir()
  monkeypatch.setattr(predict.trained_lib, 'load', lambda *given: trained)
  assert predict.main(['run', str(folder / target)]) == 2
  err = capsys.readouterr().err
  assert words in err and err.count('\n') == 1
  assert 'skip_unreadable' not in err


@pytest.mark.parametrize('image', [
    np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8),
    np.zeros((8, 8, 4), np.uint8)])
def test_arrays_of_another_kind_are_refused(trained, image):
  """Floats in 0..1 would be read as nearly black."""
  with pytest.raises(errors.UserError, match=r'must be uint8 \[height,width,3'):
    predict.predict(trained, [image])
  with pytest.raises(errors.UserError, match='must be a list'):
    predict.predict(trained, 'cat.jpg')
