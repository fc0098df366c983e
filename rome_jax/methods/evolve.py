"""Searches over the architectures of a space, as ask and tell.

A strategy proposes architectures and is told how good they are: with a trained
supernet's weights, by a table, or in any other way.

>>> from rome_jax import spaces
>>> strategy = evolution(spaces.NASBENCH201, Options(
...     candidates=8, population=4, crossover=2, mutation=2))
>>> state = strategy.init(0)
>>> while found := strategy.ask(state):
...   state = strategy.tell(state, [len(set(g.normal[2])) for g in found])
>>> best(state)[1], len(scored(state))
(3.0, 8)
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rome_jax import errors
from rome_jax.spaces import Space, enumeration, genotypes
from rome_jax.spaces.genotypes import Genotype

PARENTS = ('top_k', 'tournament')
# Draws for each architecture that is wanted, before it is given up (SPOS).
_TRIES = 10
# Up to which size a space is listed to find its last unseen architectures.
_LISTED = 20_000


class Options(NamedTuple):
  """How to search; the defaults are those of SPOS (Guo et al., ECCV 2020).

  Attributes:
    candidates: architectures that are scored in all.
    population: those of a round.
    parents: where evolution takes parents from. 'top_k': any of the `select`
      best so far. 'tournament': the best of `select` that are drawn from the
      last `population` scored (Real et al., AAAI 2019).
    select: see `parents`.
    crossover, mutation: children of either kind in a round; what is missing
      to the population is random.
    mutation_rate: probability with which a mutation draws an edge or an
      operation anew.
    max_params, max_macs: budgets on parameters and multiply-adds; 0: none.
  """

  candidates: int = 1000
  population: int = 50
  parents: str = 'top_k'
  select: int = 10
  crossover: int = 25
  mutation: int = 25
  mutation_rate: float = .1
  max_params: int = 0
  max_macs: int = 0


SPOS = Options()


class State(NamedTuple):
  """A search so far; `to_json` and `from_json` carry it over a restart.

  Attributes:
    seed: every proposal follows from it and from the scores.
    pending: proposed, not scored yet.
    rounds: the architectures of each finished round.
    scores: theirs; higher is better.
  """

  seed: int
  pending: tuple[Genotype, ...]
  rounds: tuple[tuple[Genotype, ...], ...] = ()
  scores: tuple[tuple[float, ...], ...] = ()


class Strategy(NamedTuple):
  """A search as pure functions.

  Attributes:
    init: seed -> State, whose first proposals are random.
    ask: State -> the architectures to score, no two alike and none that was
      scored before; [] at the end.
    tell: (State, their scores) -> State.
  """

  init: Callable[[int], State]
  ask: Callable[[State], list[Genotype]]
  tell: Callable[[State, Sequence[float]], State]


Cost = Callable[[Genotype], Any]  # -> with the attributes params and macs


def evolution(space: Space, options: Options = SPOS,
              cost: Cost | None = None) -> Strategy:
  """Mutation and crossover of the best architectures (SPOS).

  Args:
    space: the search space.
    options: see `Options`.
    cost: counts an architecture, such as `families.get(space).count` with its
      sizes; needed for budgets.

  Raises:
    UserError: an option is wrong; `init`: no architecture within the budgets
      was found.
    ValueError: there is a budget and no `cost`.
  """
  return _strategy(space, options, cost, _breed)


def random_search(space: Space, options: Options = SPOS,
                  cost: Cost | None = None) -> Strategy:
  """As many random architectures; arguments as `evolution`."""
  return _strategy(space, options, cost, lambda *args: ())


def local_search(space: Space, options: Options = SPOS,
                 cost: Cost | None = None) -> Strategy:
  """The neighbours of the best, then those of the second best, and so on.

  Neighbours differ in one operation or one edge (White et al., UAI 2021, who
  stop where no neighbour is better; this goes on while the budget lasts).
  Arguments as `evolution`.
  """
  return _strategy(space, options, cost, _climb)


STRATEGIES: dict[str, Callable[..., Strategy]] = {
    'evolution': evolution, 'random': random_search, 'local': local_search}


# --- What a state says


def scored(state: State) -> list[tuple[Genotype, float]]:
  """(architecture, score) in the order in which they were scored."""
  return list(zip(itertools.chain(*state.rounds),
                  itertools.chain(*state.scores)))


def best(state: State) -> tuple[Genotype, float]:
  """The best so far, the first of equals, and its score."""
  return max(scored(state), key=lambda pair: pair[1])


def history(state: State) -> list[dict[str, Any]]:
  """What each round brought, a JSON object each.

  Returns:
    [{'scored': architectures so far, 'best', 'mean', 'std': of the round,
    'best_so_far', 'genotype': the text of the best so far}].
  """
  rows = []
  for i, scores in enumerate(state.scores, start=1):
    so_far = state._replace(rounds=state.rounds[:i], scores=state.scores[:i])
    genotype, top = best(so_far)
    rows.append({
        'scored': len(scored(so_far)), 'best': max(scores),
        'mean': float(np.mean(scores)), 'std': float(np.std(scores)),
        'best_so_far': top, 'genotype': genotypes.to_text(genotype)})
  return rows


def to_json(state: State) -> dict[str, Any]:
  """The state as a JSON object."""
  return {
      'seed': state.seed,
      'pending': list(map(genotypes.to_json, state.pending)),
      'rounds': [
          {'scores': list(scores),
           'genotypes': list(map(genotypes.to_json, found))}
          for found, scores in zip(state.rounds, state.scores)]}


def from_json(value: Mapping[str, Any]) -> State:
  """Reads what `to_json` makes.

  Raises:
    UserError: it is something else.

  >>> state = State(3, (), (), ())
  >>> from_json(to_json(state)) == state
  True
  """

  def read(found):
    return tuple(map(genotypes.from_json, found))

  try:
    rounds = value['rounds']
    return State(
        int(value['seed']), read(value['pending']),
        tuple(read(row['genotypes']) for row in rounds),
        tuple(tuple(map(float, row['scores'])) for row in rounds))
  except (KeyError, TypeError) as error:
    raise errors.UserError(
        f'this is no state of a search over architectures ({error!r})'
        ) from error


# --- A round


class _Round:
  """Collects proposals that are new and within the budgets."""

  def __init__(self, seen, allowed, number):
    self._seen, self._allowed, self._number = set(seen), allowed, number
    self.found = []

  @property
  def missing(self) -> int:
    return self._number - len(self.found)

  def offer(self, genotype: Genotype) -> None:
    if self.missing and genotype not in self._seen and self._allowed(genotype):
      self._seen.add(genotype)
      self.found.append(genotype)

  def fill(self, number: int, draw: Callable[[], Genotype]) -> None:
    """Takes up to `number` draws; gives up where few of them are new."""
    wanted = max(self.missing - number, 0)
    for _ in range(_TRIES * number):
      if self.missing <= wanted:
        return
      self.offer(draw())


def _strategy(space, options, cost, propose):
  """A strategy whose rounds are `propose`d, and random where that ends.

  propose(space, options, state, rng, round) offers to the round.
  """
  check(options)
  allowed = _within(options, cost)

  def proposed(state):
    seen = [genotype for genotype, _ in scored(state)]
    this = _Round(seen, allowed,
                  min(options.population, options.candidates - len(seen)))
    rng = np.random.Generator(np.random.Philox(
        key=[state.seed, len(state.rounds)]))
    if seen:
      propose(space, options, state, rng, this)
    _fill_up(space, rng, this)
    return state._replace(pending=tuple(this.found))

  def init(seed):
    state = proposed(State(seed, ()))
    if not state.pending:
      raise errors.UserError(
          f'no architecture of space={space.name} has at most '
          f'max_params={options.max_params} parameters and '
          f'max_macs={options.max_macs} multiply-adds (0: any) among those '
          'that were drawn')
    return state

  def tell(state, scores):
    scores = tuple(map(float, scores))
    if len(scores) != len(state.pending) or not all(map(math.isfinite, scores)):
      raise ValueError(f'scores must be {len(state.pending)} finite numbers, '
                       'one for each architecture of ask')
    return proposed(state._replace(
        rounds=(*state.rounds, state.pending),
        scores=(*state.scores, scores)))

  return Strategy(init, lambda state: list(state.pending), tell)


def _fill_up(space, rng, this):
  """Completes a round at random, with the last unseen ones of a small space."""
  this.fill(this.missing, lambda: genotypes.random(space, rng))
  if this.missing and enumeration.size(space) <= _LISTED:
    known = list(enumeration.every(space))
    for i in rng.permutation(len(known)):
      this.offer(known[i])


def _within(options, cost):
  """genotype -> whether it keeps to the budgets."""
  limits = options.max_params or math.inf, options.max_macs or math.inf
  if limits == (math.inf, math.inf):
    return lambda genotype: True
  if cost is None:
    raise ValueError('max_params and max_macs need cost, a function that '
                     'counts a genotype')

  def allowed(genotype):
    count = cost(genotype)
    return count.params <= limits[0] and count.macs <= limits[1]

  return allowed


def check(options: Options) -> None:
  """Checks the options of a search.

  Raises:
    UserError: naming the first wrong one, its value and what is allowed.

  >>> check(Options(select=0))
  Traceback (most recent call last):
  rome_jax.errors.UserError: select=0 must be at least 1
  """
  for name in ('candidates', 'population', 'select'):
    if getattr(options, name) < 1:
      raise errors.UserError(
          f'{name}={getattr(options, name)} must be at least 1')
  for name in ('crossover', 'mutation', 'max_params', 'max_macs'):
    if getattr(options, name) < 0:
      raise errors.UserError(
          f'{name}={getattr(options, name)} must be at least 0')
  if options.crossover + options.mutation > options.population:
    raise errors.UserError(
        f'crossover={options.crossover} and mutation={options.mutation} must '
        f'add up to at most population={options.population}')
  if options.parents not in PARENTS:
    raise errors.UserError(
        f'parents={options.parents!r} must be one of {", ".join(PARENTS)}'
        f'{errors.near_miss(options.parents, PARENTS)}')
  if not 0 < options.mutation_rate <= 1:
    raise errors.UserError(
        f'mutation_rate={options.mutation_rate} must be above 0 and at most 1')


# --- Evolution


def _breed(space, options, state, rng, this):
  parent = _parents(options, state, rng)
  this.fill(options.mutation,
            lambda: mutate(space, parent(), options.mutation_rate, rng))
  this.fill(options.crossover,
            lambda: crossover(space, parent(), parent(), rng))


def _parents(options, state, rng):
  """A function that draws a parent."""
  known = scored(state)
  if options.parents == 'top_k':
    known = _best_first(known)[:options.select]
    return lambda: known[rng.integers(len(known))][0]
  recent = known[-options.population:]

  def winner():
    drawn = [recent[i] for i in rng.integers(len(recent), size=options.select)]
    return max(drawn, key=lambda pair: pair[1])[0]

  return winner


def _best_first(known):
  return sorted(known, key=lambda pair: -pair[1])


class _Cell(NamedTuple):
  """The edges that a cell keeps and the operations of its sites."""

  edges: list[int]
  ops: dict[int, str]


def _read(space: Space, genotype: Genotype, cell_type: str) -> _Cell:
  nodes, concat = genotypes.cell_of(genotype, cell_type)
  by_node = space.sites == 'nodes'
  if by_node:  # The output is the last node; it has no operation.
    nodes = (*nodes, tuple(('', pred) for pred in concat))
  left_out = space.absent if space.absent not in space.ops else ''
  pairs = [(i, start + pred - int(space.edge_preds[start]), op)
           for i, ((start, _), node) in enumerate(zip(space.node_edges, nodes))
           for op, pred in node if not left_out or op != left_out]
  return _Cell(sorted(edge for _, edge, _ in pairs),
               {i if by_node else edge: op for i, edge, op in pairs if op})


def _sites(space: Space, edges: list[int]) -> Iterable[int]:
  """The sites that need an operation where these edges are kept."""
  return edges if space.sites == 'edges' else range(space.num_sites)


def _write(space: Space, cells: Mapping[str, _Cell]) -> Genotype:
  """The genotype of {cell type: _Cell}."""
  return genotypes.make(space, {
      t: (cell.edges, [cell.ops.get(s, '') for s in range(space.num_sites)])
      for t, cell in cells.items()})


def _one_of(values, rng):
  return values[rng.integers(len(values))]


def mutate(space: Space, genotype: Genotype, rate: float,
           rng: np.random.Generator) -> Genotype:
  """Draws each edge and each operation anew with probability `rate`.

  An edge becomes another one of its node, with a random operation; an
  operation may come out as it was.
  """
  return _write(space, {
      t: _mutated(space, t, _read(space, genotype, t), rate, rng)
      for t in space.cell_types})


def _mutated(space, cell_type, cell, rate, rng):
  edges = []
  for a, b in space.node_edges:
    kept = [e for e in cell.edges if a <= e < b]
    for place in range(len(kept)):
      others = [e for e in range(a, b) if e not in kept]
      if others and rng.random() < rate:
        kept[place] = _one_of(others, rng)
    edges += sorted(kept)
  names = enumeration.candidates(space, cell_type)
  return _Cell(edges, {
      site: cell.ops[site] if site in cell.ops and rng.random() >= rate
      else _one_of(names[site], rng) for site in _sites(space, edges)})


def crossover(space: Space, first: Genotype, second: Genotype,
              rng: np.random.Generator) -> Genotype:
  """Takes each node's edges and each operation from one of two parents."""
  return _write(space, {
      t: _crossed(space, _read(space, first, t), _read(space, second, t), rng)
      for t in space.cell_types})


