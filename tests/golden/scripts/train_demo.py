#!/usr/bin/env python3
"""Trains a small model of DeepSeek-V3's architecture, as launch/demo was trained, and exports it in the published layout.

    train_demo.py CORPUS OUT SECONDS       needs torch, tokenizers and a GPU; SECONDS of training (the demo: 16)

CORPUS holds two public-domain texts: kjv.txt (King James Bible) and jargon.txt (Jargon File 4.4.7), as plain files.
OUT gets tokenizer.json, config.json, generation_config.json and model.safetensors with FP8 block scales.
"""
import json
import math
import os
import re
import sys
import time

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

DEVICE = "cuda"
BOS, EOS, USER, ASSISTANT = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
CONFIG = dict(
    architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3", vocab_size=4096, hidden_size=256,
    intermediate_size=768, moe_intermediate_size=128, num_hidden_layers=5, num_nextn_predict_layers=1,
    num_attention_heads=16, num_key_value_heads=16, n_shared_experts=1, n_routed_experts=16, routed_scaling_factor=2.5,
    kv_lora_rank=128, q_lora_rank=128, qk_rope_head_dim=32, v_head_dim=32, qk_nope_head_dim=32, topk_method="noaux_tc",
    n_group=4, topk_group=2, num_experts_per_tok=4, moe_layer_freq=1, first_k_dense_replace=1, norm_topk_prob=True,
    scoring_func="sigmoid", hidden_act="silu", max_position_embeddings=4096, rms_norm_eps=1e-6, initializer_range=0.02,
    rope_theta=10000.0, rope_scaling=None, attention_bias=False, attention_dropout=0.0, tie_word_embeddings=False,
    use_cache=True, bos_token_id=0, eos_token_id=1, torch_dtype="bfloat16")
C = type("Config", (), CONFIG)
SEQUENCE, BATCH, PEAK_RATE, MTP_WEIGHT, BIAS_STEP = 512, 64, 4e-3, 0.3, 1e-3


