"""Every file in configs/ runs: search, retraining and report, on fake data.

The fast test keeps all fields but the sizes; the slow ones take the sizes
too. Files with arguments are checked for all of their values.
"""

import itertools
import json
import pathlib
import re
from math import comb, prod

import jax
import numpy as np
import pytest

from rome_jax import data, errors, families, spaces
from rome_jax.cli import run as run_lib
from rome_jax.config import checks, command_line, fields
from rome_jax.config import setup as door
from rome_jax.data import augment
from rome_jax.families import mobile
from rome_jax.methods import table
from rome_jax.show import curves as curves_module
from rome_jax.spaces import genotypes, nasbench201_forms
from rome_jax.tables import nasbench201
from rome_jax.train import loop, retrain, search

ROOT = pathlib.Path(__file__).parents[1]
# Comparisons have a test of their own.
FILES = sorted(path for path in ROOT.glob('configs/*.py')
               if not path.stem.startswith('compare_'))
SHAPES = {'digits': (8, 1, 10), 'cifar10': (32, 3, 10), 'svhn': (32, 3, 10),
          'cifar100': (32, 3, 100), 'imagenet': (224, 3, 1000)}
ROME = ('rome_v2', 'rome_v1')
SAMPLED = (*ROME, 'gdas')
# Every value of every argument, the defaults first.
ARGUMENTS = {
    'cifar10_s0': dict(
        method=(*SAMPLED, 'darts', 'darts_2nd', 'pc_darts', 'p_darts', 'snas',
                'fair_darts', 'sdarts_rs', 'sdarts_adv', 'random_search',
                'spos'),
        dataset=('cifar10', 'cifar100')),
    'imagenet_direct': dict(method=('rome_v2', 'pc_darts')),
    'robustdarts': dict(
        space=('s1', 's2', 's3', 's4'),
        dataset=('cifar10', 'cifar100', 'svhn'),
        method=(*SAMPLED, 'darts', 'darts_2nd', 'darts_2nd_es',
                'darts_2nd_ada', 'darts_es', 'darts_ada', 'pc_darts',
                'sdarts_rs', 'sdarts_adv', 'random_search'),
        evaluation=('robustdarts', 'sdarts')),
    'nasbench201': dict(
        method=(*SAMPLED, 'darts', 'darts_2nd', 'pc_darts', 'snas',
                'sdarts_rs', 'sdarts_adv', 'fair_darts', 'spos'),
        dataset=('cifar10', 'cifar100'), topology=('auto', 'edges', 'none')),
    'nasbench1shot1': dict(
        space=('1', '2', '3'), variant=('original', 'skip'),
        method=(*SAMPLED, 'darts', 'darts_2nd', 'sdarts_rs', 'sdarts_adv')),
    'gm_nas': dict(
        space=('nasbench201', 's0'), split=('gm', 'few_shot', 'none'),
        method=('darts', 'darts_2nd', 'snas', 'gdas', 'rome_v2', 'spos',
                'pada')),
    'gm_mobile': dict(
        method=('gdas', 'rome_v2', 'spos', 'pada'),
        split=('gm', 'few_shot', 'none'), dataset=('imagenet', 'cifar10')),
    'leaves_nasbench201': dict(
        split=('none', 'few_shot', 'gm'), method=('spos', 'pa', 'pada'),
        epochs=('45', '22')),
    'ranking_macro': dict(
        method=('spos', 'fairnas', 'pa', 'da', 'pada'),
        scale=('small', 'full')),
    'ranking_nasbench201': dict(
        method=('spos', 'fairnas', 'pa', 'da', 'pada'),
        scale=('small', 'full')),
    'every_method': dict(
        space=('s2', 'nasbench201'),
        method=(*SAMPLED, 'darts', 'darts_2nd', 'darts_es', 'darts_ada',
                'darts_2nd_es', 'darts_2nd_ada', 'pc_darts', 'p_darts', 'snas',
                'fair_darts', 'sdarts_rs', 'sdarts_adv', 'random_search',
                'spos', 'fairnas', 'pada', 'pa', 'da'))}
