"""Genotypes as they stand in logs, Python files and other people's notations.

The expected values are written out by hand from the texts.
"""

import codecs
import json
import os
import time

import numpy as np
import pytest

from rome_jax import errors, spaces
from rome_jax.spaces import counting, genotypes

TEXT = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('skip_connect', 1)], "
    'normal_concat=range(2, 3), '
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1)], "
    'reduce_concat=range(2, 3))')
OTHER = TEXT.replace('sep_conv_3x3', 'dil_conv_5x5')
VALUE = genotypes.Genotype(
    ((('sep_conv_3x3', 0), ('skip_connect', 1)),), (2,),
    ((('max_pool_3x3', 0), ('max_pool_3x3', 1)),), (2,))

# xiaomi-automl/FairDARTS fairdarts/genotypes.py; its comments say 536M
# multiply-adds and 3.88M parameters (with auxiliary head) for FairDARTS_b.
FAIR_DARTS_A = '''Genotype(
  normal=[('sep_conv_3x3', 2, 0), ('sep_conv_5x5', 2, 1),
          ('max_pool_3x3', 4, 0), ('sep_conv_3x3', 5, 0)],
  normal_concat=range(2, 6),
  reduce=[('max_pool_3x3', 2, 0), ('avg_pool_3x3', 2, 1),
          ('avg_pool_3x3', 3, 0), ('dil_conv_5x5', 3, 1),
          ('avg_pool_3x3', 4, 0), ('sep_conv_5x5', 4, 1),
          ('skip_connect', 5, 0), ('skip_connect', 5, 1)],
  reduce_concat=range(2, 6))'''
FAIR_DARTS_B = '''Genotype(
  normal=[('sep_conv_3x3', 2, 0), ('sep_conv_3x3', 2, 1),
          ('sep_conv_3x3', 3, 1), ('dil_conv_3x3', 4, 0),
          ('sep_conv_5x5', 4, 1), ('dil_conv_5x5', 5, 1)],
  normal_concat=range(2, 6),
  reduce=[('skip_connect', 2, 0), ('dil_conv_3x3', 2, 1),
          ('skip_connect', 3, 0), ('dil_conv_3x3', 3, 1),
          ('max_pool_3x3', 4, 0), ('sep_conv_3x3', 4, 1),
          ('skip_connect', 5, 2), ('max_pool_3x3', 5, 0)],
  reduce_concat=range(2, 6))'''


def numpy_2(text):
  """The text as NumPy 2 prints it where states are its integers."""
  return text.replace(' 0)', ' np.int64(0))').replace(' 1)', ' np.int32(1))')


@pytest.mark.parametrize('text', [
    f'03/14 02:13:05 AM genotype = {TEXT}',
    f'[2024-01-02 03:04:05,678] INFO: best genotype: {TEXT} acc 97.1 (3/50)',
    f'   {TEXT}\n',
    f'\tgenotype\t=\t{TEXT},',
    f"it's the best: {TEXT}; isn't it?",
    numpy_2(TEXT),
    TEXT.replace('range(2, 3)', 'list(range(2, 3))'),
    TEXT.replace('range(2, 3)', 'tuple(range(np.int64(2), 3))'),
    TEXT.replace('range(2, 3)', '[np.int64(2)]'),
    TEXT.replace("'sep_conv_3x3'", "np.str_('sep_conv_3x3')"),
    TEXT.replace("'", '"'),
    TEXT.replace("('", '(\u2018').replace("',", '\u2019,'),  # typeset quotes
    TEXT.replace(', ', ',\u00a0'),  # of a web page
    TEXT.replace('), ', '),\n    # a comment with a )\n    '),
    '\ufeff' + TEXT,
    'Genotype' + TEXT[8:].replace('normal=', '').replace(
        'normal_concat=', '').replace('reduce=', '').replace(
            'reduce_concat=', ''),
    f'print({TEXT})', f'{TEXT}; import os',  # what stands around is skipped
])
def test_texts_of_logs(text):
  assert genotypes.from_text(text) == VALUE
  assert genotypes.load(text) == VALUE


