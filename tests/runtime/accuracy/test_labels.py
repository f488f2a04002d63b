import pytest

from tfx.runtime.accuracy.labels import class_numbers


@pytest.mark.parametrize(
    ("labels", "classes", "names", "expected"),
    [
        ((1, 0), (), ("x", "y"), [1, 0]),
        ((1.0, 0.0), (), ("x", "y"), [1, 0]),
        (("Y", "x"), (), ("x", "y"), [1, 0]),
        ((0, 1), ("y", "x"), ("X", "Y"), [1, 0]),
        ((0, 1), ("y", "z"), ("x", "y"), [0, 1]),
        ((0, 7), (), (), [0, 7]),
        (("LABEL_1",), (), ("LABEL_0", "LABEL_1"), [1]),
    ],
)
def test_numbers_of_classes(labels, classes, names, expected):
    assert class_numbers(labels, classes, names, "f") == expected