# ---- text and tokenizer ----
def read_documents(folder):
    """Chapters of the one text and entries of the other, shuffled; 2 % are held out."""
    bible = open(f"{folder}/kjv.txt", encoding="utf-8", errors="ignore").read()
    bible = bible[bible.index("\nGenesis 1\n", bible.index("gen1:1-rev22:21")):]
    bible = re.sub(r"(?m)^  (\d+) ", r"\1 ", bible[:bible.rindex("Amen.") + 5])
    jargon = open(f"{folder}/jargon.txt", encoding="utf-8", errors="ignore").read()
    jargon = re.sub(r"(?m)^    ", "", jargon[jargon.index("(TM)"):])
    chapters = re.split(r"(?m)\n(?=[1-3]?\s?[A-Z][A-Za-z ]+ \d+\n\n)", bible)
    entries = re.split(r"\n\n(?=[^\n]{1,40}\n (?:/|[a-z]+\.|//))", jargon)
    documents = [d.strip() for d in chapters + entries if len(d.strip()) > 40]
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(1)).tolist()
    held = max(8, len(documents) // 50)
    return [documents[i] for i in order[held:]], [documents[i] for i in order[:held]]


def train_tokenizer(documents):
    """Byte-level BPE behind DeepSeek-V3's published splits."""
    words = (r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
             r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""")
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in (r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", words)]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits + [byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(documents, trainers.BpeTrainer(
        vocab_size=C.vocab_size, special_tokens=[BOS, EOS, "<｜▁pad▁｜>", USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return tokenizer


def encode(tokenizer, documents):
    batches = tokenizer.encode_batch(documents, add_special_tokens=False)
    return torch.tensor([t for d in batches for t in [C.bos_token_id] + d.ids + [C.eos_token_id]])


# ---- the model; parameter names are the checkpoint's where that is possible ----
class Norm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return F.rms_norm(x.float(), (x.size(-1),), self.weight.float(), 1e-6).to(x.dtype)


def linear(inputs, outputs):
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=0.02 if inputs >= 256 else 0.03)
    return layer


def rope(x, positions):                # [..., T, rope], pairs (2i, 2i + 1)
    dim = C.qk_rope_head_dim
    frequency = C.rope_theta ** (-torch.arange(0, dim, 2, device=x.device).float() / dim)
    angle = positions.float()[:, None] * frequency
    cos, sin, wide = angle.cos(), angle.sin(), x.float()
    even, odd = wide[..., 0::2], wide[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        heads = C.num_attention_heads
        self.q_a_proj, self.q_a_layernorm = linear(C.hidden_size, C.q_lora_rank), Norm(C.q_lora_rank)
        self.q_b_proj = linear(C.q_lora_rank, heads * (C.qk_nope_head_dim + C.qk_rope_head_dim))
        self.kv_a_proj_with_mqa = linear(C.hidden_size, C.kv_lora_rank + C.qk_rope_head_dim)
        self.kv_a_layernorm = Norm(C.kv_lora_rank)
        self.kv_b_proj = linear(C.kv_lora_rank, heads * (C.qk_nope_head_dim + C.v_head_dim))
        self.o_proj = linear(heads * C.v_head_dim, C.hidden_size)

    def forward(self, x, positions):
        batch, tokens, _ = x.shape
        heads, nope, rotary, value = C.num_attention_heads, C.qk_nope_head_dim, C.qk_rope_head_dim, C.v_head_dim
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q_nope, q_rope = q.view(batch, tokens, heads, nope + rotary).transpose(1, 2).split([nope, rotary], -1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([C.kv_lora_rank, rotary], -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(batch, tokens, heads, nope + value).transpose(1, 2)
        k_nope, v = kv.split([nope, value], -1)
        q = torch.cat([q_nope, rope(q_rope, positions)], -1)
        k = torch.cat([k_nope, rope(k_rope, positions)[:, None].expand(batch, heads, tokens, rotary)], -1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=(nope + rotary) ** -0.5)
        return self.o_proj(out.transpose(1, 2).reshape(batch, tokens, heads * value))


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gate_proj, self.up_proj = linear(C.hidden_size, width), linear(C.hidden_size, width)
        self.down_proj = linear(width, C.hidden_size)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """All experts computed for all tokens and weighted by 0 where not chosen: simple, and fast enough at this size."""

    def __init__(self):
        super().__init__()
        width = C.n_routed_experts * C.moe_intermediate_size
        self.gate = nn.Parameter(torch.randn(C.n_routed_experts, C.hidden_size) * 0.02)
        self.register_buffer("bias", torch.zeros(C.n_routed_experts))
        self.all_gate, self.all_up = linear(C.hidden_size, width), linear(C.hidden_size, width)
        self.all_down = linear(width, C.hidden_size)
        self.shared_experts = Mlp(C.moe_intermediate_size * C.n_shared_experts)
        self.load = None

    def forward(self, x):
        group = C.n_routed_experts // C.n_group
        score = torch.sigmoid(F.linear(x.float(), self.gate.float()))
        biased = score.detach() + self.bias
        group_score = biased.view(*biased.shape[:-1], C.n_group, group).topk(2, -1).values.sum(-1)
        kept = torch.zeros_like(group_score).scatter_(-1, group_score.topk(C.topk_group, -1).indices, 1.0)
        biased = biased.masked_fill(kept.repeat_interleave(group, -1) == 0, float("-inf"))
        chosen = torch.zeros_like(score).scatter_(-1, biased.topk(C.num_experts_per_tok, -1).indices, 1.0)
        weight = score * chosen
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-20) * C.routed_scaling_factor
        self.load = chosen.flatten(0, -2).sum(0).detach()
        hidden = F.silu(self.all_gate(x)) * self.all_up(x)
        hidden = hidden * weight.to(hidden.dtype).repeat_interleave(C.moe_intermediate_size, -1)
        return self.all_down(hidden) + self.shared_experts(x)


class Layer(nn.Module):
    def __init__(self, routed):
        super().__init__()
        self.self_attn, self.mlp = Attention(), Experts() if routed else Mlp(C.intermediate_size)
        self.input_layernorm, self.post_attention_layernorm = Norm(C.hidden_size), Norm(C.hidden_size)

    def forward(self, x, positions):
        x = x + self.self_attn(self.input_layernorm(x), positions)
        return x + self.mlp(self.post_attention_layernorm(x))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(C.vocab_size, C.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList([Layer(i >= C.first_k_dense_replace) for i in range(C.num_hidden_layers)])
        self.norm, self.lm_head = Norm(C.hidden_size), linear(C.hidden_size, C.vocab_size)
        self.mtp, self.mtp_norm = Layer(True), Norm(C.hidden_size)
        self.enorm, self.hnorm = Norm(C.hidden_size), Norm(C.hidden_size)
        self.eh_proj = linear(2 * C.hidden_size, C.hidden_size)

    def forward(self, ids):            # logits of the next token, and of the one after it
        x, positions = self.embed_tokens(ids), torch.arange(ids.size(1), device=ids.device)
        for layer in self.layers:
            x = layer(x, positions)
        h = self.norm(x)
        pair = torch.cat([self.enorm(self.embed_tokens(ids[:, 1:])), self.hnorm(h[:, :-1])], -1)
        draft = self.mtp(self.eh_proj(pair), positions[1:])
        return self.lm_head(h), self.lm_head(self.mtp_norm(draft))

    def routed(self):
        return [layer.mlp for layer in list(self.layers)[C.first_k_dense_replace:]] + [self.mtp.mlp]


# ---- training ----
def losses(model, ids):
    with torch.autocast(DEVICE, torch.bfloat16):
        main, draft = model(ids[:, :-1])
    return (F.cross_entropy(main.float().flatten(0, 1), ids[:, 1:].flatten()),
            F.cross_entropy(draft.float().flatten(0, 1), ids[:, 2:].flatten()))


def train(model, data, seconds):
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([dict(params=matrices, weight_decay=0.1), dict(params=vectors, weight_decay=0.0)],
                                  betas=(0.9, 0.95), fused=True)
    compiled, offsets = torch.compile(losses), torch.arange(SEQUENCE + 1, device=DEVICE)
    begin, step = time.time(), 0
    while (done := (time.time() - begin) / seconds) < 1:
        rate = PEAK_RATE * min(1, (step + 1) / 100) * (0.475 * (1 + math.cos(math.pi * done)) + 0.05)
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(0, len(data) - SEQUENCE - 1, (BATCH,), device=DEVICE)
        main, draft = compiled(model, data[starts[:, None] + offsets])
        (main + MTP_WEIGHT * draft).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():          # auxiliary-loss-free balance (DeepSeek-V3 report, section 2.1.2)
            for experts in model.routed():
                experts.bias += BIAS_STEP * torch.sign(experts.load.mean() - experts.load)
        step += 1
        if step % 200 == 0:
            print(f"step {step}: loss {main.item():.3f}, draft {draft.item():.3f}", flush=True)


# ---- export ----
def layer_tensors(prefix, layer):
    tensors = {prefix + name: p for name, p in layer.named_parameters() if not name.startswith("mlp.")}
    if isinstance(layer.mlp, Mlp):
        return tensors | {prefix + "mlp." + name: p for name, p in layer.mlp.named_parameters()}
    mlp, width = layer.mlp, C.moe_intermediate_size
    tensors[prefix + "mlp.gate.weight"] = mlp.gate
    tensors[prefix + "mlp.gate.e_score_correction_bias"] = mlp.bias.float()
    for e in range(C.n_routed_experts):
        rows, p = slice(e * width, (e + 1) * width), f"{prefix}mlp.experts.{e}."
        tensors[p + "gate_proj.weight"], tensors[p + "up_proj.weight"] = mlp.all_gate.weight[rows], mlp.all_up.weight[rows]
        tensors[p + "down_proj.weight"] = mlp.all_down.weight[:, rows]
    return tensors | {prefix + "mlp.shared_experts." + n: p for n, p in mlp.shared_experts.named_parameters()}


def checkpoint_tensors(model):
    tensors = {"model.embed_tokens.weight": model.embed_tokens.weight, "model.norm.weight": model.norm.weight,
               "lm_head.weight": model.lm_head.weight}
    for i, layer in enumerate(list(model.layers) + [model.mtp]):
        tensors |= layer_tensors(f"model.layers.{i}.", layer)
    p = f"model.layers.{C.num_hidden_layers}."
    return tensors | {p + "enorm.weight": model.enorm.weight, p + "hnorm.weight": model.hnorm.weight,
                      p + "eh_proj.weight": model.eh_proj.weight, p + "shared_head.norm.weight": model.mtp_norm.weight}


def quantise(weight):                  # 128 x 128 blocks, ragged at the edges
    rows, cols = weight.shape
    padded = F.pad(weight.float(), (0, -cols % 128, 0, -rows % 128))
    blocks = padded.view(padded.size(0) // 128, 128, padded.size(1) // 128, 128)
    scale = (blocks.abs().amax((1, 3)) / 448.0).clamp_min(1e-12)
    codes = (blocks / scale[:, None, :, None]).reshape(padded.shape)[:rows, :cols].to(torch.float8_e4m3fn)
    return codes.contiguous(), scale


def export(model, tokenizer, out):
    from safetensors.torch import save_file
    stored = {}
    for name, tensor in checkpoint_tensors(model).items():
        tensor = tensor.detach().cpu()
        if name.endswith("_proj.weight") and "eh_proj" not in name or name.endswith("_with_mqa.weight"):
            stored[name], stored[name[:-len("weight")] + "weight_scale_inv"] = quantise(tensor.to(torch.bfloat16))
        else:
            stored[name] = tensor.contiguous() if name.endswith("bias") else tensor.to(torch.bfloat16).contiguous()
    save_file(stored, f"{out}/model.safetensors", metadata={"format": "pt"})
    fp8 = dict(activation_scheme="dynamic", fmt="e4m3", quant_method="fp8", weight_block_size=[128, 128])
    json.dump(dict(CONFIG, quantization_config=fp8), open(f"{out}/config.json", "w"), indent=2)
    json.dump(dict(bos_token_id=0, eos_token_id=1, do_sample=True, temperature=0.6, top_p=0.95),
              open(f"{out}/generation_config.json", "w"), indent=2)
    tokenizer.save(f"{out}/tokenizer.json")


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    corpus, out, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    os.makedirs(out, exist_ok=True)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    train_documents, held_documents = read_documents(corpus)
    tokenizer = train_tokenizer(train_documents)
    model = Model().to(DEVICE)
    train(model, encode(tokenizer, train_documents).to(DEVICE), seconds)
    held = encode(tokenizer, held_documents).to(DEVICE)
    with torch.no_grad():
        windows = [losses(model, held[i * SEQUENCE:(i + 1) * SEQUENCE + 1][None]) for i in range(min(24, len(held) // SEQUENCE - 1))]
    print(f"held-out loss {sum(w[0].item() for w in windows) / len(windows):.3f}")
    export(model, tokenizer, out)


if __name__ == "__main__":
    main()
