"""What is said of a JSON file that is none."""

import pytest

from rome_jax import errors, files


@pytest.mark.parametrize('content, words', [
    (b'', 'the file is empty'),
    (b' \n', 'the file is empty'),
    (b'{"seed": ', 'it ends too early; was it cut?'),
    (b'{"seed": 1', 'it ends too early; was it cut?'),
    (b'{"name": "c10', 'the text that begins at line 1, column 10, has no end'),
    (b"{'seed': 1}", '"\'seed\': 1}" is out of place at line 1, column 2'),
    (b'{"a": 1,\n "b" 2}', "'2}' is out of place at line 2, column 6"),
    (b'{"a": tru}', "'tru}' is out of place at line 1, column 7"),
    (b'{} {}', 'more text follows the value, from line 1, column 4'),
    (b'{"a": "\xe9"}', 'byte 8 is not UTF-8 text'),
    (b'[' * 200_000, 'it is nested too deeply'),
    (b'1' * 5000, 'it holds a number that is too long')])
def test_what_is_wrong_with_a_json_file(content, words, tmp_path):
  path = tmp_path / 'a.json'
  path.write_bytes(content)
  with pytest.raises(errors.UserError) as caught:
    files.read_json(path)
  assert str(caught.value) == f'{path} is not valid JSON: {words}'


def test_a_byte_order_mark_is_no_fault(tmp_path):
  (tmp_path / 'a.json').write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}')
  assert files.read_json(tmp_path / 'a.json') == {'a': 'é'}


def test_bytes_that_python_could_not_decode_are_written_as_they_were(tmp_path):
  text = b'r\xc3\xa9'.decode('ascii', 'surrogateescape')
  files.write_text(tmp_path / 'a', text)
  assert (tmp_path / 'a').read_text(encoding='utf-8') == 'ré'