# What else the run of two steps takes; the other files run as they are.
RUN = {'robustdarts': ('space=s2', 'dataset=cifar100'),
       'nasbench1shot1': ('space=2', 'variant=skip'),
       'gm_mobile': ('dataset=cifar10',),
       'leaves_nasbench201': ('split=few_shot',)}
# Epochs times K of methods that sample.
EQUAL_COST = {'robustdarts': 350, 'nasbench1shot1': 350, 'nasbench201': 250}
# Of the same kind, and compiled in a fraction of the time.
SMALL = {
    's0': spaces.S0.restrict(
        ops=('max_pool_3x3', 'skip_connect', 'dil_conv_3x3'), num_nodes=1,
        in_degree=1),
    's2': spaces.S2.restrict(num_nodes=1, in_degree=1),
    'darts': spaces.SPACES['darts'].restrict(
        ops=('none', 'skip_connect', 'dil_conv_3x3'), num_nodes=1,
        in_degree=1),
    'nasbench1shot1_2_skip': spaces.SPACES['nasbench1shot1_2_skip'].restrict(
        num_nodes=3, in_degree=(1, 1, 2)),
    'mobile': spaces.mobile('mobile', ((24, 2, 2),), (
        'mbconv_k3_e3', 'mbconv_k5_e3'))}
SMALL_CELL = (
    "Genotype(normal=[('skip_connect', 0), ('sep_conv_3x3', 1)], "
    "normal_concat=[2], reduce=[('max_pool_3x3', 0), ('skip_connect', 1)], "
    'reduce_concat=[2])')
EVERY_FILE = pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)


def given(path):
  """The argument of a file's default run."""
  words = RUN.get(path.stem, ())
  return f':{",".join(words)}' if words else ''


def runs():
  """(path, argument) of every file, with every method that it knows.

  In the usual tests every file runs with its default, and every method once.
  """
  for path in FILES:
    methods = ARGUMENTS.get(path.stem, {}).get('method', (None,))
    for i, method in enumerate(methods):
      words = [*RUN.get(path.stem, ()), *([f'method={method}'] * bool(method))]
      argument = f':{",".join(words)}' if words else ''
      slow = i > 0 and path.stem != 'every_method'
      yield pytest.param(path, argument, id=f'{path.stem}-{method}',
                         marks=[pytest.mark.slow] if slow else [])


def load(path, argument=''):
  return command_line.load([f'--config={path}{argument}']).config


def texts(stem):
  """Every combination of the arguments of a file."""
  values = ARGUMENTS[stem]
  return [','.join(f'{k}={v}' for k, v in zip(values, row))
          for row in itertools.product(*values.values())]


def combinations(stem):
  """(arguments as a dict, config) of all that the file allows."""
  for text in texts(stem):
    if 'method=gdas' in text and 'topology=edges' in text:
      continue
    yield (dict(word.split('=') for word in text.split(',')),
           load(f'configs/{stem}.py:{text}'))


def fake(config, images, size=None):
  """Random images of the shape of the config's data set."""
  native, channels, classes = SHAPES[config.dataset]
  size = size or config.image_size or native
  rng = np.random.default_rng(0)

  def split(n):
    return data.ArraySplit(
        rng.integers(0, 256, (n, size, size, channels), np.uint8),
        (np.arange(n) % classes).astype(np.int32))

  # Every class once per fraction of the search, at least.
  return data.Dataset(config.dataset, split(images), split(8), classes, size,
                      channels, (.5,) * channels, (.25,) * channels)


@pytest.fixture
def quick_compiles(quick_jit, monkeypatch):
  """XLA without its costly passes: these programs run two steps."""
  jax.config.update('jax_disable_most_optimizations', True)
  if quick_jit is not jax.jit:  # XLA knows the option.
    compile_lowered = jax.stages.Lowered.compile
    monkeypatch.setattr(
        jax.stages.Lowered, 'compile', lambda lowered: compile_lowered(
            lowered, {'xla_cpu_use_fusion_emitters': False}))
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
  monkeypatch.chdir(ROOT)


