"""Nearest-neighbor language models: fast, durable, traceable to the document.

`knnlm.Datastore` stores and finds vectors and needs no torch; `knnlm.KNNLM` puts a language model on top of it,
`knnlm.attach` puts a store beside a model of Hugging Face. Names are imported when first used, so that the first does
not pay for the others; `__all__` has those that can be, with the packages that are installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from knnlm.system.extras import installed as _installed

if TYPE_CHECKING:
    from knnlm.hf.attach import attach as attach
    from knnlm.knn_lm import KNNLM as KNNLM
    from knnlm.model.key_spec import IdentityError as IdentityError
    from knnlm.model.load import load_model as load_model
    from knnlm.mt.knn_mt import KNNMT as KNNMT
    from knnlm.store.datastore import Datastore as Datastore
    from knnlm.store.datastore import FormatError as FormatError
    from knnlm.store.datastore import StoreError as StoreError
    from knnlm.store.entries import DocumentInfo as DocumentInfo
    from knnlm.store.entries import Entries as Entries
    from knnlm.store.entries import LostDocument as LostDocument
    from knnlm.store.neighbors import Neighbors as Neighbors
    from knnlm.store.protocols import Searchable as Searchable
    from knnlm.system.usage import UsageError as UsageError
    from knnlm.text.texts import Reading as Reading

    __version__: str

# Public name → module that has it.
_HOME = {
    "attach": "hf.attach",
    "KNNLM": "knn_lm",
    "KNNMT": "mt.knn_mt",
    "Datastore": "store.datastore",
    "DocumentInfo": "store.entries",
    "Entries": "store.entries",
    "FormatError": "store.datastore",
    "IdentityError": "model.key_spec",
    "LostDocument": "store.entries",
    "Neighbors": "store.neighbors",
    "Reading": "text.texts",
    "Searchable": "store.protocols",
    "StoreError": "store.datastore",
    "UsageError": "system.usage",
    "load_model": "model.load",
}

_OF_MODELS = ("KNNLM", "KNNMT", "attach", "load_model")
_NEEDED = ("torch", "tokenizers", "safetensors")  # by these names: the extra `lm`

__all__ = [
    "KNNLM",
    "KNNMT",
    "Datastore",
    "DocumentInfo",
    "Entries",
    "FormatError",
    "IdentityError",
    "LostDocument",
    "Neighbors",
    "Reading",
    "Searchable",
    "StoreError",
    "UsageError",
    "__version__",
    "attach",
    "load_model",
]

if not all(map(_installed, _NEEDED)):  # help() and `import *` ask for each of them
    __all__ = [name for name in __all__ if name not in _OF_MODELS]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        return version("knnlm")
    if name not in _HOME:
        raise AttributeError(f"module 'knnlm' has no attribute {name!r}")
    if name in _OF_MODELS:
        from knnlm.system.extras import require

        require(*_NEEDED, use=f"knnlm.{name}")
    found = getattr(import_module(f"knnlm.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
