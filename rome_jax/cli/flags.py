"""The flags of the commands, apart from what they do.

Nothing here loads JAX, so that `rome-jax COMMAND --help` answers at once. Those
of `run` are the fields of a config; `describe` has its own, which list the
spaces.
"""

from collections.abc import Callable

from rome_jax import cli

EXPORT_FORMATS = ('stablehlo', 'onnx', 'safetensors')
RANK_BATCH = 512  # images in a batch, about
NO_TABLE = 'none'
_OF_RUNS = 'All other flags are those of rome-jax run.'


def sweep(prog: str = 'rome-jax sweep') -> cli.Parser:
  """The flags of a sweep; all others are those of its runs."""
  parser = cli.Parser(
      prog=prog, allow_abbrev=False,
      description=f'Repeats a run over seeds and values of fields. {_OF_RUNS}')
  parser.add_argument('--workdir', required=True, metavar='DIR',
                      help='holds a folder for each run')
  parser.add_argument('--seeds', metavar='N,N', help='the same as --vary=seed=')
  parser.add_argument('--vary', action='append', default=[],
                      metavar='FIELD=A,B', help='runs with each of the values')
  parser.add_argument(
      '--choose', default='', choices=('', 'derived', 'given'),
      metavar='derived|given',
      help='choose the values of the largest mean accuracy of these networks, '
      'on the images that config.retrain.holdout holds out')
  return parser


def compare(prog: str = 'rome-jax compare') -> cli.Parser:
  """The flags of a comparison; all others are those of its runs."""
  parser = cli.Parser(
      prog=prog, allow_abbrev=False,
      description='Runs methods side by side, seed by seed, and writes one '
      f'page. {_OF_RUNS}')
  parser.add_argument('--config', required=True, metavar='FILE[:ARGUMENT]',
                      help='a Python file with get_comparison(); shipped are '
                      'compare_nb201, compare_collapse, compare_ranking and '
                      'compare_leaves')
  parser.add_argument('--workdir', required=True, metavar='DIR',
                      help='holds a folder for each run, and the page')
  parser.add_argument('--seeds', metavar='N,N',
                      help="instead of the file's seeds")
  parser.add_argument('--workers', type=cli.at_least(1), default=1,
                      metavar='N', help='runs at the same time (1)')
  parser.add_argument('--page', action='store_true',
                      help='only write the page of what is there')
  return parser


def rank() -> cli.Parser:
  """The flags of a ranking."""
  parser = cli.Parser(
      prog='rome-jax rank', allow_abbrev=False,
      description="Scores architectures with the weights of a run's search.")
  _add_search(parser)
  parser.add_argument(
      '--cells', default='1000', metavar='all|N|FILE',
      help='every architecture of the space, N random ones (default 1000), or '
      'those of a text file, one a line as Genotype(...) or in a form of '
      'NAS-Bench-201')
  parser.add_argument(
      '--images', choices=('valid', 'test'), default='valid',
      help='the validation half of the search (default) or the test images')
  parser.add_argument(
      '--batches', type=cli.at_least(0), default=0, metavar='N',
      help='batches of images (default 0: all)')
  parser.add_argument(
      '--batch-size', type=cli.at_least(0), default=0, metavar='N',
      help=f'images in a batch (default 0: about {RANK_BATCH})')
  parser.add_argument(
      '--norm', default='batch', metavar='batch|recalibrated',
      help="where BatchNorm's moments are from: each batch (default), or "
      'training images, measured anew for every architecture')
  parser.add_argument(
      '--calibration', type=cli.at_least(0), default=0, metavar='N',
      help='training images for --norm=recalibrated (default 0: as many as a '
      'batch has)')
  parser.add_argument(
      '--seed', type=cli.at_least(0), default=0, metavar='N',
      help='of the random architectures and of the order of the images')
  parser.add_argument(
      '--block', type=cli.at_least(1), default=64, metavar='N',
      help='architectures in a call of the compiled program (default 64)')
  parser.add_argument(
      '--table', metavar='DATASET',
      help="data set of the table (default: the run's, if the table has it; "
      f'{NO_TABLE}: no comparison)')
  return parser


def variance() -> cli.Parser:
  """The flags of a measurement of variances."""
  parser = cli.Parser(
      prog='rome-jax variance', allow_abbrev=False,
      description="The variance of theta's gradient under PA&DA's laws.")
  _add_search(parser)
  parser.add_argument(
      '--draws', type=cli.at_least(2), default=200, metavar='N',
      help='gradients of each law (default 200)')
  parser.add_argument(
      '--seed', type=cli.at_least(0), default=0, metavar='N',
      help='of paths and images')
  return parser


def export() -> cli.Parser:
  """The flags of an export."""
  parser = cli.Parser(
      prog='rome-jax export', allow_abbrev=False,
      description="Writes a run's trained network for other programs.")
  _add_network(parser)
  parser.add_argument('--to', required=True, metavar='|'.join(EXPORT_FORMATS),
                      help='the format')
  parser.add_argument('--out', metavar='FILE',
                      help='the file (default: RUN/network.FORMAT)')
  return parser


def predict() -> cli.Parser:
  """The flags of a classification."""
  parser = cli.Parser(
      prog='rome-jax predict', allow_abbrev=False,
      description="Classifies images with a run's trained network.")
  _add_network(parser)
  parser.add_argument('images', metavar='IMAGE', nargs='+',
                      help='image files, and folders of them')
  parser.add_argument('--top', type=cli.at_least(1), default=1, metavar='N',
                      help='classes of each image, the likeliest first (1)')
  parser.add_argument('--csv', metavar='FILE', help='write a table there')
  return parser


# Commands whose help needs nothing but their flags.
PARSERS: dict[str, Callable[[], cli.Parser]] = {
    'sweep': sweep, 'compare': compare, 'rank': rank, 'variance': variance,
    'export': export, 'predict': predict}


def _add_config(parser):
  parser.add_argument(
      '--config', metavar='FILE',
      help='a config file, run first for the operations and spaces of your '
      'own that it adds')


def _add_search(parser):
  """The run, and the flags by which `searched.read` finds its search."""
  parser.add_argument('run', metavar='RUN', help='folder of the run')
  parser.add_argument(
      '--data-dir', metavar='DIR', help='where the images are now')
  _add_config(parser)


def _add_network(parser):
  """The run, and the flags by which `trained.of` finds its network."""
  parser.add_argument('run', metavar='RUN', help='folder of a finished run')
  _add_config(parser)
  parser.add_argument('--name', metavar='NAME',
                      help='which retraining, such as derived-0 (default: the '
                      'most accurate)')
  parser.add_argument(
      '--best', action='store_true',
      help='the weights of its most accurate test, not the last ones; needs a '
      'run with config.retrain.keep_best=true')