def test_the_dictionaries_of_gdas_logs():
  """`{'normal': [((op, predecessor, weight), ...)], ...}`, as NumPy prints."""
  text = ("genotype: {'normal': [(('sep_conv_3x3', 0, 0.14), ('skip_connect', "
          "1, np.float32(0.13)))], 'normal_concat': [2], 'reduce': "
          "[(('max_pool_3x3', 0, tensor(0.2)), ('max_pool_3x3', 1, 0.13))], "
          "'reduce_concat': [2]}")
  assert genotypes.load(text) == VALUE
  assert genotypes.load(json.dumps(genotypes.to_json(VALUE))) == VALUE


@pytest.mark.parametrize('encoding, mark', [
    ('utf-8', codecs.BOM_UTF8), ('utf-8', b''), ('utf-16', b''),
    ('utf-16-le', b''), ('utf-16-be', codecs.BOM_UTF16_BE)])
@pytest.mark.parametrize('name', ['cell.txt', 'cell.json', 'log'])
def test_encodings(tmp_path, encoding, mark, name):
  path = tmp_path / name
  content = (json.dumps(genotypes.to_json(VALUE)) if path.suffix == '.json'
             else f'genotype = {TEXT}')
  path.write_bytes(mark + content.encode(encoding))
  assert genotypes.load(path) == VALUE


def test_files_of_one_form_with_the_suffix_of_the_other(tmp_path):
  path = tmp_path / 'text.json'
  path.write_text(TEXT)
  assert genotypes.load(path) == VALUE
  path = tmp_path / 'json.txt'
  genotypes.save(path, VALUE, space='s0', seed=1, step=2)
  assert genotypes.read(path) == (
      VALUE, {'space': 's0', 'seed': 1, 'step': 2})
  path.write_text(str({**genotypes.to_json(VALUE), 'normal': [list(
      VALUE.normal[0])]}))  # with Python's quotes
  assert genotypes.load(path) == VALUE


MODULE = f'''
from collections import namedtuple
Genotype = namedtuple('Genotype', 'normal normal_concat reduce reduce_concat')
# OLD = {OTHER}
FIRST = {TEXT}
SECOND: Genotype = \\
    {OTHER}
latest = SECOND  # an alias
'''


def test_a_genotype_of_a_module_by_its_name(tmp_path):
  path = tmp_path / 'genotypes.py'
  path.write_text(MODULE)
  other = genotypes.from_text(OTHER)
  for name, value in (('FIRST', VALUE), ('SECOND', other), ('latest', other)):
    assert genotypes.load(f'{path}:{name}') == value
  for name, words in (
      ('OLD', "no genotype of the name 'OLD'; it has FIRST, SECOND, latest"),
      ('first', "did you mean 'FIRST'")):
    with pytest.raises(errors.UserError, match=words):
      genotypes.load(f'{path}:{name}')
  with pytest.raises(errors.UserError, match='of FIRST, SECOND$'):
    genotypes.load(path)
  with pytest.raises(errors.UserError, match='cannot read .*nothing.py'):
    genotypes.load(f'{tmp_path}/nothing.py:FIRST')
  # A file's own name may have a colon.
  odd = tmp_path / 'run:FIRST'
  odd.write_text(OTHER)
  assert genotypes.load(odd) == other


def test_the_last_genotype_of_a_log(tmp_path):
  path = tmp_path / 'log.txt'
  path.write_text(
      f'01:00 epoch 0\n01:01 genotype = {OTHER}\n01:02 train_acc 31.2\n'
      f'02:00 epoch 1\n02:01 genotype = {TEXT}\n')
  assert genotypes.read(path) == (VALUE, {'source': 'the last of 2'})
  path.write_text(f'{OTHER}\n{OTHER}\n{TEXT}\n')
  assert genotypes.read(path) == (VALUE, {'source': 'the last of 3'})
  # One genotype under several names is no doubt.
  path.write_text(f'best = {TEXT}\nlast = {TEXT}\n')
  assert genotypes.load(path) == VALUE
  path.write_text(f'best = {TEXT}\nlast = {OTHER}\n')
  with pytest.raises(errors.UserError, match='of best, last'):
    genotypes.load(path)


