import json
import os
import pathlib
import re

import jax
import ml_collections
import pytest

from rome_jax import errors, families, spaces
from rome_jax.config import checks, command_line, fields, help_text
from rome_jax.data import augment
from rome_jax.methods import table

REPOSITORY = pathlib.Path(__file__).parents[2]
# Comparisons have a test of their own.
CONFIGS = sorted(path for path in (REPOSITORY / 'configs').glob('*.py')
                 if not path.stem.startswith('compare_'))


def load_config(path, *flags):
  return command_line.load([f'--config={path}', *flags]).config


def quickstart(*flags):
  return load_config('quickstart', *flags)


def write_config(tmp_path, body, name='mine.py'):
  path = tmp_path / name
  path.write_text(
      'from rome_jax import config as config_lib\n'
      'def get_config():\n'
      '  config = config_lib.defaults()\n'
      f'  {body}\n'
      '  return config\n')
  return path


def test_defaults_are_valid_and_locked():
  config = fields.defaults()
  checks.validate(config)
  assert config.is_locked and config.search.is_locked
  with pytest.raises(AttributeError):
    config.search.cels = 3


def test_defaults_are_the_published_search_and_retraining():
  # DARTS train_search.py and train.py, ROME Section 4: not read from the code.
  config = fields.defaults()
  search, retrain = config.search, config.retrain
  assert (search.cells, search.channels, search.batch_size, search.epochs,
          search.k) == (8, 16, 64, 50, 7)
  assert (search.lr, search.lr_end, search.weight_decay, search.clip_norm) == (
      .05, .001, 3e-4, 5.)
  assert (search.alpha_lr, search.alpha_b1, search.alpha_b2,
          search.alpha_weight_decay) == (3e-4, .5, .999, 1e-3)
  assert (retrain.cells, retrain.channels, retrain.batch_size,
          retrain.epochs, augment.cutout_side(retrain.cutout, 32)) == (
              20, 36, 96, 600, 16)
  assert (retrain.lr, retrain.drop_path, retrain.auxiliary_weight) == (
      .025, .2, .4)


@pytest.mark.parametrize('name, field', fields.FIELDS.items())
def test_every_field_has_a_meaning_and_an_allowed_default(name, field):
  assert field.meaning
  assert type(field.default) in (int, float, str, bool)
  assert field.choices is None or field.default in field.choices()
  assert f'--config.{name}=' in help_text.text()


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_round_trips(path):
  loaded = command_line.load([f'--config={path}'])
  assert loaded.workdir == os.path.join('runs', path.stem)
  assert loaded.options.help == ''
  text = json.dumps(fields.to_json(loaded.config))
  again = checks.from_json(json.loads(text))
  assert again == loaded.config and again.is_locked
  assert json.dumps(fields.to_json(again)) == text


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_says_what_it_costs_and_reaches(path):
  text = path.read_text()
  # A command may go on in the next line.
  docstring = ' '.join(text.split('"""')[1].replace('\\', ' ').split())
  for words in ('python -m rome_jax.main --config=configs/', 'Hardware:',
                'Time:', 'Published score:', 'This code:'):
    assert words in docstring
  assert len(text.splitlines()) < 100


def test_imagenet_recipe():
  config = load_config('imagenet_direct')
  search, retrain = config.search, config.retrain
  assert (search.cells, search.channels, search.k, search.epochs,
          search.batch_size, search.fraction_theta, search.fraction_alpha) == (
              8, 16, 3, 30, 256, .1, .1)
  assert (retrain.cells, retrain.channels, retrain.batch_size, retrain.lr,
          retrain.warmup_epochs, retrain.weight_decay,
          retrain.label_smoothing, retrain.epochs, retrain.drop_path,
          retrain.cutout, retrain.auxiliary_weight) == (
              14, 48, 1024, .5, 5, 3e-5, .1, 250, 0., 0, .4)
  assert config.image_size == 224


def test_overrides_are_typed_by_the_field():
  config = quickstart(
      '--config.search.k=3', '--config.search.lr=1', '--config.seed', '5',
      '--config.retrain.nesterov=true', '--config.retrain.auxiliary=False',
      '--config.data_dir=a=b', '--config.search.alpha_lr=1e-2',
      '--config.search.k=2')
  assert config.search.k == 2
  assert type(config.search.lr) is float and config.search.lr == 1
  assert config.search.alpha_lr == .01
  assert config.seed == 5
  assert config.retrain.nesterov is True
  assert config.retrain.auxiliary is False
  assert config.data_dir == 'a=b'


