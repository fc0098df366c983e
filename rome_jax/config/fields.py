"""The fields of a config, in one table.

A row says what is allowed and what the field means; its default comes from
`train.recipes` where it belongs to a search or a retraining. The defaults,
the checks, `--help` and the type of `--config.FIELD=VALUE` are all read from
this table. Sources: DARTS is Liu et al., ICLR 2019, and its code; ROME is
Wang et al., ICCV 2023. "Unstated" marks what ROME's text leaves open.
"""

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

import ml_collections

from rome_jax import errors
from rome_jax.data import splits
from rome_jax.methods import split, table
from rome_jax.spaces import counting
from rome_jax.train import recipes

FILENAME = 'config.json'
DTYPES = ('float32', 'bfloat16')
AUGMENTATIONS = ('none', 'shift', 'cifar', 'svhn', 'imagenet')

# What may change between two starts of one run: nothing that a result depends
# on.
FREE_FIELDS = (
    'name', 'log_every', 'checkpoint_every', 'keep_checkpoints',
    'compilation_cache', 'data_dir', 'loader', 'loader_workers', 'mesh.data',
    'mesh.sample')

# Names of 0.1.0 and what they are called today; a section stands for all of
# its fields.
RENAMED = {'search.parallel': 'search.samples', 'evaluate': 'retrain'}

# Far above any use, and far below where 32 bits end.
MANY = 10**6


@dataclasses.dataclass(frozen=True)
class Field:
  """One row of the table.

  Attributes:
    meaning: what it is, with unit and source.
    default: the value, whose type is the field's type.
    low: the least number allowed, or None.
    high: the largest number allowed, or None.
    low_open: whether `low` itself is forbidden.
    high_open: whether `high` itself is forbidden.
    choices: () -> the values allowed, asked whenever they are needed, since
      users may add rows to a table; None for any value.
  """

  meaning: str
  default: Any = None
  low: float | None = None
  high: float | None = None
  low_open: bool = False
  high_open: bool = False
  choices: Callable[[], tuple[str, ...]] | None = None


def _choice(meaning, choices, default=None):
  return Field(meaning, default, choices=lambda: choices)


def _between(low, high, meaning, default=None):
  return Field(meaning, default, low, high)


def _at_least(low, meaning, default=None):
  return Field(meaning, default, low)


def _positive(meaning):
  return Field(meaning, low=0, low_open=True)


def _below_one(meaning):
  return Field(meaning, low=0, high=1, high_open=True)


def _share(meaning):
  return Field(meaning, low=0, low_open=True, high=1)


_TOP = {
    'name': Field('a name of your own for the run; only shown', ''),
    'seed': _between(
        0, 2**32 - 1, 'every random number of the run follows from it', 0),
    'method': Field(
        'how architectures are sampled, trained and derived, a row of '
        'rome_jax.methods; on the command line it also sets the fields of '
        "the method's recipe", 'rome_v2',
        choices=lambda: tuple(table.METHODS)),
    'space': Field('search space, a name of rome_jax.spaces.SPACES', 's0'),
    'in_degree': _between(
        0, 100, 'edges that a node keeps; 0: as the space says. ROME samples '
        'topologies of NAS-Bench-201 with 2 and drop_none', 0),
    'drop_none': Field(
        'leave the operation none out of the space: S3 becomes S2, and in '
        'NAS-Bench-201 only in_degree leaves edges out. (S3 searches it but '
        'never derives it)', False),
    'dataset': Field(
        'digits, cifar10, cifar100, svhn, mnist, fashion_mnist, imagenet, '
        'folder, npz or tfds:NAME; its files are under data_dir', 'digits'),
    'data_dir': Field("folder of the data set's files", ''),
    'image_size': _between(
        0, 8192, 'side in pixels to which images are scaled; 0: as they are',
        0),
    'skip_unreadable': Field(
        'decode every image of a folder or of TFDS before the run begins, and '
        'leave out those that cannot be', False),
    'test_fraction': Field(
        'share of your own data that is held out for the test if it has no '
        'test split', .2, low=0, high=1, low_open=True, high_open=True),
    'split_seed': _between(
        0, 2**32 - 1, 'which images are held out so; not part of seed, so '
        'that all runs are tested on the same images', 0),
    'loader': _choice(
        'who decodes images that are too many for memory: threads of the run, '
        'or processes, which grain starts (pip install '
        "'rome_jax[grain]'); the batches are the same", splits.LOADERS,
        'threads'),
    'loader_workers': _between(
        0, 1024, 'how many of them; 0: one per core, of threads at most 8', 0),
    'stem': _choice(
        "first layers: 'cifar' keeps the resolution, 'imagenet' divides it "
        "by 8, 'auto' is 'imagenet' from 128 pixels",
        ('auto', 'cifar', 'imagenet'), 'auto'),
    'genotype': Field(
        'path or published name of a genotype, or a string, code or index of '
        'NAS-Bench-201: retrain it, search nothing', ''),
    'log_every': _between(
        1, MANY, 'steps between two lines of metrics', 50),
    'checkpoint_every': _between(
        1, MANY, 'steps between two checkpoints', 500),
    'keep_checkpoints': _between(
        1, MANY, 'checkpoints to keep; with 1 there is none to fall back to',
        2),
    'compilation_cache': Field(
        "folder of compiled programs; 'auto': one in the user's cache; empty: "
        'none', 'auto'),
}

