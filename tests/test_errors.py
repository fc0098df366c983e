"""A message is one line, whatever it quotes."""

import pytest

from rome_jax import errors


@pytest.mark.parametrize('text, shown', [
    ('plain', 'plain'), ('a\nb\tc', r'a\nb\tc'), ('\x1b[2J', r'\x1b[2J'),
    ('caf\xe9 \u4e2d', 'caf\xe9 \u4e2d'), ('\u202e', r'\u202e'),
    ('\ud800', r'\ud800'), ('\udce9', r'\udce9')])
def test_letters_that_do_not_print_are_escaped(text, shown):
  assert str(errors.UserError(text)) == shown


def test_a_long_value_is_cut():
  text = str(errors.UserError(f"field='{'a' * 70_000}' must be short"))
  assert len(text) < 1100 and text.startswith("field='aaa")
  assert text.endswith("a' must be short")
