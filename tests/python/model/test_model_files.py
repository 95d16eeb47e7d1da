"""Model folders that cannot be used, or must not be: what is wrong with which file, before it costs anything."""

from __future__ import annotations

import json
import os
import resource
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import tiny_model
from cli_corpus import run
from hf_folders import TEXT, fast, save_folder, tokenizer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Library
from tokenizers import models

import knnlm.model.weights
from knnlm import KNNLM, load_model
from knnlm.model.checkpoint import read_model, save_model
from knnlm.model.from_hub import _dtype_name
from knnlm.model.given import as_tokenizer
from knnlm.model.keys import iterate
from knnlm.model.suitable import check_config, check_tokenizer
from knnlm.model.transformer import TransformerConfig, TransformerLM
from knnlm.text.inputs import TokenDocument
from knnlm.text.tokenizer import BackendTokenizer, Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A whole folder of a Llama."""
    return save_folder(tmp_path_factory.mktemp("hf") / "llama", tokenizer("bytes"))


@pytest.fixture
def folder(made, tmp_path):
    """A copy to spoil."""
    return Path(shutil.copytree(made, tmp_path / "llama"))


@pytest.fixture
def ours(tiny_model, tiny_tokenizer, tmp_path):
    """A folder of our own model, to spoil."""
    save_model(tmp_path / "ours", tiny_model, tiny_tokenizer)
    return tmp_path / "ours"


def edit(file, **changes):
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, **changes}))


def refused(path, match, kind=ValueError, **options):
    with pytest.raises(kind, match=match):
        load_model(path, device="cpu", **options)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 123456789\n"


@pytest.mark.parametrize("kind", ["folder", "ours"])
def test_files_that_are_not_what_they_should_be(kind, request):
    path = request.getfixturevalue(kind)
    whole = {file.name: file.read_bytes() for file in path.iterdir()}

    def spoilt(name, content, match, kind=ValueError):
        (path / name).write_bytes(content)
        refused(path, match, kind)
        (path / name).write_bytes(whole[name])

    weights = whole["model.safetensors"]
    spoilt("model.safetensors", POINTER.encode(), r"model\.safetensors: .*pointer of Git LFS: run git lfs pull")
    spoilt("model.safetensors", weights[: len(weights) // 2], r"model\.safetensors: expected whole weights.*copy or")
    spoilt("model.safetensors", b"", r"model\.safetensors: expected whole weights")
    spoilt("model.safetensors", b"\xff" * 64, r"model\.safetensors: expected whole weights")
    spoilt("config.json", whole["config.json"][:40], r"config\.json: expected JSON")
    spoilt("config.json", b"[" * 100_000, r"config\.json: expected JSON")
    spoilt("config.json", POINTER.encode(), r"config\.json: .*Git LFS")
    spoilt("tokenizer.json", whole["tokenizer.json"][:200], r"tokenizer\.json")
    if hasattr(os, "mkfifo"):
        (path / "model.safetensors").unlink()
        os.mkfifo(path / "model.safetensors")
        refused(path, r"model\.safetensors: expected a file, found a pipe")
    (path / "model.safetensors").unlink()
    os.symlink("/dev/zero", path / "model.safetensors")
    refused(path, r"model\.safetensors: expected a file, found a device")
    (path / "model.safetensors").unlink()
    refused(path, r"model\.safetensors, found none", FileNotFoundError)
    (path / "model.safetensors").mkdir()
    refused(path, r"model\.safetensors: expected a file, found a folder")


def test_what_may_not_be_read_is_said_as_such(ours, monkeypatch):
    def closed(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", closed)
    with pytest.raises(PermissionError, match="Permission denied"):
        read_model(ours)


def test_weights_have_the_rights_that_other_files_have(ours):
    mask = os.umask(0o027)
    try:
        save_model(ours, read_model(ours), Tokenizer.load(ours))
    finally:
        os.umask(mask)
    rights = {file.name: stat.S_IMODE(file.stat().st_mode) for file in ours.iterdir()}
    assert rights == dict.fromkeys(("config.json", "model.safetensors", "tokenizer.json"), 0o640)


def test_sizes_are_those_of_the_weights_before_a_model_is_made(ours, folder):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path, file, layers, width in (
        (ours, ours / "config.json", "n_layers", "d_model"),
        (folder, folder / "config.json", "num_hidden_layers", "hidden_size"),
    ):
        config = file.read_text()
        edit(file, **{layers: 10**6})
        refused(path, r"layers")
        edit(file, **{layers: 3})
        refused(path, r"expected (the parameters|all weights|weights)")
        with pytest.MonkeyPatch.context() as patched:  # which takes its time for many layers
            for module in ("load", "checkpoint"):
                patched.setattr(f"knnlm.model.{module}.made_on_meta", lambda _: pytest.fail("it made a model"))
            edit(file, **{layers: 60})
            refused(path, "expected weights of 60 layers")
        file.write_text(config)
        edit(
            file,
            **{width: 40_000, "intermediate_size": 8_000, "head_dim": 4_000} if path == folder else {width: 2**40},
        )
        refused(path, r"expected (weights of some|the parameters|.*of shape|the sizes)")
        file.write_text(config)
        load_model(path, device="cpu")
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert used < 200_000 * (1 if sys.platform == "linux" else 1024)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rotary_base": 0}, "rotary_base: expected a positive finite number"),
        ({"rotary_base": float("nan")}, "rotary_base"),
        ({"rotary_base": float("inf")}, "rotary_base"),
        ({"context": 10**12}, "context: expected at most"),
        ({"context": "long"}, "context: expected a whole number, found 'long'"),
        ({"n_layers": 2.5}, "n_layers: expected a whole number"),
        ({"no_such": 1}, "no_such"),
    ],
)
def test_impossible_configurations_of_our_own(ours, change, match):
    edit(ours / "config.json", **change)
    refused(ours, rf"config\.json.*{match}")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"max_position_embeddings": 10**12}, "max_position_embeddings: expected at most"),
        ({"num_hidden_layers": 10**5}, "layers"),
        ({"rope_theta": 0.0, "rope_parameters": {"rope_type": "default", "rope_theta": 0.0}}, "rope_theta"),
    ],
)
def test_impossible_configurations_of_others(folder, change, match):
    edit(folder / "config.json", **change)
    refused(folder, match)


def test_layers_that_no_model_of_the_hub_has():
    import transformers

    with pytest.raises(ValueError, match=r"somewhere: expected at most 10,000 layers, found 1,000,000"):
        check_config(transformers.GPT2Config(n_layer=10**6), "somewhere")


def test_weights_that_are_missing_are_not_made_up(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    refused(folder, r"found none for 1 of them, such as model\.layers\.1\.mlp\.up_proj\.weight, which would be random")


def test_several_files_of_weights(folder):
    weights = load_file(folder / "model.safetensors")
    plain = load_model(folder, device="cpu").fingerprint
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({name: weights[name] for name in some}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, some in parts.items() for name in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_model(folder, device="cpu").fingerprint == plain
    (folder / "b.safetensors").write_text(POINTER)
    refused(folder, r"b\.safetensors: .*Git LFS")
    (folder / "b.safetensors").unlink()
    refused(folder, r"b\.safetensors, which model\.safetensors\.index\.json names", FileNotFoundError)
    index["weight_map"] = dict.fromkeys(names, "../llama/a.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "expected names of files beside it")


def test_a_pickle_is_refused_and_can_be_converted(folder):
    weights = load_file(folder / "model.safetensors")
    plain = load_model(folder, device="cpu").fingerprint
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"found pytorch_model\.bin, a pickle.*Convert it") as told:
        load_model(folder, device="cpu")
    assert "use_safetensors" not in str(told.value)
    command = str(told.value).split('python -c "')[1].split('", in that folder')[0]
    subprocess.run([sys.executable, "-c", command], cwd=folder, check=True)
    assert load_model(folder, device="cpu").fingerprint == plain


def test_an_adapter_alone_is_no_model(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")
    refused(folder, r"found an adapter \(PEFT\): merge it", FileNotFoundError)
    refused(folder / "adapter_config.json", "expected the folder of a model, found a file")


CODE = """
import os
open(os.environ["EVIDENCE"], "a").write("ran")
from transformers import LlamaConfig, LlamaForCausalLM
class EvilConfig(LlamaConfig):
    model_type = "evil"