@pytest.mark.usefixtures('quick_compiles')
@pytest.mark.parametrize('path, argument', list(runs()))
def test_config_runs_two_steps(path, argument, tmp_path, monkeypatch):
  if path.stem == 'imagenet_retrain':
    (tmp_path / 'cell.txt').write_text(SMALL_CELL)
    argument = f':genotype={tmp_path / "cell.txt"}'
  config = load(path, argument)
  for curves in ('save_search', 'save_training'):  # Slow, and all alike.
    monkeypatch.setattr(curves_module, curves, lambda *args: ())
  if config.space in SMALL:
    monkeypatch.setitem(spaces.SPACES, config.space, SMALL[config.space])
  config.compilation_cache = ''
  config.stem = 'imagenet' if config.dataset == 'imagenet' else 'cifar'
  search_part, retrain_part = config.search, config.retrain
  search_part.cells = retrain_part.cells = {
      'mobile': 2, 'nasbench_macro': 8}.get(config.space, 3)
  partial = table.METHODS[config.method].partial
  search_part.channels = retrain_part.channels = 2 * partial
  search_part.stage_cells = '3,3,3'
  search_part.alpha_start = 0
  search_part.candidates = min(2, search_part.candidates)
  search_part.batch_size = retrain_part.batch_size = 4
  search_part.fraction_theta = search_part.fraction_alpha = .5
  search_part.max_steps = 2
  if search_part.split != 'none':  # Before any training, counted in epochs.
    search_part.split_epochs, search_part.split_batches = '0', 1
    search_part.split_groups, search_part.split_sizes = '2', ''
    search_part.max_steps, search_part.epochs = 0, 2
  if config.method == 'random_search':  # It has no supernet to limit.
    search_part.epochs = 2
  retrain_part.epochs = 1
  retrain_part.warmup_epochs = 0
  retrain_part.seeds = min(1, retrain_part.seeds)
  retrain_part.random_architectures = 0
  size = 64 if config.dataset == 'imagenet' else 32
  dataset = fake(config, 8, size if config.dataset != 'digits' else 8)
  assert run_lib.run(config, tmp_path / 'run', dataset) == 0
  result = json.loads((tmp_path / 'run' / 'result.json').read_text())
  if not config.genotype:
    assert result['search']['steps'] == 2
  for evaluation in result['evaluations']:
    assert np.isfinite(evaluation['test_loss'])
  assert len(result['evaluations']) == retrain_part.seeds
  assert ('table' in result) == (config.space in (
      'nasbench201', 'nasbench_macro'))


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize('stem', ARGUMENTS)
def test_every_argument_gives_a_config_of_its_own(stem):
  """All can be built: space, method and sizes fit (`load` validates)."""
  known = []
  for args, config in combinations(stem):
    space = checks.space(config)
    for name in ('search', 'retrain'):
      part = config[name]
      families.check(
          space, name, spaces.Sizes(
              part.cells, part.channels, 10, config.image_size or 32),
          'imagenet' if config.dataset == 'imagenet' else 'cifar',
          auxiliary=name == 'retrain' and part.auxiliary)
    assert config.method == args['method']
    assert config.dataset == args.get('dataset', (
        'imagenet' if stem == 'imagenet_direct' else 'cifar10'))
    if args['method'] in SAMPLED and stem in EQUAL_COST:
      assert config.search.k * config.search.epochs == EQUAL_COST[stem]
    if args.get('topology') != 'auto':  # The same as one of the others.
      known.append(json.dumps(fields.to_json(config) | {'name': ''}))
  repeated = len(known) - len(set(known))
  # The two evaluations of S1 and S3 on CIFAR-10 are the same.
  methods = ARGUMENTS[stem]['method']
  assert repeated == (2 * len(methods) if stem == 'robustdarts' else 0)


@pytest.mark.parametrize('stem', ARGUMENTS)
def test_defaults_are_the_first_values_and_documented(stem):
  values = ARGUMENTS[stem]
  plain = load(f'configs/{stem}.py')
  assert plain == load(f'configs/{stem}.py:{texts(stem)[0]}')
  docstring = pathlib.Path(f'configs/{stem}.py').read_text().split('"""')[1]
  words = ' '.join(docstring.split()).replace('| ', '|')
  assert 'the default first' in words
  for name, allowed in values.items():
    assert f'{name}={"|".join(allowed)}' in words


