#!/usr/bin/env python3
"""What an export must hold and what it must lose, by fake quantization in NumPy. Written from docs/export.md and the
papers it names, not from the C++: elements are rounded by ml_dtypes, scales computed in FP32 in the order that decides
ties; the forward pass is textbook float64.

    pip install numpy ml_dtypes
    python3 tests/golden/make_export.py                        # writes tests/golden/export.txt
    python3 tests/golden/make_export.py CKPT EXPORT DATA LOSS  # checks an export of CKPT, whose ./train-f32 eval is LOSS

The first form writes a line per checkpoint of tests/golden/gpt2 and format: `CHECKPOINT FORMAT LOSS HASH`, the loss on
the checkpoint's tokens with the fake-quantized weights, and FNV-1a of the names and bytes of all tensors of codes and
scales, in the order of their names. Losses of ./train-f32 eval agree to 1e-5 relative: that program's distance from float64 on
these models is below 1e-6 (tests/f32_model.cpp says where that comes from), and the weights are the same to the bit.

The second form decodes EXPORT with nothing but its header, compares every weight with the fake-quantized one, to the
bit, and the loss with LOSS.
"""
import json, pathlib, struct, sys
import ml_dtypes, numpy as np

f32, u32 = np.float32, np.uint32
FLT_MAX = np.finfo(f32).max
HERE = pathlib.Path(__file__).parent
np.seterr(over="ignore", divide="ignore", invalid="ignore")

BF16 = lambda x: x.astype(ml_dtypes.bfloat16)
ELEMENTS = {  # name: dtype in safetensors, ml_dtypes, max, bits
    "e4m3": ("F8_E4M3", ml_dtypes.float8_e4m3fn, 448, 8), "e5m2": ("F8_E5M2", ml_dtypes.float8_e5m2, 57344, 8),
    "e2m3": ("F6_E2M3", ml_dtypes.float6_e2m3fn, 7.5, 6), "e2m1": ("F4", ml_dtypes.float4_e2m1fn, 6, 4)}
FORMATS = {  # element, scaling, rows of a block
    "bf16": None, "e4m3": ("e4m3", "tensor", 0), "mxfp8": ("e4m3", "mx", 1), "mxfp6": ("e2m3", "mx", 1),
    "mxfp4": ("e2m1", "mx", 1), "nvfp4": ("e2m1", "nvfp4", 16), "nvfp4:w.block=1x16": ("e2m1", "nvfp4", 1),
    "blockwise": ("e4m3", "blockwise", 128), "mxfp8:w.format=e5m2": ("e5m2", "mx", 1)}


# --- safetensors -----------------------------------------------------------------------------------------------------
def bits_of(raw, bits, n):
    """n codes of `bits` bits, a stream with the lowest bit first"""
    if bits == 8:
        return raw
    stream = np.unpackbits(raw, bitorder="little")[: n * bits].reshape(n, bits)
    return (stream << np.arange(bits, dtype=np.uint8)).sum(1).astype(np.uint8)


def read(path):
    """{name: (dtype, shape, bytes)}"""
    path = pathlib.Path(path)
    data = (path / "model.safetensors" if path.is_dir() else path).read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + n])
    header.pop("__metadata__", None)
    return {k: (t["dtype"], t["shape"], np.frombuffer(data[8 + n :], np.uint8)[slice(*t["data_offsets"])])
            for k, t in header.items()}


def values(tensor):
    """float64"""
    dtype, shape, raw = tensor
    kinds = {"F32": f32, "BF16": ml_dtypes.bfloat16, "F8_E8M0": ml_dtypes.float8_e8m0fnu}
    if dtype in kinds:
        return raw.view(kinds[dtype]).astype(np.float64).reshape(shape)
    kind, bits = next((e[1], e[3]) for e in ELEMENTS.values() if e[0] == dtype)
    return bits_of(raw, bits, int(np.prod(shape))).view(kind).astype(np.float64).reshape(shape)


