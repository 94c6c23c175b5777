"""Twenty kills at random moments of a small sweep; `make torture` does fifty and prints the tally."""

from __future__ import annotations

import pytest

from tests.faults.torture import Torture

KILLS = 20


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_sweep_that_is_killed_at_random_moments_ends_as_if_nothing_had_happened(tmp_path):
    tally = Torture(tmp_path, seed=0).go(KILLS)
    assert tally.kills.total() == KILLS
    assert tally.resumed > 0
    assert tally.compared == 4 * tally.rounds
    assert (tally.mismatches, tally.complaints) == ([], [])