def test_triples_of_fair_darts():
  genotype = genotypes.from_text(FAIR_DARTS_B)
  assert genotype.normal == (
      (('sep_conv_3x3', 0), ('sep_conv_3x3', 1)), (('sep_conv_3x3', 1),),
      (('dil_conv_3x3', 0), ('sep_conv_5x5', 1)), (('dil_conv_5x5', 1),))
  assert genotype.reduce[3] == (('skip_connect', 2), ('max_pool_3x3', 0))
  sizes = spaces.Sizes(20, 36, 10)
  count = counting.count(genotype, sizes)
  params = count.params + counting.auxiliary_params(genotype, sizes)
  assert round(params / 1e6, 2) == 3.88
  assert round(count.macs / 1e6) == 536
  assert genotypes.from_text(numpy_2(FAIR_DARTS_B)) == genotype
  assert genotypes.from_json({
      'normal': [['sep_conv_3x3', 2, 0], ['skip_connect', 2, 1]],
      'normal_concat': [2],
      'reduce': [['max_pool_3x3', 2, 0], ['max_pool_3x3', 2, 1]],
      'reduce_concat': [2]}) == VALUE


@pytest.mark.parametrize('text, words', [
    (FAIR_DARTS_A, 'normal has no edge into node 3'),
    (FAIR_DARTS_B.replace("'sep_conv_3x3', 2, 0", "'sep_conv_3x3', 0, 2"),
     r"('sep_conv_3x3', 0, 2); a triple is (operation, node, predecessor)"),
    (FAIR_DARTS_B.replace("('dil_conv_5x5', 5, 1)", "('dil_conv_5x5', 1)"),
     'pair'),
    (FAIR_DARTS_B.replace("'dil_conv_5x5', 5, 1", "'dil_conv_5x5', 5, 5"),
     "('dil_conv_5x5', 5, 5)"),
    (TEXT[:-20], "is cut off: no bracket closes "),
    (TEXT.replace(', reduce=', ', normal=[], reduce='),
     'has the field normal twice'),
    (TEXT.replace('Genotype(', 'Genotype([], '), 'has the field normal twice'),
    (TEXT.replace('Genotype(', 'Genotype(**x, '), 'without * or **'),
    (TEXT.replace('Genotype(', 'Genotype(*x, '), 'without * or **'),
    ('Genotype([], [], [], [], [])', 'has 5 fields without a name'),
    (TEXT.replace('[(', '[[('), 'notation of Python lists'),
    (TEXT.replace("'skip_connect'", "'skip_connect"),
     'notation of Python lists'),
    (TEXT.replace('range(2, 3)', 'np.load(2)'), 'plain list'),
    (TEXT.replace('range(2, 3)', 'np.int64(2.5)'), 'plain list'),
    (TEXT.replace('range(2, 3)', 'list(open)'), 'plain list'),
    ('{"normal": [], "normal": []}', 'has the field normal twice'),
    ('# genotype = ' + TEXT, 'must be of the form'),
    # Huge numbers are refused at once.
    (FAIR_DARTS_B.replace('5, 1', '10000000000, 1'), 'no edge into node 5'),
    (TEXT.replace('range(2, 3)', '[10000000000]'), 'has state 10000000000'),
])
def test_what_stands_in_the_way_is_said(text, words):
  with pytest.raises(errors.UserError) as caught:
    genotypes.from_text(text)
  assert words in str(caught.value)
  assert '\n' not in str(caught.value)


def test_a_json_field_given_twice_is_refused(tmp_path):
  path = tmp_path / 'twice.json'
  path.write_text('{"normal": [], "normal": []}')
  with pytest.raises(errors.UserError, match="'normal' is given twice"):
    genotypes.load(path)
  path.write_text('{"genotype":\n {"normal": [')
  with pytest.raises(errors.UserError, match='damaged: .* from line 2'):
    genotypes.load(path)


