"""Plans: their parts, what they continue, what they share with one search."""

import json

import jax
import numpy as np
import pytest
import tiny_plan
from tiny_run import final_arrays

from rome_jax import errors, families, spaces
from rome_jax.config import checks, fields
from rome_jax.engine import drop
from rome_jax.methods import derive, table
from rome_jax.methods.method import full_mask, mask_from_names
from rome_jax.spaces import genotypes
from rome_jax.train import notes, plans, recipes, search

SPACE = spaces.Space(
    'stages', ('none', 'avg_pool_3x3', 'skip_connect', 'nor_conv_1x1'),
    num_nodes=1, not_derived=('none',))
RECIPE = recipes.SearchRecipe(
    cells=1, channels=2, epochs=3, batch_size=4, k=1, lr=.025, lr_end=0.,
    alpha_start=1, alpha_lr=.1, alpha_clip=5., augment='none',
    stage_cells='1,2,1', stage_keep='3,2', stage_skip_dropout='.1,.4,0.')
pytestmark = pytest.mark.usefixtures('compiles_once')


def go(workdir, stop=None, method=table.p_darts, recipe=RECIPE, follow=None):
  return tiny_plan.go(workdir, method, SPACE, recipe, stop, follow)


STAGES = [f'search/stage-{i}' for i in (1, 2, 3)]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """(folder, what an uninterrupted run in stages gave)."""
  workdir = tmp_path_factory.mktemp('whole')
  return workdir, go(workdir)


def test_stages_narrow_the_space(whole):
  workdir, found = whole
  assert found.finished and found.figures['phase'] == 'search/stage-3'
  kept = [full_mask(SPACE)] + [
      mask_from_names(SPACE, notes.read(workdir, name)['kept'])
      for name in STAGES[:2]]
  for before, after, count in zip(kept, kept[1:], (3, 2)):
    for t in SPACE.cell_types:
      assert (after[t].sum(1) == count).all()
      assert not (after[t] & ~before[t]).any()
  # The genotype is of the last space, and in the file.
  genotype = found.genotype
  families.arch_of(genotype, SPACE.restrict_to(kept[-1]))
  assert genotypes.load(str(workdir / 'genotype.json')) == genotype
  # Three stages of 6 steps: 8 images, batches of 4, 3 epochs.
  assert [(row['phase'], row['step']) for row in tiny_plan.lines(workdir)] == [
      (name, step) for name in STAGES for step in (2, 4, 6)]


def test_the_weakest_go_by_the_alpha_of_the_stage(whole):
  """Read from the checkpoint of the first stage."""
  workdir, _ = whole
  alpha = {key: np.frombuffer(value, np.float32).reshape(2, 4)
           for key, value in final_arrays(workdir, STAGES[0])[1]
           if 'state.arch.alpha' in key}
  assert len(alpha) == 2
  kept = notes.read(workdir, STAGES[0])['kept']
  for t in SPACE.cell_types:
    [table] = [value for key, value in alpha.items() if t in key]
    for row, names in zip(table, kept[t]):
      gone = [name for name in SPACE.ops if name not in names]
      assert gone == [SPACE.ops[int(row.argmin())]]


