"""The page about a run: well-formed, self-contained, escaped, tolerant."""

import html.parser
import json
import math
import re

import pytest

from rome_jax import errors
from rome_jax.show import curves, report
from rome_jax.spaces import genotypes
from rome_jax.train import metrics

VOID = {'meta', 'br', 'hr', 'img', 'input', 'link'}
TEXT = (
    "Genotype(normal=[('skip_connect', 0), ('skip_connect', 1), "
    "('max_pool_3x3', 0), ('sep_conv_3x3', 2)], normal_concat=[2, 3], "
    "reduce=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('max_pool_3x3', 0), ('sep_conv_3x3', 2)], reduce_concat=[2, 3])")


LINKED = ('genotype.json', 'result.json', 'metrics.jsonl', 'config.json')


class Page(html.parser.HTMLParser):
  """Collects text and ids; fails at unbalanced tags and external loads."""

  def __init__(self, text):
    super().__init__()
    self.open, self.ids, self.headings, self.text = [], [], [], []
    self.references = []
    self.feed(text)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    if tag not in VOID:
      self.open.append(tag)
    self.look(tag, attrs)

  def handle_startendtag(self, tag, attrs):
    self.look(tag, attrs)

  def look(self, tag, attrs):
    assert tag not in ('script', 'link', 'iframe', 'object')
    for name, value in attrs:
      assert not name.startswith('on')
      if name == 'id':
        self.ids.append(value)
      if tag == 'a' and name == 'href':
        # Files of the run beside the page, which the reader may open.
        assert value in LINKED
        continue
      if name in ('src', 'href', 'xlink:href', 'srcset', 'data'):
        assert value.startswith('#'), (tag, name, value)
        self.references.append(value[1:])

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] == 'h2':
      self.headings.append(data)
    if 'style' not in self.open and 'svg' not in self.open:
      self.text.append(data)


def read_page(workdir):
  path = report.write_report(workdir)
  assert path == workdir / 'report.html'
  text = path.read_text(encoding='utf-8')
  page = Page(text)
  page.text = ' '.join(page.text)
  assert len(set(page.ids)) == len(page.ids)
  assert set(page.references) <= set(page.ids)
  assert '@import' not in text and 'http' not in text
  return page


def evaluation(kind, seed, accuracy):
  return {'name': f'{kind}-{seed}', 'kind': kind, 'seed': seed,
          'test_accuracy': accuracy, 'params': 3349342, 'macs': 528359040,
          'train_seconds': 3675.0}


RESULT = {
    'format': 1, 'method': 'rome_v2', 'space': 's0', 'dataset': 'digits',
    'seed': 3, 'genotype': TEXT, 'params': 3349342, 'macs': 528359040,
    'search': {
        'valid_accuracy': 0.875, 'valid_loss': 0.5, 'seconds': 42.0,
        'images_per_second': 1234.5, 'compile_seconds': 7.0, 'steps': 500,
        'peak_memory_bytes': 300 * 2**20,
        'parameterless': {'normal': 3, 'reduce': 1}},
    'evaluations': [
        evaluation('derived', 0, 0.96), evaluation('derived', 1, 0.98),
        evaluation('random', 0, 0.90), evaluation('random', 1, 0.94)],
    'device': 'cpu <b>&', 'versions': {'jax': '0.9.0'}, 'created': 'today'}


def make_run(workdir):
  genotype = genotypes.from_text(TEXT)
  genotypes.save(workdir / 'genotype.json', genotype, space='s0', seed=3,
                 step=500)
  (workdir / 'config.json').write_text(json.dumps(
      {'dataset': '<script>alert("x")</script>', 'search': {'k': 7},
       'data_dir': ''}))
  with metrics.MetricsWriter(workdir, tensorboard=False) as out:
    for step in (1, 2):
      out.write('search', step, {
          'epoch': step / 2, 'train_loss': 1 / step, 'tau': math.nan,
          'alpha_entropy_normal': 1.25})
      out.write('retrain/derived-0', step, {'train_loss': 1 / step})
  curves.save_run(workdir, metrics.read(workdir), genotype)
  return workdir


