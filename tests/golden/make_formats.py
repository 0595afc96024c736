#!/usr/bin/env python3
"""Writes formats.txt: how ml_dtypes and PyTorch store numbers in the formats of fp8.cuh.

    python3 -m venv v && v/bin/pip install numpy ml_dtypes torch && v/bin/python make_formats.py > formats.txt

Each line is SOURCE FORMAT WHAT DATA..., all numbers in hex:
  decode  the FP32 bits of every code, ascending; NaN as 7fc00000
  bf16    the codes of all 65,536 BF16 inputs in order of their bits, as runs START:CODE
  mid     the codes of the inputs around every midpoint of neighbouring finite values >= 0, ascending: the FP32 below the
          midpoint, the midpoint, the FP32 above it; then the same three, negated
  hash    FNV-1a (64 bit) over the codes, as 32-bit words, of all BF16 inputs; for bf16, of them times 1 + 2^-8
Neither library saturates, so inputs are clipped to the largest finite value first (not for bf16 and fp16, which
overflow to infinity). NaN inputs are left out (code ---): libraries differ there.
"""
import sys
import numpy as np
import ml_dtypes
import torch

BF16 = (np.arange(65536, dtype=np.uint32) << 16).view(np.float32)


def bits(x):
    return np.asarray(x, np.float32).view(np.uint32)


def line(*words):
    print(*words)


def table(source, name, decode, encode, ncodes, clip):
    values = decode(np.arange(ncodes, dtype=np.uint32)).astype(np.float32)
    out = bits(values).copy()
    out[np.isnan(values)] = 0x7FC00000
    line(source, name, "decode", *(f"{v:x}" for v in out))
    if encode is None:
        return
    finite = np.unique(np.abs(values[np.isfinite(values)]))

    def cast(x):
        return encode(np.clip(x, -finite[-1], finite[-1]) if clip else x)

    codes = [f"{c:x}" if not np.isnan(x) else "---" for c, x in zip(cast(np.nan_to_num(BF16, nan=0, posinf=np.inf, neginf=-np.inf)), BF16)]
    runs = [f"{i:x}:{c}" for i, c in enumerate(codes) if i == 0 or c != codes[i - 1]]
    line(source, name, "bf16", *runs)
    mid = ((finite[:-1].astype(np.float64) + finite[1:]) / 2).astype(np.float32)
    three = np.stack([np.nextafter(mid, np.float32(0)), mid, np.nextafter(mid, np.float32(np.inf))], 1).ravel()
    line(source, name, "mid", *(f"{c:x}" for c in cast(three)), *(f"{c:x}" for c in cast(-three)))


def fnv(codes):
    h = 0xCBF29CE484222325
    for c in codes:
        for byte in int(c).to_bytes(4, "little"):
            h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def numpy_format(name, dtype, clip=True):
    table("ml_dtypes", name, lambda c: c.astype(np.uint8).view(dtype).astype(np.float32),
          (lambda x: x.astype(dtype).view(np.uint8)) if clip is not None else None,
          {"e2m1": 16, "e2m3": 64, "e3m2": 64}.get(name, 256), clip)


def torch_format(name, dtype, clip=True):
    table("torch", name, lambda c: torch.from_numpy(c.astype(np.uint8)).view(dtype).to(torch.float32).numpy(),
          (lambda x: torch.from_numpy(np.ascontiguousarray(x)).to(dtype).view(torch.uint8).numpy()) if clip is not None else None, 256, clip)


line("#", "ml_dtypes", ml_dtypes.__version__, "torch", torch.__version__, "numpy", np.__version__)
numpy_format("e4m3", ml_dtypes.float8_e4m3fn)
numpy_format("e5m2", ml_dtypes.float8_e5m2)
numpy_format("e4m3fnuz", ml_dtypes.float8_e4m3fnuz)
numpy_format("e5m2fnuz", ml_dtypes.float8_e5m2fnuz)
numpy_format("e3m2", ml_dtypes.float6_e3m2fn)
numpy_format("e2m3", ml_dtypes.float6_e2m3fn)
numpy_format("e2m1", ml_dtypes.float4_e2m1fn)
numpy_format("e8m0", ml_dtypes.float8_e8m0fnu, clip=None)  # rounds to nearest where a scale must round up
torch_format("e4m3", torch.float8_e4m3fn)
torch_format("e5m2", torch.float8_e5m2)
torch_format("e4m3fnuz", torch.float8_e4m3fnuz)
torch_format("e5m2fnuz", torch.float8_e5m2fnuz)
torch_format("e8m0", torch.float8_e8m0fnu, clip=None)
numbers = BF16[~np.isnan(BF16)]
line("torch", "fp16", "hash", fnv(torch.from_numpy(numbers).to(torch.float16).view(torch.int16).numpy().view(np.uint16)))
line("ml_dtypes", "bf16", "hash", fnv((numbers * np.float32(1.0 + 2.0**-8)).astype(ml_dtypes.bfloat16).view(np.uint16)))