@pytest.mark.parametrize('argument, words', [
    ('robustdarts:space=s5', "space='s5' must be one of s1, s2, s3, s4"),
    ('robustdarts:spce=s1',
     "'spce' must be one of space, dataset, method, evaluation; did you mean "
     "'space'?"),
    ('robustdarts:s2', "did you mean 'space=s2'?"),
    ('nasbench201:dataset=svhn', "dataset='svhn' must be one of cifar10, "),
    ('nasbench201:method=gdas,topology=edges',
     "config.method='gdas' needs every edge, but space=nasbench201"),
    ('nasbench1shot1:variant=orginal', "did you mean 'original'?"),
    ('imagenet_retrain:genotype=', 'genotype needs a value')])
def test_bad_arguments(argument, words):
  with pytest.raises(errors.UserError, match=re.escape(words)):
    command_line.load([f'--config={argument}'])


# ------------------------------------------------------------------ recipes


def test_robustdarts_sizes():
  """The note of ROME's Table 6, in its words."""
  for args, config in combinations('robustdarts'):
    part = config.retrain
    if args['evaluation'] == 'sdarts':
      expected = 20, 36
    elif args['dataset'] in ('cifar100', 'svhn'):
      expected = 8, 16
    else:
      expected = 20, {'s1': 36, 's2': 16, 's3': 36, 's4': 16}[args['space']]
    assert (part.cells, part.channels) == expected
    assert (part.drop_path, part.auxiliary, part.auxiliary_weight,
            augment.cutout_side(part.cutout, 32), part.epochs,
            part.batch_size, part.lr, part.weight_decay, part.clip_norm) == (
                .2, True, .4, 16, 600, 96, .025, 3e-4, 5.)
    assert (config.search.cells, config.search.channels,
            config.search.batch_size) == (
                8, 16, 256 if args['method'] == 'pc_darts' else 64)
    assert config.search.augment == part.augment == (
        'svhn' if args['dataset'] == 'svhn' else 'cifar')


# Sizes in RobustDARTS's logs, on CIFAR-10 (and SVHN) and on CIFAR-100.
@pytest.mark.parametrize('space, small, large', [
    ('s1', 405_146, 428_276), ('s2', 665_466, 688_596),
    ('s3', 665_466, 688_596), ('s4', 624_506, 647_636)])
def test_robustdarts_supernets_have_the_published_size(space, small, large):
  for dataset in SHAPES:
    if dataset not in ('cifar10', 'cifar100', 'svhn'):
      continue
    config = load(f'configs/robustdarts.py:space={space},dataset={dataset}')
    assert supernet_params(config) == (
        large if dataset == 'cifar100' else small)


def supernet_params(config):
  space, part = checks.space(config), config.search
  _, channels, classes = SHAPES[config.dataset]
  return families.get(space).count_supernet(
      space, spaces.Sizes(part.cells, part.channels, classes,
                          config.image_size or 32, channels),
      'imagenet' if config.dataset == 'imagenet' else 'cifar').params


def test_nasbench201_recipe():
  """AutoDL-Projects, configs/nas-benchmark; counts of its networks."""
  for args, config in combinations('nasbench201'):
    search_part, part = config.search, config.retrain
    assert (search_part.cells, search_part.channels, search_part.batch_size,
            search_part.weight_decay, search_part.nesterov) == (
                15, 16, 64, 5e-4, True)
    assert (search_part.lr, search_part.lr_end) == {
        **dict.fromkeys(ROME, (.05, .001)), 'fair_darts': (.005, .001)}.get(
            args['method'], (.025, .001))
    assert (part.seeds, part.cells, part.channels, part.epochs,
            part.batch_size, part.lr, part.lr_end, part.nesterov,
            part.weight_decay) == (
                0, 15, 16, 200, 256, .1, 0., True, 5e-4)
    assert (part.auxiliary, part.cutout, part.drop_path) == (False, 0, 0.)
    space = checks.space(config)
    searches_edges = args['topology'] == 'edges' or (
        args['topology'] == 'auto' and args['method'] in ROME)
    assert space.has_topology == searches_edges
    assert ('none' in space.ops) != searches_edges
  config = load('configs/nasbench201.py')
  for code, params in (('333333', 1_531_546), ('222222', 241_306)):
    cell = nasbench201_forms.to_genotype(code)
    assert count(config, cell).params == params


