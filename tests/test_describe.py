"""Tests of `python -m rome_jax.describe`."""

import json
import subprocess
import sys

import pytest

from rome_jax import counting, describe, genotypes

DARTS_V2 = genotypes.load('DARTS_V2')


@pytest.fixture
def run_file(tmp_path):
  path = tmp_path / 'genotype.json'
  genotypes.save(path, DARTS_V2, space='s0', seed=1, step=9)
  return path


def run(capsys, *argv):
  """Returns the exit code, stdout and stderr of the command."""
  code = describe.main(list(map(str, argv)))
  return code, *capsys.readouterr()


def test_json_of_a_run(capsys, run_file):
  code, out, err = run(
      capsys, run_file, '--space=s0', '--cells=20', '--channels=36', '--json')
  assert (code, err) == (0, '')
  values = json.loads(out)
  assert values['params'] == 3349342 and values['macs'] == 528359040
  assert values['auxiliary_params'] == 476426
  assert values['parameterless'] == {'normal': 2, 'reduce': 8}
  assert values['space'] == 's0' and values['cells'] == 20
  assert values['info'] == {'space': 's0', 'seed': 1, 'step': 9}
  assert genotypes.from_json(values['genotype']) == DARTS_V2
  assert genotypes.from_text(values['text']) == DARTS_V2
  assert sum(part['macs'] for part in values['parts']) == values['macs']


def test_text_of_a_run(capsys, run_file):
  code, out, _ = run(capsys, run_file)
  assert code == 0
  assert 'node 5 = skip_connect(cell k-2) + dil_conv_3x3(node 2)' in out
  assert 'parameters: 3,349,342 (auxiliary head: 476,426 more)' in out
  assert 'multiply-adds: 528,359,040 (528.36M)' in out
  assert '2 of 8 in the normal cell, 8 of 8 in the reduction cell' in out
  assert 'seed 1, step 9' in out and 'space: s0' in out
  assert genotypes.to_text(DARTS_V2) in out


def test_all_sizes_are_used(capsys):
  sizes = dict(
      cells=5, channels=8, num_classes=7, image_size=9, image_channels=1)
  flags = [f'--{name}={value}' for name, value in sizes.items()]
  _, out, _ = run(capsys, 'PDARTS', '--json', *flags)
  count = counting.count(genotypes.load('PDARTS'), **sizes)
  values = json.loads(out)
  assert (values['params'], values['macs']) == count[:2]
  assert {name: values[name] for name in sizes} == sizes


def test_imagenet_recipe(capsys):
  _, out, _ = run(capsys, 'DARTS_V2', '--stem=imagenet', '--json')
  values = json.loads(out)
  assert (values['params'], values['macs']) == (4718752, 529911552)


def test_every_published_genotype(capsys):
  for name, published in genotypes.PUBLISHED.items():
    code, out, _ = run(capsys, name)
    assert code == 0 and published.source in out
  assert run(capsys, 'NASNet', '--json')[0] == 0


def test_list(capsys):
  code, out, _ = run(capsys, '--list')
  assert code == 0
  for name, published in genotypes.PUBLISHED.items():
    assert any(
        line.startswith(name) and published.source in line
        for line in out.splitlines())
  rows = json.loads(run(capsys, '--list', '--json')[1])
  assert {'name', 'params', 'macs', 'source'} == set(rows[0])


def test_space_of_the_file(capsys, tmp_path):
  nasnet = genotypes.load('NASNet')
  path = tmp_path / 'own.json'
  genotypes.save(path, nasnet, space='my_space', seed=0, step=0)
  assert json.loads(run(capsys, path, '--json')[1])['space'] == 'my_space'
  genotypes.save(path, nasnet, space='s0', seed=0, step=0)
  assert run(capsys, path)[0] == 2
  genotypes.save(path, nasnet, space=['s0'], seed=0, step=0)
  assert run(capsys, path)[0] == 2
  assert json.loads(run(capsys, 'NASNet', '--json')[1])['space'] is None


def write(tmp_path, name, content):
  (tmp_path / name).write_text(content)
  return tmp_path / name


@pytest.mark.parametrize('argv, message', [
    ([], 'name a genotype file'),
    (['DARTS_V3'], "did you mean 'DARTS_V2'"),
    (['missing.json'], 'cannot read missing.json'),
    (['folder/missing'], 'cannot read folder/missing'),
    (['DARTS_V2', '--space=so'], "space='so' must be one of s0"),
    (['NASNet', '--space=s0'], 'sep_conv_7x7'),
    (['DARTS_V2', '--cells=0'], "--cells: '0'"),
    (['DARTS_V2', '--cells=2.5'], "--cells: '2.5'"),
    (['DARTS_V2', '--channels=many'], "--channels: 'many'"),
    (['DARTS_V2', '--cells'], '--cells'),
    (['DARTS_V2', '--cell=3'], "did you mean '--cells'"),
    (['DARTS_V2', '--stem=cifar10'], 'cifar10'),
    (['DARTS_V2', '--stem=imagenet', '--channels=5'], 'must be even'),
    (['DARTS_V2', 'PDARTS'], 'PDARTS'),
    (['DARTS_V2', '--list'], '--list'),
    (['Genotype(normal=open("x"))'], 'plain list'),
])
def test_mistakes(capsys, tmp_path, monkeypatch, argv, message):
  monkeypatch.chdir(tmp_path)
  code, out, err = run(capsys, *argv)
  assert (code, out) == (2, '')
  assert message in err and err.count('\n') == 1


@pytest.mark.parametrize('name, content', [
    ('half.json', '{"genotype": {"normal": [['),
    ('empty.json', ''),
    ('list.json', '[1, 2]'),
    ('other.json', '{"params": 3}'),
    ('none.json', '{"genotype": null, "space": "s0"}'),
    ('code.txt', "__import__('os').system('true')"),
    ('op.txt', genotypes.to_text(DARTS_V2).replace('skip_c', 'skpi_c')),
    ('state.txt', genotypes.to_text(DARTS_V2).replace("'dil_conv_3x3', 2",
                                                      "'dil_conv_3x3', 7")),
])
def test_damaged_files(capsys, tmp_path, name, content):
  code, out, err = run(capsys, write(tmp_path, name, content))
  assert (code, out) == (2, '')
  assert err.count('\n') == 1 and err.strip()


def test_as_a_command(run_file):
  done = subprocess.run(
      [sys.executable, '-m', 'rome_jax.describe', run_file, '--json'],
      capture_output=True, text=True)
  assert done.returncode == 0 and json.loads(done.stdout)['params'] == 3349342
  done = subprocess.run(
      [sys.executable, '-m', 'rome_jax.describe', 'DARTS_V3'],
      capture_output=True, text=True)
  assert done.returncode == 2 and 'Traceback' not in done.stderr
