// What sampling remembers: keys and values of the tokens so far, so that a new token is one row of every GEMM and one
// query of attention. Everything but attention is row-wise, and attention sums in the same order either way: the text
// is that of a model without a cache, token for token (tested; logits to the bit). What a reader would get wrong:
// - Positions are absolute, so a cache cannot slide: when it is full, it is filled anew (sample_tokens() in
//   lab/harness.cuh says with what).
// - The format is that of K and V, cached or not: round_keys_values() rounds them in place, and the cache then holds
//   what they are. FP8 is stored with scale 1: a floating-point format is as precise at one scale as at another while
//   values stay in its normal range (E4M3: 2^-6 to 448, E5M2: 2^-14 to 57344), K and V are of the order of 1, and one
//   scale needs no calibration and no byte. What lies below is rounded in steps of the lowest range, what lies above
//   saturates.
#pragma once
#include "ops/attention.cuh"

// FP8 as an element, converted like bf16.
template <const Format& F> struct Code {
    uint8_t code;
    Code() = default;
    HD INLINE Code(real x) : code((uint8_t)encode(F, (float)x)) {}
    HD INLINE operator float() const { return decode(F, code); }
};
template <const Format& F> Operand rows_of(const Code<F>* c, size_t ld) { return codes_of(&c->code, F, true, ld); }
template <const Format& F> Operand columns_of(const Code<F>* c, size_t ld) { return codes_of(&c->code, F, false, ld); }
// go(an element of f); act stands for its own format
Format format_of_act() { return format_of(elem<act>); }
template <class Go> void for_element(Format f, Go go) {
    if (f == format_of_act()) go(act(0.0f));
    else if (f == BF16) go(bf16(0.0f));
    else if (f == E4M3) go(Code<E4M3>(0.0f));
    else if (f == E5M2) go(Code<E5M2>(0.0f));
    else fail("keys and values cannot be %s. hint: %s bf16 e4m3 e5m2", f.name, format_of_act().name);
}

void allocate(KvCache& c, Format format, int layers, int T, int C) {
    c = {format, T, C};
    for_element(format, [&](auto element) { c.layer = 2 * (size_t)T * C * sizeof(element); });
    c.bytes = layers * c.layer;
    c.memory = allocate_zeroed(c.bytes);
}

template <class KV> void round_keys_values_to(act* qkv, Heads d) {
    size_t C = d.C(), N = (size_t)d.B * d.T;
    for_rows("kv_cache", 4.0 * N * C * sizeof(act), N, [=] HD(Lanes g, int n) {
        act* kv = qkv + n * 3 * C + C;
        g.map(2 * (int)C, kv, [](real x) { return (real)KV(x); }, kv);
    });
}
void round_keys_values(act* qkv, Format f, Heads d) {
    if (f == format_of_act()) return;
    for_element(f, [&](auto element) { round_keys_values_to<decltype(element)>(qkv, d); });
}
template <class KV>
void attention_cached(act* o, real* lse, const act* qkv, KvCache& c, int l, AttentionScratch scratch, Heads d) {
    size_t C = d.C(), HS = d.HS, NH = d.NH, head = c.T * HS;
    KV *k = (KV*)(c.memory + l * c.layer), *v = k + c.T * C, *k0 = k + d.past * HS, *v0 = v + d.past * HS;
    for_rows("kv_cache", 2.0 * d.T * C * (sizeof(act) + sizeof(KV)), d.T * NH, [=] HD(Lanes g, int n) {
        size_t t = n / NH, h = n % NH, to = h * head + t * HS;
        const act* from = qkv + t * 3 * C + C + h * HS;
        g.map((int)HS, k0 + to, [](real x) { return x; }, from);
        g.map((int)HS, v0 + to, [](real x) { return x; }, from + C);
    });
    attention_forward(o, lse, qkv, KeyValues<KV>{k, v, HS, head, 0}, scratch, d);
}
void attention_forward(act* o, real* lse, const act* qkv, KvCache& c, int l, AttentionScratch scratch, Heads d) {
    if (d.B != 1 || d.keys() > c.T)
        fail("a cache of %d tokens in one window; it is asked for %d in %d", c.T, d.keys(), d.B);
    for_element(c.format, [&](auto element) { attention_cached<decltype(element)>(o, lse, qkv, c, l, scratch, d); });
}