def test_nasbench1shot1_recipe():
  for args, config in combinations('nasbench1shot1'):
    part, skip = config.search, args['variant'] == 'skip'
    assert (part.cells, part.channels, part.batch_size, part.lr_end,
            part.weight_decay, part.alpha_lr, part.alpha_weight_decay) == (
                9, 16, 96, .001, 3e-4, 3e-4, 1e-3)
    space = checks.space(config)
    assert ('skip_connect' in space.ops, 'conv_1x1' in space.ops) == (
        skip, not skip)
    assert space.num_nodes == {'1': 5, '2': 5, '3': 6}[args['space']]


def test_mobile_recipe():
  """ProxylessNAS, search/imagenet_arch_search.py and imagenet_run_exp.py."""
  config = load('configs/mobile.py')
  part = config.search
  assert (part.batch_size, part.weight_decay, part.nesterov, part.alpha_lr,
          part.alpha_b1, part.alpha_b2, part.alpha_weight_decay) == (
              256, 4e-5, True, 1e-3, 0., .999, 0.)
  assert part.k * part.epochs == 120
  labels = np.arange(1_281_167) % 1000
  theta, alpha = data.halves(labels, part.fraction_theta, part.fraction_alpha,
                             0)
  assert len(theta) + len(alpha) == len(labels)
  assert len(alpha) == pytest.approx(50_000, rel=.001)
  part = config.retrain
  assert (part.epochs, part.batch_size, part.lr, part.weight_decay,
          part.label_smoothing, part.nesterov, part.auxiliary) == (
              300, 256, .05, 4e-5, .1, True, False)
  space = checks.space(config)
  for name in ('search', 'retrain'):
    part = config[name]
    families.check(space, name, spaces.Sizes(
        part.cells, part.channels, 1000, 224), 'imagenet')
  cpu = mobile.PROXYLESS['proxyless_cpu'].genotype
  families.check_genotype(space, cpu, 'proxyless_cpu')


def test_imagenet_retrain_is_imagenet_direct_without_its_search():
  config = load('configs/imagenet_retrain.py:genotype=PC_DARTS_cifar')
  direct = load('configs/imagenet_direct.py')
  differing = {name for name in fields.FIELDS
               if fields.to_json(config) != fields.to_json(direct)
               and at(config, name) != at(direct, name)}
  assert differing == {'name', 'genotype'}
  cell = genotypes.load(config.genotype)
  assert count(config, cell).params == 5_270_560


def count(config, genotype):
  setup = door.make_setup(config, fake(config, 1))
  return retrain.count(setup, door.retrain_recipe(config), genotype)


def at(config, name):
  for part in name.split('.'):
    config = config[part]
  return config


# ----------------------------------------------------------- docs/spaces.md


def num_cells(space):
  """Derivable architectures, from the row alone.

  Per node, the sum over the edges it may keep of the product of their
  operations: an elementary symmetric polynomial.
  """
  total = 1
  for cell_type in space.cell_types:
    names = [set(names) - set(space.not_derived)
             for names in space.site_ops(cell_type)]
    if space.sites == 'nodes':
      total *= prod(len(ops) for ops in names)
    for (a, b), degree in zip(space.node_edges, space.in_degrees):
      if space.sites == 'nodes':
        total *= comb(b - a, degree)
        continue
      coefficients = np.array([1], object)
      for ops in names[a:b]:
        coefficients = np.convolve(coefficients, [1, len(ops)])
      total *= int(coefficients[degree])
  return total


def table_of(path, first):
  """Rows (lists of cells) of the table whose first heading is `first`."""
  lines = pathlib.Path(path).read_text().splitlines()
  start = next(i for i, line in enumerate(lines)
               if line.startswith(f'| {first} |'))
  rows = itertools.takewhile(lambda line: line.startswith('|'),
                             lines[start + 2:])
  return [[cell.strip() for cell in row.strip('|').split('|')] for row in rows]


def number(text):
  return float(text.replace(',', ''))


