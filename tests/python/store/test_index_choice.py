"""Index choice: what no index can be made with is refused before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_corpus import sentence

from knnlm import KNNLM, Datastore
from knnlm.store.index_choice import check_index_choice, to_code

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"code": "wrong"}, r"code: expected None, 'small', 'flat' or \(m, bits\) with 4 or 8 bits, found 'wrong'"),
    ({"code": ""}, "code: expected None"),
    ({"code": (8, 5)}, r"with 4 or 8 bits, found \(8, 5\)"),
    ({"code": (0, 8)}, "m must be from 1 to the dimension of the keys"),
    ({"code": 8}, "code must be 'small'"),
    ({"nlist": 0}, "nlist must be from 1"),
    ({"nlist": "many"}, "nlist must be an integer, found 'many'"),
    ({"metric": "cosine"}, "metric must be one of 'l2', 'ip', found 'cosine'"),
    ({"seed": -1}, "seed must be from 0"),
    ({"threads": 0}, "threads must be from 1 to 4096, found 0"),
]


@pytest.mark.parametrize(("choice", "says"), WRONG)
def test_it_is_refused(choice: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_index_choice(**choice)


@pytest.mark.parametrize(("choice", "says"), [*WRONG, ({"code": (1000, 8)}, "m must be from 1 to d = ")])
def test_a_build_leaves_nothing_behind(model: Path, tmp_path: Path, choice: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        KNNLM.build(model, [sentence(0)], tmp_path / "deeper" / "store", **choice)
    assert list(tmp_path.iterdir()) == []


def test_what_can_be_chosen(tmp_path: Path) -> None:
    assert to_code(None) is None
    assert to_code("small") == "small"
    assert to_code([np.int64(4), 8], 16) == (4, 8)
    with Datastore.create(tmp_path / "store", dim=16) as store:
        store.add(np.eye(16, dtype=np.float32), np.arange(16))
        with pytest.raises(ValueError, match="m must be from 1 to d = 16 and bits 4 or 8, found m = 17"):
            store.build(code=(17, 8))
