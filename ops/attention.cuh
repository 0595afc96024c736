// Causal multi-head self-attention (Vaswani et al. 2017, section 3.2) and its gradient. One definition: for each query,
//     S = q k^T / sqrt(HS) over the keys up to it, P = softmax(S), o = P v,
// with P rounded to act before it meets v, and in the backward pass dS rounded likewise, because they are GEMM operands
// there. Only lse = log sum exp(S) is kept for the backward pass; P is made again from it.
// - The row functions write S, P and dS of the whole batch to scratch, (B, NH, T, T) each: slow on purpose.
// - Queries may be the last T of past + T tokens, whose keys and values a cache holds (kv_cache.cuh): forward only. A
//   query's sums run over its keys in the same order with or without a cache, so it finds the same o.
// - The CPU's twin goes head by head in tiles of 64 queries through the packed GEMM. Its sums run in the same order and
//   what it adds beyond the diagonal is zero, so with --kernels portable the bits are the same (tested); with AMX the
//   products differ by the bound in matmul_cpu.h. The GPU's twin is flash.cuh.
#pragma once
#include "ops/flash.cuh"
#include "ops/matmul.cuh"
#include "ops/ops.cuh"
#include <algorithm>
#include <vector>

// Where the keys and values of all past + T tokens stand, and as what: in qkv, or in a cache (kv_cache.cuh).
template <class KV> struct KeyValues {
    const KV *k, *v;
    size_t ld, head, window; // from one token's to the next one's, from one head's, from one window's
    HD size_t at(Heads::Row r) const { return r.b * window + r.h * head; } // of token 0
};

// --- the definition, forward -------------------------------------------------------------------------------------
// p = softmax(s) over n keys; returns log sum exp
HD INLINE real softmax_row(Lanes g, act* p, const real* s, int n) {
    real top = g.max(n, [](real s) { return s; }, s);
    real sum = g.sum(n, [=](real s) { return exp_(s - top); }, s), inverse = 1 / sum;
    g.map(n, p, [=](real s) { return exp_(s - top) * inverse; }, s);
    return log_(sum) + top;
}
// s[j] = a . b_j * scale for the n rows b_j of a matrix with leading dimension ld
template <class T>
HD INLINE void dots_row(Lanes g, real* s, const act* a, const T* b, size_t ld, int n, int HS, real scale) {
    g.each(n, [=](int j) {
        real dot = dot_in_pairs(HS, [&](int i) { return (real)a[i]; }, [&](int i) { return (real)b[j * ld + i]; });
        s[j] = dot * scale;
    });
    g.sync();
}
// y[i] = sum over j < n, in pair order, of p[j * stride] b[j * ld + i]
template <class T>
HD INLINE void weighted_rows(Lanes g, act* y, const act* p, size_t stride, const T* b, size_t ld, int n, int HS) {
    g.each(HS, [=](int i) {
        auto pj = [&](int j) { return (real)p[j * stride]; };
        y[i] = act(dot_in_pairs(n, pj, [&](int j) { return (real)b[j * ld + i]; }));
    });
}
template <class KV>
HD inline void attention_row(Lanes g, act* o, real* lse, const act* qkv, KeyValues<KV> kv, AttentionScratch scratch,
                             Heads d, size_t n) {
    Heads::Row r = d.row(n);
    int keys = d.past + (int)r.t + 1;
    real* s = scratch.s + n * d.keys();
    act* p = scratch.p + n * d.keys();
    dots_row(g, s, qkv + d.q(r), kv.k + kv.at(r), kv.ld, keys, d.HS, d.scale());
    real l = softmax_row(g, p, s, keys);
    if (g.first()) lse[n] = (real)l;
    g.sync();
    weighted_rows(g, o + d.o(r), p, 1, kv.v + kv.at(r), kv.ld, keys, d.HS);
}