def test_workdir():
  assert command_line.load(
      ['--workdir=x/y', '--config=quickstart']).workdir == 'x/y'
  assert command_line.load(
      ['--config', 'quickstart.py', '--workdir', 'z']).workdir == 'z'


def test_help_needs_nothing_else():
  loaded = command_line.load(['--help'])
  assert loaded.config is None
  text = loaded.options.help
  assert text.startswith('usage: rome-jax run')
  assert max(map(len, text.splitlines())) <= 80
  assert {path.stem for path in CONFIGS if path in help_text.shipped()} == {
      path.stem for path in help_text.shipped()}
  assert all(f'  {path.stem}: ' in text for path in help_text.shipped())
  assert '--config.search.tau_start=10.0' in loaded.options.help


def test_config_files_are_found_from_the_working_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write_config(tmp_path, 'config.seed = 3')
  assert load_config('mine.py').seed == 3
  (tmp_path / 'configs').mkdir()
  write_config(tmp_path / 'configs', 'config.seed = 4', 'other.py')
  assert load_config('other').seed == 4
  assert load_config('configs/other.py').seed == 4
  assert load_config('quickstart').dataset == 'digits'


def test_config_files_take_an_argument(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(
      'from rome_jax.config import defaults\n'
      'def get_config(seed="1"):\n'
      '  config = defaults()\n'
      '  config.seed = int(seed)\n'
      '  return config\n')
  assert load_config(path).seed == 1
  loaded = command_line.load([f'--config={path}:7'])
  assert loaded.config.seed == 7
  assert loaded.workdir == os.path.join('runs', 'mine_7')
  assert list(tmp_path.iterdir()) == [path]  # No bytecode beside it.


KNOWN = dict(space=('s1', 's2'), size=('8', '20'), cell='DARTS_V2')


@pytest.mark.parametrize('text, expected', [
    ('', ('s1', '8', 'DARTS_V2')),
    ('space=s2', ('s2', '8', 'DARTS_V2')),
    ('size=20,space=s1', ('s1', '20', 'DARTS_V2')),
    (' cell = a=b/c.json , size=8', ('s1', '8', 'a=b/c.json'))])
def test_arguments_of_a_config_file(text, expected):
  found = command_line.arguments(text, **KNOWN)
  assert (found.space, found.size, found.cell) == expected
  assert vars(found).keys() == KNOWN.keys()


@pytest.mark.parametrize('text, words', [
    ('spaec=s1',
     "'spaec' must be one of space, size, cell; did you mean 'space'?"),
    ('space=ss2', "space='ss2' must be one of s1, s2; did you mean 's2'?"),
    ('space=', "space='' must be one of s1, s2"),
    ('cell=', 'cell needs a value'),
    ('20', "'20' must be KEY=VALUE with a KEY of space, size, cell; did you "
     "mean 'size=20'?"),
    ('DARTS', "'DARTS' must be KEY=VALUE with a KEY of space, size, cell"),
    ('space=s1,', "'' must be KEY=VALUE"),
    ('=s1', "'' must be one of space"),
    ('space=s1,space=s2', 'space comes twice')])
def test_bad_arguments_of_a_config_file(text, words):
  with pytest.raises(errors.UserError, match=re.escape(words)) as caught:
    command_line.arguments(text, **KNOWN)
  assert '\n' not in str(caught.value)


def test_commands_with_arguments():
  loaded = command_line.load(
      ['--config=robustdarts:space=s2,method=gdas', '--config.search.epochs=3'])
  config = loaded.config
  assert (config.space, config.method, config.search.k,
          config.search.epochs) == ('s2', 'gdas', 1, 3)
  assert loaded.workdir == os.path.join(
      'runs', 'robustdarts_space_s2_method_gdas')


@pytest.mark.parametrize('flags, words', [
    ([], '--config=PATH is missing'),
    (['--config='], '--config=PATH is missing'),
    (['--config'], '--config needs a value'),
    (['--config=quickstrat'], "does not exist; did you mean 'quickstart'?"),
    (['--config=no/such/file.py'], 'no/such/file.py does not exist'),
    (['--config=configs'], '--config=configs is a folder, not a file'),
    (['--config=quickstart:5'], "takes no argument, got '5'"),
    (['quickstart'], "'quickstart' is no flag"),
    (['--confg=quickstart'], "--confg is unknown; did you mean 'config'?"),
    (['--config=quickstart', '--workdri=x'], "did you mean 'workdir'?"),
    (['--config=quickstart', '--search.k=3'],
     "did you mean 'config.search.k'?"),
    (['--config=quickstart', '--config.search.cels=3'],
     "search.cels is unknown; did you mean 'search.cells'?"),
    (['--config=quickstart', '--config.serach.k=3'],
     "did you mean 'search.k'?"),
    (['--config=quickstart', '--config.cells=3'],
     "did you mean 'search.cells' or 'retrain.cells'?"),
    (['--config=quickstart', '--config.tau_strat=3'],
     "did you mean 'search.tau_start'?"),
    (['--config=quickstart', '--config.search=3'],
     'config.search is a section'),
    (['--config=quickstart', '--config.search.k=many'],
     "config.search.k='many' must be a whole number"),
    (['--config=quickstart', '--config.search.k=1.5'],
     'must be a whole number'),
    (['--config=quickstart', '--config.search.lr=fast'],
     "config.search.lr='fast' must be a number"),
    (['--config=quickstart', '--config.retrain.auxiliary=maybe'],
     "='maybe' must be true or false"),
    (['--config=quickstart', '--config.search.k'], 'needs a value'),
])
def test_bad_command_lines(flags, words, monkeypatch):
  monkeypatch.chdir(REPOSITORY)
  with pytest.raises(errors.UserError, match=re.escape(words)) as caught:
    command_line.load(flags)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name, value, words', [
    ('search.k', -1, 'at least 0'),
    ('search.k', True, 'a whole number'),
    ('search.tau_start', 0., 'above 0'),
    ('search.tau_end', -1., 'above 0'),
    ('search.tau_start', float('nan'), 'a finite number above 0'),
    ('search.lr', float('inf'), 'a finite number above 0'),
    ('search.lr', -.1, 'above 0'),
    ('search.cells', 0, 'at least 1'),
    ('search.epochs', -1, 'at least 0'),
    ('search.max_steps', -1, 'at least 0'),
    ('search.samples', 'vmpa', "auto, scan, vmap; did you mean 'vmap'?"),
    ('search.dtype', 'bf16', 'float32, bfloat16'),
    ('retrain.dtype', 'float16', 'float32, bfloat16'),
    ('retrain.remat', 'all', 'none, cells'),
    ('search.accumulate', 0, 'at least 1'),
    ('search.accumulate', 7,
     'batch_size=64 must be a multiple of config.search.accumulate=7'),
    ('retrain.accumulate', 5,
     'batch_size=96 must be a multiple of config.retrain.accumulate=5'),
    ('search.sampler', 'fair', 'iid, strict_fair'),
    ('search.order', 'alpha', 'alpha_first, theta_first'),
    ('search.theta_reduce', 'max', 'sum, mean'),
    ('search.augment', 'cifar10', "did you mean 'cifar'?"),
    ('search.fraction_theta', 0., 'above 0 and at most 1'),
    ('search.fraction_alpha', .6, 'add up to at most 1'),
    ('search.momentum', 1., 'at least 0 and below 1'),
    ('method', 'rome_v3', "did you mean 'rome_v2'?"),
    ('method', 'gdas', "search.k=7 must be 1 with method='gdas'"),
    ('search.alpha_start', 50, 'below config.search.epochs=50'),
    ('search.candidates', -1, 'at least 0'),
    ('image_size', 100_000, 'at least 0 and at most 8192'),
    ('search.k', 10**20, 'at least 0 and at most 1000'),
    ('space', 's00', "did you mean 's0'?"),
    ('stem', 'resnet', 'auto, cifar, imagenet'),
    ('seed', -1, 'at least 0'),
    ('seed', 2**32, 'at most 4294967295'),
    ('dataset', '', 'must name a data set'),
    ('test_fraction', 1., 'above 0 and below 1'),
    ('keep_checkpoints', 0, 'at least 1'),
    ('retrain.drop_path', 1., 'below 1'),
    ('retrain.epochs', -5, 'at least 0'),
    ('retrain.warmup_epochs', 600, 'below config.retrain.epochs=600'),
    ('retrain.label_smoothing', -.1, 'at least 0'),
    ('retrain.seeds', -1, 'at least 0'),
    ('retrain.random_architectures', -1, 'at least 0'),
])
def test_bad_values(name, value, words):
  section, _, last = name.rpartition('.')
  config = fields.defaults()
  setattr(config[section] if section else config, last, value)
  with pytest.raises(errors.UserError, match=re.escape(words)) as caught:
    checks.validate(config)
  assert last in str(caught.value) and '\n' not in str(caught.value)


