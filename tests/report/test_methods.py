import pytest

from fewlabel.report.methods import METHODS, method_name


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("mean-teacher", "Mean teacher"),
        ("adapter-none", "fewlabel with no adapter"),
        ("adapter-conv-lora", "fewlabel with Conv-LoRA"),
        ("adapter-sam-adapter", "fewlabel with SAM-Adapter"),
        ("adapter-conv-experts", "fewlabel with convolution experts"),
        ("adapter-other-kind", "fewlabel with other kind"),
        ("fewlabel-minus-patch-contrast", "fewlabel without patch contrast"),
        ("fewlabel-minus-", "fewlabel-minus-"),
        ("sd-pr-arp", "sd-pr-arp"),
    ],
)
def test_names_by_pattern(method: str, name: str) -> None:
    assert method_name(method) == name


def test_a_method_with_a_name_of_its_own_keeps_it() -> None:
    assert all(method_name(method) == name for method, name in METHODS.items())
