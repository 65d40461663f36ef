"""A misspelt parameter stops a notebook that papermill alone runs."""

from __future__ import annotations

import pytest

from pruner_lib.study.results import refuse_unknown_parameters

TAGGED = 'profile: str = "quick"  # which\nratio: float = 0.2\nplain = 1\n'


def test_known_parameters_pass():
    refuse_unknown_parameters([TAGGED, '# Parameters\nprofile = "tiny"\nplain = 2\n', "import os"])
    refuse_unknown_parameters([TAGGED, "import os"])
    refuse_unknown_parameters()  # outside a notebook


def test_misspelt_parameter_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="no parameter ration; it has profile, ratio, plain"):
        refuse_unknown_parameters([TAGGED, "# Parameters\nration = 0.5\n"])