def test_largest_seed_is_one_that_jax_takes():
  config = fields.defaults()
  config.seed = 2**32 - 1
  checks.validate(config)
  jax.random.key(config.seed)


def test_strict_fair_needs_whole_rounds_of_the_operations():
  config = fields.defaults()
  config.search.sampler = 'strict_fair'
  operations = len(spaces.get_space(config.space).ops)
  for k in (operations, 2 * operations):
    config.search.k = k
    checks.validate(config)
  config.search.k = operations + 1
  with pytest.raises(errors.UserError, match='multiple of the 7 operations'):
    checks.validate(config)


@pytest.mark.parametrize('method, changes, words', [
    ('darts', {'sampler': 'strict_fair'}, 'which samples nothing'),
    ('p_darts', {'skip_dropout': .1}, 'set config.search.stage_skip_dropout'),
    ('darts_ada', {'weight_decay': 0.}, 'must be above 0 and below 0.03 with'),
    ('darts_2nd_ada', {'weight_decay': .03}, "method='darts_2nd_ada'"),
    ('darts_ada', {'cutout': 4, 'cutout_ramp': True}, 'goes back to earlier'),
    ('spos', {'path_law': 'site'}, "except with method='pada' or 'pa'"),
    ('pa', {'unbiased': True}, 'draws images by weight'),
])
def test_fields_that_a_method_refuses(method, changes, words):
  config = fields.defaults()
  config.method = method
  checks.apply_recipe(config)
  config.search.update(changes)
  with pytest.raises(errors.UserError, match=re.escape(words)):
    checks.validate(config)


