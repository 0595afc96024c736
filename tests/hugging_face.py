#!/usr/bin/env python3
"""Both ways between this program and Hugging Face's transformers; not part of `make test`, which needs no Python.

    pip install torch numpy transformers safetensors && make ACT=float
    python3 tests/hugging_face.py CKPT DATA [./train-f32]     # CKPT: step-NNNNNN of a run; DATA: a text file

1. transformers loads CKPT, and its loss on DATA is that of `./train-f32 eval CKPT --data DATA`.
2. A GPT-2 that transformers made and saved (random weights, more heads and layers, other sizes) is evaluated by
   `./train-f32 eval`, which finds the loss that transformers finds.
Losses are in nats per token over floor((n-1)/T) windows of T tokens, and must agree to 1e-4: both compute in FP32, in
which a mean of ten thousand terms of size 5 is good to about 1e-6; a wrong GELU, LayerNorm epsilon or transposition
costs 1e-3 and more.
"""
import re, subprocess, sys, tempfile
import numpy as np, torch
from transformers import GPT2Config, GPT2LMHeadModel

BOUND = 1e-4


def ours(program, ckpt, data):
    out = subprocess.run([program, "eval", ckpt, "--data", data, "--quiet"], capture_output=True, text=True, check=True)
    return float(re.search(r"loss=(\S+)", out.stdout)[1])


def theirs(model, data):
    tokens, T = np.fromfile(data, dtype=np.uint8).astype(np.int64), model.config.n_positions
    windows, total = (len(tokens) - 1) // T, 0.0
    with torch.no_grad():
        for i in range(0, windows, 16):
            n = min(16, windows - i)
            x = np.stack([tokens[j * T:(j + 1) * T] for j in range(i, i + n)])
            y = np.stack([tokens[j * T + 1:(j + 1) * T + 1] for j in range(i, i + n)])
            logits = model(torch.from_numpy(x)).logits
            total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(y).flatten()).item() * n
    return total / windows


def check(what, a, b):
    print(f"{what}: transformers {a:.7f}, ours {b:.7f}, difference {abs(a - b):.1e}")
    return abs(a - b) <= BOUND


def main(ckpt, data, program="./train-f32"):
    model = GPT2LMHeadModel.from_pretrained(ckpt, dtype=torch.float32).eval()
    ok = check("our checkpoint", theirs(model, data), ours(program, ckpt, data))
    torch.manual_seed(1)
    config = GPT2Config(n_layer=3, n_head=6, n_embd=96, n_positions=80, vocab_size=256, bos_token_id=0, eos_token_id=0,
                        initializer_range=0.1)
    model = GPT2LMHeadModel(config).eval()
    with tempfile.TemporaryDirectory() as d:
        model.save_pretrained(d)
        ok &= check("a checkpoint of transformers'", theirs(model, data), ours(program, d, data))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) > 2 else __doc__)
