"""Option names: an option of another call, or nearly one, is said to be that; those of transformers pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_corpus import sentence

from knnlm import KNNLM
from knnlm.option_names import CALLS, refuse_foreign

OF_TRANSFORMERS = (
    "attn_implementation", "device_map", "torch_dtype", "token", "cache_dir", "local_files_only", "force_download",
    "proxies", "subfolder", "quantization_config", "max_memory", "offload_folder", "use_safetensors", "variant",
    "code_revision", "low_cpu_mem_usage", "key_mapping", "tp_plan", "device_mesh", "config", "max_position_embeddings",
    "use_cache", "pad_token_id", "rope_scaling", "sliding_window", "hidden_size", "gguf_file", "generation_config",
)  # fmt: skip


@pytest.mark.parametrize(
    ("call", "name", "says"),
    [
        ("build", "k", r"k is no option of KNNLM\.build: it is chosen by lm\.tune\(texts\).*KNNLM\.open\(store, k=…\)"),
        ("build", "lambda_", r"or given to KNNLM\.open\(store, lambda_=…\)"),
        ("build", "max_tokens", r"did you mean max_new_tokens \(it is an option of generate\)\?"),
        ("build", "max_documents", r"how paths are read is given as reading=knnlm\.Reading\(max_documents=…\)"),
        ("build", "keepkeys", r"keepkeys is no option of KNNLM\.build: did you mean keep_keys\?"),
        ("open", "keep_keys", r"keep_keys is no option of KNNLM\.open: it is an option of KNNLM\.build$"),
        ("open", "lambda", r"did you mean lambda_\?"),
        ("open", "batch_size", r"it is an option of KNNLM\.build and evaluate"),
        ("stream", "k", r"k is no option of generate: it is an option of KNNLM\.open and tune"),
        ("stream", "max_new_token", r"did you mean max_new_tokens\?"),
    ],
)
def test_where_an_option_belongs(call: str, name: str, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        refuse_foreign(KNNLM, call, [name])


@pytest.mark.parametrize("call", list(CALLS))
def test_options_of_transformers_pass(call: str) -> None:
    refuse_foreign(KNNLM, call, OF_TRANSFORMERS)


def test_it_is_said_before_anything_is_done(store: Path, model: Path, tmp_path: Path) -> None:
    calls: dict[str, Any] = {
        "k is no option of KNNLM.build": lambda: KNNLM.build(model, [sentence(0)], tmp_path / "made", k=5),
        "max_tokens is no option of KNNLM.build": lambda: KNNLM.build("no", "no", tmp_path / "it", max_tokens=5),
        "seed is no option of KNNLM.open": lambda: KNNLM.open("no store", seed=5),
        "workers is no option of KNNLM.open": lambda: KNNLM.from_pretrained("no model", workers=5),
        "max_tokens is no option of generate": lambda: KNNLM.open(store).generate("the", max_tokens=5),
    }
    for says, call in calls.items():
        with pytest.raises(TypeError) as error:
            call()
        assert str(error.value).startswith(says)
    assert [path for path in tmp_path.iterdir() if path != store] == []


def test_a_name_that_nothing_has(model: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="found xyzzy: no option of knnlm is called so, and options of from_pr"):
        KNNLM.build(model, [sentence(0)], tmp_path / "made", xyzzy=5)
