#!/usr/bin/env python3
"""Random-weight checkpoints in the published layout, and what a correct implementation answers.

    make_goldens.py OUT [NAME ...]      needs numpy only

Writes OUT/NAME/{config.json, model*.safetensors, expected.safetensors} for the shapes in CASES. The answers are a float64
evaluation of the published formulae (DeepSeek-V2 and -V3 reports, YaRN), written for reading and not for speed, and
independent of the program. The checked-in goldens besides `odd-*` were made the same way with Hugging Face transformers
in float32 as the source of the answers, each within 2e-6 of such an evaluation.
"""
import json
import math
import os
import struct
import sys

import numpy as np

COMMON = dict(hidden_act="silu", rms_norm_eps=1e-6, rope_theta=10000.0, rope_scaling=None, attention_bias=False,
              attention_dropout=0.0, tie_word_embeddings=False, max_position_embeddings=1024, bos_token_id=0,
              eos_token_id=1, torch_dtype="bfloat16", use_cache=True)
V3 = dict(COMMON, architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3", topk_method="noaux_tc",
          scoring_func="sigmoid", norm_topk_prob=True, moe_layer_freq=1, num_nextn_predict_layers=0)
V2 = dict(COMMON, architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2", scoring_func="softmax",
          norm_topk_prob=False, moe_layer_freq=1)
LLAMA = dict(COMMON, architectures=["LlamaForCausalLM"], model_type="llama", rms_norm_eps=1e-5, mlp_bias=False)


def yarn(original, factor, mscale, mscale_all_dim):
    return dict(type="yarn", factor=factor, original_max_position_embeddings=original, beta_fast=32, beta_slow=1,
                mscale=mscale, mscale_all_dim=mscale_all_dim)


# Shapes in which nothing divides anything it need not: name -> (config, tokens, fp8, shards)
CASES = {
    "odd-v3": (dict(V3, vocab_size=389, hidden_size=88, intermediate_size=150, moe_intermediate_size=28,
                    num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=6, q_lora_rank=44, kv_lora_rank=52,
                    qk_nope_head_dim=20, qk_rope_head_dim=12, v_head_dim=28, n_routed_experts=18, n_shared_experts=2,
                    num_experts_per_tok=5, n_group=3, topk_group=2, routed_scaling_factor=1.7, first_k_dense_replace=2,
                    norm_topk_prob=False, rope_scaling=yarn(96, 8, 1.0, 0.8)), 230, False, 3),
    "odd-v3-fp8": (dict(V3, vocab_size=300, hidden_size=200, intermediate_size=330, moe_intermediate_size=136,
                        num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=6, q_lora_rank=140,
                        kv_lora_rank=132, qk_nope_head_dim=28, qk_rope_head_dim=16, v_head_dim=36, n_routed_experts=6,
                        n_shared_experts=1, num_experts_per_tok=2, n_group=2, topk_group=1, routed_scaling_factor=2.5,
                        first_k_dense_replace=1), 60, True, 2),
    "odd-v2": (dict(V2, vocab_size=301, hidden_size=72, intermediate_size=100, moe_intermediate_size=20,
                    num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=6, q_lora_rank=36, kv_lora_rank=40,
                    qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=20, n_routed_experts=15, n_shared_experts=2,
                    num_experts_per_tok=4, n_group=5, topk_group=3, routed_scaling_factor=3.0, first_k_dense_replace=1,
                    moe_layer_freq=1, topk_method="group_limited_greedy", rope_scaling=yarn(64, 16, 0.707, 0.707)),
               140, False, 1),
    "odd-bias": (dict(V3, vocab_size=257, hidden_size=64, intermediate_size=90, moe_intermediate_size=24,
                      num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4, q_lora_rank=24, kv_lora_rank=28,
                      qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=12, n_routed_experts=8, n_shared_experts=1,
                      num_experts_per_tok=3, n_group=1, topk_group=1, routed_scaling_factor=2.827,
                      first_k_dense_replace=1, rope_theta=50000.0, attention_bias=True, rms_norm_eps=1e-5), 70, False, 1),
    "odd-llama": (dict(LLAMA, vocab_size=333, hidden_size=96, intermediate_size=140, num_hidden_layers=3,
                       num_attention_heads=6, num_key_value_heads=3, tie_word_embeddings=True), 77, False, 1),
}


