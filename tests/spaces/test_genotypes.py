"""Tests of the genotype value, its text and JSON forms, and its files."""

import json

import numpy as np
import pytest

from rome_jax import errors, spaces
from rome_jax.spaces import genotypes

PUBLISHED = sorted(genotypes.PUBLISHED)

# GDAS may take one edge twice, FairDARTS has other in-degrees than two.
UNEVEN = genotypes.Genotype(
    normal=(
        (('sep_conv_3x3', 0),),
        (('skip_connect', 2), ('dil_conv_3x3', 2), ('max_pool_3x3', 1))),
    normal_concat=(3,),
    reduce=((('none', 1), ('none', 0)), (('sep_conv_5x5', 2),)),
    reduce_concat=(2, 3))

TEXT = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('skip_connect', 1)], "
    'normal_concat=range(2, 3), '
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 0)], reduce_concat=[2])")


def values():
  rng = np.random.default_rng(0)
  one_input = spaces.Space('one', ('a', 'b'), num_nodes=3, in_degree=1)
  return (
      [genotypes.PUBLISHED[name].genotype for name in PUBLISHED] + [UNEVEN]
      + [genotypes.random(spaces.S0, rng) for _ in range(5)]
      + [genotypes.random(one_input, rng) for _ in range(5)])


@pytest.mark.parametrize('genotype', values())
def test_forms_round_trip(genotype):
  assert genotypes.from_text(genotypes.to_text(genotype)) == genotype
  through_json = json.loads(json.dumps(genotypes.to_json(genotype)))
  assert genotypes.from_json(through_json) == genotype
  hash(genotype)  # A static argument of jit and of Flax modules.


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_have_sources(name):
  genotype, source = genotypes.PUBLISHED[name]
  assert '/' in source and '(' in source
  assert genotypes.load(name) == genotype


def test_the_notation_of_darts():
  genotype = genotypes.from_text(TEXT)
  assert genotype == genotypes.Genotype(
      ((('sep_conv_3x3', 0), ('skip_connect', 1)),), (2,),
      ((('max_pool_3x3', 0), ('max_pool_3x3', 0)),), (2,))
  # As it stands in genotypes.py files: assigned, with comments.
  assert genotypes.from_text(f'# 2.9 percent\nMINE = {TEXT}\n') == genotype
  assert genotypes.from_text(f'genotypes.{TEXT}') == genotype
  # The to_text of a DARTS cell is what Python prints for DARTS's own tuple.
  assert genotypes.to_text(genotype) == TEXT.replace('range(2, 3)', '[2]')


def test_the_notation_of_gdas():
  text = TEXT.replace(
      "[('sep_conv_3x3', 0), ('skip_connect', 1)]",
      "[(('sep_conv_3x3', 0), ('skip_connect', 1))]").replace(
          '[2])', '[2], connectN=None, connects=None)')
  assert genotypes.from_text(text) == genotypes.from_text(TEXT)


def test_flat_json_is_cut_in_pairs():
  flat = {
      'normal': [['sep_conv_3x3', 0], ['skip_connect', 1]],
      'normal_concat': [2],
      'reduce': [['max_pool_3x3', 0], ['max_pool_3x3', 0]],
      'reduce_concat': [2]}
  assert genotypes.from_json(flat) == genotypes.from_text(TEXT)


@pytest.mark.parametrize('text, message', [
    ("__import__('os').system('true')", 'must be of the form'),
    (TEXT.replace('range(2, 3)', "__import__('os').system('true')"),
     'plain list'),
    (TEXT.replace('range(2, 3)', '[i for i in (2,)]'), 'plain list'),
    (TEXT.replace('range(2, 3)', 'range(10**9)'), 'plain list'),
    (TEXT.replace('range(2, 3)', 'range(2, 10000000000)'), 'plain list'),
    (TEXT.replace("'skip_connect'", 'skip'), 'plain list'),
    ('Genotype(**{})', 'without * or **'),
    ('', 'must be of the form'),
    ('Genotype(', 'is cut off'),
    pytest.param('(' * 5000, 'must be of the form', id='deep'),
    ('\0', 'must be of the form'),
    ('Genotype()', 'missing'),
    (TEXT.replace('normal_concat', 'normal_cat'), 'normal_concat'),
    (TEXT.replace("('skip_connect', 1)]", ']'), 'two per node'),
    (TEXT.replace("('skip_connect', 1)", "('skip_connect', 2)"), 'state 2'),
    (TEXT.replace("('skip_connect', 1)", "('skip_connect', -1)"), 'state -1'),
    (TEXT.replace("('skip_connect', 1)", "('skip_connect', True)"), 'pair'),
    (TEXT.replace("('skip_connect', 1)", "('skip_connect', 1.)"), 'pair'),
    (TEXT.replace("('skip_connect', 1)", '(1, 1)'), 'pair'),
    (TEXT.replace('[2])', '[])'), 'reduce_concat'),
    (TEXT.replace('[2])', '[1])'), 'state 1'),
    (TEXT.replace('[2])', '[2, 2])'), 'twice'),
    (TEXT.replace('[2])', '2)'), 'list of integers'),
    (TEXT.replace('[2])', "['\\d'])"), 'notation of Python lists'),
])
def test_text_is_parsed_not_run(text, message):
  with pytest.raises(errors.UserError) as caught:
    genotypes.from_text(text)
  assert message in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('value', [
    None, [], 'DARTS_V2', {}, {'normal': []},
    dict(genotypes.to_json(UNEVEN), normal=[]),
    dict(genotypes.to_json(UNEVEN), normal=[[]]),
    dict(genotypes.to_json(UNEVEN), normal={'a': 1}),
    dict(genotypes.to_json(UNEVEN), normal=3),
    dict(genotypes.to_json(UNEVEN), normal=[3]),
    dict(genotypes.to_json(UNEVEN), reduce_concat=None),
    dict(genotypes.to_json(UNEVEN), reduce_concat=['2']),
    dict(genotypes.to_json(UNEVEN), extra=1),
])
def test_damaged_json_is_refused(value):
  with pytest.raises(errors.UserError):
    genotypes.from_json(value)