# --- Flat lists


def flat(preds, concat, num_inputs=2):
  """A text whose normal cell is a flat list of these predecessors."""
  pairs = [('skip_connect', pred) for pred in preds]
  reduce = ("reduce=[('skip_connect', 0), ('skip_connect', 1)], "
            'reduce_concat=[2]') if num_inputs == 2 else ''
  return f'Genotype(normal={pairs}, normal_concat={concat}, {reduce})'


@pytest.mark.parametrize('text', [
    # Every edge of four nodes, 2 + 3 + 4 + 5, and of three, 2 + 3 + 4 + 1.
    flat([0, 1, 0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4], [2, 3, 4, 5]),
    flat([0, 1, 0, 1, 2, 0, 1, 2, 3, 0], [2, 3, 4, 5]),
    flat([0, 1, 0, 1, 0, 1, 0, 2], [4]),
    # Every edge of NAS-Bench-201, 1 + 2 + 3, which is three nodes either way.
    flat([0, 0, 1, 0, 1, 2], [3], 1),
    # Three pairs for the last of two nodes.
    flat([0, 1, 0, 1, 2, 0], [2, 3]),
])
def test_ambiguous_flat_lists_are_refused(text):
  with pytest.raises(errors.UserError, match='write a list per node instead'):
    genotypes.from_text(text)


@pytest.mark.parametrize('preds, concat, num_inputs', [
    ([0, 1, 0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4], list(range(2, 9)), 2),
    ([0, 1, 0, 1, 1, 0, 0, 2], [2, 3, 4, 5], 2),
    ([0, 1, 0, 1, 1, 0, 0, 2], [5], 2),
    ([0, 0, 1, 0, 0, 2], [3], 1),
])
def test_flat_lists_that_leave_no_doubt(preds, concat, num_inputs):
  genotype = genotypes.from_text(flat(preds, concat, num_inputs))
  assert [[pred for _, pred in node] for node in genotype.normal] == (
      np.reshape(preds, (-1, 2)).tolist())


def test_texts_are_written_without_doubt():
  """A value whose flat list would be ambiguous is written node by node."""
  skip = [('skip_connect', pred) for pred in (0, 0, 1, 0, 1, 2)]
  for genotype in (
      genotypes.Genotype(tuple(zip(skip[::2], skip[1::2])), (3,)),
      genotypes.Genotype(VALUE.normal * 2, (2,), VALUE.reduce, (2,))):
    text = genotypes.to_text(genotype)
    assert '[[' in text and genotypes.from_text(text) == genotype


# --- Names


@pytest.mark.parametrize('name, near', [
    ('PC-DARTS', "'PC_DARTS_cifar' or 'PC_DARTS_image'"),
    ('pcdarts', "'PC_DARTS_cifar' or 'PC_DARTS_image'"),
    ('P-DARTS', "'PDARTS'"), ('pdart', "'PDARTS'"),
    ('darts-v2', "'DARTS_V2'"), ('DARTS', "'DARTS_V1' or 'DARTS_V2'"),
    ('GDAS', "'GDAS_V1'"), ('Amoeba Net', "'AmoebaNet'"),
    ('SDARTS-RS', "'SDARTS_RS_s5'"),
    # Papers whose cell is not published here: never another paper's.
    ('FairDARTS', ''), ('R-DARTS', ''), ('PR-DARTS', ''), ('PNASNet', ''),
    ('DrNAS', ''), ('zzz', ''),
])
def test_names_as_papers_write_them(name, near):
  with pytest.raises(errors.UserError) as caught:
    genotypes.load(name)
  _, found, suggestion = str(caught.value).partition('did you mean ')
  assert (suggestion if found else '') == (f'{near}?' if near else '')