@pytest.mark.parametrize('space, sizes, words', [
    ('s0', dict(channels=35, stem='imagenet'),
     'config.retrain.channels=35 must be even with the ImageNet stem'),
    ('nasbench201', dict(cells=15, stem='imagenet'),
     "stem='imagenet' must be cifar with space=nasbench201"),
    ('nasbench201', dict(cells=20), 'config.retrain.cells=20 must be a'),
    ('nasbench1shot1_1', dict(cells=15, auxiliary=True),
     'config.retrain.auxiliary must be false with space=nasbench1shot1_1'),
    ('mobile', dict(cells=20), 'config.retrain.cells=20 must be 21')])
def test_sizes_that_a_network_cannot_have(space, sizes, words):
  good = spaces.Sizes(21 if space == 'mobile' else 15, 36, 10)
  families.check(spaces.SPACES[space], 'config.retrain', good, 'cifar')
  rest = {'stem': 'cifar'} | {
      name: sizes[name] for name in ('stem', 'auxiliary') if name in sizes}
  sizes = {name: n for name, n in sizes.items() if name not in rest}
  with pytest.raises(errors.UserError, match=re.escape(words)):
    families.check(spaces.SPACES[space], 'config.retrain',
                   good._replace(**sizes), **rest)


def test_one_architecture_a_step_is_gdas():
  config = fields.defaults()
  config.method, config.search.k = 'gdas', 1
  checks.validate(config)


def test_fields_of_the_wrong_set_or_type_are_found():
  values = fields.to_json(fields.defaults())
  values['search'].pop('k')
  with pytest.raises(errors.UserError, match=r'config\.search\.k is missing'):
    checks.validate(ml_collections.ConfigDict(values))
  values['search']['k'] = '7'
  with pytest.raises(errors.UserError, match="k='7' must be a whole number"):
    checks.validate(ml_collections.ConfigDict(values))
  with pytest.raises(errors.UserError, match='whole number'):
    checks.from_json(values)
  values['search'].update(k=7, kk=7)
  with pytest.raises(errors.UserError, match='search.kk is unknown'):
    checks.validate(ml_collections.ConfigDict(values))
  with pytest.raises(errors.UserError, match='search.kk is unknown'):
    checks.from_json(values)
  with pytest.raises(errors.UserError, match='not a list'):
    checks.from_json([])


