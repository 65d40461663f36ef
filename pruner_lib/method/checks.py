"""One check of what users pass to functions: its error says what came and what is wanted."""

import os
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

KINDS = {  # types that can be wanted, in words
    "Module": "a model, such as load_model gives",
    "PreTrainedModel": "a model of transformers, such as load_model gives",
    "Axes": "what discover returned",
    "Axis": "an axis, such as discover returns",
    "Experiment": "an Experiment, such as those of study.profile.experiment(...)",
    "Plan": "a plan, such as select gives",
    "TrainerCallback": "a TrainerCallback of transformers",
    "Mapping": "a dict by the names of axes, such as discover, estimate and select make",
    "Callable": "a function",
    "PreTrainedTokenizerBase": "a tokenizer of transformers, such as load_model gives",
    "PathLike": "a text or a Path",
    "str": "a text",
    "bool": "True or False",
}
HALF = re.compile("[\ud800-\udfff]")  # of a pair that stands for one character
PLAIN = (str, int, float, list, tuple, dict, type(None))  # values of these types are shown in a message


def require(wanted: str | tuple | list | type, **given: object) -> None:
    """Refuse values that are not what is wanted.

        require("1..", samples=samples)             whole numbers from 1 on
        require("[0, 1) or None", ratio=ratio)      numbers of a range; "(0, inf)": all above 0
        require(CRITERIA, criterion=criterion)      one of several
        require(["[0, 1)"], ratios=ratios)          a list of different ones; ["[0, 1)", ...]: maybe empty
        require(str, model=name)                    a type

    Numbers of numpy and torch are numbers; True is none, and a text with half of a character is no text.

    Raises: ValueError: names the first value that does not fit, and says what does.
    """
    for name, value in given.items():
        is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
        if isinstance(wanted, list) and is_list and (len(value) or ... in wanted):
            require(wanted[0], **{f"{name}[{i}]": one for i, one in enumerate(value)})
            if isinstance(wanted[0], (str, tuple)) and len({*map(plain_number, value)}) < len(value):
                raise ValueError(f"{name} must name nothing twice, got {reprlib.repr(value)}")
        elif isinstance(wanted, tuple) and not _fits(value, wanted):
            raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(map(str, wanted))}")
        elif not _fits(value, wanted):
            value = plain_number(value)
            shown = reprlib.repr(value) if isinstance(value, PLAIN) else type(value).__name__
            shown += ", which has half of a character" * (isinstance(value, str) and bool(HALF.search(value)))
            shown += ", which is too large" * (isinstance(value, int) and value >= 2**63)
            raise ValueError(f"{name} must be {_in_words(wanted)}, got {' '.join(shown.split())}")


def plain_number(value: Any) -> Any:
    """Turn a number of numpy or torch, or those of a dict, into Python's; give all else back as it is."""
    if isinstance(value, Mapping):
        return {name: plain_number(one) for name, one in value.items()}
    return value.item() if getattr(value, "ndim", None) == 0 and not getattr(value, "is_meta", 0) else value


def _fits(value: object, wanted: str | tuple | list | type) -> bool:
    if isinstance(wanted, list):
        return False  # it is no list, or empty
    if isinstance(wanted, tuple):  # 1 is not True, an array is none of them
        return any((type(one), one) == (type(plain_number(value)), value) for one in wanted)
    if isinstance(wanted, type):
        is_kind = isinstance(value, (wanted, str) if wanted is os.PathLike else wanted)
        return is_kind and not (isinstance(value, str) and HALF.search(value))
    if value is None:
        return wanted.endswith(" or None")
    value, kind = plain_number(value), int if ".." in wanted else (int, float)
    if not isinstance(value, kind) or isinstance(value, bool):
        return False
    low, high = [*map(float, re.findall(r"\d+(?:\.\d+)?|inf", wanted)), 2**63][:2]
    above = value > low if wanted.startswith("(") else value >= low
    return above and (value <= high if "]" in wanted else value < high)


def _in_words(wanted: str | tuple | list | type) -> str:
    if isinstance(wanted, list):
        return f"a list{'' if ... in wanted else ' that is not empty'}, each of it {_in_words(wanted[0])}"
    if isinstance(wanted, tuple):
        return f"one of {', '.join(map(str, wanted))}"
    if isinstance(wanted, type):
        return KINDS.get(wanted.__name__, f"a {wanted.__name__}")
    least, dots, none = wanted.partition("..")
    return f"a whole number of at least {least}{none and ', or None'}" if dots else f"a number in {wanted}"
