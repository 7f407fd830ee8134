"""Cases that CI runs once a week, because other tests cover their code."""

import pytest


def weekly_except(kept, cases):
    """Return the cases, with the mark `weekly` on those that are not among `kept`."""
    return [case if case in kept else _weekly(case) for case in cases]


def _weekly(case):
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.weekly)
