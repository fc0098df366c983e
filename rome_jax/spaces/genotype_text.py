"""Finds `Genotype(...)` in logs and Python files, and parses it as data.

GDAS' code prints a dictionary, {'normal': [...], ...}; it is found too.
Nothing is evaluated: a text may hold strings, numbers, lists and tuples of
them, `range`, and the numbers that NumPy 2 prints as `np.int64(0)`. What
stands around the text (a timestamp, `genotype =`, other lines) is skipped.
"""

import ast
import codecs
import re
import warnings
from typing import Any, NamedTuple

from rome_jax import errors

FIELDS = ('normal', 'normal_concat', 'reduce', 'reduce_concat')

_START = re.compile(
    r"""(?<!\w)Genotype\s*\(|\{(?=\s*['"]normal['"]\s*:)""")
# The name that a genotype has been given: `NAME = `, `NAME: `.
_LABEL = re.compile(
    r'([A-Za-z_]\w*)\s*(?::\s*[\w.]+\s*=|[=:])\s*\\?\s*(?:\w+\.)*$')
_ALIAS = re.compile(
    r'^[ \t]*([A-Za-z_]\w*)[ \t]*=[ \t]*([A-Za-z_]\w*)[ \t]*(?:#.*)?$', re.M)
# Not code: comments, class and def statements.
_COMMENT = re.compile(r'[^\S\n]*#')
_STATEMENT = re.compile(r'\b(?:class|def)\s+$')
_NEAR = 200  # letters before a genotype that may name it
# A string has an end in sight, or every quote would be followed to the end.
_TOKEN = re.compile(
    r"""'(?:\\.|[^'\\\n]){0,200}'|"(?:\\.|[^"\\\n]){0,200}"|\#[^\n]*|[(){}]""")
_INTEGER = re.compile(r'u?int(8|16|32|64)?|intc|intp')
_FLOAT = re.compile(r'float(16|32|64)?|tensor')
# What word processors and web pages make of quotes and blanks.
_TYPOGRAPHY = str.maketrans({
    '\u2018': "'", '\u2019': "'", '\u201c': '"', '\u201d': '"',
    '\u00a0': ' ', '\u200b': '', '\ufeff': ''})
_RANGE_LIMIT = 1000  # a `range` in a text form is no longer than this
_SHOWN = 24  # characters of a text that a message quotes


class Found(NamedTuple):
  """A genotype in a text.

  Attributes:
    label: the name it is assigned to; '' if there is none.
    text: from `Genotype(` to the closing bracket.
    number: how many the text holds.
  """

  label: str
  text: str
  number: int = 1


def mentions(text: str) -> bool:
  """Whether a text holds the beginning of a genotype.

  >>> mentions('01:02 genotype = Genotype(normal=['), mentions('DARTS_V2')
  (True, False)
  """
  return bool(_START.search(text))


def decode(data: bytes) -> str:
  """Text in UTF-8 or UTF-16, with or without a byte-order mark.

  Raises:
    UnicodeDecodeError: it is neither.

  >>> decode('Genotype'.encode('utf-16')), decode(b'Genotype')
  ('Genotype', 'Genotype')
  """
  if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
    return data.decode('utf-16')
  if len(data) > 1 and 0 in data[:2]:
    return data.decode('utf-16-be' if data[0] == 0 else 'utf-16-le')
  return data.decode('utf-8-sig')


def find(text: str, name: str = '', where: str = 'genotype text') -> Found:
  """Chooses the genotype of a text.

  Args:
    text: the text form, a log, or the source of a Python module.
    name: the name that the text assigns it to; '' takes the only one, or the
      last if all have the same name or none, as in the log of a search.
    where: what the message calls the text.

  Raises:
    UserError: there is none, it is cut off, or several have different names.

  >>> find('A = Genotype(x=1)\\nB = Genotype(x=2)', 'A').text
  'Genotype(x=1)'
  >>> find('epoch 1: Genotype(x=1), epoch 2: Genotype(x=2)').text
  'Genotype(x=2)'
  """
  text = text.translate(_TYPOGRAPHY)
  found = _all(text, where)
  if name:
    return _named(text, found, name, where)
  labels = {call.label for call in found}
  if len(labels) > 1 and len({call.text for call in found}) > 1:
    raise errors.UserError(
        f'{where} holds {len(found)} genotypes; name one as FILE:NAME, of '
        f'{", ".join(sorted(labels - {""}))}')
  return found[-1]._replace(number=len(found))


def _all(text, where):
  """All genotypes of a text, in its order."""
  found, stop = [], 0
  seen, line, comment = 0, 0, bool(_COMMENT.match(text))
  for match in _START.finditer(text):
    # Each letter is looked at once: a text may be one long line.
    if start := text.rfind('\n', seen, match.start()) + 1:
      line, comment = start, bool(_COMMENT.match(text, start))
    seen = match.start()
    near = text[max(line, match.start() - _NEAR):match.start()]
    if match.start() < stop or comment or _STATEMENT.search(near):
      continue
    stop = _closing(text, match.end() - 1)
    if not stop:
      raise errors.UserError(
          f'{where} is cut off: no bracket closes '
          f'{_quoted(text[match.start():])}')
    # An assignment may be broken after its `=`.
    label = _LABEL.search(text[max(0, match.start() - _NEAR):match.start()])
    found.append(Found(label[1] if label else '', text[match.start():stop]))
  if not found:
    raise errors.UserError(
        f'{where} must be of the form Genotype(normal=[...], '
        'normal_concat=..., reduce=[...], reduce_concat=...)')
  return found