@pytest.mark.parametrize('body, words', [
    ('config.search.cels = 3',
     "mine.py, line 4: field cels is unknown; did you mean 'search.cells' or"),
    ('config.sed = 3', "field sed is unknown; did you mean 'seed'?"),
    ('config.search.k = 1.5', 'mine.py, line 4: TypeError'),
    ('config.search.k = -1', 'config.search.k=-1 must be a whole number at'),
    ('config = {}', 'must return a ConfigDict, not a dict'),
    ('config =', 'mine.py, line 4: invalid syntax'),
    ('1 / 0', 'mine.py, line 4: ZeroDivisionError: division by zero'),
    ('raise SystemExit(3)', 'mine.py, line 4: SystemExit: 3'),
    ('import no_such_module', 'ModuleNotFoundError: No module named'),
    ("open('/no/such/file')", 'mine.py, line 4: FileNotFoundError'),
])
def test_bad_config_files(body, words, tmp_path):
  path = write_config(tmp_path, body)
  with pytest.raises(errors.UserError, match=re.escape(words)) as caught:
    load_config(path)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('content, words', [
    (b'', 'has no function get_config()'),
    (b'get_config = 3', 'has no function get_config()'),
    (b'\0', 'mine.py'),
    (b'\xff\xfe', 'mine.py'),
    (b'def get_config(a, b): pass', 'TypeError'),
    (b'def get_config(): pass', 'not a NoneType'),
])
def test_files_that_are_no_config(content, words, tmp_path):
  path = tmp_path / 'mine.py'
  path.write_bytes(content)
  with pytest.raises(errors.UserError, match=re.escape(words)) as caught:
    load_config(path)
  assert '\n' not in str(caught.value)


def test_workdir_belongs_to_one_config(tmp_path):
  workdir = tmp_path / 'a' / 'run'
  config = quickstart()
  checks.check_workdir(workdir, config)
  saved = json.loads((workdir / 'config.json').read_text())
  assert saved == fields.to_json(config)
  checks.check_workdir(workdir, config)
  assert [path.name for path in workdir.iterdir()] == ['config.json']

  other = quickstart('--config.search.k=11', '--config.seed=9',
                     '--config.log_every=7')
  with pytest.raises(errors.UserError) as caught:
    checks.check_workdir(workdir, other)
  message = str(caught.value)
  assert f'search.k ({config.search.k} there, 11 now)' in message
  assert 'seed (0 there, 9 now)' in message
  assert 'log_every' not in message
  assert json.loads((workdir / 'config.json').read_text()) == saved


def test_workdir_takes_new_values_of_free_fields(tmp_path):
  checks.check_workdir(tmp_path, quickstart())
  checks.check_workdir(tmp_path, quickstart(
      '--config.log_every=7', '--config.checkpoint_every=9',
      '--config.keep_checkpoints=3', '--config.compilation_cache=',
      '--config.data_dir=elsewhere', '--config.loader=grain',
      '--config.loader_workers=3'))
  saved = json.loads((tmp_path / 'config.json').read_text())
  assert saved['log_every'] == 7 and saved['data_dir'] == 'elsewhere'


def test_fields_that_a_version_lacked_had_their_defaults(tmp_path):
  values = fields.to_json(quickstart())
  del values['search']['samples']
  (tmp_path / 'config.json').write_text(json.dumps(values))
  checks.check_workdir(tmp_path, quickstart())
  values['old'] = 'absent'
  (tmp_path / 'config.json').write_text(json.dumps(values))
  with pytest.raises(errors.UserError) as caught:
    checks.check_workdir(tmp_path, quickstart('--config.search.samples=vmap'))
  assert 'search.samples ("auto" there, "vmap" now)' in str(caught.value)
  assert 'old ("absent" there, absent now)' in str(caught.value)


# --------------------------------------------------------- names of 0.1.0


