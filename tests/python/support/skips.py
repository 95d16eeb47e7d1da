"""Which skips hide breakage: those for a package that the `[test]` extra installs, or for a module of our own."""

from __future__ import annotations

import re
from importlib.metadata import requires

MODULES = {"faiss-cpu": "faiss", "backports-zstd": "backports"}
"""Import names of distributions where they differ; `-` is `_` otherwise."""


def of_the_test_extra() -> set[str]:
    """Import names of everything that `pip install 'knnlm[test]'` installs by name, and our own."""
    return {"knnlm", "pyarrow"} | _of("test")  # datasets needs PyArrow


def _of(wanted: str) -> set[str]:
    """Import names of what an extra installs, and the extras that it is made of; an extra's name is in lower case."""
    found = set()
    for requirement in requires("knnlm") or []:
        name, _, marker = requirement.partition(";")
        extras = set(re.findall(r"extra == ['\"]([\w-]+)['\"]", marker))
        if extras and wanted not in extras:
            continue
        distribution, _, others = re.split(r"[<>=!~ ]", name.strip())[0].lower().rstrip("]").partition("[")
        distribution = distribution.replace("_", "-").replace(".", "-")  # as the index writes names
        if distribution == "knnlm":
            for other in others.split(","):
                found |= _of(other)
        else:
            found.add(MODULES.get(distribution, distribution.replace("-", "_")))
    return found


def missing_package(reason: str) -> str | None:
    """The package of the `[test]` extra that a reason for a skip names in quotes, None if it names none."""
    if "could not import" not in reason:
        return None
    known = of_the_test_extra()
    return next((top for name in re.findall(r"'([\w.]+)'", reason) if (top := name.split(".")[0]) in known), None)