_DTYPE = (
    'dtype of activations and convolutions; weights, BatchNorm statistics, '
    'losses and the optimiser always use float32')
_ACCUMULATE = (
    'parts of a batch, evaluated one after another in the memory of one; '
    'their gradients are averaged, and each part has BatchNorm statistics of '
    'its own')
_CUTOUT = (
    'side in pixels of the square set to zero, below that of the images; 0: '
    'none; -1: half of their side, at most 16 (DARTS: 16 of 32)')

_SEARCH = {
    'cells': _between(
        1, 1000, 'cells of the supernet, reductions at 1/3 and 2/3 (DARTS)'),
    'channels': _between(1, 10_000, 'channels of the first cell (DARTS)'),
    'epochs': _between(
        0, MANY, 'passes over the theta half; ROME keeps K x epochs near 350'),
    'max_steps': _between(0, 10**9, 'upper limit of the steps; 0: none'),
    'batch_size': _between(
        1, MANY, 'images of one step, shared by its K samples (ROME, memory '
        'table)'),
    'k': _between(
        0, 1000, 'K, architectures sampled in a step (Algorithm 1); 0: as many '
        'as a site has operations (FairNAS)'),
    'samples': _choice(
        "the K samples one after another in the memory of one ('scan') or "
        "batched ('vmap'); 'auto': as the device and its memory suggest",
        ('auto', 'scan', 'vmap')),
    'evaluator': _choice(
        "the slots one by one ('listed') or all operations of an edge at once "
        "('batched'); 'auto': batched where the method evaluates them all",
        ('auto', 'listed', 'batched')),
    'dtype': _choice(_DTYPE, DTYPES),
    'accumulate': _between(1, MANY, _ACCUMULATE),
    'sampler': _choice(
        "theta's samples: independent (Algorithm 1), or each operation given "
        'to each edge equally often (FairNAS), sampled or not',
        ('iid', 'strict_fair')),
    'order': _choice(
        'what a step updates first: alpha and beta (Algorithm 1) or theta '
        '(GDAS)', ('alpha_first', 'theta_first')),
    'theta_reduce': _choice(
        'the K gradients of theta (Eq. 21: sum)', ('sum', 'mean')),
    'alpha_reduce': _choice(
        'the K gradients of alpha and beta (Eq. 20: mean)', ('sum', 'mean')),
    'tau_start': _positive(
        'temperature of the relaxation at first (GDAS; unstated)'),
    'tau_end': _positive('temperature at last (GDAS; unstated)'),
    'tau_schedule': _choice(
        "from tau_start to tau_end; 'constant' stays at tau_start",
        ('linear', 'exponential', 'constant')),
    'tau_per': _choice(
        'how often tau changes (GDAS: epoch)', ('epoch', 'step')),
    'lr': _positive("theta's learning rate at first (ROME; DARTS .025)"),
    'lr_end': _at_least(0, 'learning rate at last, by a cosine (DARTS)'),
    'lr_per': _choice(
        'how often the learning rate changes (DARTS: epoch)',
        ('epoch', 'step')),
    'momentum': _below_one("of theta's SGD (DARTS)"),
    'nesterov': Field('Nesterov momentum (GDAS: yes, DARTS: no)'),
    'weight_decay': _at_least(
        0, 'L2 of theta, added to the gradient (DARTS)'),
    'clip_norm': _positive(
        "largest global norm of theta's reduced gradient (DARTS)"),
    'alpha_start': _between(
        0, MANY, 'epochs before the first update of alpha and beta (PC-DARTS: '
        '15)'),
    'alpha_lr': _positive("Adam's rate for alpha and beta (DARTS)"),
    'alpha_b1': _below_one("Adam's b1 (DARTS)"),
    'alpha_b2': _below_one("Adam's b2 (DARTS)"),
    'alpha_weight_decay': _at_least(
        0, 'L2 of alpha and beta, added to the gradient (DARTS)'),
    'alpha_clip': _at_least(
        0, 'largest global norm of the gradient of alpha and beta; 0: not '
        'clipped (P-DARTS: 5)'),
    'alpha_init': _at_least(
        0, 'standard deviation of alpha at first (DARTS)'),
    'beta_init': _at_least(
        0, 'standard deviation of beta at first (unstated)'),
    'scalar_gates': Field(
        "add the gates of the operations that were not sampled, of value 0, "
        "so that their gradient reaches alpha too (GDAS' code for "
        'NAS-Bench-201)'),
    'fraction_theta': _share(
        'share of each class of the training images for theta (DARTS)'),
    'fraction_alpha': _share(
        'share for alpha and beta, disjoint from the other (DARTS)'),
    'augment': _choice('augmentation', AUGMENTATIONS),
    'cutout': _between(-1, 8192, _CUTOUT),
    'cutout_ramp': Field(
        'cut an image with a chance that rises from 0 to 1 linearly, once an '
        'epoch (R-DARTS, with drop_path)'),
    'drop_path': _below_one(
        'chance to drop what an edge of the supernet hands on, image by '
        'image, rising from 0 linearly, once an epoch (R-DARTS .2 to .6)'),
    'skip_dropout': _below_one(
        'dropout on identities of the supernet; it falls linearly until '
        'alpha moves, and from this value again after that (P-DARTS, which '
        'has stage_skip_dropout)'),
    'stage_cells': Field(
        'cells of the supernet in each stage, separated by commas (P-DARTS, '
        'which does not read search.cells; so are the next two)'),
    'stage_keep': Field(
        'candidates that each edge keeps after each stage but the last'),
    'stage_skip_dropout': Field(
        "skip_dropout of each stage; the authors' command has .1,.4,.7"),
    'path_law': _choice(
        "PA&DA's probabilities of operations: one vector for all sites (its "
        "code), or one for each ('site')", ('shared', 'site')),
    'path_delta': _at_least(
        0, "PA&DA's score of operations without weights, as a share of the "
        "others' mean (its code: 0)"),
    'unbiased': Field(
        "weigh an image's loss by 1 / (n p) where images are drawn with "
        'probabilities p (PA&DA: no)'),
    'split': _choice(
        "split the supernet into leaves (docs/methods/split.md): by gradient "
        "matching ('gm', GM-NAS), or a leaf for each operation of one site "
        "('few_shot')", split.SPLITS),
    'split_epochs': Field(
        'epochs after which every supernet is split, separated by commas '
        '(GM-NAS: 15,30 in NAS-Bench-201, 2,4,6 in DARTS\' space)'),
    'split_groups': Field(
        'groups of each split, or one number for all (GM-NAS: 2)'),
    'split_sizes': Field(
        "sizes that the groups may have, such as '2+5,3+4'; '': any (GM-NAS: "
        '2+3 in NAS-Bench-201)'),
    'split_rule': _choice(
        'split the site of the largest distances between its groups, or of '
        'the smallest within them', split.RULES),
    'split_cells': _choice(
        'cells whose sites may be split (GM-NAS: normal)', split.CELLS),
    'split_site': _between(
        0, MANY, 'the edge, node or block of the normal cell that few_shot '
        'splits'),
    'split_batches': _between(
        1, MANY, 'training batches whose gradients are compared (GM-NAS)'),
    'split_shared': _choice(
        'weights whose gradients are compared: those of all other operations, '
        "these and what is between stem and head ('body'), or all but the "
        "site's own ('all'); 'auto': as GM-NAS in this family",
        ('auto', *split.SHARED)),
    'split_soft': Field(
        "whether the one active candidate of a mixture keeps its own gate "
        "(GM-NAS in DARTS' space) instead of 1"),
    'split_inherit': _choice(
        'what a leaf continues after the last split: nothing (GM-NAS in '
        'cells), the weights and alpha (Few-Shot NAS), or all of the search',
        split.INHERITED),
    'split_choice': _choice(
        "how the leaf is chosen: by its cell's validation accuracy with the "
        "leaf's weights, NAS-Bench-201's table, successive halving of "
        'trainings from scratch, or a search over the architectures of all '
        "leaves ('evolution')", split.CHOICES),
    'split_rungs': Field(
        'epochs of these trainings after which the better half stays (GM-NAS: '
        '30,100,600)'),
    'split_together': Field(
        'train leaves at the same time, one in each group of devices of '
        'config.mesh.sample, instead of one after the other on all of them'),
    'candidates': _between(
        0, MANY, 'architectures to choose from: evaluated on the '
        'validation half with the weights of the search (SPOS), or each '
        'trained alone (random_search). 0: none'),
    'evolution': _choice(
        'how to search among them with the weights of the search (SPOS: '
        'evolution)', ('random', 'evolution', 'local')),
    'population': _between(
        1, MANY, 'architectures in a round of that (SPOS)'),
    'parents': _choice(
        "evolution's parents: any of the `select` best (SPOS), or the best of "
        '`select` drawn from the last population', ('top_k', 'tournament')),
    'select': _between(1, MANY, 'see `parents` (SPOS)'),
    'crossover': _between(0, MANY, 'children of two parents in a round (SPOS)'),
    'mutation': _between(
        0, MANY, 'mutated parents in a round; the rest is random (SPOS)'),
    'mutation_rate': _share(
        'chance of each edge and operation to be drawn anew (SPOS)'),
    'max_params': _between(
        0, 2**32 - 1, 'most parameters of a network with one of them, at the '
        'size of the retraining; 0: any number'),
    'max_macs': _between(
        0, 2**32 - 1, 'most multiply-adds of that network; 0: any number'),
    'calibration': _between(
        0, MANY, "images of the theta half that measure BatchNorm's moments "
        'for each of them (SPOS: 25,600); 0: each batch has its own'),
    'gap_batches': _between(
        -1, MANY, 'validation batches on which the supernet and the network '
        'derived from it are tested after each epoch, with the same weights, '
        'to show how far the second falls behind; 0: never; -1: 16, in '
        'searches that read at least 500,000 images, where the compiling does '
        'not count'),
    'eigenvalue_every': _between(
        0, MANY, 'epochs between two measurements of the dominant eigenvalue '
        "of the validation loss' Hessian in alpha, which rises before a "
        'collapse (RobustDARTS: 2); for mixtures. 0: never'),
}