OLD_NAMES = [('evaluate.cells', 3, 'retrain.cells'),
             ('evaluate.lr_schedule', 'linear', 'retrain.lr_schedule'),
             ('search.parallel', 'scan', 'search.samples')]


@pytest.mark.parametrize('old, value, new', OLD_NAMES)
def test_an_old_field_names_the_new_one(old, value, new):
  sentence = f'config.{old} of version 0.1.0 is now called config.{new}'
  with pytest.raises(errors.UserError, match=re.escape(sentence)):
    quickstart(f'--config.{old}={value}')
  values = fields.to_json(fields.defaults())
  section, name = old.split('.')
  values.setdefault(section, {})[name] = value
  for check in (checks.from_json, lambda values: checks.validate(
      ml_collections.ConfigDict(values))):
    with pytest.raises(errors.UserError, match=re.escape(sentence)):
      check(values)
  # The new name takes the old value.
  assert checks.from_json({new.split('.')[0]: {new.split('.')[1]: value}})


@pytest.mark.parametrize('body, words', [
    ('config.evaluate.cells = 3', 'field evaluate of version 0.1.0 is now '
     'called retrain'),
    ("config['evaluate'].cells = 3", 'now called retrain'),
    ('config.evaluate = 3', 'now called retrain'),
    ('config.update(evaluate=dict(cells=3))', 'now called retrain'),
    ("config.update_from_flattened_dict({'evaluate.cells': 3})",
     'field evaluate.cells of version 0.1.0 is now called retrain.cells'),
    ("config.search.parallel = 'scan'", 'field parallel of version 0.1.0 is '
     'now called search.samples'),
    ("config.search.update(parallel='scan')", 'now called search.samples'),
    ('config.search.cels', "did you mean 'search.cells' or"),
    ("dict(a=1)['b']", "mine.py, line 4: KeyError: 'b'")])
def test_an_old_field_in_a_config_file(body, words, tmp_path):
  path = write_config(tmp_path, body)
  with pytest.raises(errors.UserError, match=re.escape(words)) as caught:
    load_config(path)
  assert 'mine.py, line 4: ' in str(caught.value)
  assert '\n' not in str(caught.value)


def test_the_old_flag_names_the_new_one():
  for flags in (['--plan'], ['--plan=1']):
    with pytest.raises(errors.UserError, match='--plan of version 0.1.0 is now '
                       'called --dry-run'):
      command_line.load(['--config=quickstart', *flags])


@pytest.mark.parametrize('content', [
    {'evaluate': {'cells': 20}}, {'search': {'parallel': 'scan'}}])
def test_a_workdir_of_0_1_0_is_refused(content, tmp_path):
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(content))
  with pytest.raises(errors.UserError) as caught:
    checks.check_workdir(tmp_path, quickstart())
  assert str(caught.value) == (
      f'{tmp_path} holds a run of rome_jax 0.1.0, which this version cannot '
      'continue; finish it with that version or use another --workdir')
  assert json.loads(path.read_text()) == content


# ------------------------------------------------- limits, recipes, methods


NUMBERS = [name for name, field in fields.FIELDS.items()
           if type(field.default) is int]


@pytest.mark.parametrize('name', NUMBERS)
def test_every_whole_number_has_a_largest_value(name):
  """32 bits, or one sentence; also for what no float can hold."""
  high = fields.FIELDS[name].high
  assert high <= 2**32 - 1
  for value in (high + 1, 10**20, 10**400, 10**5000, -10**400):
    section, _, last = name.rpartition('.')
    values = {section: {last: value}} if section else {last: value}
    with pytest.raises(errors.UserError) as caught:
      checks.from_json(values)
    message = str(caught.value)
    assert f'config.{name}=' in message and '\n' not in message
    assert len(message) < 200


@pytest.mark.parametrize('text', ['1' + '0' * 400, '1e999', '-' + '9' * 500])
def test_a_number_that_no_float_holds(text):
  with pytest.raises(errors.UserError, match=r'config\.search\.lr=-?inf'):
    quickstart(f'--config.search.lr={text}')
  if text.lstrip('-').isdecimal():
    with pytest.raises(errors.UserError, match=r'config\.search\.lr=-?inf'):
      checks.from_json({'search': {'lr': int(text)}})


