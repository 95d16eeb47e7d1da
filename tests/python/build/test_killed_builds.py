"""A build that is killed with SIGKILL, started again and killed again ends with the bytes of an uninterrupted one."""

import os
import random
from pathlib import Path

import pytest
from killed_builds import Build, Campaign, Retrain, write_texts

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")


def test_killed_builds_end_with_the_bytes_of_uninterrupted_ones(model: Path, tmp_path: Path) -> None:
    """Full form: killed_builds.py. With `-s` it says which kills there were."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # shown if it fails
    text, _ = write_texts(tmp_path, 12, 500)
    campaign = Campaign(tmp_path, seed, part_tokens=1000)
    command = ["build", text, "--model", model]
    one, two = Build("one", command), Build("two", [*command, "--workers", 2])
    whole = campaign.measure(one) / "store"
    assert one.parts > 5
    retrain = Retrain("retrain", ["build"], given=whole)
    campaign.measure(retrain)
    two.parts, two.last, two.seconds, two.expected = one.parts, one.last, one.seconds, one.expected
    campaign.live(one, 0, ["learning", "encoding", "encoding"])
    campaign.live(retrain, 0, ["learning", "encoding", "publishing"])
    campaign.live(two, 0, ["encoding", "encoding"])
    for number in (1, 2):
        for job in (one, retrain):
            campaign.live(job, number, campaign.wanted(job))
    print(campaign.histogram([one, two, retrain]))
    assert sum(campaign.kills.values()) >= 5
