"""Ballots of two searches on different data: which pattern is meant."""

import numpy as np
import pytest

from ballot.errors import UserError
from ballot.vote.ballots import write_ballot
from ballot.vote.options import VoteOptions
from ballot.vote.run import run_vote


@pytest.mark.parametrize("classes, ids", [(["a", "c"], ["1", "2"]), (["a", "b"], ["1", "3"])])
def test_ballots_of_two_searches_on_other_data_name_the_pattern_of_one(tmp_path, classes, ids):
    probs = np.full((2, 2), 0.5, dtype=np.float32)
    one, other = tmp_path / "aBc1-000-x.csv", tmp_path / "dEf2-000-y.csv"
    write_ballot(one, ["1", "2"], ["a", "b"], probs)
    write_ballot(other, ids, classes, probs)
    with pytest.raises(UserError, match=r"two searches: vote over one, as in .*/aBc1-\*\.csv"):
        run_vote([one, other], VoteOptions(out_dir=str(tmp_path / "vote")))