def test_the_command_line_takes_a_methods_recipe():
  config = quickstart('--config.search.lr_end=.002', '--config.method=gdas')
  assert (config.method, config.search.k, config.search.lr,
          config.search.lr_end) == ('gdas', 1, .025, .002)
  # Its own fields have the last word, wherever they stand.
  config = quickstart('--config.search.lr=.03', '--config.method=gdas')
  assert (config.search.k, config.search.lr) == (1, .03)
  # The method that the file has already changes nothing.
  assert quickstart('--config.method=rome_v2') == quickstart()
  # PC-DARTS, train_search.py of its code: batch 256, .1 to 0, Adam 6e-4.
  part = load_config('cifar10_s0', '--config.method=pc_darts').search
  assert (part.k, part.batch_size, part.lr, part.lr_end, part.alpha_lr,
          part.alpha_start) == (1, 256, .1, 0., 6e-4, 15)


def test_a_recipe_is_taken_back_with_its_method():
  path = 'configs/robustdarts.py:method=gdas'
  config = load_config(path, '--config.method=rome_v2')
  assert (config.search.k, config.search.lr) == (7, .05)
  assert load_config(path).search.k == 1
  config = load_config('cifar10_s0', '--config.method=pc_darts',
                       '--config.method=darts')
  assert (config.search.batch_size, config.search.alpha_start) == (64, 0)


@pytest.mark.parametrize('name', table.METHODS)
def test_every_recipe_fits_a_space(name):
  config = load_config('cifar10_s0', f'--config.method={name}')
  assert config.method == name
  for field, value in table.METHODS[name].recipe.items():
    section, last = field.split('.')
    assert config[section][last] == value


def test_a_method_that_chooses_among_candidates_needs_some():
  with pytest.raises(errors.UserError, match='candidates=0 must be at least 1'):
    load_config('cifar10_s0', '--config.method=spos',
                '--config.search.candidates=0')
  config = load_config('cifar10_s0', '--config.method=spos')
  assert config.search.candidates == 1000


def test_a_method_of_ones_own_is_a_choice(monkeypatch):
  row = table.METHODS['gdas']._replace(
      name='mine', recipe={'search.k': 3, 'search.lr': 1},
      check=lambda row, space, section: (
          'search.cutout=0 must be more' if not section.cutout else None))
  monkeypatch.setitem(table.METHODS, 'mine', row)
  with pytest.raises(errors.UserError, match=r'config\.search\.cutout=0 must'):
    quickstart('--config.method=mine')
  config = quickstart('--config.method=mine', '--config.search.cutout=2')
  assert (config.search.k, config.search.lr) == (3, 1.)
  assert 'mine' in help_text.text()
  monkeypatch.setitem(table.METHODS, 'mine', row._replace(
      recipe={'search.kk': 1}))
  with pytest.raises(errors.UserError, match='search.kk is unknown'):
    quickstart('--config.method=mine', '--config.search.cutout=2')


@pytest.mark.parametrize('content', ['', '{"seed": ', '[]'])
def test_damaged_config_of_a_workdir(content, tmp_path):
  (tmp_path / 'config.json').write_text(content)
  with pytest.raises(errors.UserError, match='config.json'):
    checks.check_workdir(tmp_path, quickstart())


def test_unusable_workdir(tmp_path):
  (tmp_path / 'file').write_text('')
  for workdir in (tmp_path / 'file', tmp_path / 'file' / 'below', '/proc/run'):
    with pytest.raises(errors.UserError, match='cannot write'):
      checks.check_workdir(workdir, quickstart())


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_read_only_workdir(tmp_path):
  checks.check_workdir(tmp_path, quickstart())
  tmp_path.chmod(0o500)
  with pytest.raises(errors.UserError, match='not writable'):
    checks.check_workdir(tmp_path, quickstart())


def test_a_runs_own_config_is_read_as_json(tmp_path):
  ours = quickstart('--config.method=gdas', '--config.seed=3',
                    '--config.search.lr=.3')
  checks.check_workdir(tmp_path / 'c10', ours)
  path = tmp_path / 'c10' / fields.FILENAME
  loaded = command_line.load([f'--config={path}', '--config.seed=5'])
  assert fields.to_json(loaded.config) == fields.to_json(ours) | {'seed': 5}
  assert loaded.workdir == os.path.join('runs', 'c10')
  (tmp_path / 'mine.json').write_text('{"search": {"k": 2}}')
  assert load_config(tmp_path / 'mine.json').search.k == 2


