"""The page on chosen images: self-contained, every proposal with its verdict, gates on one scale."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewlabel.core.errors import RunError
from fewlabel.core.masks import components
from fewlabel.report.contents import Example
from fewlabel.report.explained import SHOWN, ExplainedImage, Explanation, LevelGates, Proposal, build, write
from fewlabel.report.pictures import MAP_LEVELS, map_palette

VERDICTS = ("accepted", "ignored", "rejected")
EXPERTS = ("ring_top_hat", "blob_response", "third")


def gate_maps(size: tuple[int, int]) -> np.ndarray:
    """Gates of three experts that sum to 1, the first rising from left to right."""
    first = np.broadcast_to(np.linspace(0.1, 0.9, size[1]), size)
    return np.stack([first, (1 - first) / 2, (1 - first) / 2]).astype(np.float32)


def explained(example: Example, count: int = 3, **changes: object) -> ExplainedImage:
    """An image with `count` proposals of one pixel each, in a row."""
    labels = np.zeros(example.image.shape, np.int32)
    labels[5, 2 : 2 + 2 * count : 2] = np.arange(1, count + 1)
    order = sorted(range(count), key=lambda number: number % 3)  # accepted, ignored, rejected
    proposals = [
        Proposal(VERDICTS[number % 3], "word", f"why {number}", {"quality": 0.5, "area": 7.0}, 0.25 * (number % 3))
        for number in order
    ]
    gates = [
        LevelGates("3", (0.2, 0.3, 0.5)),
        LevelGates("7", (0.1, 0.2, 0.7), gate_maps(example.image.shape)),
    ]
    values: dict[str, object] = {"missed": 1, "gates": gates} | changes
    return ExplainedImage(example, "Unlabelled: so", True, proposals, labels, **values)  # type: ignore[arg-type]


def explanation(*images: ExplainedImage) -> Explanation:
    return Explanation("run", "SET", "nano", 0.41, ("a", "b"), EXPERTS, images, ("A note.",))


@pytest.fixture
def example(example_maker: Callable[..., Example]) -> Example:
    return example_maker(1, (90, 70))


def test_the_page_loads_nothing_and_is_a_function_of_its_data(
    read_page: Callable[[str], Any], example: Example, tmp_path: Path
) -> None:
    data = explanation(explained(example))
    html = build(data)
    page = read_page(html)
    assert {"script", "link", "iframe", "object", "img"}.isdisjoint(tag for tag, _ in page.tags)
    assert not re.search(r"https?://|@import|url\(", html) and "default-src 'none'" in html
    addresses = [attributes["href"] or "" for _, attributes in page.tags if "href" in attributes]
    assert addresses and all(address.startswith("data:image/png;base64,") for address in addresses)
    write(data, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == html


def test_each_proposal_is_outlined_numbered_and_explained(read_page: Callable[[str], Any], example: Example) -> None:
    page = read_page(build(explanation(explained(example))))
    text = " ".join(page.text.split())
    assert "Unlabelled: so. The teacher proposed 3 targets: 1 accepted, 1 ignored, 1 rejected." in text
    assert "1 true target was not proposed." in text and "above 0.41" in text and "A note." in text
    assert all(f"word: why {number}" in text for number in range(3))
    for verdict in VERDICTS:
        marks = [a for tag, a in page.tags if tag == "path" and a.get("class") == f"mark {verdict}"]
        assert len(marks) >= 2  # in the pseudo-label's picture and in the table
    assert "no student was trained on it" not in text


def test_the_outline_of_a_proposal_is_that_of_its_pixels(example: Example) -> None:
    html = build(explanation(explained(example, 1)))
    assert '<path class="mark accepted" d="M2 5h1M2 6h1M2 5v1M3 5v1"/>' in html


def test_proposals_beyond_the_most_are_counted_not_shown(read_page: Callable[[str], Any], example: Example) -> None:
    text = " ".join(read_page(build(explanation(explained(example, SHOWN + 7)))).text.split())
    assert f"The teacher proposed {SHOWN + 7} targets" in text
    assert f"The first {SHOWN} proposals; 7 more are not shown." in text
    assert text.count("word: why") == SHOWN


def test_gate_maps_of_a_level_share_a_scale_from_zero(
    decode_png: Callable[[str], np.ndarray], read_page: Callable[[str], Any], example: Example
) -> None:
    html = build(explanation(explained(example)))
    found = re.findall(r'aria-label="Final gate of (\w+) at block 7[^>]*><image href="([^"]+)"', html)
    assert [name for name, _ in found] == list(EXPERTS)
    palette = map_palette()[:, None, None].astype(int)
    levels = [np.abs(palette - decode_png(address)).sum(-1).argmin(0) for _, address in found]
    maps = gate_maps(example.image.shape)
    for drawn, gate in zip(levels, maps, strict=True):
        assert drawn.shape == gate.shape
        np.testing.assert_allclose(drawn / (MAP_LEVELS - 1), gate / maps.max(), atol=0.51 / (MAP_LEVELS - 1))
    text = " ".join(read_page(html).text.split())
    assert "final 0.50 (0.10–0.90)" in text and text.count("the same at every token") == 3


def test_what_is_not_there_leaves_no_trace(read_page: Callable[[str], Any], example: Example) -> None:
    bare = replace(example, truth=None, priors=example.priors[:0], student=None)
    image = ExplainedImage(bare, "A test image: x", False, (), np.zeros(bare.image.shape, np.int32))
    html = build(explanation(image))
    text = " ".join(read_page(html).text.split())
    assert "The teacher proposed no target." in text and "no student was trained on it" in text
    assert "human label unknown" in text and "not proposed" not in text
    for heading in ("What the gate said", "What the router chose", "priors"):
        assert heading not in text
    assert "None" not in text and ">student<" not in html and ">teacher<" in html


def test_every_text_is_escaped(read_page: Callable[[str], Any], example: Example) -> None:
    evil = "<script>alert('1 & 2')</script>\"><img src=x>"
    proposal = Proposal(evil, evil, evil, {evil: 1.0}, None)
    labels, count = components(np.eye(*example.image.shape, dtype=bool))
    assert count == 1
    image = ExplainedImage(replace(example, id=evil), evil, False, [proposal], labels, 0, [LevelGates(evil, (1.0,))])
    data = Explanation(evil, evil, evil, 0.5, (evil,) * 4, (evil,), [image], (evil,))
    html = build(data)
    assert "<script" not in html and "&lt;script&gt;" in html
    assert {"script", "img"}.isdisjoint(tag for tag, _ in read_page(html).tags)


def test_labels_of_another_size_are_refused(example: Example) -> None:
    with pytest.raises(RunError, match=r"'Misc_18' are drawn on \(3, 3\)"):
        ExplainedImage(example, "x", True, (), np.zeros((3, 3), np.int32))


def test_a_students_boxes_keep_their_scores_beside_the_proposals(
    read_page: Callable[[str], Any], example: Example
) -> None:
    boxes = np.array([[10.0, 20.0, 15.5, 26.0]], np.float32)
    shown = replace(example, student=None, boxes=boxes, box_scores=np.array([0.625], np.float32))
    page = read_page(build(replace(explanation(explained(shown)), boxes=True)))
    paths = [found for tag, found in page.tags if tag == "path"]
    assert [found["d"] for found in paths if found.get("class") == "mark found"][0] == "M10.0 20.0H15.5V26.0H10.0Z"
    assert any(found.get("class") == "mark accepted" for found in paths)
    assert "0.62" in page.text and "the student's box with its score" in page.text
