"""DARTS-ES and DARTS-ADA (Zela et al., ICLR 2020: RobustDARTS).

Both watch the dominant eigenvalue of the Hessian of the validation loss in
alpha, L2 included (`methods.curvature`). At the end of the epochs e = 0, 2, 4,
... and of the last it is measured on the validation batch of the last step. Let
A(e) be the average of the last five values (of all, while there are fewer); it
belongs to the epoch of the middle one, e - 4. The search has gone too far if

  e - 12 >= 10   and   A(e) / A(e - 8) > 1.3,

and it goes back to the epoch of the earlier average, e - 12. DARTS-ES ends
there: it derives from the alpha of that epoch. DARTS-ADA sets everything back
to it, the records of eigenvalues too, multiplies theta's weight decay by 10
(at most .03) and goes on to the last epoch; once the decay is .03 nothing more
happens. It keeps 12 copies of the weights and their optimiser's state, so that
it can go back twice in a row: 185 MB in S0 at the published size.

Read from the authors' code (`src/utils.py: EVLocalAvg`,
`src/search/train_search.py`). Departures:

- The code loads the records of the epoch that it goes back to, and then does
  not use them: the repeated epochs are compared with the abandoned ones. Here
  the records go back.
- The code raises the decay past its maximum if the steps of 10 miss it; here
  it stops there.
- The published searches are second order: `darts_2nd_es`, `darts_2nd_ada`.
  `darts_es` and `darts_ada` are the same watch over first order.
- A search of fewer than 24 epochs ends before the rule may apply.
- Eigenvalues are those of differences of gradients, see `methods.curvature`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from rome_jax.methods import curvature
from rome_jax.methods.method import Extra, Method, State, no_noise
from rome_jax.methods.rows.darts import darts, darts_2nd

WINDOW = 5  # measurements in an average
DELTA = 4  # measurements between the two averages
BACK = WINDOW // 2 + DELTA  # from a measurement to the one to go back to
# Back from there it may come to go back once more, so that many are kept.
KEPT = 2 * BACK


class Rule(NamedTuple):
  """When a search has gone too far; the defaults are the authors'.

  Attributes:
    every: epochs between two measurements.
    factor: the ratio of averages that is too large.
    start: the first epoch that may be gone back to.
  """

  every: int = 2
  factor: float = 1.3
  start: int = 10


AUTHORS = Rule()


class Stopped(NamedTuple):
  """What DARTS-ES remembers.

  Attributes:
    eigenvalues: [9], the last ones, the newest last; NaN where there is none.
    archs: leaves [7,...], architecture parameters of the last measurements,
      the newest last.
    latest: eigenvalue of the last epoch; NaN if it was not measured.
    bound: of `latest`, see `curvature.Eigenvalue`.
    stop: whether the search has ended.
  """

  eigenvalues: jax.Array
  archs: Any
  latest: jax.Array
  bound: jax.Array
  stop: jax.Array


class Snapshot(NamedTuple):
  """What DARTS-ADA goes back to."""

  step: jax.Array
  theta: Any
  arch: Any
  theta_opt: Any
  arch_opt: Any
  eigenvalues: jax.Array


class Raised(NamedTuple):
  """What DARTS-ADA remembers.

  Attributes:
    eigenvalues, latest, bound: as in `Stopped`.
    snapshots: `Snapshot` with leaves [12,...], that of measurement m in row
      m % 12.
    numbers: [12] int32, the measurement in each row; -1 for none.
    rises: int32, how often the decay was raised.
    decay: theta's weight decay.
  """

  eigenvalues: jax.Array
  latest: jax.Array
  bound: jax.Array
  snapshots: Any
  numbers: jax.Array
  rises: jax.Array
  decay: jax.Array


# ----------------------------------------------------------------- the rule


def appended(values: jax.Array, new: jax.Array) -> jax.Array:
  """The record after one more entry: the oldest leaves, the newest is last."""
  return jnp.concatenate([values[1:], new[None]])


def no_values() -> jax.Array:
  """A record of eigenvalues, [9], before the first."""
  return jnp.full(WINDOW + DELTA, jnp.nan)


def _no_value():
  return jnp.full((), jnp.nan)


def ratio(values: jax.Array) -> jax.Array:
  """The average of the last five by that of the five before the last four.

  Args:
    values: [9], the newest last; NaN where there is none.

  >>> values = jnp.array([1.] * 4 + [2.] * 5)
  >>> round(float(ratio(values)), 3)
  1.667
  """
  return jnp.nanmean(values[-WINDOW:]) / jnp.nanmean(values[:WINDOW])


def goes_too_far(rule: Rule, values: jax.Array, epoch: Any) -> jax.Array:
  """Whether to go back, to the epoch `epoch` - 12.

  Args:
    rule: see `Rule`.
    values: [9], as in `ratio`.
    epoch: of the last value, the first is 0.
  """
  early = epoch - rule.every * BACK < rule.start
  return ~early & (ratio(values) > rule.factor)


# ------------------------------------------------------------ what is shared


def _checked(row, name):
  if row.noise is not no_noise:
    raise ValueError(
        f'method {row.name!r} samples architectures; {name} needs one whose '
        'loss is a function of alpha, such as darts')
  if row.extra != Extra():
    raise ValueError(
        f'method {row.name!r} has a state of its own already; {name} needs one '
        'without')


def _boundary(rule: Rule, measured: Callable[..., State]) -> Callable:
  """(objective, state, batches, epochs done, key) -> state.

  Args:
    rule: see `Rule`.
    measured: (rule, state with the eigenvalue in its record, epoch, whether
      it may go back) -> state.
  """

  def boundary(objective, state, batches, epochs, key):
    epoch = epochs - 1
    last = objective.progress() >= 1

    def measure(state):
      value, bound = curvature.dominant(
          objective, state, batches['valid'], key)
      extra = state.extra._replace(
          eigenvalues=appended(state.extra.eigenvalues, value), latest=value,
          bound=bound)
      return measured(rule, state._replace(extra=extra), epoch, ~last)

    def skip(state):
      nan = jnp.full_like(state.extra.latest, jnp.nan)
      return state._replace(
          extra=state.extra._replace(latest=nan, bound=nan))

    return lax.cond(
        (epoch % rule.every == 0) | last, measure, skip, state)

  return boundary


_REPORTS = 'dominant_eigenvalue', 'eigenvalue_bound'


def _report(extra):
  return dict(zip(_REPORTS, (extra.latest, extra.bound)))


# ----------------------------------------------------------------- DARTS-ES


def early_stop(row: Method, rule: Rule = AUTHORS) -> Method:
  """A row that ends once the dominant eigenvalue has risen (DARTS-ES).

  Args:
    row: one that evaluates a mixture, such as darts or darts_2nd.
    rule: see `Rule`.

  Raises:
    ValueError: the row samples architectures, or has a state of its own.

  >>> early_stop(darts).name
  'darts_es'
  """
  _checked(row, 'early_stop')

  def init(space, num_examples, *, state):
    del space, num_examples
    archs = jax.tree.map(lambda a: jnp.stack([a] * (BACK + 1)), state.arch)
    return Stopped(no_values(), archs, _no_value(), _no_value(),
                   jnp.zeros((), bool))

  return row._replace(name=f'{row.name}_es', extra=Extra(
      init=init, boundary=_boundary(rule, _stopped),
      stop=lambda extra: extra.stop, report=_report, reports=_REPORTS))


def _stopped(rule, state, epoch, may):
  """Ends the search with the arch of six measurements before, or goes on."""
  extra = state.extra
  archs = jax.tree.map(appended, extra.archs, state.arch)
  stop = may & goes_too_far(rule, extra.eigenvalues, epoch)
  arch = jax.tree.map(
      lambda past, now: jnp.where(stop, past[0], now), archs, state.arch)
  return state._replace(
      arch=arch, extra=extra._replace(archs=archs, stop=stop))


# ---------------------------------------------------------------- DARTS-ADA


def raise_decay(row: Method, rule: Rule = AUTHORS, factor: float = 10.,
                most: float = .03) -> Method:
  """A row that goes back and raises theta's weight decay (DARTS-ADA).

  Args:
    row: one that evaluates a mixture, such as darts or darts_2nd.
    rule: see `Rule`.
    factor: of the weight decay, each time.
    most: weight decay that is not exceeded.

  Raises:
    ValueError: the row samples architectures, or has a state of its own.

  >>> raise_decay(darts).extra.hyperparameters
  ('weight_decay',)
  """
  _checked(row, 'raise_decay')

  def measured(rule, state, epoch, may):
    extra, number = state.extra, epoch // rule.every
    target = number - BACK
    back = (may & goes_too_far(rule, extra.eigenvalues, epoch)
            & (extra.decay < most)
            & (extra.numbers[target % KEPT] == target))
    return lax.cond(
        back, functools.partial(_back, target, factor, most),
        functools.partial(_kept, number), state)

  def report(extra):
    return {**_report(extra), 'weight_decay': extra.decay,
            'rollbacks': extra.rises}

  return row._replace(
      name=f'{row.name}_ada', check=functools.partial(_check, row.check, most),
      extra=Extra(
          init=functools.partial(_no_snapshots, row.name),
          boundary=_boundary(rule, measured), report=report,
          reports=(*_REPORTS, 'weight_decay', 'rollbacks'),
          hyperparameters=('weight_decay',)))


def _check(before, most, method, space, section):
  """A decay that can rise; cutout whose chance knows no way back."""
  if not 0 < section.weight_decay < most:
    return (f'search.weight_decay={section.weight_decay} must be above 0 and '
            f'below {most} with method={method.name!r}, which raises it')
  if section.cutout_ramp:
    return ('search.cutout_ramp must be false with '
            f'method={method.name!r}, which goes back to earlier epochs')
  return before(method, space, section)


def _snapshot(state, eigenvalues):
  return Snapshot(state.step, state.theta, state.arch, state.theta_opt,
                  state.arch_opt, eigenvalues)


def _no_snapshots(name, space, num_examples, *, state):
  del space, num_examples
  decay = optax.tree.get(state.theta_opt, 'weight_decay')
  if decay is None:
    raise ValueError(
        f'method {name}_ada changes the weight decay, which theta_tx must have '
        'in its state: wrap optax.add_decayed_weights in '
        'optax.inject_hyperparams')
  empty = jax.tree.map(
      lambda a: jnp.zeros((KEPT, *jnp.shape(a)), jnp.asarray(a).dtype),
      _snapshot(state, no_values()))
  # Each array is one of its own: a step donates them all.
  return Raised(no_values(), _no_value(), _no_value(), empty,
                jnp.full(KEPT, -1, jnp.int32), jnp.zeros((), jnp.int32),
                jnp.array(decay, copy=True))


def _back(target, factor, most, state):
  """The state of measurement `target`, with a higher weight decay."""
  extra = state.extra
  past = jax.tree.map(lambda a: a[target % KEPT], extra.snapshots)
  decay = jnp.minimum(extra.decay * factor, most).astype(extra.decay.dtype)
  return state._replace(
      step=past.step, theta=past.theta, arch=past.arch,
      theta_opt=optax.tree.set(past.theta_opt, weight_decay=decay),
      arch_opt=past.arch_opt, extra=extra._replace(
          eigenvalues=past.eigenvalues, decay=decay, rises=extra.rises + 1))


def _kept(number, state):
  """The state with a snapshot of itself."""
  extra, row = state.extra, number % KEPT
  snapshots = jax.tree.map(
      lambda rows, a: rows.at[row].set(a), extra.snapshots,
      _snapshot(state, extra.eigenvalues))
  return state._replace(extra=extra._replace(
      snapshots=snapshots, numbers=extra.numbers.at[row].set(number)))


darts_es, darts_2nd_es = early_stop(darts), early_stop(darts_2nd)
darts_ada, darts_2nd_ada = raise_decay(darts), raise_decay(darts_2nd)