def _closing(text, start):
  """The end of what a bracket opens at `start`; 0 if it does not end."""
  depth = 0
  for token in _TOKEN.finditer(text, start):
    depth += {'(': 1, '{': 1, ')': -1, '}': -1}.get(token[0], 0)
    if not depth:
      return token.end()
  return 0


def _named(text, found, name, where):
  by_label = {call.label: call for call in found if call.label}
  for alias, of in _ALIAS.findall(text):  # such as DARTS = DARTS_V2
    if of in by_label and alias not in by_label:
      by_label[alias] = by_label[of]
  if name not in by_label:
    raise errors.UserError(
        f'{where} has no genotype of the name {name!r}; it has '
        f'{", ".join(by_label) or "none with a name"}'
        f'{errors.near_miss(name, by_label)}')
  return by_label[name]


def parse(text: str, where: str = 'genotype text') -> dict[str, Any]:
  """The fields of one `Genotype(...)` as lists, strings and integers.

  Fields without a name are those of `FIELDS`, in order; fields that are None
  (GDAS' own texts have some) are left out.

  Raises:
    UserError: it is something else, or a field is given twice.

  >>> parse('Genotype([("zero", np.int64(0))], normal_concat=list(range(2)))')
  {'normal': [['zero', 0]], 'normal_concat': [0, 1]}
  """
  fields = {}
  for name, node in _given(_tree(text, where), where):
    if name in fields:
      raise errors.UserError(f'{where} has the field {name} twice')
    fields[name] = _value(name, node, where)
  return {name: value for name, value in fields.items() if value is not None}


def _tree(text, where):
  try:
    with warnings.catch_warnings():
      # An invalid escape in a string is an error here, not a warning.
      warnings.simplefilter('error')
      return ast.parse(text, mode='eval').body
  except SyntaxError as error:
    line = (error.text or '')[max(0, (error.offset or 1) - 1):]
    raise errors.UserError(
        f'{where} is not in the notation of Python lists at '
        f'{_quoted(line or text)}') from error
  except (ValueError, RecursionError, MemoryError) as error:
    raise errors.UserError(
        f'{where} cannot be parsed: {_quoted(text)}') from error


def _given(tree, where):
  """(name, syntax tree) of the fields of a call or of a dictionary."""
  if isinstance(tree, ast.Dict):
    return [(getattr(key, 'value', None), node)
            for key, node in zip(tree.keys, tree.values)]
  if len(tree.args) > len(FIELDS):
    raise errors.UserError(
        f'{where} has {len(tree.args)} fields without a name; a genotype has '
        f'{", ".join(FIELDS)}')
  return [*zip(FIELDS, tree.args),
          *((word.arg, word.value) for word in tree.keywords)]


def _value(name, node, where):
  if not isinstance(name, str) or isinstance(node, ast.Starred):
    raise errors.UserError(
        f'{where} must give its fields one by one, without * or **')
  try:
    return _literal(node)
  except (ValueError, TypeError, RecursionError, OverflowError) as error:
    raise errors.UserError(
        f'{where}: {name} must be a plain list of (operation, predecessor) '
        'pairs or of integers') from error


def literal(text: str) -> Any:
  """The value of a text that holds lists, strings and numbers only.

  Raises:
    ValueError: it is something else.

  >>> literal('(np.int64(4), 2, 1)')
  [4, 2, 1]
  """
  try:
    return _literal(ast.parse(text.strip(), mode='eval').body)
  except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
    raise ValueError(f'{_quoted(text)} is no list') from error


def _literal(node):
  if isinstance(node, (ast.List, ast.Tuple)):
    return [_literal(item) for item in node.elts]
  if isinstance(node, ast.Call):
    return _called(node)
  return ast.literal_eval(node)


def _called(node):
  """The value of a call of `range`, `list`, `tuple` or NumPy's numbers."""
  name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
  values = [_literal(arg) for arg in node.args]
  if node.keywords or not values:
    raise ValueError('a call without arguments')
  if name == 'range' and all(type(value) is int for value in values):
    numbers = range(*values)
    if len(numbers) > _RANGE_LIMIT:
      raise ValueError('the range is too long')
    return list(numbers)
  (value,) = values
  kinds = ((list,) if name in ('list', 'tuple') else
           (int,) if _INTEGER.fullmatch(name) else
           (int, float) if _FLOAT.fullmatch(name) else
           (str,) if name == 'str_' else ())
  if type(value) not in kinds:
    raise ValueError(f'{name} of that may not be called')
  return value


def _quoted(text):
  text = ' '.join(text.split())
  return repr(text if len(text) <= _SHOWN else f'{text[:_SHOWN]}...')