# --- fake quantization -----------------------------------------------------------------------------------------------
def tiles(w, rows, cols):
    """amax of each block, spread over the elements again; and by block of columns, a row each"""
    R, C = w.shape
    padded = np.zeros((-(-R // rows) * rows, -(-C // cols) * cols), f32)
    padded[:R, :C] = np.abs(w)
    amax = padded.reshape(padded.shape[0] // rows, rows, -1, cols).max((1, 3))
    return amax, lambda per_block: np.repeat(np.repeat(per_block, rows, 0), cols, 1)[:R, :C]


def nearest(y, element):
    _, kind, most, _ = ELEMENTS[element]
    return np.clip(y, -f32(most), f32(most)).astype(kind)


def pack(codes, bits):
    return codes.reshape(-1) if bits == 8 else np.packbits(
        (codes.reshape(-1, 1) >> np.arange(bits, dtype=np.uint8) & 1).astype(np.uint8).reshape(-1), bitorder="little")


def quantize(name, w, fmt):
    """w (OC, C) in BF16 -> {tensor name: (dtype, shape, bytes)}, the values they stand for (float64)"""
    element, scaling, rows = FORMATS[fmt]
    dtype, _, most, bits = ELEMENTS[element]
    w = BF16(w).astype(f32)
    out = {}
    if scaling == "tensor":
        scale = f32(most) / np.abs(w).max()
        q = nearest(w * scale, element)
        inverse = f32(1) / scale
        out[name + "_scale"] = ("F32", [], inverse)
        decoded = np.float64(inverse)
    elif scaling == "mx":
        amax, spread = tiles(w, 1, 32)
        v = (amax * (f32(1) / f32(most))).view(u32)
        byte = np.where(v > 0x00800000, (v >> 23) + (v & 0x7FFFFF != 0), np.where(v > 0x00400000, 1, 0)).astype(np.uint8)
        q = nearest(w * spread(np.ldexp(f32(1), 127 - byte.astype(int))), element)
        out[name + "_scale"] = ("F8_E8M0", list(byte.shape), byte)
        decoded = spread(np.ldexp(1.0, byte.astype(int) - 127))
    elif scaling == "blockwise":
        amax, spread = tiles(w, rows, 128)
        scale = ((f32(most) / amax).view(u32) & u32(0x7F800000)).view(f32)
        q = nearest(w * spread(scale), element)
        out[name + "_scale"] = ("F32", list(scale.shape), f32(1) / scale)
        decoded = spread((f32(1) / scale).astype(np.float64))
    else:
        amax, spread = tiles(w, rows, 16)
        encode = f32(2688) / amax.max()
        s = nearest(amax * (encode * (f32(1) / f32(6))), "e4m3")
        m = np.minimum(f32(1) / (s.astype(f32) * (f32(1) / encode)), FLT_MAX)
        q = nearest(w * spread(m), element)
        each = np.repeat(s, rows, 0)[: w.shape[0]]
        scale_2 = amax.max() * (f32(1) / f32(2688))
        out[name + "_scale"] = ("F8_E4M3", list(each.shape), each)
        out[name + "_scale_2"] = ("F32", [], scale_2)
        decoded = spread(s.astype(np.float64)) * np.float64(scale_2)
    out = {k: (d, s, np.frombuffer(np.ascontiguousarray(v).tobytes(), np.uint8)) for k, (d, s, v) in out.items()}
    out[name] = (dtype, list(w.shape), pack(q.view(np.uint8), bits))
    return out, q.astype(np.float64) * decoded


def is_linear(name):
    return name.startswith("h.") and (".attn.c_" in name or ".mlp.c_" in name) and name.endswith(".weight")


def fake(checkpoint, fmt, only=is_linear):
    """FP32 parameters -> the tensors of codes and scales, and all parameters in float64, linears as (OC, C)"""
    tensors, params = {}, {}
    for name, w in checkpoint.items():
        w = w.T if is_linear(name) else w
        if FORMATS[fmt] and only(name):
            codes, params[name] = quantize(name, w.astype(f32), fmt)
            tensors |= codes
        else:
            params[name] = BF16(w.astype(f32)).astype(np.float64) if w.ndim == 2 else w
    return tensors, params


# --- GPT-2 -----------------------------------------------------------------------------------------------------------
def loss_of(P, tokens, T, heads):
    """mean over the windows, float64; linears are (OC, C)"""
    windows = (len(tokens) - 1) // T
    rows = np.stack([tokens[w * T : w * T + T + 1] for w in range(windows)]).astype(np.int64)
    idx, targets = rows[:, :-1], rows[:, 1:]
    C = P["wte.weight"].shape[1]

    def norm(x, at):
        m = x.mean(-1, keepdims=True)
        return (x - m) / np.sqrt(((x - m) ** 2).mean(-1, keepdims=True) + 1e-5) * P[at + ".weight"] + P[at + ".bias"]

    linear = lambda x, at: x @ P[at + ".weight"].T + P[at + ".bias"]
    softmax = lambda s: np.exp(s - s.max(-1, keepdims=True)) / np.exp(s - s.max(-1, keepdims=True)).sum(-1, keepdims=True)
    split = lambda x: x.reshape(windows, T, heads, C // heads).transpose(0, 2, 1, 3)
    x = P["wte.weight"][idx] + P["wpe.weight"][:T]
    for l in range(sum(k.endswith("ln_1.weight") for k in P)):
        h = f"h.{l}"
        q, k, v = (split(a) for a in np.split(linear(norm(x, h + ".ln_1"), h + ".attn.c_attn"), 3, -1))
        s = q @ k.transpose(0, 1, 3, 2) / np.sqrt(C // heads) + np.triu(np.full((T, T), -np.inf), 1)
        x = x + linear((softmax(s) @ v).transpose(0, 2, 1, 3).reshape(windows, T, C), h + ".attn.c_proj")
        u = linear(norm(x, h + ".ln_2"), h + ".mlp.c_fc")
        x = x + linear(0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3))), h + ".mlp.c_proj")
    logits = norm(x, "ln_f") @ P.get("lm_head.weight", P["wte.weight"]).T
    logits -= logits.max(-1, keepdims=True)
    picked = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return (np.log(np.exp(logits).sum(-1)) - picked).mean()


def checkpoint_of(path):
    P = {k.removeprefix("transformer."): values(t) for k, t in read(path).items()}
    return {k: v for k, v in P.items() if k != "lm_head.weight" and not k.endswith(".attn.bias") or "c_attn" in k}


def tokens_of(path):
    raw = pathlib.Path(path).read_bytes()
    return np.frombuffer(raw[1024:], "<u2") if path.endswith(".bin") else np.frombuffer(raw, np.uint8)


def fnv(tensors):
    h = 0xCBF29CE484222325
    for byte in b"".join(k.encode() + t[2].tobytes() for k, t in sorted(tensors.items())):
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def config_of(path):
    return json.loads((pathlib.Path(path) / "config.json").read_text())


def write_golden():
    lines = []
    for name in ("square", "odd", "deep"):
        path = HERE / "gpt2" / name
        P, config = checkpoint_of(path), config_of(path)
        T = int((path / "summary.csv").read_text().split("\n")[1].split(",")[5])
        for fmt, how in FORMATS.items():
            if how and P["wte.weight"].shape[1] * ELEMENTS[how[0]][3] % 8:
                continue  # codes that do not end with a byte
            tensors, params = fake(P, fmt)
            loss = loss_of(params, tokens_of(str(path / "tokens.bin")), T, config["n_head"])
            lines.append(f"{name} {fmt} {loss:.9g} {fnv(tensors)}")
    (HERE / "export.txt").write_text("\n".join(lines) + "\n")


def check(ckpt, export, data, loss):
    config, found = config_of(export), read(export)
    fmt = config.get("quantization_config", {"format": "bf16"})["format"]
    cast = {k.removesuffix("_scale") for k in found if k.endswith(".weight_scale")}
    P = checkpoint_of(ckpt)
    if "lm_head.weight" in cast:
        P["lm_head.weight"] = P["wte.weight"]
    tensors, params = fake(P, fmt, lambda name: name in cast)
    decoded = {}
    for name in params:
        w = values(found[name])
        if name in cast:
            s, s2 = values(found[name + "_scale"]), 1.0
            if name + "_scale_2" in found:
                s2 = values(found[name + "_scale_2"])
            rows, cols = (1, 1) if s.ndim == 0 else (128 if s.shape[0] != w.shape[0] else 1, {"mx": 32, "nvfp4": 16}.get(FORMATS[fmt][1], 128))
            if s.ndim:
                s = np.repeat(np.repeat(s, rows, 0), cols, 1)[: w.shape[0], : w.shape[1]]
            w = w * (s * s2)
        decoded[name] = w.T if is_linear(name) and name not in cast else w
        assert (decoded[name] == params[name]).all(), f"{name}: {np.sum(decoded[name] != params[name])} weights differ"
    stored = sum(len(found[k][2]) for n in cast for k in (n, n + "_scale", n + "_scale_2") if k in found)
    own = loss_of(decoded, tokens_of(data), config["n_positions"], config["n_head"])
    off = abs(float(loss) / own - 1)
    bits = f", {8 * stored / sum(decoded[n].size for n in cast):.4f} bits per weight" if cast else ""
    print(f"{fmt}: {len(cast) or 'all'} weights equal to the bit{bits}; loss {own:.9g}, ./train-f32 {loss}: relative {off:.1e}")
    return off <= 1e-5


if __name__ == "__main__":
    if len(sys.argv) == 1:
        write_golden()
    else:
        sys.exit(not check(*sys.argv[1:]))