@pytest.mark.parametrize('value, known, near', [
    ('S2', ['s0', 's1', 's2', 's3'], 's2'),
    ('CIFAR10', ['cifar10', 'cifar100'], 'cifar10'),
    ('CIFAR-100', ['cifar10', 'cifar100'], 'cifar100'),
    ('NAS-Bench-201', list(spaces.SPACES), 'nasbench201'),
    ('ImageNet16 120', ['cifar10', 'imagenet16-120'], 'imagenet16-120'),
    ('--Channels', ['--cells', '--channels'], '--channels'),
    ('sep-conv-3X3', ['sep_conv_3x3', 'sep_conv_5x5'], 'sep_conv_3x3'),
])
def test_case_and_punctuation_do_not_count(value, known, near):
  assert errors.near_miss(value, known) == f'; did you mean {near!r}?'


@pytest.mark.parametrize('value', ['', '---', '\u20ac'])
def test_a_value_without_letters_is_near_nothing(value):
  assert errors.near_miss(value, ['cifar10']) == ''


# --- Cells that see nothing


def cell(*nodes):
  return genotypes.Genotype(nodes, (len(nodes),))


NONE, NOISE, SKIP = 'none', 'noise', 'skip_connect'


@pytest.mark.parametrize('genotype', [
    cell(((NONE, 0),), ((NONE, 0), (NONE, 1))),
    # The one operation reads a node that is silent, or is not read itself.
    cell(((NONE, 0),), ((NONE, 0), (SKIP, 1))),
    cell(((SKIP, 0),), ((NONE, 0), (NONE, 1))),
    cell(((NOISE, 0),)),
    VALUE._replace(reduce=(((NONE, 0), (NONE, 1)),)),
])
def test_a_cell_that_sees_nothing_is_named(genotype):
  types = genotypes.cell_types(genotype)
  assert f'the {types[-1]} cell' in genotypes.complaint(genotype)


@pytest.mark.parametrize('genotype', [
    VALUE, cell(((SKIP, 0),), ((NONE, 0), (SKIP, 1))),
    # A block `zero` of a chain keeps its shortcut.
    genotypes.random(spaces.MOBILE, np.random.default_rng(0)),
    cell(*[(('zero', i),) for i in range(3)]),
])
def test_no_complaint_about_others(genotype):
  assert genotypes.complaint(genotype) == ''


@pytest.mark.parametrize('text', [
    '\n' * 200_000, 'A = Genotype(x)\n' + '\n \t' * 100_000,
    'Genotype(x) ' * 20_000, 'Genotype(' + '"\\' * 100_000, 'def ' * 100_000,
    '(' * 200_000, 'a.' * 100_000 + 'Genotype(x)'])
@pytest.mark.parametrize('name', ['', ':A'])
def test_no_text_is_slow(text, name, tmp_path):
  """Each took minutes where the time grew with the square of the length."""
  (tmp_path / 'log.txt').write_text(text)
  began = time.process_time()
  with pytest.raises(errors.UserError):
    genotypes.read(f'{tmp_path / "log.txt"}{name}')
  assert time.process_time() - began < 5


@pytest.mark.parametrize('line, label', [
    ('  # A = ', None), ('class ', None), ('def ', None), ('A = ', 'A'),
    ('# one\nA = ', 'A'), ('x class; A: ', 'A')])
def test_what_is_no_genotype_of_a_text(line, label):
  text = f'{line}{TEXT}\n'
  if label is None:
    with pytest.raises(errors.UserError, match='must be of the form'):
      genotypes.from_text(text)
  else:
    assert genotypes.from_text(text, name=label) == VALUE


def test_a_file_without_end(tmp_path):
  os.mkfifo(tmp_path / 'genotype.json')
  for path in '/dev/zero', str(tmp_path / 'genotype.json'):
    with pytest.raises(errors.UserError, match=f'{path}: it is a pipe or a'):
      genotypes.read(path)


@pytest.mark.parametrize('name', ['a/b\0c', 'a/\ud800'])
def test_names_that_no_file_has(name):
  with pytest.raises(errors.UserError, match='is no path'):
    genotypes.read(name)