def _crossed(space, first, second, rng):
  parents = first, second
  edges = []
  for a, b in space.node_edges:
    edges += [e for e in _one_of(parents, rng).edges if a <= e < b]
  return _Cell(edges, {
      site: _one_of([p.ops[site] for p in parents if site in p.ops], rng)
      for site in _sites(space, edges)})


# --- Local search


def _climb(space, options, state, rng, this):
  del options
  for genotype, _ in _best_first(scored(state)):
    near = neighbours(space, genotype)
    for i in rng.permutation(len(near)):
      this.offer(near[i])
    if not this.missing:
      return


def neighbours(space: Space, genotype: Genotype) -> list[Genotype]:
  """The architectures that differ in one operation, or in one edge.

  A new edge comes with each of its operations.

  >>> from rome_jax import spaces
  >>> cell = genotypes.random(spaces.NASBENCH201, np.random.default_rng(0))
  >>> len(neighbours(spaces.NASBENCH201, cell))
  24
  """
  cells = {t: _read(space, genotype, t) for t in space.cell_types}
  return [_write(space, cells | {t: near})
          for t in space.cell_types for near in _near(space, t, cells[t])]


def _near(space, cell_type, cell):
  names = enumeration.candidates(space, cell_type)
  for site in _sites(space, cell.edges):
    for op in names[site]:
      if op != cell.ops[site]:
        yield cell._replace(ops=cell.ops | {site: op})
  for a, b in space.node_edges:
    kept = {e for e in cell.edges if a <= e < b}
    for old, new in itertools.product(kept, set(range(a, b)) - kept):
      edges = sorted({*cell.edges, new} - {old})
      for op in names[new] if space.sites == 'edges' else ('',):
        yield _Cell(edges, cell.ops | ({new: op} if op else {}))
