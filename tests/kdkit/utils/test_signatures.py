import sys

from kdkit.utils.signatures import parameters_by_name

# Before Python 3.14, such an annotation is in quotes.
ANNOTATION = "Unknown | None" if sys.version_info >= (3, 14) else "'Unknown | None'"


def test_parameters_are_read_without_evaluating_annotations():
    names = {}
    exec(f"def loss(student: {ANNOTATION}, target: {ANNOTATION} = None): pass", names)
    parameters = parameters_by_name(names["loss"])
    assert {name: item.default is item.empty for name, item in parameters.items()} == {"student": True, "target": False}
