"""XML files of annotations: streams, places, and everything that must not be followed."""

import xml.etree.ElementTree as etree

import pytest

from fewlabel.core.errors import DataError
from fewlabel.data.readers.xml import MAX_DEPTH, Document, number_of, outermost, text_of

BOMB = """<?xml version="1.0"?>
<!DOCTYPE annotation [
  <!ENTITY a "aaaaaaaaaa"> <!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">
]>
<annotation><object>&b;</object></annotation>"""


def refuses(path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        list(Document(path, "annotation").children())
    for word in (str(path), *words):
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1"])
def test_children_come_one_by_one_and_again_by_their_place(tmp_path, encoding):
    path = tmp_path / "a.xml"
    text = "".join(
        f'<image id="{n}" name="é{n}"><p x="1"/>t{n}<q> ü </q></image>\n<empty k="{n}"/>' for n in range(2000)
    )
    path.write_text(
        f'<?xml version="1.0" encoding="{encoding}"?>\n<!-- x -->\n<annotation>{text}</annotation>', encoding
    )
    document = Document(path, "annotation")
    found = list(document.children())
    whole = etree.parse(path).getroot()
    assert [etree.tostring(element) for element, _ in found] == [
        etree.tostring(element).rstrip() if element.tag == "image" else etree.tostring(element) for element in whole
    ]
    for element, start in (found[0], found[1], found[2001], found[-1]):
        assert etree.tostring(document.child(start)) == etree.tostring(element)


def test_nothing_is_followed(tmp_path):
    path = tmp_path / "bomb.xml"
    path.write_text(BOMB)
    refuses(path, "line 2", "declares a document type")
    path.write_text('<!DOCTYPE annotation SYSTEM "file:///etc/passwd"><annotation/>')
    refuses(path, "declares a document type")
    path.write_text("<annotation>" + "<a>" * 100_000 + "</a>" * 100_000 + "</annotation>")
    refuses(path, f"more than {MAX_DEPTH} elements deep")
    assert outermost(path) == "annotation"


def test_files_that_are_none(tmp_path):
    path = tmp_path / "a.xml"
    refuses(path, "No such file")
    path.write_bytes(b"")
    refuses(path, "no element found")
    path.write_text("<annotation><object></annotation>")
    refuses(path, "mismatched tag: line 1")
    path.write_text("<annotation><object/>")
    refuses(path, "no element found")
    path.write_text('<?xml version="1.0" encoding="x-klingon"?><annotation/>')
    refuses(path, "cannot be read as XML")
    path.write_text('<?xml version="1.0" encoding="utf-16"?><annotation/>', "utf-16")
    refuses(path, "is UTF-16 text: save it as UTF-8")
    path.write_text("<kml/>")
    refuses(path, "holds <kml>, expected <annotation>")
    path.write_text("{}")
    assert outermost(path) is None
    assert outermost(tmp_path / "nowhere.xml") is None


def test_a_file_that_changes(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text("<annotation><a>1</a><a>2</a></annotation>")
    document = Document(path, "annotation")
    starts = [start for _, start in document.children()]
    assert document.child(starts[1]).text == "2"
    path.write_text("<annotation>")
    with pytest.raises(DataError, match=r"a\.xml"):
        document.child(starts[1])


def test_values(tmp_path):
    element = etree.fromstring("<o><name> cat </name><empty> </empty></o>")
    assert (text_of(element, "name"), text_of(element, "empty", "x"), text_of(element, "none")) == ("cat", "x", "")
    assert number_of(" 2.5\n", tmp_path, "<x>") == 2.5
    for text in (None, "", "cat", "nan", "-inf", "1e999", "9" * 5000):
        with pytest.raises(DataError, match="<x> of object 3 is .{0,70}, expected a number"):
            number_of(text, tmp_path, "<x> of object 3")
