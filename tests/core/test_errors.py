"""What is taken over from a library's message."""

import pytest

from fewlabel.core.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("it broke.\n  here"), "it broke"),
        (OSError("\n no such file: "), "no such file"),
        (KeyError(), "KeyError"),
        ("plain text.", "plain text"),
        ("central directory missing. There is a high likelihood that", "central directory missing"),
    ],
)
def test_one_line_without_its_end(error, line):
    assert first_line(error) == line
