"""Makes llama_bf16.gguf from tests/fixtures/hf_llama, as llama.cpp's convert_hf_to_gguf.py lays a Llama out.

The rows of q and k are permuted for ggml's rotary embedding; the tokenizer is the SentencePiece model's pieces. Weights
are exact in bf16. Needs gguf 0.19, torch 2, safetensors 0.8, sentencepiece 0.2. Run in this folder.
"""

import json

import gguf
import numpy as np
import sentencepiece
from gguf.quants import quantize
from safetensors.torch import load_file

FOLDER = "../../../../tests/fixtures/hf_llama/"
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
}


def permute(rows, num_heads):
    head_dim = rows.shape[0] // num_heads
    return rows.reshape(num_heads, 2, head_dim // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def kind(model, i):
    if model.is_unknown(i):
        return gguf.TokenType.UNKNOWN
    if model.is_control(i):
        return gguf.TokenType.CONTROL
    return gguf.TokenType.BYTE if model.is_byte(i) else gguf.TokenType.NORMAL


config = json.load(open(FOLDER + "config.json"))
model = sentencepiece.SentencePieceProcessor(FOLDER + "tokenizer.model")
ids = range(model.vocab_size())
writer = gguf.GGUFWriter("llama_bf16.gguf", "llama")
writer.add_name("tiny")
writer.add_block_count(config["num_hidden_layers"])
writer.add_context_length(config["max_position_embeddings"])
writer.add_embedding_length(config["hidden_size"])
writer.add_feed_forward_length(config["intermediate_size"])
writer.add_head_count(config["num_attention_heads"])
writer.add_head_count_kv(config["num_key_value_heads"])
writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
writer.add_rope_freq_base(config["rope_theta"])
writer.add_rope_dimension_count(config["head_dim"])
writer.add_tokenizer_model("llama")
writer.add_token_list([model.id_to_piece(i).encode() for i in ids])
writer.add_token_scores([model.get_score(i) for i in ids])
writer.add_token_types([kind(model, i) for i in ids])
writer.add_bos_token_id(1)
writer.add_eos_token_id(2)
writer.add_unk_token_id(0)
for name, tensor in load_file(FOLDER + "model.safetensors").items():
    values = tensor.float().numpy()
    if name.endswith("q_proj.weight"):
        values = permute(values, config["num_attention_heads"])
    if name.endswith("k_proj.weight"):
        values = permute(values, config["num_key_value_heads"])
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    bf16 = gguf.GGMLQuantizationType.BF16
    writer.add_tensor(name, quantize(np.ascontiguousarray(values), bf16), raw_dtype=bf16)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
