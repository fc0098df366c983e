"""Tests of `python -m rome_jax describe`."""

import json
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest

from rome_jax import spaces
from rome_jax.cli import describe
from rome_jax.families import mobile, nasbench1shot1
from rome_jax.spaces import counting, genotypes

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
  count = counting.count(genotypes.load('PDARTS'), spaces.Sizes(**sizes))
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


def values_of(capsys, *argv):
  code, out, err = run(capsys, *argv, '--json')
  assert code == 0, err
  return json.loads(out)


def nasbench201(op):
  return f'|{op}~0|+|{op}~0|{op}~1|+|{op}~0|{op}~1|{op}~2|'


# Parameters and multiply-adds as the benchmark lists them, for CIFAR-10.
@pytest.mark.parametrize('op, params, macs', [
    ('nor_conv_3x3', 1531546, '220.12'), ('nor_conv_1x1', 241306, '31.38'),
    ('none', 73306, '7.78')])
def test_networks_of_nasbench201(capsys, op, params, macs):
  values = values_of(capsys, nasbench201(op))
  assert values['space'] == 'nasbench201'
  assert values['params'] == values['table']['params'] == params
  assert f'{values["macs"] / 1e6:.2f}' == macs
  assert (values['cells'], values['channels']) == (15, 16)
  assert 'auxiliary_params' not in values


# The benchmark's cell 0, in all of its forms.
@pytest.mark.parametrize('target', [
    '0', '421211', '|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+'
    '|nor_conv_1x1~0|skip_connect~1|skip_connect~2|'])
def test_text_of_nasbench201(capsys, target):
  code, out, _ = run(capsys, target)
  assert code == 0
  assert out.splitlines()[3:8] == [
      'cell',
      '  node 1 = avg_pool_3x3(cell k-1)',
      '  node 2 = nor_conv_1x1(cell k-1) + skip_connect(node 1)',
      '  node 3 = nor_conv_1x1(cell k-1) + skip_connect(node 1) + '
      'skip_connect(node 2)',
      '  output = node 3']
  assert 'cifar10: 85.86% test accuracy after 200 epochs, rank' in out
  assert '4 of 6 in the cell' in out
  assert 'auxiliary' not in out


