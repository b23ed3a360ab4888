"""A hundred and more faults in every run of the tests; `python -m tests.faults.harness` does thousands."""

from __future__ import annotations

from itertools import cycle

import pytest

from tests.faults.harness import Case, Harness, run_random
from tests.faults.seams import SEAMS
from tests.faults.subjects import SUBJECTS


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    return Harness(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
def test_streamed_is_resident_whatever_was_asked_before(harness, subject):
    """No fault at all: all questions one after the other, twice, in two threads."""
    outcome = harness.run(Case(subject, (), warm=True))
    assert not outcome.faults


@pytest.mark.parametrize(("seam", "subject"), list(zip(SEAMS, cycle(SUBJECTS[2:4]))), ids=str)
def test_the_first_and_the_second_passing_of_every_seam(harness, subject, seam):
    """In the very first answer of a streamed mixture, one after the other on one model: a second failure after the
    first. What each seam is must also be real: nearly all fire."""
    shots = tuple((seam, question, at) for question in ("complete", "session") for at in (1, 2))
    outcome = harness.run(Case(subject, shots, warm=False))
    assert not outcome.faults
    if SEAMS[seam].while_loading and seam not in NOT_WHILE_ANSWERING:
        assert outcome.fired[seam], "nothing was injected"


NOT_WHILE_ANSWERING = ("thread", "cache file", "interrupt: signal")


@pytest.mark.parametrize("seed", range(3))
def test_random_faults(harness, seed):
    """The case is in the message; `python -m tests.faults.harness --rounds 15 --seed N` runs all of a seed again."""
    outcome = run_random(harness, 15, seed)
    assert not outcome.faults
    assert sum(outcome.fired.values()) > 4
