"""Settings: how a store is searched and mixed. No torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from knnlm.store.attributes import check_attributes
from knnlm.store.protocols import attributes_of
from knnlm.store.temperature import default_temperature
from knnlm.system.log import LOG

DEFAULT_LAMBDA = 0.25
"""The paper's best weight on WikiText-103; used until `tune` has found a better one."""


DEFAULT_K = 1024


@dataclass(frozen=True)
class Settings:
    """How a store is searched and mixed; None is the store's own default (temperature, k, nprobe, rerank)."""

    lambda_: float = DEFAULT_LAMBDA
    temperature: float | None = None
    k: int | None = None
    nprobe: int | None = None
    rerank: str | None = None
    exact: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no mixture can be made with, before a model has run for it."""
        if not 0 <= self.lambda_ <= 1:
            raise ValueError(f"lambda_: expected a weight between 0 and 1, found {self.lambda_}")
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature: expected a positive finite number, found {self.temperature}")
        if self.k is not None and self.k < 1:
            raise ValueError(f"k: expected at least 1, found {self.k}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


NAMES = tuple(field.name for field in fields(Settings))
"""Names of the settings, among options of other kinds."""


def settings_of(store: Any, **given: Any) -> Settings:
    """Settings for a store: what is given and not None, else what `tune` saved, else the documented defaults.

    Untuned: lambda = 0.25, T = the store's own default temperature, k = min(1024, n). Raises TypeError for an unknown
    name and ValueError for attributes that knnlm did not write.
    """
    check_attributes(store)
    tuned = attributes_of(store).get("tuned") or {}
    fields = ("lambda_", "temperature", "k", "nprobe", "rerank", "exact")  # not threads: they are the machine's
    chosen = {name: tuned[name] for name in fields if tuned.get(name) is not None}
    chosen.update({name: value for name, value in given.items() if value is not None})
    settings = Settings(**chosen)
    if settings.k is None:
        settings = replace(settings, k=max(1, min(DEFAULT_K, len(store))))
    if settings.temperature is None:
        settings = replace(settings, temperature=default_temperature(store))
    preset = tuned.get("preset")
    saved = f"of the preset {preset}" if preset else "tuned"
    origins = {name: "given" if given.get(name) is not None else saved for name in chosen}
    LOG.debug("settings: %s", ", ".join(_told(settings, name, origins.get(name, "default")) for name in fields))
    return settings


def _told(settings: Settings, name: str, origin: str) -> str:
    """A setting and where it comes from, in words."""
    value = getattr(settings, name)
    shown = "the store's own" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{ {'lambda_': 'λ', 'temperature': 'T'}.get(name, name) } {shown} ({origin})"
