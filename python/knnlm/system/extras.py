"""Packages that only a part of knnlm needs: where one is missing, the error says what to install."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

INSTALL: Mapping[str, str] = MappingProxyType(
    {
        "backports.zstd": "'knnlm[lm]'",
        "click": "'knnlm[lm]'",
        "datasets": "'knnlm[hf]'",
        "faiss": "faiss-cpu",
        "jinja2": "'knnlm[report]'",
        "lm_eval": "'knnlm[lm-eval]'",
        "matplotlib": "'knnlm[report]'",
        "pyarrow": "pyarrow",
        "rich": "'knnlm[lm]'",
        "sacrebleu": "'knnlm[mt]'",
        "safetensors": "'knnlm[lm]'",
        "tokenizers": "'knnlm[lm]'",
        "torch": "'knnlm[lm]'",
        "transformers": "'knnlm[hf]'",
    }
)
"""What pip has to install for a package, by its import name."""


class MissingPackageError(ModuleNotFoundError):
    """A package that is not installed; the message says what to install."""


def explained(error: ImportError, use: str = "this part of knnlm") -> ImportError:
    """The error to raise for a failed import: one that says what to install if the package is of `INSTALL`.

    use: what the package is needed for, the subject of the message.
    """
    if isinstance(error, MissingPackageError) or not isinstance(error, ModuleNotFoundError):
        return error
    package = next((name for name in INSTALL if f"{error.name}.".startswith(f"{name}.")), None)
    if package is None:
        return error
    return MissingPackageError(
        f"{use} needs {package}, which is not installed: pip install {INSTALL[package]}", name=package
    )


def module(name: str, use: str) -> Any:
    """A module of another package. Raises MissingPackageError with what to install where the package is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise explained(error, use) from error


def require(*packages: str, use: str) -> None:
    """Raise MissingPackageError unless all are installed: before the work whose result they are to show."""
    for package in packages:
        if not installed(package):
            raise explained(ModuleNotFoundError(name=package), use)


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of the package that it is a part of
        return False