def test_validate():
  genotype = genotypes.PUBLISHED['NASNet'].genotype
  assert genotypes.validate(genotype) is genotype
  with pytest.raises(errors.UserError, match='sep_conv_7x7.*did you mean'):
    genotypes.validate(genotype, spaces.S0.ops)
  # The flat notation is for texts; a value holds a tuple per node.
  flat = genotype._replace(normal=(('sep_conv_3x3', 0), ('skip_connect', 1)))
  with pytest.raises(errors.UserError, match='pair'):
    genotypes.validate(flat)


def test_parameterless():
  count = genotypes.parameterless
  assert count(UNEVEN) == {'normal': 2, 'reduce': 2}
  assert count(genotypes.load('DARTS_V2')) == {'normal': 2, 'reduce': 8}
  assert count(genotypes.load('SNAS')) == {'normal': 4, 'reduce': 7}


def test_random_is_uniform_and_valid():
  rng = np.random.default_rng(1)
  space = spaces.Space('small', ('a', 'b', 'c'), num_nodes=2)
  draws = 3000
  found = {}
  for _ in range(draws):
    genotype = genotypes.validate(genotypes.random(space, rng), space.ops)
    assert [len(node) for node in genotype.normal] == [2, 2]
    assert all(len({p for _, p in node}) == 2 for node in genotype.reduce)
    last = genotype.normal[1]
    found[last] = found.get(last, 0) + 1
  # Three pairs of predecessors times 3^2 operations, each with p = 1/27; six
  # standard errors, sqrt(n p (1 - p)) = 10.3.
  assert len(found) == 27
  assert max(abs(n - draws / 27) for n in found.values()) < 62


def test_random_keeps_the_in_degree():
  space = spaces.Space('wide', ('a',), num_nodes=3, in_degree=3)
  genotype = genotypes.random(space, np.random.default_rng(0))
  assert [len(node) for node in genotype.normal] == [2, 3, 3]
  assert genotype.normal_concat == (2, 3, 4)


def test_files(tmp_path):
  path = tmp_path / 'run' / 'genotype.json'
  genotypes.save(path, UNEVEN, space=spaces.S0, seed=3, step=70, note='x')
  record = genotypes.read(path)
  assert record.genotype == UNEVEN
  assert record.info == {'space': 's0', 'seed': 3, 'step': 70, 'note': 'x'}
  bare = tmp_path / 'bare.json'
  bare.write_text(json.dumps(genotypes.to_json(UNEVEN)))
  assert genotypes.read(bare) == (UNEVEN, {})
  text = tmp_path / 'cell.txt'
  text.write_text(genotypes.to_text(UNEVEN))
  assert genotypes.load(str(text)) == UNEVEN
  assert genotypes.load(genotypes.to_text(UNEVEN)) == UNEVEN


def test_files_that_are_missing_or_damaged(tmp_path):
  half = tmp_path / 'half.json'
  half.write_text('{"genotype": {"normal"')
  binary = tmp_path / 'binary.txt'
  binary.write_bytes(b'\xff\xfe\x00')
  null = tmp_path / 'null.json'
  null.write_text('{"genotype": null}')
  missing = tmp_path / 'missing.json'
  for path in (half, binary, null, missing, tmp_path):
    with pytest.raises(errors.UserError, match=path.name):
      genotypes.load(path)
  with pytest.raises(errors.UserError, match="did you mean 'DARTS_V2'"):
    genotypes.load('DARTS_V3')
  with pytest.raises(errors.UserError, match='neither a file nor'):
    genotypes.load('x' * 5000)


def test_parameterless_of_other_cells():
  """One operation per node where nodes have them; no edge left out counts."""
  shot = spaces.SPACES['nasbench1shot1_1_skip']
  genotype = genotypes.make(shot, {'normal': (
      [0, 1, 2, 3, 4, 6, 7, 10, 11],
      ['skip_connect', 'max_pool_3x3', 'conv_3x3', 'conv_3x3'])})
  assert genotypes.parameterless(genotype, shot) == {'normal': 2}
  assert len(genotypes.operations(genotype, shot)['normal']) == 4
  two = spaces.get_space('nasbench201', in_degree=2, drop_none=True)
  genotype = genotypes.make(two, {'normal': (
      [0, 1, 2, 3, 4], ['skip_connect'] + 5 * ['nor_conv_1x1'])})
  assert genotype.normal[2][2] == ('none', 2)
  assert genotypes.parameterless(genotype, two) == {'normal': 1}
  assert len(genotypes.operations(genotype, two)['normal']) == 5