@pytest.mark.parametrize('content, words', [
    ('{"hidden": 3}', 'mine.json: config field hidden is unknown'),
    ('{"search": {"k": -1}}', 'mine.json: config.search.k=-1 must be'),
    ('{"evaluate": {"seeds": 1}}', 'mine.json: config.evaluate.seeds of'),
    ('[]', 'mine.json: a config is a JSON object'),
    ('{"seed": ', 'mine.json is not valid JSON: it ends too early')])
def test_a_json_file_that_is_no_config(content, words, tmp_path):
  (tmp_path / 'mine.json').write_text(content)
  with pytest.raises(errors.UserError, match=re.escape(words)) as caught:
    load_config(tmp_path / 'mine.json')
  assert '\n' not in str(caught.value)


def test_what_a_config_is_mistaken_for(tmp_path):
  checks.check_workdir(tmp_path / 'run', quickstart())
  for path, words in ((tmp_path / 'run', "did you mean '"),
                      (tmp_path, 'is a folder, not a file')):
    with pytest.raises(errors.UserError, match=words):
      load_config(path)
  (tmp_path / 'a.yaml').write_text('seed: 1')
  with pytest.raises(errors.UserError, match='must be a .py file'):
    load_config(tmp_path / 'a.yaml')
  with pytest.raises(errors.UserError, match='takes no argument'):
    load_config(f'{tmp_path / "run" / fields.FILENAME}:k=1')


@pytest.mark.parametrize('url', [
    'gs://bucket/x', 's3://bucket/x', 'file:///tmp/x', 'https://host/x.py'])
@pytest.mark.parametrize('flag', ['--workdir', '--config'])
def test_a_url_is_reported_as_given(flag, url):
  with pytest.raises(errors.UserError, match=re.escape(f'{flag}={url} must')):
    command_line.load(['--config=quickstart', f'{flag}={url}'])


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  write_config(tmp_path, 'pass')
  loaded = command_line.load(['--config=~/mine.py', '--workdir=~/runs/a'])
  assert loaded.workdir == str(tmp_path / 'runs' / 'a')
  with pytest.raises(errors.UserError, match='~nobody_here/x begins with ~'):
    command_line.load(['--config=quickstart', '--workdir=~nobody_here/x'])


def test_an_empty_workdir_is_refused():
  """A shell's variable that is not set; not the default."""
  with pytest.raises(errors.UserError, match='--workdir= is empty'):
    command_line.load(['--config=quickstart', '--workdir='])


@pytest.mark.parametrize('theirs', [
    {'hidden': 3, 'layers': {'a': 1}}, {'seed': 0, 'name': 'bert'}, {}])
def test_a_foreign_config_in_the_workdir(theirs, tmp_path):
  (tmp_path / fields.FILENAME).write_text(json.dumps(theirs))
  with pytest.raises(errors.UserError, match='is not the config of') as caught:
    checks.check_workdir(tmp_path, quickstart())
  assert len(str(caught.value)) < 200 + len(str(tmp_path))
  assert json.loads((tmp_path / fields.FILENAME).read_text()) == theirs


def test_many_fields_that_differ_are_counted(tmp_path):
  """Every field of two sections is another there."""
  theirs = fields.to_json(quickstart())
  for name in ('search', 'retrain'):
    theirs[name] = dict.fromkeys(theirs[name], 'another')
  differing = sum(len(theirs[name]) for name in ('search', 'retrain'))
  (tmp_path / fields.FILENAME).write_text(json.dumps(theirs))
  with pytest.raises(errors.UserError,
                     match=f' and {differing - 8} more; use another'):
    checks.check_workdir(tmp_path, quickstart())


def test_a_name_that_the_encoding_lacks(tmp_path):
  """As an ASCII locale, or a Latin-1 name, gives it: not UTF-8."""
  workdir = os.fsdecode(os.fsencode(tmp_path) + b'/r\xe9')
  with pytest.raises(errors.UserError, match='PYTHONUTF8=1'):
    checks.check_workdir(workdir, quickstart())
  assert not list(tmp_path.iterdir())