// --- the definition, backward ------------------------------------------------------------------------------------
// p and ds of one query from s and dp = do . v_j, n keys each; D = do . o
HD INLINE void softmax_backward_row(Lanes g, act* p, act* ds, const real* s, const real* dp, real lse, real D,
                                    real scale, int n) {
    g.map(n, p, [=](real s) { return exp_(s - lse); }, s);
    g.map(n, ds, [=](real s, real dp) { return exp_(s - lse) * (dp - D) * scale; }, s, dp);
}
HD inline void attention_backward_query(Lanes g, act* dqkv, const act* dout, const act* qkv, const act* o,
                                        const real* lse, AttentionScratch scratch, Heads d, size_t n) {
    Heads::Row r = d.row(n), key0 = {r.b, r.h, 0};
    int keys = (int)r.t + 1;
    size_t at = n * d.T, ld = 3 * d.C();
    real D = g.sum(d.HS, [](real x, real y) { return x * y; }, dout + d.o(r), o + d.o(r));
    dots_row(g, scratch.s + at, qkv + d.q(r), qkv + d.k(key0), ld, keys, d.HS, d.scale());
    dots_row(g, scratch.dp + at, dout + d.o(r), qkv + d.v(key0), ld, keys, d.HS, 1);
    softmax_backward_row(g, scratch.p + at, scratch.ds + at, scratch.s + at, scratch.dp + at, lse[n], D, d.scale(),
                         keys);
    if (g.first() && keys < d.T) scratch.p[at + keys] = scratch.ds[at + keys] = act(0.0f); // see _key below
    g.sync();
    weighted_rows(g, dqkv + d.q(r), scratch.ds + at, 1, qkv + d.k(key0), ld, keys, d.HS);
}
// the key's row: dk and dv gather from every later query, down a column of ds and p
HD inline void attention_backward_key(Lanes g, act* dqkv, const act* dout, const act* qkv, AttentionScratch scratch,
                                      Heads d, size_t n) {
    Heads::Row r = d.row(n);
    int even = (int)r.t & ~1; // pairs start at even queries; the one before the diagonal, if any, weighs zero
    Heads::Row query = {r.b, r.h, (size_t)even};
    size_t at = (n - r.t + even) * d.T + r.t;
    weighted_rows(g, dqkv + d.k(r), scratch.ds + at, d.T, qkv + d.q(query), 3 * d.C(), d.T - even, d.HS);
    weighted_rows(g, dqkv + d.v(r), scratch.p + at, d.T, dout + d.o(query), d.C(), d.T - even, d.HS);
}

// --- the CPU's twin ----------------------------------------------------------------------------------------------
constexpr int QUERIES = 64; // a tile; even, so that pairs of the sums over queries start where the definition's do

template <class KV>
void attention_forward_head(act* o, real* lse, const act* qkv, KeyValues<KV> kv, Heads d, size_t b, size_t h) {
    static thread_local std::vector<real> s;
    static thread_local std::vector<act> p;
    size_t C = d.C(), at = kv.at({b, h, 0});
    for (int t0 = 0; t0 < d.T; t0 += QUERIES) {
        int R = std::min(QUERIES, d.T - t0), keys = d.past + t0 + R;
        Heads::Row first = {b, h, (size_t)t0};
        s.resize((size_t)R * keys), p.resize((size_t)R * keys);
        matmul_here({.out = s.data(), .out_elem = Elem::f32, .ld_out = (size_t)keys, .M = R, .N = keys, .K = d.HS,
                     .a = rows_of(qkv + d.q(first), 3 * C), .b = rows_of(kv.k + at, kv.ld),
                     .scale_a = (float)d.scale()});
        for (int r = 0; r < R; r++) {
            act* row = p.data() + (size_t)r * keys;
            int own = d.past + t0 + r + 1;
            lse[(b * d.NH + h) * d.T + t0 + r] = softmax_row(Lanes(), row, s.data() + (size_t)r * keys, own);
            std::fill(row + own, row + keys, act(0.0f));
        }
        matmul_here({.out = o + d.o(first), .out_elem = elem<act>, .ld_out = C, .M = R, .N = d.HS, .K = keys,
                     .a = rows_of(p.data(), keys), .b = columns_of(kv.v + at, kv.ld)});
    }
}
inline void attention_backward_head(act* dqkv, const act* dout, const act* qkv, const act* o, const real* lse, Heads d,
                                    size_t b, size_t h) {
    static thread_local std::vector<real> s, dp;
    static thread_local std::vector<act> p, ds; // (T, T): dk and dv go down their columns
    size_t C = d.C(), T = d.T;
    s.resize(QUERIES * T), dp.resize(QUERIES * T), p.resize(T * T), ds.resize(T * T);
    Heads::Row key0 = {b, h, 0};
    for (int t0 = 0; t0 < d.T; t0 += QUERIES) {
        int R = std::min(QUERIES, d.T - t0), keys = t0 + R;
        Heads::Row first = {b, h, (size_t)t0};
        matmul_here({.out = s.data(), .out_elem = Elem::f32, .ld_out = T, .M = R, .N = keys, .K = d.HS,
                     .a = rows_of(qkv + d.q(first), 3 * C), .b = rows_of(qkv + d.k(key0), 3 * C),
                     .scale_a = (float)d.scale()});
        matmul_here({.out = dp.data(), .out_elem = Elem::f32, .ld_out = T, .M = R, .N = keys, .K = d.HS,
                     .a = rows_of(dout + d.o(first), C), .b = rows_of(qkv + d.v(key0), 3 * C)});
        for (int r = 0; r < R; r++) {
            size_t t = t0 + r, n = t + 1;
            Heads::Row row = {b, h, t};
            real D = Lanes().sum(d.HS, [](real x, real y) { return x * y; }, dout + d.o(row), o + d.o(row));
            softmax_backward_row(Lanes(), &p[t * T], &ds[t * T], &s[r * T], &dp[r * T], lse[(b * d.NH + h) * T + t], D,
                                 d.scale(), (int)n);
            std::fill(&p[t * T] + n, &p[t * T] + keys, act(0.0f));
            std::fill(&ds[t * T] + n, &ds[t * T] + keys, act(0.0f));
        }
        matmul_here({.out = dqkv + d.q(first), .out_elem = elem<act>, .ld_out = 3 * C, .M = R, .N = d.HS, .K = keys,
                     .a = rows_of(&ds[t0 * T], T), .b = columns_of(qkv + d.k(key0), 3 * C)});
    }
    for (int j0 = 0; j0 < d.T; j0 += QUERIES) { // keys j0.. meet queries from j0 on
        int R = std::min(QUERIES, d.T - j0), queries = d.T - j0;
        Heads::Row first = {b, h, (size_t)j0};
        size_t at = j0 * T + j0;
        matmul_here({.out = dqkv + d.k(first), .out_elem = elem<act>, .ld_out = 3 * C, .M = R, .N = d.HS, .K = queries,
                     .a = columns_of(&ds[at], T), .b = columns_of(qkv + d.q(first), 3 * C)});
        matmul_here({.out = dqkv + d.v(first), .out_elem = elem<act>, .ld_out = 3 * C, .M = R, .N = d.HS, .K = queries,
                     .a = columns_of(&p[at], T), .b = columns_of(dout + d.o(first), C)});
    }
}

