"""Tiny random models of many Hugging Face architectures, by name."""

from __future__ import annotations

from typing import Any

VOCABULARY = 40
CONTEXT = 32

BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": CONTEXT,
}
GROUPED = {**BASE, "num_key_value_heads": 2}
GPT = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT}
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
SPARSE = {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Apertus": GROUPED,
    "Arcee": GROUPED,
    "BioGpt": BASE,
    "Bloom": {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "CTRL": {**GPT, "dff": 32},
    "CodeGen": {**GPT, "n_head": 4, "rotary_dim": 4},
    "Cohere": {**GROUPED, "logit_scale": 0.25},
    "Cohere2": {**GROUPED, "logit_scale": 0.25, "sliding_window": 16},
    "DeepseekV3": {
        **GROUPED, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2,
        "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4, "v_head_dim": 8,
    },
    "Exaone4": {**GROUPED, "sliding_window": 16},
    "Falcon": {**BASE, "ffn_hidden_size": 32},
    "GPT2": GPT,
    "GPTBigCode": GPT,
    "GPTJ": {**GPT, "rotary_dim": 4},
    "GPTNeo": {
        "vocab_size": VOCABULARY, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 32,
        "attention_types": [[["global", "local"], 1]], "max_position_embeddings": CONTEXT, "window_size": 16,
    },
    "GPTNeoX": BASE,
    "Gemma": {**GROUPED, "head_dim": 8},
    "Gemma2": {**GROUPED, "head_dim": 8, "final_logit_softcapping": 0.5, "sliding_window": 16},
    "Gemma3Text": {**GROUPED, "head_dim": 8, "final_logit_softcapping": 0.5, "sliding_window": 16},
    "Glm": {**GROUPED, "head_dim": 8, "pad_token_id": 0},
    "Glm4": {**GROUPED, "head_dim": 8, "pad_token_id": 0},
    "GptOss": {**SPARSE, "head_dim": 8, "sliding_window": 16},
    "Granite": {**GROUPED, "logits_scaling": 4.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "GraniteMoe": {**SPARSE, "logits_scaling": 4.0},
    "Helium": {**GROUPED, "head_dim": 8},
    "Jamba": {**SPARSE, "num_experts": 4, "mamba_d_state": 4, "mamba_d_conv": 2, "use_mamba_kernels": False,
              "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "Lfm2": {**GROUPED, "full_attn_idxs": [1], "block_multiple_of": 8},
    "Llama": GROUPED,
    "Llama4Text": {**GROUPED, "head_dim": 8, "intermediate_size_mlp": 32, "num_local_experts": 2,
                   "attention_chunk_size": 16},
    "Mamba": {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "Mamba2": {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "num_heads": 4,
               "head_dim": 8, "n_groups": 2, "chunk_size": 8},
    "Mistral": {**GROUPED, "sliding_window": 16},
    "Mixtral": SPARSE,
    "Mpt": {"vocab_size": VOCABULARY, "d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": CONTEXT},
    "Nemotron": GROUPED,
    "OPT": {**BASE, "ffn_dim": 32, "word_embed_proj_dim": 8},
    "Olmo": GROUPED,
    "Olmo2": GROUPED,
    "OpenAIGPT": GPT,
    "Persimmon": BASE,
    "Phi": GROUPED,
    "Phi3": {**GROUPED, "pad_token_id": 0},
    "Qwen2": GROUPED,
    "Qwen2Moe": {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 16},
    "Qwen3": {**GROUPED, "head_dim": 8},
    "Qwen3Moe": {**GROUPED, **EXPERTS, "head_dim": 8},
    "Qwen3Next": {
        **GROUPED, **EXPERTS, "head_dim": 8, "shared_expert_intermediate_size": 16, "linear_num_value_heads": 2,
        "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "RecurrentGemma": {**GROUPED, "num_hidden_layers": 3, "head_dim": 8, "lru_width": 16, "attention_window_size": 16},
    "Rwkv": {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "context_length": CONTEXT},
    "SmolLM3": {**GROUPED, "pad_token_id": 0},
    "StableLm": GROUPED,
    "Starcoder2": {**GROUPED, "sliding_window": 16},
    "XGLM": {"vocab_size": VOCABULARY, "d_model": 16, "num_layers": 2, "attention_heads": 2, "ffn_dim": 32,
             "max_position_embeddings": CONTEXT},
}  # fmt: skip


def tiny_model(name: str, **more: Any) -> Any:
    """A random causal model of an architecture, the same weights each time, in evaluation mode."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        **{**ARCHITECTURES[name], "bos_token_id": 1, "eos_token_id": 2, **more}
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval()
