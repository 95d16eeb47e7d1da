"""What people wrap around a model."""

from __future__ import annotations

from torch import nn


class Wrapper(nn.Module):
    """What people write around a model, by the name that they choose."""

    def __init__(self, name: str, model: nn.Module) -> None:
        super().__init__()
        self.add_module(name, model)
        self._name = name

    def forward(self, *args, **kwargs):
        return getattr(self, self._name)(*args, **kwargs)


class Peft(nn.Module):
    """A wrapper with the names of PEFT: base_model.model is the model, with the adapters inside of it."""

    def __init__(self, model: nn.Module, prompt_learning: bool = False) -> None:
        super().__init__()
        self.base_model = Wrapper("model", model)
        self.peft_config = {"default": None}
        self.active_peft_config = type("Config", (), {"is_prompt_learning": prompt_learning})

    def get_base_model(self):
        return self.base_model.model

    def forward(self, *args, **kwargs):
        return self.base_model(*args, **kwargs)