@pytest.fixture(name='run', scope='module')
def _run(tmp_path_factory):
  return make_run(tmp_path_factory.mktemp('run'))


def test_whole_run(run):
  (run / 'result.json').write_text(json.dumps(RESULT))
  page = read_page(run)
  assert page.headings == [
      'Result', 'Cells', 'Curves', 'Collapse diagnostics', 'Search',
      'Environment', 'What next', 'Configuration']
  for text in (
      'rome_v2 on digits',
      '97.00 ± 1.41% (n = 2)',  # std of the sample: .02 / sqrt(2)
      '92.00 ± 2.83% (n = 2)', '5.00 points above',
      'standard error of 2.24 points.',  # sqrt(1.41^2 / 2 + 2.83^2 / 2)
      '1:01:15', '3.35 M', '528 M', '300 MiB', '87.50%', '42.0 s',
      'The normal cell has collapsed: 3 of its 4 operations that could have '
      'weights have none. ',
      'cpu <b>&', '<script>alert', 'search.k', "('max_pool_3x3', 0)", '1.25'):
    assert text in page.text, text
  text = (run / 'report.html').read_text()
  assert text.count('<svg') == 4
  # One scale: a unit of every picture is a point.
  shapes = re.findall(
      r'<svg role="img" width="(.*?)pt" height="(.*?)pt" viewBox="0 0 (.*?)"',
      text)
  assert len(shapes) == 4
  assert all(f'{w} {h}' == box for w, h, box in shapes)
  assert '&lt;script&gt;alert' in text


def test_unfinished_run(run):
  (run / 'result.json').unlink(missing_ok=True)
  page = read_page(run)
  assert page.headings == [
      'State', 'Cells', 'Curves', 'Collapse diagnostics', 'Configuration']
  assert 'not finished' in page.text and 'retrain/derived-0' in page.text


def test_empty_folder(tmp_path):
  page = read_page(tmp_path)
  assert page.headings == ['State']


def test_result_of_a_search_alone(tmp_path):
  (tmp_path / 'result.json').write_text(json.dumps(
      {'method': 'gdas', 'search': {'valid_accuracy': None},
       'evaluations': [], 'device': None}))
  assert read_page(tmp_path).headings == ['Search', 'What next']


def test_damaged_result_is_one_sentence(tmp_path):
  (tmp_path / 'result.json').write_text('{"half": ')
  with pytest.raises(errors.UserError, match='result.json'):
    report.write_report(tmp_path)
  assert not (tmp_path / 'report.html').exists()


def collapsed_run(workdir, space='s0', phase='search'):
  genotypes.save(workdir / 'genotype.json', genotypes.from_text(TEXT),
                 space=space, seed=0, step=1)
  with metrics.MetricsWriter(workdir, tensorboard=False) as out:
    for epoch, bad in ((1, 1), (2, 0), (3, 1), (4, 1)):
      out.write(phase, epoch, {
          'epoch': epoch, 'collapsed_normal': bad, 'collapsed_reduce': 0,
          'parameterless_normal': 3, 'parameterless_reduce': 1,
          'alpha_entropy_normal/00': .5, 'alpha_entropy_normal/01': .25,
          'supernet_accuracy': .75, 'derived_accuracy': .5,
          'discretisation_gap': .25,
          'dominant_eigenvalue': .375})
  curves.save_run(workdir, metrics.read(workdir))


@pytest.mark.parametrize('phase', ['search', 'search/stage-3'])
def test_a_collapse_is_named_with_its_epoch(tmp_path, phase):
  collapsed_run(tmp_path, phase=phase)
  page = read_page(tmp_path)
  assert ('The normal cell has collapsed: 3 of its 4 operations that could '
          'have weights have none, since epoch 3.') in page.text
  assert 'reduction cell has collapsed' not in page.text
  for text in ('derived accuracy, at the end', '50.00%', '0.375',
               'supernet accuracy, at the end', '75.00%',
               'discretisation gap, at the end'):
    assert text in page.text, text
  # The search's curves and the map of its edges.
  assert (tmp_path / 'report.html').read_text().count('<svg') == 2


