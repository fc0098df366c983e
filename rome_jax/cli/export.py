"""`rome-jax export RUN --to=FORMAT`: a trained network for other programs.

  rome-jax export runs/c10 --to=stablehlo
  rome-jax export runs/c10 --to=onnx --out=net.onnx
  rome-jax export runs/c10 --to=safetensors --name=derived-1

Writes the network of the most accurate retraining of a finished run, or of
that of --name. Beside it, FILE.json says how images are prepared, what the
classes are called, and how far the exported program is from the network; one
that differs is not written. A mistake gives one sentence and exit code 2.
"""

import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from rome_jax import cli, errors, files
from rome_jax.cli import flags
from rome_jax.cli import trained as trained_lib
from rome_jax.cli.trained import Trained
from rome_jax.config import checks
from rome_jax.exports import network, onnx, stablehlo, weights
from rome_jax.spaces import genotypes


def exportable(trained: Trained) -> network.Exportable:
  """A trained network and its facts."""
  about = trained.about
  return network.Exportable(
      trained.network, trained.variables, about.image_size,
      about.image_channels, {
          'genotype': genotypes.to_text(about.genotype),
          'inputs': f'images [B,{about.image_size},{about.image_size},'
                    f'{about.image_channels}] float32: (pixel / 255 - mean) / '
                    'std, rows from the top',
          'outputs': 'logits [B,classes] float32',
          'resize': about.augment, 'image_size': about.image_size,
          'mean': list(about.mean), 'std': list(about.std),
          'class_names': list(about.class_names),
          'test_accuracy': about.figures.get('test_accuracy'),
          'steps': about.figures.get('steps'),
          'weights': about.figures.get('weights', 'last')})


def _check(to, name):
  if to not in flags.EXPORT_FORMATS:
    raise errors.UserError(
        f'{name}={to} must be one of {", ".join(flags.EXPORT_FORMATS)}'
        f'{errors.near_miss(to, flags.EXPORT_FORMATS)}')


def write(trained: Trained, to: str,
          path: str | os.PathLike[str]) -> dict[str, Any]:
  """Writes an export and its facts; returns these.

  Args:
    trained: the network.
    to: a name of flags.EXPORT_FORMATS.
    path: of the file.

  Raises:
    UserError: see `rome_jax.exports`.
  """
  _check(to, 'to')
  item, difference = exportable(trained), 0.
  if to == 'stablehlo':
    data, difference = stablehlo.export(item)
  elif to == 'onnx':
    data, difference = onnx.export(item)
  else:
    data = weights.export(item)
  facts = {**item.facts, 'format': to, 'difference': difference}
  path = pathlib.Path(path)
  files.write_bytes(path, data)
  files.write_json(path.with_name(path.name + '.json'), facts)
  return facts


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line (default: the process's); returns the exit code."""
  cli.make_output_safe()
  try:
    args = cli.parse(flags.export(), sys.argv[1:] if argv is None else argv)
    _check(args.to, '--to')
    run = pathlib.Path(checks.local_path('RUN', args.run))
    path = pathlib.Path(checks.local_path('--out', args.out) if args.out
                        else run / f'network.{args.to}')
    facts = write(trained_lib.of(args), args.to, path)
    print(f'{path}: {path.stat().st_size:,} bytes, within '
          f'{facts["difference"]:.1g} of the network')
    return 0
  except errors.UserError as error:
    print(f'rome_jax: {error}', file=sys.stderr)
    return error.exit_code


if __name__ == '__main__':
  sys.exit(main())
