#!/usr/bin/env python3
"""Writes tests/golden/gpt2/<case>/: what PyTorch says about three small GPT-2s. Run it only to change the cases:

    pip install torch numpy safetensors transformers && python3 tests/golden/make_gpt2.py

The model below is GPT-2 in plain PyTorch; where transformers is installed, its logits and gradients are compared with
GPT2LMHeadModel first. Weights are random but not small (sigma about 1/sqrt(fan in), LayerNorms far from 1 and 0), so
that no gradient is too faint to compare. One gradient is faint in every GPT-2: softmax ignores a constant added to a
row, so the key bias, the middle third of attn.c_attn.bias, has gradient 0 and a computation leaves only rounding there.

Per case:
  config.json, model.safetensors  Hugging Face layout, Conv1D weights as [in, out]. `square` has bare names as in
                     OpenAI's release, `odd` the prefix transformer. and a tied lm_head.weight, `deep` mask buffers
  tokens.bin         llm.c shard: 256 int32 (20240520, 1, count), then uint16
  summary.csv        one row: shapes; eval_loss, mean NLL over floor((n-1)/T) windows; batch_loss, of windows 0..B-1
  grads.safetensors  gradients of the batch loss before clipping, unprefixed names, [in, out]; computed in float64
  logits.safetensors logits (T, V) of window 0, computed in float64
  trace.csv          30 steps of AdamW; batch i = windows i*B..i*B+B-1 modulo their number; norm is before clipping
  trace-accum2.csv   the same with two microbatches a step, loss and gradients averaged over them
*_64 columns: the same in float64; the distance to the float32 column is what rounding does to PyTorch itself.
"""
import json, math, pathlib, struct
import numpy as np, torch
import torch.nn.functional as F
from safetensors.torch import save_file

LR, BETAS, EPS, DECAY, CLIP, STEPS = 1e-3, (0.9, 0.95), 1e-8, 0.1, 1.0, 30

# `deep` has T < positions (windows shorter than the checkpoint's) and a small gain (its norm goes below CLIP too).
CASES = {
    "square": dict(layers=2, heads=3, channels=48, positions=24, vocab=317, T=24, B=4, windows=13, seed=1),
    "odd":    dict(layers=1, heads=5, channels=35, positions=17, vocab=61,  T=17, B=3, windows=10, seed=2),
    "deep":   dict(layers=3, heads=2, channels=20, positions=12, vocab=131, T=9,  B=5, windows=8,  seed=3, gain=0.4),
}


def make_weights(layers, channels, positions, vocab, seed, gain=1.0, **_):
    g = torch.Generator().manual_seed(seed)
    C, P = channels, {}
    def normal(name, *shape, sigma, mean=0.0):
        P[name] = (mean + sigma * torch.randn(*shape, generator=g, dtype=torch.float64)).float()
    def norm(name):
        normal(name + ".weight", C, sigma=0.25, mean=1.0)
        normal(name + ".bias", C, sigma=0.15)
    def conv(name, n_in, n_out):
        normal(name + ".weight", n_in, n_out, sigma=gain / math.sqrt(n_in))
        normal(name + ".bias", n_out, sigma=0.1)
    normal("wte.weight", vocab, C, sigma=gain / math.sqrt(C))
    normal("wpe.weight", positions, C, sigma=0.1)
    for l in range(layers):
        norm(f"h.{l}.ln_1")
        conv(f"h.{l}.attn.c_attn", C, 3 * C)
        conv(f"h.{l}.attn.c_proj", C, C)
        norm(f"h.{l}.ln_2")
        conv(f"h.{l}.mlp.c_fc", C, 4 * C)
        conv(f"h.{l}.mlp.c_proj", 4 * C, C)
    norm("ln_f")
    return P


def make_tokens(vocab, T, windows, seed, **_):
    """Skewed, so that tokens repeat and some never appear; half follow from the one before; 0 and vocab-1 occur."""
    rng = np.random.default_rng(seed)
    n = windows * T + 1 + T // 2  # an incomplete window at the end, to be left out
    t = (vocab * rng.random(n) ** 2.5).astype(np.int64)
    for i in range(1, n):
        if rng.random() < 0.5:
            t[i] = (7 * t[i - 1] + 3) % vocab
    t[0], t[T] = 0, vocab - 1
    return t