def test_a_collapse_in_a_space_of_ones_own(tmp_path):
  collapsed_run(tmp_path, space='mine')
  assert 'The normal cell has collapsed, since epoch 3.' in (
      read_page(tmp_path).text)


def test_no_warning_for_a_genotype_that_no_search_has_found(tmp_path):
  genotypes.save(tmp_path / 'genotype.json', genotypes.from_text(TEXT),
                 space='s0', seed=0, step=1)
  page = read_page(tmp_path)
  assert 'collapsed' not in page.text
  assert '3 of 4' in page.text and '1 of 4' in page.text


@pytest.mark.parametrize('free, collapsed', [(5, False), (6, True)])
def test_one_rule_of_collapse(tmp_path, free, collapsed):
  """Three quarters, where the lines of a search do not say it."""
  ops = free * ['skip_connect'] + (8 - free) * ['sep_conv_3x3']
  nodes = [(op, i % 2) for i, op in enumerate(ops)]
  genotypes.save(tmp_path / 'genotype.json', genotypes.from_text(
      f'Genotype(normal={nodes}, normal_concat=[2, 3, 4, 5], '
      f'reduce={4 * [("sep_conv_3x3", 0), ("sep_conv_3x3", 1)]}, '
      'reduce_concat=[2, 3, 4, 5])'), space='s2', seed=0, step=1)
  with metrics.MetricsWriter(tmp_path, tensorboard=False) as out:
    out.write('search', 1, {'epoch': 1, 'train_loss': 1.})
  text = read_page(tmp_path).text
  assert ('The normal cell has collapsed' in text) is collapsed
  assert 'reduction cell has collapsed' not in text


def test_summarise():
  rows = [evaluation('random', 0, 0.5), evaluation('derived', 0, 0.9),
          evaluation('derived', 1, 0.8), evaluation('derived', 2, None)]
  summary = report.summarise(rows)
  assert list(summary) == ['random', 'derived']
  assert summary['random'] == {'n': 1, 'mean': 0.5, 'std': None, 'best': 0.5}
  assert summary['derived']['n'] == 2
  assert summary['derived']['mean'] == pytest.approx(0.85)
  assert summary['derived']['std'] == pytest.approx(0.1 / math.sqrt(2))
  assert summary['derived']['best'] == 0.9
  assert report.summarise([]) == {}


@pytest.mark.parametrize('random, words', [
    ([0.5], 'says nothing about the spread'),
    ([0.5, 0.97], 'do not tell the two apart'),
    ([0.98, 0.99], '3.50 points below')])
def test_comparison_claims_no_more_than_the_runs_show(
    tmp_path, random, words):
  rows = [evaluation('derived', i, a) for i, a in enumerate((0.94, 0.96))]
  rows += [evaluation('random', i, a) for i, a in enumerate(random)]
  (tmp_path / 'result.json').write_text(json.dumps({'evaluations': rows}))
  assert words in read_page(tmp_path).text


def test_what_a_complete_table_says(tmp_path):
  """Accuracy, rank and regret of a derived cell stand in the page."""
  from rome_jax.tables import nasbench201
  three = 'nor_conv_3x3'
  table = nasbench201.report(
      f'|{three}~0|+|{three}~0|{three}~1|+|skip_connect~0|{three}~1|{three}~2|')
  (tmp_path / 'result.json').write_text(json.dumps(
      {'method': 'gdas', 'table': table}))
  page = report.write_report(tmp_path).read_text()
  assert 'NAS-Bench-201' in page and 'skip_connect~0' in page
  for text in ('73.51%', '1 of 15625', '47.31%'):
    assert text in page