def test_stages_begin_anew_with_images_divided_alike(whole):
  stages = plans.stages(RECIPE)
  setup = tiny_plan.setup_of(table.p_darts, SPACE)
  images = tiny_plan.dataset()
  halves = [search.make_halves(setup, stage.recipe, images, 5, stage.part)
            for stage in stages]
  for half in ('train', 'valid'):
    found = [getattr(pair, half) for pair in halves]
    for other in found[1:]:
      np.testing.assert_array_equal(found[0].indices, other.indices)
    assert len({one.seed for one in found}) == 3
  built = [search.build(setup, stage.recipe._replace(cells=1), images, 5,
                        part=stage.part) for stage in stages[::2]]
  # BatchNorm and biases begin as constants.
  first, other = ([np.asarray(leaf) for leaf in jax.tree.leaves(
      (b.state.arch.alpha, b.state.theta)) if np.ptp(leaf)] for b in built)
  assert len(first) > 4
  assert all(np.any(a != b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize('stops', [
    [2, 9], *(pytest.param(stops, marks=pytest.mark.slow)
              for stops in ([1], [7], [2, 3], [11, 2]))])
def test_a_run_continues_in_its_stage(whole, stops, tmp_path):
  """Stopped at its first steps, at checkpoints, and in later stages."""
  workdir, wanted = whole
  for steps in stops:
    assert not go(tmp_path, steps).finished
  found = go(tmp_path)
  assert found.genotype == wanted.genotype
  assert tiny_plan.lines(tmp_path) == tiny_plan.lines(workdir)
  for name in STAGES:
    assert final_arrays(tmp_path, name) == final_arrays(workdir, name)


def test_a_stage_whose_note_is_lost_is_not_trained_again(
    whole, tmp_path, monkeypatch):
  """Killed after the last checkpoint of a stage and before its note."""
  workdir, wanted = whole

  def killed(*args):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(notes, 'write', killed)
    with pytest.raises(KeyboardInterrupt):
      go(tmp_path)
  assert not (tmp_path / 'checkpoints' / STAGES[1]).exists()
  found = go(tmp_path)
  assert notes.read(tmp_path, STAGES[0])['resumed_at'] == 6
  assert found.genotype == wanted.genotype
  assert tiny_plan.lines(tmp_path) == tiny_plan.lines(workdir)


def test_one_stage_is_darts(tmp_path):
  """Without dropout and a limit on skips: the same bits, lines, genotype."""
  single = RECIPE._replace(
      stage_cells='2', stage_keep='', stage_skip_dropout='0.')
  found = go(tmp_path / 'stages', recipe=single, method=table.p_darts._replace(
      derive=derive.limited_skips(99)))
  outcome, genotype = go(
      tmp_path / 'darts', recipe=RECIPE._replace(cells=2), method=table.darts,
      follow=search.run)
  assert found.genotype == genotype
  assert final_arrays(tmp_path / 'stages', STAGES[0]) == final_arrays(
      tmp_path / 'darts', 'search')
  of_stages, of_darts = (
      [row | {'phase': ''} for row in tiny_plan.lines(tmp_path / name)]
      for name in ('stages', 'darts'))
  assert of_stages == of_darts


# ------------------------------------------------------------ rates and fields


def test_rates_are_those_of_the_authors():
  """P-DARTS: .4 over 25 epochs, alpha from 10; R-DARTS: .6 over 50."""
  rates = search.make_drop(
      recipes.SearchRecipe(skip_dropout=.4, alpha_start=10), 250, 10)
  for epoch in range(25):
    wanted = .4 * (25 - epoch - 1) / 25 if epoch < 10 else (
        .4 * np.exp(-(epoch - 10) * .2))
    for step in (10 * epoch, 10 * epoch + 9):
      found = rates(np.int32(step))
      assert found.path is None
      assert float(found.skip) == pytest.approx(wanted, rel=1e-6)
  rates = search.make_drop(recipes.SearchRecipe(drop_path=.6), 250, 5)
  found = [float(rates(np.int32(step)).path) for step in (0, 4, 5, 249)]
  np.testing.assert_allclose(found, [0, 0, .6 / 49, .6], rtol=1e-6)
  assert search.make_drop(recipes.SearchRecipe(), 10, 5) is None


def test_rates_reach_the_supernet(monkeypatch):
  """The loss hands on the rates of its step."""
  seen = []

  class Net:

    def apply(self, variables, images, arch, want, rngs, drop):
      seen.append(drop)
      return np.zeros((len(images), tiny_plan.CLASSES), np.float32)

  loss = search.make_loss(Net(), drop_at=lambda step: drop.Drop(path=step))
  batch = {'image': np.zeros((2, 8, 8, 3)), 'label': np.zeros(2, np.int32)}
  loss({}, {}, batch, jax.random.key(0), step=7)
  assert seen == [drop.Drop(path=7)]


@pytest.mark.parametrize('space, changes, words', [
    ('s0', {'stage_cells': ''}, "stage_cells='' must be at least one"),
    ('s0', {'stage_cells': '5,x,7'}, "must be whole numbers of at least 1 "
     "separated by commas, not 'x'"),
    ('s0', {'stage_cells': '5,0,7'}, "by commas, not '0'"),
    ('s0', {'stage_keep': '5'}, "stage_keep='5' must be 2 numbers"),
    ('s0', {'stage_keep': '3,5'}, "stage_keep='3,5' must fall from stage to"),
    ('s0', {'stage_cells': '5'}, "stage_keep='5,3' must be empty"),
    ('s0', {'stage_skip_dropout': '.1'}, 'must be 3 numbers'),
    ('s0', {'stage_skip_dropout': '.1,.2,1'}, 'must be below 1'),
    ('s0', {'stage_skip_dropout': '.1,nan,0'}, "not 'nan'"),
    ('s3', {'stage_keep': '2,1'}, "stage_keep='2,1' must be above 1"),
    ('mobile_tiny', {'drop_path': .1}, 'drop_path=0.1 must be 0 with '
     'space=mobile_tiny'),
    ('nasbench1shot1_1', {'skip_dropout': .1}, 'skip_dropout=0.1 must be 0'),
])
def test_fields_that_cannot_be(space, changes, words):
  config = fields.defaults()
  config.space = space
  config.method = 'p_darts' if any('stage' in name for name in changes) else (
      'rome_v2')
  checks.apply_recipe(config)
  for name, value in changes.items():
    setattr(config.search, name, value)
  with pytest.raises(errors.UserError) as caught:
    checks.validate(config)
  assert words in str(caught.value) and str(caught.value).startswith(
      'config.search.')


def test_identities_of_a_part_of_the_channels_are_not_dropped():
  config = fields.defaults()
  config.method = 'pc_darts'
  checks.apply_recipe(config)
  config.search.skip_dropout = .1
  with pytest.raises(errors.UserError, match="must be 0 with method='pc_darts"):
    checks.validate(config)


def test_the_largest_space_of_each_stage():
  """For estimates: one candidate fewer each time, the last stay."""
  found = plans.largest(tiny_plan.setup_of(table.p_darts, SPACE), RECIPE)
  assert [len(setup.space.ops) for setup, _, _ in found] == [4, 3, 2]
  assert found[-1][0].space.ops == SPACE.ops[-2:]
  assert [part.name for _, _, part in found] == STAGES
  assert [recipe.cells for _, recipe, _ in found] == [1, 2, 1]


def test_notes_are_json(whole):
  workdir, _ = whole
  path = workdir / 'phases' / 'search' / 'stage-2.json'
  assert json.loads(path.read_text()) == notes.read(workdir, STAGES[1])
  assert notes.read(workdir, 'search/stage-9') is None
