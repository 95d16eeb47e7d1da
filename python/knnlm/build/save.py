"""Save: a model and its store in one folder, which can be copied anywhere and opened there without another word."""

from __future__ import annotations

import shutil
from pathlib import Path

from knnlm.model.loaded import Loaded
from knnlm.model.of_store import load_for
from knnlm.model.save import save_loaded
from knnlm.store.datastore import Datastore
from knnlm.store.output_folder import place_of, whole_folder
from knnlm.system.making import make_with_parents

NOT_COPIED = "lock"
"""Of a store's files: the one that a writer holds."""


def save_pretrained(loaded: Loaded, store: Datastore, folder: Path) -> Path:
    """Write `folder`/model and `folder`/store, whole or not at all; returns the path of the store.

    What is published of the store is copied and checked, and the model that was written is loaded once to see that it
    is the one that wrote the store: there has to be room for a second one in memory.

    Raises:
        UsageError: something is at `folder`.
        ValueError: a store of no model; an adapter that is not merged into its model; bytes that are damaged.
        IdentityError: the store belongs to another model.
    """
    remembered = store.attributes.get("model")
    if not remembered:
        raise ValueError(f"expected a store that remembers its model, found {store.path}, which was made without one")
    out = place_of(folder)
    with whole_folder(out, overwrite=False) as new:
        make_with_parents(new)
        save_loaded(loaded, new / "model")
        copy = new / "store"
        copy.mkdir()
        for path in sorted(Path(store.path).iterdir()):
            if path.is_file() and path.name != NOT_COPIED:
                shutil.copyfile(path, copy / path.name)
        with Datastore.open(copy, verify=True) as copied:
            model = {name: value for name, value in remembered.items() if name != "revision"}
            copied.set_attributes({**copied.attributes, "model": {**model, "source": "../model"}})
            load_for(copied, device="cpu")
    return out / "store"