def test_a_file_goes_before_a_cell_of_that_name(capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write(tmp_path, '421211', genotypes.to_text(DARTS_V2))
  assert values_of(capsys, '421211')['space'] == 's0'


def saved(tmp_path, name, seed=1):
  """(file of a random genotype of a space, the genotype)."""
  genotype = genotypes.random(
      spaces.SPACES[name], np.random.default_rng(seed))
  path = tmp_path / f'{name}.json'
  genotypes.save(path, genotype, space=name, seed=0, step=1)
  return path, genotype


def test_networks_of_nasbench1shot1(capsys, tmp_path):
  space = spaces.SPACES['nasbench1shot1_2']
  path, genotype = saved(tmp_path, space.name)
  count = nasbench1shot1.count(space, genotype, spaces.Sizes(9, 16, 10))
  values = values_of(capsys, path)
  assert (values['params'], values['macs']) == count[:2]
  # Nobody says of which space it is: the sizes of the cell do.
  text = write(tmp_path, 'cell.txt', genotypes.to_text(genotype))
  assert values_of(capsys, text)['params'] == count.params
  out = run(capsys, path)[1]
  # The operation of a node is applied to the sum of what it reads.
  two = next(n for n in genotype.normal if len(n) == 2)
  places = [f'node {p}' if p else 'cell k-1' for _, p in two]
  assert f' = {two[0][0]}({" + ".join(places)})\n' in out
  assert f'output = concat({places_of(genotype.normal_concat)})' in out


def places_of(states):
  return ', '.join(f'node {i}' if i else 'cell k-1' for i in states)


@pytest.mark.parametrize('name, blocks', [('mobile', 21), ('mobile_tiny', 3)])
def test_networks_of_blocks(capsys, tmp_path, name, blocks):
  path, genotype = saved(tmp_path, name)
  space = spaces.SPACES[name]
  for flags, sizes, stem in (
      ((), spaces.Sizes(blocks, 32, 1000, image_size=224), 'imagenet'),
      (('--stem=cifar', '--channels=16'), spaces.Sizes(blocks, 16, 10),
       'cifar')):
    count = mobile.count(space, genotype, sizes, stem)
    values = values_of(capsys, path, *flags)
    assert (values['params'], values['macs']) == count[:2]
  assert f'  block {blocks - 1} = {genotype.normal[-1][0][0]}\n' in run(
      capsys, path)[1]


def test_the_flag_goes_before_the_files_space(capsys, tmp_path):
  path, _ = saved(tmp_path, 'nasbench1shot1_1')
  same = values_of(capsys, path, '--space=nasbench1shot1_2')
  assert same['space'] == 'nasbench1shot1_2'
  code, _, err = run(capsys, path, '--space=nasbench1shot1_3')
  assert code == 2 and 'has 4 nodes' in err


OWN = """
from rome_jax import config, spaces
from rome_jax.spaces import counting

counting.OP_COUNTS['twice'] = (
    lambda channels, size, stride, affine: counting.Cost(2, 3))
spaces.SPACES['own'] = spaces.Space('own', ('twice',))
get_config = config.defaults
"""


@mock.patch.dict(spaces.SPACES)
@mock.patch.dict(counting.OP_COUNTS)
def test_an_own_space_is_read_from_a_config_file(capsys, tmp_path):
  genotype = genotypes.random(
      spaces.Space('own', ('twice',)), np.random.default_rng(0))
  genotypes.save(tmp_path / 'own.json', genotype, space='own', seed=0, step=0)
  code, _, err = run(capsys, tmp_path / 'own.json')
  assert code == 2 and err.count('\n') == 1
  assert "space='own' is unknown here" in err and '--config=FILE' in err
  flags = f'--config={write(tmp_path, "own.py", OWN)}', '--cells=1'
  values = values_of(capsys, tmp_path / 'own.json', *flags, '--channels=1')
  # A reduction of 2 channels behind a stem of 3: two 1x1, 8 operations.
  part = next(p for p in values['parts'] if 'cell 0' in p['name'])
  assert part['params'] == 2 * (3 * 2 + 2 * 2) + 8 * 2
  assert part['macs'] == 2 * 3 * 2 * 32**2 + 8 * 3
  assert values['space'] == 'own'


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
    (['DARTS_V2', '--space=nasbench201'], 'space=nasbench201 has normal'),
    (['421211', '--space=s0'], 'but the space has normal, reduce'),
    (['421211', '--stem=imagenet'], '--stem=imagenet must be cifar'),
    (['421211', '--cells=4'], 'cells=4 must be a multiple of 3'),
    (['421215'], "genotype='421215' must be 6 digits of 0 to 4"),
    (['15625'], 'index of 0 to 15624'),
    (['|nor_conv_3x3~0|'], 'must have 3 groups'),
    ([nasbench201('nor_conv_3x4')], "did you mean 'nor_conv_3x3'"),
    (['Genotype(normal=[[("skip_connect", 0)]], normal_concat=[1])'],
     'name its space with --space'),
    (['DARTS_V2', '--config=missing.py'], 'missing.py'),
    (['DARTS_V2', '--list'], '--list'),
    (['PC-DARTS'], "did you mean 'PC_DARTS_cifar' or 'PC_DARTS_image'?"),
    (['DARTS_V2', '--space=S2'], "did you mean 's2'?"),
    (['DARTS_V2', '--cells=8', '--cells', '9'], '--cells is given twice'),
    (['--json', 'DARTS_V2', '--json'], '--json is given twice'),
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


@pytest.mark.parametrize('target', ['000000', nasbench201('none'), '030000'])
def test_a_genotype_that_sees_nothing_is_described_with_a_warning(
    capsys, target):
  """One 3x3 whose result nobody reads: all counts, and one line on stderr."""
  code, out, err = run(capsys, target)
  assert (code, err.count('\n')) == (0, 1)
  assert err.startswith('warning: ') and 'does not depend on its input' in err


def test_texts_of_logs_and_modules(capsys, tmp_path):
  text = genotypes.to_text(DARTS_V2)
  module = write(tmp_path, 'genotypes.py', f'A = 1\nMINE = {text}\n')
  log = write(tmp_path, 'log.txt', f'01:00 genotype = {text}\n' * 3)
  for target in (module, f'{module}:MINE', log, f'  genotype = {text}'):
    code, out, err = run(capsys, target)
    assert (code, err) == (0, '') and 'parameters: 3,349,342' in out
  assert 'the last of 3' in run(capsys, log)[1]


def test_as_a_command(run_file):
  done = subprocess.run(
      [sys.executable, '-m', 'rome_jax', 'describe', run_file, '--json'],
      capture_output=True, text=True)
  assert done.returncode == 0 and json.loads(done.stdout)['params'] == 3349342
  done = subprocess.run(
      [sys.executable, '-m', 'rome_jax', 'describe', 'DARTS_V3'],
      capture_output=True, text=True)
  assert done.returncode == 2 and 'Traceback' not in done.stderr