# ---- numbers and files ----
def to_bf16(x):
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


E4M3 = np.array([(-1.0 if b & 128 else 1.0) * ((b & 7) * 2.0 ** -9 if not (b >> 3) & 15 else
                                              (8 + (b & 7)) * 2.0 ** (((b >> 3) & 15) - 10)) for b in range(256)])


def to_e4m3(x):
    positive = E4M3[:127]                       # 0 .. 448; the code after it is NaN
    magnitude = np.minimum(np.abs(x), 448.0)
    right = np.clip(np.searchsorted(positive, magnitude), 1, 126)
    low, high = positive[right - 1], positive[right]
    up = (magnitude - low > high - magnitude) | ((magnitude - low == high - magnitude) & (right % 2 == 0))
    return (np.where(up, right, right - 1) + np.where(x < 0, 128, 0)).astype(np.uint8)


class Stored:
    """A checkpoint tensor: its dtype name and bytes for the file, and the numbers it stands for."""

    def __init__(self, dtype, raw, value):
        self.dtype, self.raw, self.value = dtype, raw, value.astype(np.float64)


def bf16(x):
    raw = to_bf16(x)
    return Stored("BF16", raw, from_bf16(raw))


def f32(x):
    x = np.asarray(x, np.float32)
    return Stored("F32", x, x)


def save(path, tensors):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, raw) in tensors.items():
        header[name] = dict(dtype=dtype, shape=list(raw.shape), data_offsets=[offset, offset + raw.nbytes])
        offset += raw.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, raw in tensors.values():
            file.write(np.ascontiguousarray(raw).tobytes())


