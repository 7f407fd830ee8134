"""Cases that run every night and not in each run of CI, because others cover the same code."""

import pytest


def nightly_except(kept, cases):
    """Return the cases, with the mark `nightly` on those that are not among `kept`."""
    return [case if case in kept else _nightly(case) for case in cases]


def _nightly(case):
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.nightly)