def forward(P, idx, heads):
    """idx (B, T) -> logits (B, T, V)"""
    B, T = idx.shape
    C = P["wte.weight"].shape[1]
    norm = lambda x, name: F.layer_norm(x, (C,), P[name + ".weight"], P[name + ".bias"], 1e-5)
    conv = lambda x, name: x @ P[name + ".weight"] + P[name + ".bias"]
    split = lambda x: x.view(B, T, heads, C // heads).transpose(1, 2)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    x = P["wte.weight"][idx] + P["wpe.weight"][:T]
    l = 0
    while f"h.{l}.ln_1.weight" in P:
        q, k, v = map(split, conv(norm(x, f"h.{l}.ln_1"), f"h.{l}.attn.c_attn").split(C, dim=2))
        att = (q @ k.transpose(2, 3) / math.sqrt(C // heads)).masked_fill(future, -math.inf).softmax(3)
        x = x + conv((att @ v).transpose(1, 2).reshape(B, T, C), f"h.{l}.attn.c_proj")
        x = x + conv(F.gelu(conv(norm(x, f"h.{l}.ln_2"), f"h.{l}.mlp.c_fc"), approximate="tanh"), f"h.{l}.mlp.c_proj")
        l += 1
    return norm(x, "ln_f") @ P["wte.weight"].T


def loss_of(P, idx, targets, heads):
    logits = forward(P, idx, heads)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def leaves(P, dtype):
    return {k: v.to(dtype).clone().requires_grad_(True) for k, v in P.items()}


def batch(tokens, i, B, T):
    """windows i*B..i*B+B-1, wrapping; window w predicts tokens wT+1..wT+T from wT..wT+T-1"""
    n = (len(tokens) - 1) // T
    rows = [tokens[w * T : w * T + T + 1] for w in ((i * B + b) % n for b in range(B))]
    rows = torch.from_numpy(np.stack(rows).astype(np.int64))
    return rows[:, :-1], rows[:, 1:]


def evaluate(P, tokens, T, heads, dtype):
    n = (len(tokens) - 1) // T
    with torch.no_grad():
        Q = {k: v.to(dtype) for k, v in P.items()}
        return sum(loss_of(Q, *batch(tokens, w, 1, T), heads).double().item() for w in range(n)) / n


def train(P, tokens, B, T, heads, dtype, steps=STEPS, accum=1, lr=LR):
    """[(loss, norm before clipping)] as PyTorch's AdamW and clip_grad_norm_ have it"""
    P = leaves(P, dtype)
    opt = torch.optim.AdamW([dict(params=[p for p in P.values() if p.dim() >= 2], weight_decay=DECAY),
                             dict(params=[p for p in P.values() if p.dim() < 2], weight_decay=0.0)],
                            lr=lr, betas=BETAS, eps=EPS)
    rows = []
    for step in range(steps):
        opt.zero_grad()
        total = 0.0
        for m in range(accum):
            loss = loss_of(P, *batch(tokens, step * accum + m, B, T), heads)
            (loss / accum).backward()
            total += loss.item() / accum
        rows.append((total, torch.nn.utils.clip_grad_norm_(P.values(), CLIP).item()))
        opt.step()
    return rows


def hf_config(layers, heads, channels, positions, vocab, **_):
    return dict(architectures=["GPT2LMHeadModel"], model_type="gpt2", activation_function="gelu_new", n_layer=layers,
                n_head=heads, n_embd=channels, n_positions=positions, n_ctx=positions, vocab_size=vocab,
                layer_norm_epsilon=1e-5, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, tie_word_embeddings=True,
                bos_token_id=None, eos_token_id=None, task_specific_params={"text-generation": {"max_length": 50}})


def write_checkpoint(path, P, config, prefix="", masks=False, lm_head=False):
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    out = {prefix + k: v.contiguous() for k, v in P.items()}
    if masks:
        n = config["n_positions"]
        out |= {f"{prefix}h.{l}.attn.bias": torch.ones(n, n).tril().view(1, 1, n, n) for l in range(config["n_layer"])}
    if lm_head:
        out["lm_head.weight"] = P["wte.weight"].clone()
    save_file(out, path / "model.safetensors", metadata={"format": "pt"})


def write_tokens(path, tokens, wide=False):
    magic, version, kind = (20240801, 7, "<u4") if wide else (20240520, 1, "<u2")
    path.write_bytes(struct.pack("<256i", magic, version, len(tokens), *[0] * 253) + tokens.astype(kind).tobytes())


def compare_with_transformers(P, config, idx, targets):
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        return "transformers is not installed: not compared"
    hf = GPT2LMHeadModel(GPT2Config(**config)).double().eval()
    left = hf.load_state_dict({"transformer." + k: v.double() for k, v in P.items()}, strict=False)
    assert not left.unexpected_keys and set(left.missing_keys) <= {"lm_head.weight"}, left
    hf.tie_weights()
    Q = leaves(P, torch.float64)
    logits = hf(idx).logits
    F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    loss_of(Q, idx, targets, config["n_head"]).backward()
    worst = (logits - forward(Q, idx, config["n_head"])).abs().max().item()
    grads = dict(hf.transformer.named_parameters())
    assert grads.keys() == Q.keys()
    worst_grad = max((grads[k].grad - Q[k].grad).abs().max().item() for k in Q)
    assert worst < 1e-10 and worst_grad < 1e-10, (worst, worst_grad)
    return f"equals transformers: logits to {worst:.1e}, gradients to {worst_grad:.1e}"


def table(path, columns, rows):
    lines = [columns] + [",".join(str(v) if isinstance(v, int) else f"{v:.9g}" for v in row) for row in rows]
    path.write_text("\n".join(lines) + "\n")


def main():
    torch.set_num_threads(1)
    f32, f64 = torch.float32, torch.float64
    for name, c in CASES.items():
        out = pathlib.Path(__file__).parent / "gpt2" / name
        P, tokens, B, T, heads = make_weights(**c), make_tokens(**c), c["B"], c["T"], c["heads"]
        write_checkpoint(out, P, hf_config(**c), prefix="transformer." if name == "odd" else "",
                         masks=name == "deep", lm_head=name == "odd")
        write_tokens(out / "tokens.bin", tokens)
        idx, targets = batch(tokens, 0, B, T)
        Q, R = leaves(P, f64), leaves(P, f32)
        loss64, loss32 = loss_of(Q, idx, targets, heads), loss_of(R, idx, targets, heads)
        loss64.backward(), loss32.backward()
        save_file({k: v.grad.float() for k, v in Q.items()}, out / "grads.safetensors")
        save_file({"logits": forward(Q, idx[:1], heads)[0].detach().float().contiguous()}, out / "logits.safetensors")
        evals = evaluate(P, tokens, T, heads, f32), evaluate(P, tokens, T, heads, f64)
        shape = [c[k] for k in ("layers", "heads", "channels", "positions", "vocab", "T", "B", "windows")]
        table(out / "summary.csv", "layers,heads,channels,positions,vocab,T,B,windows,"
              "eval_loss,eval_loss_64,batch_loss,batch_loss_64", [(*shape, *evals, loss32.item(), loss64.item())])

        print(f"{name}: {compare_with_transformers(P, hf_config(**c), idx, targets)}")
        rel = {k: ((R[k].grad.double() - Q[k].grad).norm() / Q[k].grad.norm()).item() for k in Q}
        worst = max(rel, key=rel.get)
        print(f"  float32 against float64: eval {abs(evals[0] / evals[1] - 1):.1e} relative,"
              f" gradients |d|/|g| <= {rel[worst]:.1e} ({worst})")
        for file, accum in (("trace.csv", 1), ("trace-accum2.csv", 2)):
            a, b = (train(P, tokens, B, T, heads, d, accum=accum) for d in (f32, f64))
            table(out / file, "step,loss,norm,loss_64,norm_64", [(i + 1, *x, *y) for i, (x, y) in enumerate(zip(a, b))])
            norms = [y[1] for y in b]
            print(f"  {file}: loss {b[0][0]:.4f} -> {b[-1][0]:.4f}, norm {min(norms):.3f} to {max(norms):.3f};"
                  f" float32 - float64: loss {max(abs(x[0] - y[0]) for x, y in zip(a, b)):.1e} nats,"
                  f" norm {max(abs(x[1] / y[1] - 1) for x, y in zip(a, b)):.1e} relative")


if __name__ == "__main__":
    main()