// --- launchers ---------------------------------------------------------------------------------------------------
size_t attention_scratch(Heads d, bool cached) {
    if (!machine.gpu && machine.kernels != Kernels::reference) return 0;
    return !flash_serves(d) ? d.rows() * d.keys() : cached ? (size_t)d.NH * d.T * d.keys() : d.rows();
}
template <class Head> void for_heads(const char* name, double bytes, double flops, Heads d, Head head) {
    profiled(name, bytes, flops, [&] {
#pragma omp parallel for schedule(dynamic)
        for (int i = 0; i < d.B * d.NH; i++) head(i / d.NH, i % d.NH);
    });
}
// qkv: of which a cache's kv leaves only q to read
template <class KV>
void attention_forward(act* o, real* lse, const act* qkv, KeyValues<KV> kv, AttentionScratch scratch, Heads d) {
    double C = d.C(), bytes = 2.0 * d.B * (d.T * C * sizeof(act) + d.keys() * C * sizeof(KV));
    double flops = 2.0 * d.B * d.T * (2 * d.past + d.T + 1) * C;
    if (machine.gpu || machine.kernels == Kernels::reference)
        return for_rows("attention", bytes, d.rows(), [=] HD(Lanes g, int n) {
            attention_row(g, o, lse, qkv, kv, scratch, d, n);
        }, flops);
    for_heads("attention", bytes, flops, d, [=](int b, int h) { attention_forward_head(o, lse, qkv, kv, d, b, h); });
}
void attention_forward(act* o, real* lse, const act* qkv, AttentionScratch scratch, Heads d, Sink sink) {
#ifdef ULP_GPU
    if (flash_serves(d) && flash_aligned(o, qkv))
        return profiled("attention", d.rows() * d.HS * (3 * sizeof(act) + sink.bytes()),
                        2.0 * d.rows() * (d.T + 1) * d.HS,
                        [&] { flash_forward((bf16*)o, lse, (const bf16*)qkv, d, sink); });
#endif
    KeyValues<act> kv = {qkv + d.C(), qkv + 2 * d.C(), 3 * d.C(), (size_t)d.HS, d.T * 3 * d.C()};
    attention_forward(o, lse, qkv, kv, scratch, d);
    if (sink) cast_in_tiles(o, sink, d.B * d.T, (int)d.C());
}
void attention_backward(act* dqkv, const act* dout, const act* qkv, const act* o, const real* lse,
                        AttentionScratch scratch, Heads d, Sink sink) {
    double bytes = d.B * d.T * d.C() * (5 * sizeof(act) + 3 * sink.bytes());
    double flops = 5.0 * d.B * d.T * (d.T + 1) * d.C();
#ifdef ULP_GPU
    if (flash_serves(d) && flash_aligned(dqkv, dout, qkv, o))
        return profiled("attention_backward", bytes, flops, [&] {
            flash_backward((bf16*)dqkv, scratch.s, (const bf16*)dout, (const bf16*)qkv, (const bf16*)o, lse, d, sink);
        });
#endif
    if (machine.gpu || machine.kernels == Kernels::reference) {
        for_rows("attention_backward", bytes, d.rows(), [=] HD(Lanes g, int n) {
            attention_backward_query(g, dqkv, dout, qkv, o, lse, scratch, d, n);
        }, flops * 3 / 5);
        for_rows("attention_backward", 0, d.rows(), [=] HD(Lanes g, int n) {
            attention_backward_key(g, dqkv, dout, qkv, scratch, d, n);
        }, flops * 2 / 5);
        if (sink) cast_in_tiles(dqkv, sink, d.B * d.T, 3 * (int)d.C());
        return;
    }
    for_heads("attention_backward", bytes, flops, d,
              [=](int b, int h) { attention_backward_head(dqkv, dout, qkv, o, lse, d, b, h); });
}