def save_checkpoint(folder, config, tensors, shards):
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/config.json", "w") as file:
        json.dump(config, file, indent=2)
    names, per_shard, where = list(tensors), -(-len(tensors) // shards), {}
    for k in range(shards):
        name = "model.safetensors" if shards == 1 else f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
        part = names[k * per_shard:(k + 1) * per_shard]
        save(f"{folder}/{name}", {n: (tensors[n].dtype, tensors[n].raw) for n in part})
        where.update({n: name for n in part})
    if shards > 1:
        with open(f"{folder}/model.safetensors.index.json", "w") as file:
            json.dump(dict(metadata=dict(total_size=sum(t.raw.nbytes for t in tensors.values())), weight_map=where), file,
                      indent=1)


# ---- random weights under the published names ----
def quantise(weight):
    """128 x 128 blocks, ragged at the edges."""
    rows, cols = weight.shape
    scale = np.zeros((-(-rows // 128), -(-cols // 128)), np.float32)
    codes = np.zeros(weight.shape, np.uint8)
    value = np.zeros(weight.shape, np.float64)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            block = np.s_[i * 128:(i + 1) * 128, j * 128:(j + 1) * 128]
            scale[i, j] = max(np.abs(weight[block]).max() / 448.0, 1e-12)
            codes[block] = to_e4m3(weight[block] / float(scale[i, j]))
            value[block] = E4M3[codes[block]] * float(scale[i, j])
    return Stored("F8_E4M3", codes, value), f32(scale)


def make_weights(c, rng, fp8):
    weights, hidden = {}, c["hidden_size"]

    def norm(name, n):
        weights[name] = bf16(1 + 0.2 * rng.standard_normal(n))

    def linear(name, out, inputs, quantised=True):
        w = rng.standard_normal((out, inputs)) * 1.3 / math.sqrt(inputs)
        if not (fp8 and quantised):
            weights[name + ".weight"] = bf16(w)
        else:
            weights[name + ".weight"], weights[name + ".weight_scale_inv"] = quantise(from_bf16(to_bf16(w)).astype(np.float64))

    def bias(name, n):
        if c["attention_bias"]:
            weights[name + ".bias"] = bf16(0.3 * rng.standard_normal(n))

    def mlp(prefix, width):
        linear(prefix + "gate_proj", width, hidden)
        linear(prefix + "up_proj", width, hidden)
        linear(prefix + "down_proj", hidden, width)

    def latent_attention(a):
        heads, nope, rope, v = c["num_attention_heads"], c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        rank, q_rank = c["kv_lora_rank"], c["q_lora_rank"]
        if q_rank:
            linear(a + "q_a_proj", q_rank, hidden)
            bias(a + "q_a_proj", q_rank)
            norm(a + "q_a_layernorm.weight", q_rank)
            linear(a + "q_b_proj", heads * (nope + rope), q_rank)
        else:
            linear(a + "q_proj", heads * (nope + rope), hidden)
        linear(a + "kv_a_proj_with_mqa", rank + rope, hidden)
        bias(a + "kv_a_proj_with_mqa", rank + rope)
        norm(a + "kv_a_layernorm.weight", rank)
        linear(a + "kv_b_proj", heads * (nope + v), rank)
        linear(a + "o_proj", hidden, heads * v)
        bias(a + "o_proj", hidden)

    def grouped_attention(a):
        dim = hidden // c["num_attention_heads"]
        for name, heads in (("q", c["num_attention_heads"]), ("k", c["num_key_value_heads"]), ("v", c["num_key_value_heads"])):
            linear(a + name + "_proj", heads * dim, hidden)
        linear(a + "o_proj", hidden, hidden)

    weights["model.embed_tokens.weight"] = bf16(rng.standard_normal((c["vocab_size"], hidden)))
    norm("model.norm.weight", hidden)
    if not c["tie_word_embeddings"]:
        linear("lm_head", c["vocab_size"], hidden, quantised=False)
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        norm(p + "input_layernorm.weight", hidden)
        norm(p + "post_attention_layernorm.weight", hidden)
        if c["model_type"] == "llama":
            grouped_attention(p + "self_attn.")
            mlp(p + "mlp.", c["intermediate_size"])
            continue
        latent_attention(p + "self_attn.")
        if i < c["first_k_dense_replace"] or i % c["moe_layer_freq"]:
            mlp(p + "mlp.", c["intermediate_size"])
            continue
        linear(p + "mlp.gate", c["n_routed_experts"], hidden, quantised=False)
        if c["topk_method"] == "noaux_tc":
            weights[p + "mlp.gate.e_score_correction_bias"] = f32(rng.random(c["n_routed_experts"]) * 0.2)
        for e in range(c["n_routed_experts"]):
            mlp(p + f"mlp.experts.{e}.", c["moe_intermediate_size"])
        mlp(p + "mlp.shared_experts.", c["moe_intermediate_size"] * c["n_shared_experts"])
    return weights


# ---- the float64 evaluation ----
class Model:
    def __init__(self, config, weights):
        self.c, self.w = config, {name: t.value for name, t in weights.items()}
        self.mla = config["model_type"] != "llama"
        self.rope_dim = config["qk_rope_head_dim"] if self.mla else config["hidden_size"] // config["num_attention_heads"]
        self.softmax_factor = 1.0
        self.prepare_rope()

    def prepare_rope(self):
        c, dim = self.c, self.rope_dim
        self.frequency = c["rope_theta"] ** (-np.arange(0, dim, 2) / dim)
        self.rope_factor, scaling = 1.0, c["rope_scaling"]
        if not scaling:
            return
        factor, original = scaling["factor"], scaling["original_max_position_embeddings"]

        def mscale(m):
            return 0.1 * m * math.log(factor) + 1.0 if factor > 1 else 1.0

        def dimension(rotations):      # whose wavelength fits `rotations` times into the original length
            return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(c["rope_theta"]))
        low = max(math.floor(dimension(scaling["beta_fast"])), 0)
        high = min(math.ceil(dimension(scaling["beta_slow"])), dim - 1)
        ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0, 1)
        self.frequency = self.frequency / factor * ramp + self.frequency * (1 - ramp)
        self.rope_factor = mscale(scaling["mscale"]) / mscale(scaling["mscale_all_dim"])
        self.softmax_factor = mscale(scaling["mscale_all_dim"]) ** 2

    def rope(self, x):                 # [..., T, dim]
        angle = np.arange(x.shape[-2])[:, None] * self.frequency
        cos, sin = np.cos(angle) * self.rope_factor, np.sin(angle) * self.rope_factor
        half = self.rope_dim // 2
        a, b = (x[..., 0::2], x[..., 1::2]) if self.mla else (x[..., :half], x[..., half:])
        return np.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

    def linear(self, name, x):
        y = x @ self.w[name + ".weight"].T
        return y + self.w[name + ".bias"] if name + ".bias" in self.w else y

    def norm(self, name, x, eps):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * self.w[name + ".weight"]

    def mlp(self, p, x):
        gate = self.linear(p + "gate_proj", x)
        return self.linear(p + "down_proj", gate / (1 + np.exp(-gate)) * self.linear(p + "up_proj", x))

    @staticmethod
    def attend(scores, values):        # causal softmax over the last axis
        t = scores.shape[-1]
        scores = np.where(np.tril(np.ones((t, t), bool)), scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        return p / p.sum(-1, keepdims=True) @ values

    def latent_attention(self, a, x):
        c, t, heads = self.c, len(x), self.c["num_attention_heads"]
        nope, rope, v, rank = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"], c["kv_lora_rank"]
        if c["q_lora_rank"]:
            q = self.linear(a + "q_b_proj", self.norm(a + "q_a_layernorm", self.linear(a + "q_a_proj", x), 1e-6))
        else:
            q = self.linear(a + "q_proj", x)
        q = q.reshape(t, heads, nope + rope).transpose(1, 0, 2)
        kv = self.linear(a + "kv_a_proj_with_mqa", x)
        latent, k_rope = self.norm(a + "kv_a_layernorm", kv[:, :rank], 1e-6), self.rope(kv[:, rank:])
        expanded = (latent @ self.w[a + "kv_b_proj.weight"].T).reshape(t, heads, nope + v).transpose(1, 0, 2)
        scores = q[..., :nope] @ expanded[..., :nope].transpose(0, 2, 1) + self.rope(q[..., nope:]) @ k_rope.T
        out = self.attend(scores * (nope + rope) ** -0.5 * self.softmax_factor, expanded[..., nope:])
        return self.linear(a + "o_proj", out.transpose(1, 0, 2).reshape(t, -1))

    def grouped_attention(self, a, x):
        t, dim, heads = len(x), self.rope_dim, self.c["num_attention_heads"]
        q, k, v = (self.linear(a + n + "_proj", x).reshape(t, -1, dim).transpose(1, 0, 2) for n in "qkv")
        group = heads // self.c["num_key_value_heads"]
        k, v = self.rope(k).repeat(group, 0), v.repeat(group, 0)
        out = self.attend(self.rope(q) @ k.transpose(0, 2, 1) * dim ** -0.5, v)
        return self.linear(a + "o_proj", out.transpose(1, 0, 2).reshape(t, -1))

    def route(self, p, x):             # expert indices and weights [T, top_k]
        c, t, experts, groups = self.c, len(x), self.c["n_routed_experts"], self.c["n_group"]
        z = self.linear(p + "gate", x)
        if c["scoring_func"] == "sigmoid":
            score = 1 / (1 + np.exp(-z))
        else:
            score = np.exp(z - z.max(-1, keepdims=True))
            score /= score.sum(-1, keepdims=True)
        choice = score
        if c["topk_method"] == "noaux_tc":
            choice = score + self.w[p + "gate.e_score_correction_bias"]
            group_score = np.sort(choice.reshape(t, groups, -1), -1)[..., -2:].sum(-1)
        else:
            group_score = choice.reshape(t, groups, -1).max(-1)
        if c["topk_method"] != "greedy":
            kept = np.zeros((t, groups), bool)
            np.put_along_axis(kept, np.argsort(-group_score, -1, kind="stable")[:, :c["topk_group"]], True, -1)
            choice = np.where(kept.repeat(experts // groups, -1), choice, -np.inf)
        index = np.argsort(-choice, -1, kind="stable")[:, :c["num_experts_per_tok"]]
        weight = np.take_along_axis(score, index, -1)
        if c["norm_topk_prob"]:
            weight = weight / (weight.sum(-1, keepdims=True) + 1e-20)
        return index, weight * c["routed_scaling_factor"]

    def experts(self, p, x):
        index, weight = self.route(p, x)
        out = self.mlp(p + "shared_experts.", x)
        for t in range(len(x)):
            for e, w in zip(index[t], weight[t]):
                out[t] += w * self.mlp(p + f"experts.{e}.", x[t:t + 1])[0]
        return out

    def run(self, ids):                # logits [T, vocab], hidden states [layers + 1, T, hidden]
        c, x = self.c, self.w["model.embed_tokens.weight"][ids]
        states = [x]
        for i in range(c["num_hidden_layers"]):
            p = f"model.layers.{i}."
            attention = self.latent_attention if self.mla else self.grouped_attention
            x = x + attention(p + "self_attn.", self.norm(p + "input_layernorm", x, c["rms_norm_eps"]))
            h = self.norm(p + "post_attention_layernorm", x, c["rms_norm_eps"])
            x = x + (self.experts(p + "mlp.", h) if p + "mlp.gate.weight" in self.w else self.mlp(p + "mlp.", h))
            states.append(x)
        head = "model.embed_tokens" if c["tie_word_embeddings"] else "lm_head"
        return self.linear(head, self.norm("model.norm", x, c["rms_norm_eps"])), np.stack(states)


def make_case(out, name, seed):
    config, tokens, fp8, shards = CASES[name]
    rng = np.random.default_rng(seed)
    weights = make_weights(config, rng, fp8)
    if fp8:
        config = dict(config, quantization_config=dict(activation_scheme="dynamic", fmt="e4m3", quant_method="fp8",
                                                       weight_block_size=[128, 128]))
    save_checkpoint(f"{out}/{name}", config, weights, shards)
    model = Model(config, weights)
    ids = rng.integers(2, config["vocab_size"], tokens)
    ids[0] = 0
    logits, states = model.run(ids)
    greedy = list(ids[:12])
    gap = np.inf
    for _ in range(24):
        row = model.run(np.array(greedy))[0][-1]
        best = np.sort(row)[-2:]
        gap = min(gap, best[1] - best[0])
        greedy.append(int(row.argmax()))
    as_i32, as_f32 = (lambda x: ("I32", np.asarray(x, np.int32))), (lambda x: ("F32", x.astype(np.float32)))
    save(f"{out}/{name}/expected.safetensors", dict(
        input_ids=as_i32(ids), logits=as_f32(logits), hidden_states=as_f32(states), greedy_prompt=as_i32(ids[:12]),
        greedy_ids=as_i32(greedy)))
    print(f"{name}: smallest gap between the best two greedy candidates {gap:.4f}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for position, case in enumerate(CASES):
        if len(sys.argv) == 2 or case in sys.argv[2:]:
            make_case(sys.argv[1], case, 4000 + position)
