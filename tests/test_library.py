"""docs/library.md runs, block after block, as a reader would type it."""

import pathlib
import re

import jax

ROOT = pathlib.Path(__file__).parents[1]


def test_the_page_runs(tmp_path, capsys):
  page = (ROOT / 'docs' / 'library.md').read_text()
  blocks = re.findall(r'```python\n(.*?)```', page, re.S)
  assert len(blocks) >= 9
  session = {'WORKDIR': tmp_path / 'run', '__name__': 'library'}
  jax.config.update('jax_disable_most_optimizations', True)  # two steps each
  try:
    for number, block in enumerate(blocks):
      exec(compile(block, f'docs/library.md, block {number}', 'exec'), session)
  finally:
    jax.config.update('jax_disable_most_optimizations', False)
  printed = capsys.readouterr().out
  assert 'Genotype(normal=' in printed and "('cat', 'dog') 8" in printed