class EvilForCausalLM(LlamaForCausalLM):
    config_class = EvilConfig
"""


@pytest.fixture
def with_code(folder):
    """A folder whose model is a class of its own."""
    (folder / "evil.py").write_text(CODE)
    own = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilForCausalLM"}
    edit(folder / "config.json", model_type="evil", auto_map=own, architectures=["EvilForCausalLM"])
    return folder


def test_code_of_a_model_folder_is_not_run(with_code, tmp_path, monkeypatch):
    evidence = tmp_path / "evidence"
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    environment = {**os.environ, "EVIDENCE": str(evidence), "HF_HOME": str(tmp_path / "home")}

    make = ("build", text, "--model", with_code, "--out", tmp_path / "store", "--threads", 1)
    monkeypatch.setenv("EVIDENCE", str(evidence))
    told = run(*make, code=1, stdin="y\n" * 100)
    assert "brings code of its own, which was not run" in told.stderr
    assert not evidence.exists()
    # It would run where it is trusted, by the name of the model.
    inspect = ("inspect", tmp_path / "store", "--string", "the cat")
    trusted = [[*map(str, make), "--trust-remote-code"], [*map(str, inspect), "--model", str(with_code)]]
    trusted[1].append("--trust-remote-code")
    code = f"from knnlm.cli import main\nfor command in {trusted}: main(command, standalone_mode=False)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, evidence.exists()) == (0, True), done.stderr
    evidence.unlink()
    # A store names its model: that is not enough, and neither is trust in whatever it names.
    assert "brings code of its own" in run(*inspect, code=1, stdin="y\n" * 100).stderr
    assert "--model names, found no --model" in run(*inspect, "--trust-remote-code", code=2).stderr
    assert not evidence.exists()


def test_a_known_model_with_code_beside_it_is_loaded_without_it(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("EVIDENCE", str(tmp_path / "evidence"))
    (folder / "evil.py").write_text(CODE)
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.EvilForCausalLM"})
    assert type(load_model(folder, device="cpu").model).__name__ == "LlamaForCausalLM"
    assert not (tmp_path / "evidence").exists()


def marian():
    import transformers

    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 32}
    ids = dict.fromkeys(("pad_token_id", "decoder_start_token_id", "eos_token_id", "forced_eos_token_id"), 0)
    return transformers.MarianMTModel(transformers.MarianConfig(vocab_size=400, **sizes, **heads, **ids)).eval()


def bert():
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=400, **sizes)).eval()


def test_encoder_decoders_are_refused(folder):
    import transformers

    transformers.logging.set_verbosity_error()
    model = marian()
    model.save_pretrained(folder)
    refused(folder, r"encoder-decoder \(MarianMTModel\).*not supported")
    words = fast(tokenizer("bytes"))
    with pytest.raises(ValueError, match="encoder-decoder"):
        KNNLM(model, None, tokenizer=words)
    # What transformers makes of such a folder has lost its encoder, and says so nowhere.
    decoder = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert not decoder.config.is_encoder_decoder
    with pytest.raises(ValueError, match="encoder-decoder"):
        KNNLM(decoder, None, tokenizer=words)
    plain = transformers.BartConfig()  # names no class
    assert not plain.architectures
    with pytest.raises(ValueError, match=r"encoder-decoder \(BartConfig\)"):
        check_config(plain, "somewhere")


def test_encoders_are_refused(folder):
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    model = bert()
    model.save_pretrained(folder)
    refused(folder, "expected a causal language model, found a BertLMHeadModel, whose prediction of a token depends")
    with pytest.raises(ValueError, match="depends on the tokens after it"):
        KNNLM(model, None, tokenizer=fast(tokenizer("bytes")))
    assert KNNLM(tiny_model("Llama", vocab_size=400), None, tokenizer=fast(tokenizer("bytes"))).perplexity("a") > 1


def test_a_folder_without_tokenizer_files(folder):
    for file in (*folder.glob("tokenizer*"), *folder.glob("special*")):
        file.unlink()
    refused(folder, r"tokenizer at .*llama/tokenizer\.json, found none: copy tokenizer\.json", FileNotFoundError)


def test_a_tokenizer_that_gives_no_token():
    nothing = Library(models.BPE())
    nothing.add_special_tokens(["<s>"])
    with pytest.raises(ValueError, match=r"here: expected a tokenizer, found one of 1 entry that gives no token"):
        check_tokenizer(BackendTokenizer(nothing), "here")


def test_transformers_is_asked_for_safetensors_and_no_code(folder, monkeypatch):
    import transformers

    asked = []
    for auto in (transformers.AutoConfig, transformers.AutoTokenizer, transformers.AutoModelForCausalLM):
        original = auto.from_pretrained
        monkeypatch.setattr(auto, "from_pretrained", lambda *a, _f=original, **k: asked.append(dict(k)) or _f(*a, **k))
    load_model(folder, device="cpu", dtype="bfloat16")
    assert len(asked) >= 3
    assert not any(options["trust_remote_code"] for options in asked)
    assert {options["use_safetensors"] for options in asked if "output_loading_info" in options} == {True}
    assert (_dtype_name("4.45.2"), _dtype_name("4.56.0"), _dtype_name("5.0.0.dev0")) == (
        "torch_dtype",
        "dtype",
        "dtype",
    )


def test_commands_show_no_bars_of_transformers(folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    arguments = ["build", text, "--model", folder, "--out", tmp_path / "store", "--threads", 1]
    done = subprocess.run(
        [sys.executable, "-m", "knnlm", *map(str, arguments)], capture_output=True, text=True, check=True
    )
    assert "Loading weights" not in done.stderr
    assert "deprecated" not in done.stderr


def test_a_tokenizer_that_fails_at_unknown_words_is_refused_before_a_build(folder, ours):
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"] = {"type": "WordLevel", "vocab": {"<s>": 0, "the": 1, "cat": 2}, "unk_token": "<nothing>"}
    data.update(
        pre_tokenizer={"type": "Whitespace"}, added_tokens=[], decoder=None, post_processor=None, normalizer=None
    )
    for path in (folder, ours):
        (path / "tokenizer.json").write_text(json.dumps(data))
        refused(path, r"fails at what it does not know.*unk")


def test_a_tokenizer_without_a_fast_backend(monkeypatch):
    class Slow:
        bos_token_id = 1

    with pytest.raises(ValueError, match=r"expected a fast Hugging Face tokenizer.*found Slow: pip install"):
        as_tokenizer(Slow())
    with pytest.raises(TypeError, match="found object"):
        as_tokenizer(object())


def test_tokens_that_were_added_beyond_the_embedding(folder):
    words = tokenizer("bytes")
    words.add_tokens(["zebra", "<new>"])
    rows = words.get_vocab_size() - 2
    fast(words).save_pretrained(folder)
    loaded = load_model(folder, device="cpu")
    assert loaded.tokenizer.vocab_size == rows + 2
    lm = KNNLM(loaded, None)
    assert lm.perplexity("the cat") > 1
    for use in (lm.perplexity, lm.generate):
        with pytest.raises(ValueError, match=rf"token {rows} \('zebra'\) is outside the model's vocabulary of {rows}"):
            use("the zebra")
    document = TokenDocument("animals", loaded.tokenizer.encode("the zebra"))
    with pytest.raises(ValueError, match=r"document 'animals': token .*'zebra'.*leave this text out"):
        list(iterate(loaded, [document], scores=False))
    assert all(lm.generate("the", max_new_tokens=30).find(new) < 0 for new in ("zebra", "<new>"))
    save_folder(folder, tokenizer("bytes"), vocab_size=300)
    refused(folder, "model and tokenizer do not belong together")
    with pytest.raises(ValueError, match="model and tokenizer do not belong together"):
        KNNLM(tiny_model("Llama", vocab_size=300), None, tokenizer=fast(tokenizer("bytes")))


def test_a_tokenizer_that_is_handed_over_stays_as_it_is():
    words = fast(tokenizer("bytes"))
    before = words.encode("a<s>b", add_special_tokens=False)
    assert len(as_tokenizer(words).encode("a<s>b")) > len(before)  # in a text, it is no special token
    assert words.encode("a<s>b", add_special_tokens=False) == before


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_checked_first_is_what_the_model_has(tied, tiny_tokenizer, tmp_path):
    torch.manual_seed(0)
    config = TransformerConfig(tiny_tokenizer.vocab_size, 16, 2, 2, context=8, tie_weights=tied)
    model = TransformerLM(config)
    save_model(tmp_path, model, tiny_tokenizer)
    shapes = knnlm.model.weights.read_header(tmp_path / "model.safetensors")
    assert shapes == {name: tuple(p.shape) for name, p in model.named_parameters()}
    ids = torch.arange(5)[None]
    with torch.inference_mode():
        np.testing.assert_array_equal(read_model(tmp_path)(ids).logits, model.eval()(ids).logits)


def test_damaged_model_of_a_command_is_told_in_one_line(folder, tmp_path):
    (folder / "config.json").write_text("{")
    (tmp_path / "text.txt").write_text(TEXT)
    told = run("build", tmp_path / "text.txt", "--model", folder, "--out", tmp_path / "store", code=1).stderr
    assert "config.json: expected JSON" in told
    assert "--debug shows where" not in told