_RETRAIN = {
    'cells': _between(1, 1000, 'cells of the discrete network (DARTS)'),
    'channels': _between(1, 10_000, 'channels of the first cell (DARTS)'),
    'epochs': _between(0, MANY, 'passes over the training images (DARTS)'),
    'batch_size': _between(1, MANY, 'images of one step (DARTS)'),
    'dtype': _choice(_DTYPE, DTYPES),
    'accumulate': _between(1, MANY, _ACCUMULATE),
    'remat': _choice(
        'what the backward pass computes again to save memory: nothing, or '
        "the inside of each cell ('cells'); the results are the same",
        ('none', 'cells')),
    'lr': _positive("SGD's largest learning rate (DARTS)"),
    'lr_end': _at_least(0, 'learning rate at last (DARTS)'),
    'lr_schedule': _choice(
        'from lr to lr_end after the warm-up (DARTS: cosine)',
        ('cosine', 'linear')),
    'warmup_epochs': _between(
        0, MANY, 'epochs in which the learning rate rises from 0 to lr, at '
        'every step (PC-DARTS: once an epoch)'),
    'momentum': _below_one('of SGD (DARTS)'),
    'nesterov': Field('Nesterov momentum (DARTS: no)'),
    'weight_decay': _at_least(0, 'L2, added to the gradient (DARTS)'),
    'clip_norm': _positive('largest global norm of the gradient (DARTS)'),
    'drop_path': _below_one(
        'chance to drop a path at the end, rising from 0 linearly over the '
        'epochs (DARTS .2, P-DARTS .3)'),
    'auxiliary': Field(
        'a second classifier at 2/3 of the depth (DARTS)'),
    'auxiliary_weight': _at_least(0, 'weight of its loss (DARTS)'),
    'auxiliary_norm': _choice(
        "after the second convolution of ImageNet's auxiliary head: nothing "
        "('darts'), or a BatchNorm ('pc_darts', also in P-DARTS' and GDAS' "
        'code)', counting.AUXILIARY_NORMS),
    'cutout': _between(-1, 8192, _CUTOUT),
    'label_smoothing': _below_one('share spread evenly over all classes'),
    'augment': _choice('augmentation', AUGMENTATIONS),
    'seeds': _between(
        0, 10_000, 'retrainings from scratch, whose mean and spread are '
        'shown; 0: none'),
    'random_architectures': _between(
        0, 10_000, 'random genotypes of the space retrained alike, to '
        'compare'),
    'eval_every': _between(1, MANY, 'epochs between two tests'),
    'eval_batch_size': _between(
        0, MANY, 'images of one test batch; 0: as batch_size'),
    'holdout': _below_one(
        'share of each class of the training images that is not trained on '
        'and tested on in place of the test images, to choose between '
        'searches by it (R-DARTS). 0: none'),
    'init_from': Field(
        'folder of a finished run whose most accurate network is trained on, '
        'with a fresh classifier where the classes differ (fine-tuning); needs '
        "that run's genotype. '': from scratch"),
    'ema': _below_one(
        'decay of an exponential mean of weights and BatchNorm statistics over '
        'the steps, which is tested and kept instead of the last; at first it '
        'is less, (1 + step) / (10 + step) (GM-NAS on ImageNet: .9999). 0: '
        'none'),
    'rand_augment': _between(
        0, 14, 'operations of RandAugment on each training image, after the '
        'augmentation (its paper: 2). 0: none'),
    'rand_magnitude': _between(
        0, 30, 'magnitude of rand_augment, on the scale of torchvision, whose '
        'default is 9 (the paper counts to 10)'),
    'keep_best': Field(
        'also keep the weights of the most accurate test, of which the images '
        'of config.retrain.holdout are the fair choice'),
}

