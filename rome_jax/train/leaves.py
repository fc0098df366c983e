"""A search whose supernet splits: Few-Shot NAS and GM-NAS, over any method.

The supernet trains with a fixed architecture up to the first split; then each
of its copies does, up to the next. After the last split every leaf is a search
of its own, and one of their architectures is chosen. Each of these is a phase
with checkpoints, metrics and a note, so a run that was killed continues in its
leaf. All parts read the same batches in the same order.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import jax
import numpy as np

from rome_jax import data, errors, files
from rome_jax.devices import hosts
from rome_jax.devices import mesh as mesh_lib
from rome_jax.methods import evolve, split
from rome_jax.methods.method import (
  Evolve,
  Method,
  OneSearch,
  full_mask,
  mask_from_names,
  mask_to_names,
)
from rome_jax.spaces import Space, genotypes
from rome_jax.spaces.genotypes import Genotype
from rome_jax.tables import benchmarks
from rome_jax.train import (
  candidates,
  checkpoint,
  loop,
  metrics,
  notes,
  recipes,
  retrain,
  search,
)
from rome_jax.train.recipes import RetrainRecipe, SearchRecipe
from rome_jax.train.setup import Setup

FILENAME = 'split.json'
ROOT = 'search/root'


class Schedule(NamedTuple):
  """When and into what a supernet splits, level by level.

  Attributes:
    epochs: after which each split is.
    groups: of each split.
    sizes: that the groups of a split may have; empty: any.
  """

  epochs: tuple[int, ...]
  groups: tuple[int, ...]
  sizes: tuple[tuple[int, ...], ...]


def schedule(recipe: SearchRecipe) -> Schedule:
  """The splits that a recipe's `split_*` fields describe.

  Raises:
    UserError: a field is no list of numbers, or their lengths do not fit.

  >>> schedule(SearchRecipe(split_epochs='15,30', split_sizes='2+3'))
  Schedule(epochs=(15, 30), groups=(2, 2), sizes=((2, 3),))
  """
  epochs = recipes.numbers('split_epochs', recipe.split_epochs, int, 0)
  if not epochs or list(epochs) != sorted(set(epochs)):
    raise errors.UserError(
        f'config.search.split_epochs={recipe.split_epochs!r} must be at least '
        'one whole number, rising')
  groups = recipes.numbers('split_groups', recipe.split_groups, int, 2)
  if len(groups) == 1:
    groups *= len(epochs)
  if len(groups) != len(epochs):
    raise errors.UserError(
        f'config.search.split_groups={recipe.split_groups!r} must be one '
        f'number, or {len(epochs)} with '
        f'config.search.split_epochs={recipe.split_epochs!r}')
  sizes = []
  for text in recipe.split_sizes.split(',') if recipe.split_sizes else ():
    parts = text.split('+')
    if not all(part.strip().isdecimal() and int(part) for part in parts):
      raise errors.UserError(
          f'config.search.split_sizes={recipe.split_sizes!r} must be sizes '
          "such as '2+5,3+4'")
    sizes.append(tuple(map(int, parts)))
  return Schedule(epochs, groups, tuple(sizes))


def check(space: Space, method: Method, recipe: SearchRecipe) -> None:
  """Checks the fields of a split.

  Raises:
    UserError: naming the field, its value and what is allowed.
  """
  if recipe.split == split.NO_SPLIT:
    if recipe.split_epochs or recipe.split_together:
      name = 'split_epochs' if recipe.split_epochs else 'split_together'
      raise errors.UserError(
          f'config.search.{name}={getattr(recipe, name)!r} must be '
          f"{'' if recipe.split_epochs else False!r} with "
          "config.search.split='none'; 'gm' or 'few_shot' splits")
    return
  given = f'config.search.split={recipe.split!r}'
  if not isinstance(method.plan, (OneSearch, Evolve)) or (
      method.extra.stop or method.extra.hyperparameters):
    raise errors.UserError(
        f'{given} must be none with config.method={method.name!r}, whose '
        'search has stages, trains no supernet, or may end early')
  found = schedule(recipe)
  if recipe.max_steps:
    raise errors.UserError(
        f'config.search.max_steps={recipe.max_steps} must be 0 with {given}, '
        'whose parts are counted in epochs')
  inherits = recipe.split_inherit == split.EVERYTHING
  if inherits and recipe.epochs and found.epochs[-1] >= recipe.epochs:
    raise errors.UserError(
        f'config.search.split_epochs={recipe.split_epochs!r} must end below '
        f'config.search.epochs={recipe.epochs} with '
        "config.search.split_inherit='all'")
  if recipe.split == split.FEW_SHOT:
    _check_few_shot(space, recipe, found, given)
  elif not _can_split(space, recipe, found):
    counts = ', '.join(map(str, sorted(set(_counts(space, recipe)))))
    raise errors.UserError(
        f'config.search.split_groups={recipe.split_groups!r} with '
        f'split_sizes={recipe.split_sizes!r} fits too few sites of '
        f'space={space.name} for {len(found.groups)} splits; they have '
        f'{counts} candidates')
  if recipe.split_soft and (space.sites == 'nodes' or not (
      search.lists_every_slot(method, space))):
    raise errors.UserError(
        'config.search.split_soft must be false with '
        f'config.method={method.name!r} in space={space.name}: only mixtures '
        'of the operations of edges keep the gates of single ones')
  _check_choice(space, method, recipe)


def _check_few_shot(space, recipe, found, given):
  if len(found.epochs) > 1:
    raise errors.UserError(
        f'config.search.split_epochs={recipe.split_epochs!r} must be one '
        f'number with {given}, which splits once')
  if recipe.split_site >= space.num_sites:
    raise errors.UserError(
        f'config.search.split_site={recipe.split_site} must be below '
        f'{space.num_sites}, the {space.sites} of space={space.name}')


def _counts(space, recipe):
  """The number of candidates of each site that may be split."""
  return [int(n) for t in _cell_types(space, recipe)
          for n in (space.choices(t) >= 0).sum(1)]


def _can_split(space, recipe, found):
  """Whether each level has a site left that it can split as asked."""

  def fits(n, groups):
    return n >= max(2, groups) and (not found.sizes or any(
        (n, groups) == (sum(size), len(size)) for size in found.sizes))

  counts = _counts(space, recipe)
  return all(sum(fits(n, groups) for n in counts) > level
             for level, groups in enumerate(found.groups))


def _check_choice(space, method, recipe):
  choice = recipe.split_choice
  where = f'config.search.split_choice={choice!r}'
  if method.derive is None and choice != split.EVOLUTION:
    raise errors.UserError(
        f"{where} must be 'evolution' with config.method={method.name!r}, "
        'which derives no architecture')
  if choice == split.TABLE and benchmarks.of(space) is None:
    raise errors.UserError(
        f'{where} must be another with space={space.name}, which has no '
        'complete table')
  if choice == split.EVOLUTION:
    if not recipe.candidates:
      raise errors.UserError(
          f'config.search.candidates=0 must be at least 1 with {where}')
    try:
      evolve.check(candidates.options(recipe))
    except errors.UserError as error:
      raise errors.UserError(f'config.search.{error}') from None
  rungs = recipes.numbers('split_rungs', recipe.split_rungs, int, 1)
  if rungs and choice != split.HALVING:
    raise errors.UserError(
        f"config.search.split_rungs={recipe.split_rungs!r} must be '' with "
        f'{where}')
  if choice == split.HALVING and (
      not rungs or list(rungs) != sorted(set(rungs))):
    raise errors.UserError(
        f'config.search.split_rungs={recipe.split_rungs!r} must be at least '
        f'one whole number, rising, with {where}')


def _cell_types(space, recipe):
  return space.cell_types if recipe.split_cells == 'all' else ('normal',)


def number(space: Space, recipe: SearchRecipe) -> int:
  """How many leaves a search ends with; 1 if it does not split.

  >>> from rome_jax.spaces import NASBENCH201
  >>> number(NASBENCH201, SearchRecipe(split='gm', split_epochs='15,30'))
  4
  """
  if recipe.split == split.NO_SPLIT:
    return 1
  if recipe.split == split.FEW_SHOT:
    return int((space.choices('normal')[recipe.split_site] >= 0).sum())
  return int(np.prod(schedule(recipe).groups))


class _Stopped(Exception):
  """A signal ended a phase; its state is saved."""

  def __init__(self, outcome):
    super().__init__()
    self.outcome = outcome


class _Node(NamedTuple):
  """A supernet: its name, its candidates, and what it begins with."""

  name: str
  mask: Mapping[str, np.ndarray]
  parent: Any = None  # the parent's last state, on the host


class Trained(NamedTuple):
  """A trained leaf: its phase, mask, weights, genotype and figures."""

  name: str
  mask: Mapping[str, np.ndarray]
  theta: Any
  genotype: Genotype | None
  figures: dict[str, Any]
  scalars: Mapping[str, Any]


def run(setup: Setup, recipe: SearchRecipe, retraining: RetrainRecipe,
        dataset: data.Dataset, seed: int, settings: loop.Settings, writer: Any,
        stop: Any, origin: Mapping[str, Any] | None = None) -> search.Searched:
  """Grows, splits, trains the leaves and chooses, or continues to.

  Args:
    as `plans.run`.

  Raises:
    UserError: no site can be split as asked.
  """
  common = _Common(setup, recipe, dataset, seed, settings, writer, stop, origin)
  if recipe.split_together and hosts.several():
    raise errors.UserError(
        'config.search.split_together must be false in a run of several '
        'processes, which take every step together')
  try:
    nodes, done = _grow(common)
    trained = _train_leaves(common, nodes)
  except _Stopped as stopped:
    outcome = stopped.outcome
    return search.Searched(False, None, outcome.scalars, outcome.figures)
  began = time.perf_counter()
  chosen = _choose(common, retraining, trained)
  last = trained[-1]
  if chosen is None:
    return search.Searched(False, None, last.scalars, last.figures)
  best = trained[chosen.leaf]
  search.save_genotype(
      settings.workdir, setup, seed, best.figures['steps'], chosen.genotype,
      origin)
  hosts.from_first(lambda: _add_to_file(settings.workdir, trained, chosen))
  # A choice by trainings says itself what they took, over all starts.
  parts = [*done, *(leaf.figures for leaf in trained), *(
      chosen.parts or [{'seconds': time.perf_counter() - began}])]
  return search.Searched(True, chosen.genotype, best.scalars, best.figures | {
      name: sum(part.get(name, 0) for part in parts)
      for name in ('seconds', 'compile_seconds', 'images')} | chosen.figures | {
          'phase': best.name, 'leaves': len(trained), 'leaf': best.name})


class _Common(NamedTuple):
  """What all phases of a split search share."""

  setup: Setup
  recipe: SearchRecipe
  dataset: data.Dataset
  seed: int
  settings: loop.Settings
  writer: Any
  stop: Any
  origin: Mapping[str, Any] | None


# --- Training


class _Runner:
  """Runs searches of one recipe that share a compiled program."""

  def __init__(self, common, recipe):
    self._common, self._recipe = common, recipe
    self._like = None

  def __call__(self, node, start):
    c, part = self._common, search.Part(node.name)
    known = search.prepare(
        c.setup, self._recipe, c.dataset, c.seed, part,
        functools.partial(metrics.read, c.settings.workdir), start, self._like)
    # Only programs are kept: a carry is donated to its first step.
    self._like = known._replace(carry=None)
    outcome, genotype = search.run(
        c.setup, self._recipe, c.dataset, c.seed, c.settings, c.writer, c.stop,
        c.origin, part, start, known)
    if not outcome.finished:
      raise _Stopped(outcome)
    return outcome._replace(state=jax.device_get(outcome.state)), genotype


def _growing(recipe):
  """The recipe of supernets that still split: their architecture stays.

  Where leaves begin anew their schedules do, too; so the growing supernet's
  are those of a search that would go on without a split.
  """
  last = schedule(recipe).epochs[-1]
  if recipe.split_inherit == split.EVERYTHING:
    return recipe._replace(alpha_start=max(recipe.alpha_start, last))
  return recipe._replace(
      epochs=last + max(1, recipe.epochs), alpha_start=last)


def _grow(common):
  """(nodes of the leaves, figures of the phases before them)."""
  setup, recipe = common.setup, common.recipe
  if recipe.split_together:  # Nothing may ask more of K than a group does.
    common = common._replace(
        setup=setup._replace(mesh=mesh_lib.groups(setup.mesh)[0]))
  plan, runner = schedule(recipe), _Runner(common, _growing(recipe))
  per_epoch = search.make_halves(
      setup, recipe, common.dataset, common.seed).train.steps_per_epoch
  score = _Score(common, per_epoch)
  nodes, done, drawn = [_Node(ROOT, full_mask(setup.space))], [], []
  for level, epoch in enumerate(plan.epochs):
    last = level == len(plan.epochs) - 1
    following = []
    for node in nodes:
      state, figures = _grown(
          common, runner, score, node, epoch * per_epoch, plan.groups[level],
          plan.sizes, last)
      done.append(figures)
      drawn.append({'name': node.name, 'epoch': epoch, **figures['split']})
      masks = split.children(node.mask, _from_json(setup.space, figures))
      following += [
          _Node(f'{node.name}-{i + 1}', mask, state)
          for i, mask in enumerate(masks)]
    nodes = following
  nodes = [node._replace(name=f'search/leaf-{i + 1:02d}')
           for i, node in enumerate(nodes)]
  hosts.from_first(lambda: files.write_json(
      common.settings.workdir / FILENAME, {
          'format': 1, 'kind': recipe.split, 'splits': drawn, 'leaves': [
              {'name': node.name, 'kept': mask_to_names(setup.space, node.mask)}
              for node in nodes]}))
  return nodes, done


def _grown(common, runner, score, node, until, groups, sizes, last):
  """(last state of a supernet or None, figures with its split)."""
  workdir, recipe = common.settings.workdir, common.recipe
  known = notes.read(workdir, node.name)
  if known is not None and last and recipe.split_inherit == split.NOTHING:
    return None, known
  start = search.Start(node.mask, node.parent, last=until)
  if until:
    outcome, _ = runner(node, start)
    state, figures = outcome.state, outcome.figures
  else:  # Split before any training.
    state, figures = _untrained(common, start), {}
  if known is None:
    began = time.perf_counter()
    found = score(node, state, until, groups, sizes)
    took = time.perf_counter() - began
    known = notes.write(workdir, node.name, figures | {
        'split': found, 'split_seconds': took,
        'seconds': figures.get('seconds', 0.) + took})
  return state, known


def _untrained(common, start):
  built = search.build(
      common.setup, _growing(common.recipe), common.dataset, common.seed,
      search.Part(ROOT), mask=start.mask)
  return jax.device_get(built.state)


def _train_leaves(common, nodes):
  """Every leaf, trained to its end, in groups of devices at the same time."""
  if not common.recipe.split_together:
    return _train_in_turn(common, nodes)
  meshes = mesh_lib.groups(common.setup.mesh)
  stop = _StopOrFailure(common.stop)
  common = common._replace(
      writer=metrics.SharedWriter(common.writer), stop=stop)

  def train(mesh, own):
    try:
      return _train_in_turn(
          common._replace(setup=common.setup._replace(mesh=mesh)), own)
    except BaseException:
      stop.failed = True  # The others save and stop.
      raise

  with futures.ThreadPoolExecutor(len(meshes)) as pool:
    parts = [pool.submit(train, mesh, nodes[i::len(meshes)])
             for i, mesh in enumerate(meshes)]
  # Mistakes before stops: what was stopped is saved.
  raised = sorted((part.exception() for part in parts if part.exception()),
                  key=lambda error: isinstance(error, _Stopped))
  if raised:
    raise raised[0]
  found = {leaf.name: leaf for part in parts for leaf in part.result()}
  return [found[node.name] for node in nodes]


class _StopOrFailure:
  """Requested by a signal, or once the training of a leaf has failed."""

  def __init__(self, stop):
    self._stop, self.failed = stop, False

  @property
  def requested(self):
    return self.failed or self._stop.requested


def _train_in_turn(common, nodes):
  recipe = common.recipe
  inherits = recipe.split_inherit
  runner = _Runner(common, _growing(recipe) if (
      inherits == split.EVERYTHING) else recipe)
  trained = []
  for node in nodes:
    start = {
        split.NOTHING: lambda n: search.Start(n.mask),
        split.WEIGHTS: lambda n: search.Start(
            n.mask, theta=n.parent.theta, arch=n.parent.arch),
        split.EVERYTHING: lambda n: search.Start(n.mask, n.parent),
    }[inherits](node)
    outcome, genotype = runner(node, start)
    figures = notes.read(common.settings.workdir, node.name) or notes.write(
        common.settings.workdir, node.name, outcome.figures | {
            'genotype': genotype and genotypes.to_text(genotype)})
    trained.append(Trained(node.name, node.mask, outcome.state.theta, genotype,
                           figures, outcome.scalars))
  return trained


# --- Splitting


class _Score:
  """Finds the split of a trained supernet; compiles once per cell type."""

  def __init__(self, common, per_epoch):
    self._common, self._per_epoch = common, per_epoch
    self._programs: dict[str, Callable] = {}

  def __call__(self, node, state, step, groups, sizes):
    """The split as JSON: site, groups and distances by name."""
    common, recipe = self._common, self._common.recipe
    space = common.setup.space
    if recipe.split == split.FEW_SHOT:
      found, matrices = split.each_operation(
          space, 'normal', recipe.split_site), {}
    else:
      sites = split.unsplit(space, node.mask, _cell_types(space, recipe))
      matrices = self._matrices(node, state, step, sites)
      found = split.choose(matrices, groups, sizes, recipe.split_rule)
    if found is None:
      raise errors.UserError(
          f'config.search.split_groups={recipe.split_groups!r} with '
          f'split_sizes={recipe.split_sizes!r} fits no site of {node.name} '
          'that is not split yet')
    value = _to_json(space, found, matrices)
    hosts.compare(f'split of {node.name}', repr(value))
    return value

  def _matrices(self, node, state, step, sites):
    """{site: (places, mean distances)} over the next training batches."""
    common, number = self._common, self._common.recipe.split_batches
    space = common.setup.space
    halves = search.make_halves(
        common.setup, common.recipe, common.dataset, common.seed)
    c = space.num_choices
    totals = {site: np.zeros((c, c)) for site in sites}
    state = jax.tree.map(np.asarray, state)
    key = jax.random.fold_in(jax.random.fold_in(
        jax.random.key(state.seed), state.step), 2**32 - 3)
    with data.prefetch(halves.train, step, step + number) as batches, (
        metrics.Progress(number, unit='batch', label=f'{node.name}: gradients')
    ) as bar:
      for i, batch in enumerate(batches):
        if common.stop.requested:
          raise _Stopped(loop.Outcome(False, None, {}, {}))
        for t, site in sites:
          totals[t, site] += np.asarray(self._program(t, state)(
              state, np.int32(site), batch, jax.random.fold_in(key, i)))
        bar.update(i + 1)
    found = {}
    for t, site in sites:
      places = np.flatnonzero(node.mask[t][site])
      found[t, site] = places.tolist(), (
          totals[t, site][np.ix_(places, places)] / number)
    return found

  def _program(self, cell_type, state):
    if cell_type not in self._programs:
      setup, recipe = self._common.setup, self._common.recipe
      shared = recipe.split_shared
      if shared == 'auto':
        shared = setup.family.compared
      network = search.make_supernet(setup, recipe, search.choose_evaluator(
          setup.space, setup.method, recipe.evaluator))
      steps = search.num_steps(_growing(recipe), self._per_epoch)
      self._programs[cell_type] = jax.jit(split.make_score(
          setup.method, setup.space,
          search.make_loss(network, recipe.dtype,
                           batch_size=recipe.batch_size),
          search.make_tau(recipe, steps, self._per_epoch),
          setup.family.candidates(state.theta, setup.space), cell_type, shared,
          recipe.split_soft, recipe.accumulate))
    return self._programs[cell_type]


def _to_json(space, found, matrices):
  def names(places):
    row = space.choices(found.cell_type)[found.site]
    return [space.ops[row[place]] for place in places]

  value: dict[str, Any] = {
      'cell_type': found.cell_type, 'site': found.site,
      'where': _where(space, found),
      'groups': [names(group) for group in found.groups]}
  if (found.cell_type, found.site) in matrices:
    places, distances = matrices[found.cell_type, found.site]
    value |= {
        'ops': names(places), 'distances': distances.tolist(),
        'sites': [{'cell_type': t, 'site': site, 'distances': m.tolist()}
                  for (t, site), (_, m) in matrices.items()]}
  return value


def _where(space, found):
  """'edge 0->2 of the normal cell'."""
  if space.parents == 'previous':
    return f'block {found.site + 1}'
  if space.sites == 'nodes':
    return f'node {found.site + 1}'
  [node] = [i for i, (a, b) in enumerate(space.node_edges)
            if a <= found.site < b]
  return (f'edge {int(space.edge_preds[found.site])}->'
          f'{space.num_inputs + node} of the {found.cell_type} cell')


def _from_json(space, figures):
  value = figures['split']
  t, site = value['cell_type'], value['site']
  row = [space.ops[o] if o >= 0 else '' for o in space.choices(t)[site]]
  return split.Split(t, site, tuple(
      tuple(row.index(name) for name in group) for group in value['groups']))


# --- Choosing


class _Chosen(NamedTuple):
  genotype: Genotype
  leaf: int
  figures: dict[str, Any]
  scores: list[float] | None = None  # of each leaf
  parts: Sequence[Mapping[str, Any]] = ()  # trainings, what each took


def _choose(common, retraining, trained):
  """One architecture of all leaves; None if stopped."""
  recipe = common.recipe
  if recipe.split_choice == split.EVOLUTION:
    return _by_search(common, retraining, trained)
  if recipe.split_choice == split.HALVING:
    return _by_halving(common, retraining, trained)
  found = [leaf.genotype for leaf in trained]
  if recipe.split_choice == split.TABLE:
    scores = [benchmarks.accuracy(
        common.setup.space, genotype, common.dataset.name)
              for genotype in found]
  else:
    scorer = candidates.make_scorer(
        common.setup, recipe, trained[0].theta, common.dataset, common.seed,
        block=1)
    scores = candidates.LeafScorer(scorer, _as_leaves(trained))(
        found, range(len(found))).accuracy.tolist()
  best = int(np.argmax(scores))
  return _Chosen(found[best], best, {}, scores)


def _as_leaves(trained):
  return [candidates.Leaf(leaf.mask, leaf.theta) for leaf in trained]


def _by_search(common, retraining, trained):
  chosen = candidates.choose(
      common.setup, common.recipe, retraining, _as_leaves(trained),
      common.dataset, common.seed, common.settings.workdir, common.stop)
  if chosen is None:
    return None
  leaf = split.leaf_of(common.setup.space, [t.mask for t in trained],
                       chosen.genotype)
  return _Chosen(chosen.genotype, leaf, chosen.figures)


def _by_halving(common, retraining, trained):
  """Successive halving of trainings from scratch.

  On the half for weights, compared on the other: test images choose nothing.
  """
  recipe, workdir = common.recipe, common.settings.workdir
  rungs = recipes.numbers('split_rungs', recipe.split_rungs, int, 1)
  runner, alive, scores = None, list(range(len(trained))), [0.] * len(trained)
  parts: dict[int, Any] = {}  # The figures of a later rung hold the earlier.
  for rung, epochs in enumerate(rungs):
    for i in alive:
      phase = f'search/rung-{rung + 1}-leaf-{i + 1:02d}'
      if (figures := notes.read(workdir, phase)) is None:
        if runner is None:
          runner = candidates.trainer(
              common.setup, recipe, retraining, common.dataset, common.seed,
              rungs[-1])
        job = retrain.Job(f'halving-{i + 1:02d}', 'candidate',
                          trained[i].genotype, common.seed, 'search')
        outcome = runner.run(
            job, common.settings, common.writer, common.stop, epochs)
        if not outcome.finished:
          return None
        figures = notes.write(workdir, phase, outcome.figures | {
            'accuracy': outcome.scalars['test_accuracy']})
      scores[i], parts[i] = figures['accuracy'], figures
    keep = 1 if rung == len(rungs) - 1 else -(-len(alive) // 2)
    alive = sorted(sorted(alive, key=lambda i: -scores[i])[:keep])
  return _Chosen(trained[alive[0]].genotype, alive[0], {}, scores,
                 list(parts.values()))


# --- The file


def _add_to_file(workdir, trained, chosen):
  """split.json with what became of the leaves."""
  value = files.read_json(workdir / FILENAME)
  for i, (row, leaf) in enumerate(zip(value['leaves'], trained)):
    row['genotype'] = leaf.genotype and genotypes.to_text(leaf.genotype)
    row['score'] = chosen.scores[i] if chosen.scores else None
    row['valid_accuracy'] = leaf.scalars.get('valid_accuracy')
    row['chosen'] = i == chosen.leaf
  files.write_json(workdir / FILENAME, value)


def read(workdir: Any, space: Space) -> list[tuple[Any, dict[str, Any]]]:
  """(mask, state of the newest checkpoint) of each leaf; [] if there are none.

  Args:
    workdir: folder of the run.
    space: its search space.

  Raises:
    UserError: a leaf has no checkpoint yet.
  """
  path = workdir / FILENAME
  if not path.exists():
    return []
  return [(mask_from_names(space, row['kept']), checkpoint.read_tree(
      workdir / 'checkpoints' / row['name'], 'state'))
          for row in files.read_json(path)['leaves']]
