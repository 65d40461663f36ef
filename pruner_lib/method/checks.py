"""Check the type and range of an argument; the error says what was received and what was expected."""

import os
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

DESCRIPTIONS = {  # of expected types
    "Module": "a model, as load_model returns",
    "PreTrainedModel": "a model of transformers, as load_model returns",
    "Axes": "the axes that discover returned",
    "Axis": "an axis, as discover returns",
    "Experiment": "an Experiment, as study.profile.experiment(...) returns",
    "Plan": "a plan, as select returns",
    "TrainerCallback": "a TrainerCallback of transformers",
    "Mapping": "a dict with axis names as keys, as discover, estimate and select return",
    "Callable": "a function",
    "PreTrainedTokenizerBase": "a tokenizer of transformers, as load_model returns",
    "PathLike": "a string or a Path",
    "str": "a text string",
    "bool": "True or False",
}
SURROGATE = re.compile("[\ud800-\udfff]")
PLAIN = (str, int, float, list, tuple, dict, type(None))  # error messages print values of these types


def require(expected: str | tuple | list | type, /, **values: object) -> None:
    """Raise an error unless each value is of the expected kind.

        require("1..", samples=samples)             integers from 1 on
        require("[0, 1) or None", ratio=ratio)      numbers in a range; "(0, inf)": all positive numbers
        require(CRITERIA, criterion=criterion)      one of several options
        require(["[0, 1)"], ratios=ratios)          a list without repeats; ["[0, 1)", ...]: may be empty
        require(str, model=name)                    a type

    NumPy and torch scalars count as numbers, True does not. Strings with unpaired surrogates are refused.

    Raises: ValueError: names the first value that does not fit, and says what is expected.
    """
    for name, value in values.items():
        is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
        if isinstance(expected, list) and is_list and (len(value) or ... in expected):
            require(expected[0], **{f"{name}[{i}]": entry for i, entry in enumerate(value)})
            if isinstance(expected[0], (str, tuple)) and len({*map(plain_number, value)}) < len(value):
                raise ValueError(f"{name} must not list an entry twice, got {reprlib.repr(value)}")
        elif isinstance(expected, tuple) and not _fits(value, expected):
            raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(map(str, expected))}")
        elif not _fits(value, expected):
            value = plain_number(value)
            shown = reprlib.repr(value) if isinstance(value, PLAIN) else type(value).__name__
            unpaired = isinstance(value, str) and SURROGATE.search(value)
            shown += ", which has an unpaired surrogate" if unpaired else ""
            shown += ", which is too large" if isinstance(value, int) and value >= 2**63 else ""
            raise ValueError(f"{name} must be {_in_words(expected)}, got {' '.join(shown.split())}")


def plain_number(value: Any) -> Any:
    """Convert a NumPy or torch scalar, or those in a dict, to a Python number; return anything else as is."""
    if isinstance(value, Mapping):
        return {name: plain_number(entry) for name, entry in value.items()}
    return value.item() if getattr(value, "ndim", None) == 0 and not getattr(value, "is_meta", 0) else value


def _fits(value: object, expected: str | tuple | list | type) -> bool:
    if isinstance(expected, list):
        return False  # `value` is not a list, or it is empty
    if isinstance(expected, tuple):  # compare types too: 1 is not True, and an array equals no option
        return any((type(option), option) == (type(plain_number(value)), value) for option in expected)
    if isinstance(expected, type):
        is_kind = isinstance(value, (expected, str) if expected is os.PathLike else expected)
        return is_kind and not (isinstance(value, str) and SURROGATE.search(value))
    if value is None:
        return expected.endswith(" or None")
    value, kind = plain_number(value), int if ".." in expected else (int, float)
    if not isinstance(value, kind) or isinstance(value, bool):
        return False
    low, high = [*map(float, re.findall(r"\d+(?:\.\d+)?|inf", expected)), 2**63][:2]
    above = value > low if expected.startswith("(") else value >= low
    return above and (value <= high if "]" in expected else value < high)


def _in_words(expected: str | tuple | list | type) -> str:
    if isinstance(expected, list):
        return f"a list{'' if ... in expected else ' that is not empty'}, each entry {_in_words(expected[0])}"
    if isinstance(expected, tuple):
        return f"one of {', '.join(map(str, expected))}"
    if isinstance(expected, type):
        return DESCRIPTIONS.get(expected.__name__, f"a {expected.__name__}")
    least, dots, none = expected.partition("..")
    return f"a whole number of at least {least}{none and ', or None'}" if dots else f"a number in {expected}"
