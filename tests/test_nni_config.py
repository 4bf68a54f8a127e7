"""The configuration of a search, as NNI reads it and as it is refused."""

import pytest

from harness import nni_config
from harness.errors import UserError


@pytest.mark.parametrize("command", ["a; b", "a && b", "a | b", "a & b"])
def test_a_compound_command_is_refused(command):
    with pytest.raises(UserError, match="several commands"):
        nni_config.check_trial_command(command, "c.yml")