_MESH = {
    'data': _between(
        0, MANY, 'parts of a batch, one device each; 0: as many as the '
        'devices allow', 0),
    'sample': _between(
        1, MANY, 'groups of devices, each with its share of the K '
        'architectures of a search', 1),
}


def _with_defaults(rows, recipe):
  """The rows of a section, each with the recipe's default."""
  defaults = recipe._field_defaults
  return {name: dataclasses.replace(rows[name], default=default)
          for name, default in defaults.items()}


SECTIONS = {
    'search': _with_defaults(_SEARCH, recipes.SearchRecipe),
    'retrain': _with_defaults(_RETRAIN, recipes.RetrainRecipe),
    'mesh': _MESH}

# {'seed': Field, ..., 'search.cells': Field, ...}
FIELDS = {
    **_TOP, **{f'{section}.{name}': field
               for section, fields in SECTIONS.items()
               for name, field in fields.items()}}


def defaults() -> ml_collections.ConfigDict:
  """Every field at its default, locked: unknown names are errors."""
  config = {name: field.default for name, field in _TOP.items()}
  for section, fields in SECTIONS.items():
    config[section] = {name: field.default for name, field in fields.items()}
  return ml_collections.ConfigDict(config).lock()


def to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Every field as a JSON object; sections are objects in it."""
  return config.to_dict()


KINDS = {int: 'a whole number', float: 'a number', str: 'text',
         bool: 'true or false'}


def near_field(name: str) -> str:
  """'; did you mean X?' with the full names of the likely fields, or ''."""
  section, _, last = name.rpartition('.')
  full_names = {}
  for full in FIELDS:
    full_names.setdefault(full.split('.')[-1], []).append(full)
  near = difflib.get_close_matches(last, full_names, 1)
  if not near:
    return ''
  found = full_names[near[0]]
  # A section spelled right decides between search.lr and retrain.lr.
  found = [full for full in found if full.startswith(f'{section}.')] or found
  return f'; did you mean {" or ".join(map(repr, found))}?'


def renamed(name: str) -> str | None:
  """What a field or section of 0.1.0 is called today; None if unchanged."""
  section, dot, last = name.partition('.')
  if section in RENAMED:
    return RENAMED[section] + dot + last
  return RENAMED.get(name)


def check_known(name: str) -> None:
  """Refuses what is no field.

  Raises:
    UserError: naming the likely field, or the new name of an old one.
  """
  if new := renamed(name):
    raise errors.UserError(
        f'config.{name} of version 0.1.0 is now called config.{new}')
  if name in SECTIONS:
    raise errors.UserError(
        f'config.{name} is a section; set one of its fields, for example '
        f'config.{name}.{next(iter(SECTIONS[name]))}')
  if name not in FIELDS:
    raise errors.UserError(
        f'config field {name} is unknown{near_field(name)}')


def flatten(value: dict, prefix: str = '') -> dict[str, Any]:
  """{'search.cells': 8, ...} of a nested dict."""
  flat = {}
  for name, item in value.items():
    if isinstance(item, dict) and item:
      flat |= flatten(item, f'{prefix}{name}.')
    else:
      flat[f'{prefix}{name}'] = item
  return flat