def test_the_table_of_spaces_is_right():
  rows = table_of('docs/spaces.md', 'space')
  assert [row[0].strip('`') for row in rows] == list(spaces.SPACES)
  sizes = {'nasbench201': (15, 16), 'nasbench1shot1': (9, 16),
           'darts': (8, 16)}
  for name, _, edges, ops, architectures, size, params in rows:
    space = spaces.SPACES[name.strip('`')]
    assert int(edges) == space.num_edges
    assert int(ops) == space.num_choices
    assert number(architectures) == pytest.approx(num_cells(space), rel=.005)
    blocks = space.family == 'mobile'
    cells, channels = sizes.get(space.family, (space.num_nodes, 32))
    assert size == f'{cells} / {channels}'
    assert number(params) == families.get(space).count_supernet(
        space, spaces.Sizes(cells, channels, 1000 if blocks else 10,
                            224 if blocks else 32),
        'imagenet' if blocks else 'cifar').params


@pytest.mark.parametrize('space, expected', [
    (spaces.S0, 1_037_664_180**2), (spaces.NASBENCH201, 15_625),
    (spaces.SPACES['nasbench1shot1_3'], 1_312_200),
    (spaces.MOBILE, 6**6 * 7**15)], ids=lambda x: getattr(x, 'name', ''))
def test_numbers_of_architectures_that_are_known(space, expected):
  assert num_cells(space) == expected


def test_what_an_in_degree_of_nasbench201_can_reach():
  table = nasbench201.load()
  rows = table_of('docs/spaces.md', 'in-degree')
  assert [row[0] for row in rows] == ['3', '2', '1']
  for degree, cells, *best in rows:
    found = reachable(int(degree))
    assert int(cells.replace(',', '')) == len(found)
    space = spaces.get_space(
        'nasbench201', in_degree=int(degree), drop_none=True)
    assert num_cells(space) == len(found)
    for dataset, text in zip(('cifar10', 'cifar100', 'imagenet16-120'), best):
      values = table.values(dataset)[found]
      rank = table.rank(int(found[np.argmax(values)]), dataset)
      assert text == f'{values.max():.2f} ({rank})'


def reachable(degree):
  """Indices of the cells in which each node keeps `degree` edges."""
  found = []
  for code in itertools.product('01234', repeat=6):
    kept = [sum(op != '0' for op in code[a:b])
            for a, b in ((0, 1), (1, 3), (3, 6))]
    if kept == [min(degree, n) for n in (1, 2, 3)]:
      found.append(nasbench201_forms.to_index(''.join(code)))
  return np.array(found)


# ---------------------------------------------------------------- full size


@pytest.mark.slow
@EVERY_FILE
def test_full_size_search_runs_two_steps(path):
  config = load(path, given(path))
  if config.genotype:
    pytest.skip('does not search')
  part, classes = config.search, SHAPES[config.dataset][2]
  if config.dataset == 'imagenet':
    part.batch_size = 8
  # A share of each class is rounded down.
  dataset = fake(config, int(np.ceil((part.batch_size + classes) / min(
      part.fraction_theta, part.fraction_alpha))))
  built = search.build(door.make_setup(config, dataset),
                       door.search_recipe(config), dataset, config.seed)
  batch = built.phase.batches(0)
  carry = loop.init_carry(built.update, built.state, batch, built.phase.memo)
  program = loop.compile_step(built.update, carry, batch)
  for step in range(2):
    carry = program.call(carry, built.phase.batches(step % 1))
  assert int(carry.state.step) == 2
  assert all(np.isfinite(v) for v in jax.tree.leaves(
      jax.device_get(carry.window)))


@pytest.mark.slow
@EVERY_FILE
def test_full_size_retraining_runs_two_steps(path):
  """At the config's depth, width and image size, and a batch of 4."""
  config = load(path, given(path))
  config.retrain.batch_size = 4
  dataset = fake(config, 8)
  setup, recipe = door.make_setup(config, dataset), door.retrain_recipe(config)
  trainer = retrain.Trainer(setup, recipe, dataset)
  genotype = genotypes.PUBLISHED['DARTS_V2'].genotype
  space = checks.space(config)
  if space.family != 'darts':
    genotype = genotypes.random(space, np.random.default_rng(0))
  phase, program, carry = trainer.prepare(
      retrain.Job('given-0', 'given', genotype, 0))
  for step in range(2):
    carry = program.call(carry, phase.batches(step))
  assert np.isfinite(phase.test(carry.state)['test_loss'])
