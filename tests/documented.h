// The verbs of lanes.cuh as it documents them, in plain ascending loops: the order of every sum is a promise.
#pragma once
#include "ops/lanes.cuh"

// Element i belongs to partial sum i % 4 of lane i / 4 % 32; then (s0 + s2) + (s1 + s3); then a butterfly over lanes.
template <class Op, class F> real documented_reduce(int n, real zero, Op op, F f) {
    real s[32][4], lane[32];
    for (auto& four : s)
        for (real& x : four) x = zero;
    for (int i = 0; i < n; i++) s[i / 4 % 32][i % 4] = op(s[i / 4 % 32][i % 4], f(i));
    for (int l = 0; l < 32; l++) lane[l] = op(op(s[l][0], s[l][2]), op(s[l][1], s[l][3]));
    for (int m = 16; m > 0; m /= 2)
        for (int l = 0; l < m; l++) lane[l] = op(lane[l], lane[l ^ m]);
    return lane[0];
}
template <class F> real documented_sum(int n, F f) {
    return documented_reduce(
        n, (real)0, [](real s, real x) { return s + x; }, f);
}
template <class F> real documented_max(int n, F f) {
    return documented_reduce(
        n, (real)-INFINITY, [](real s, real x) { return x > s ? x : s; }, f);
}
// to[c] += sum over rows: down panels of 64 rows, then over the panels, ascending
template <class F> void documented_sum_down(real* to, int N, int C, F f) {
    for (int c = 0; c < C; c++) {
        real total = 0;
        for (int from = 0; from < N; from += 64) {
            real s = 0;
            for (int r = from; r < N && r < from + 64; r++) s += f(r, c);
            total += s;
        }
        to[c] += total;
    }
}
inline void documented_layernorm(act* y, real* mean, real* rstd, const act* x, const real* w, const real* b, int C) {
    real m = documented_sum(C, [&](int i) { return (real)x[i]; }) / C;
    real var = documented_sum(C, [&](int i) { return ((real)x[i] - m) * ((real)x[i] - m); }) / C;
    real s = 1 / sqrt_(var + (real)1e-5f);
    for (int i = 0; i < C; i++) y[i] = act(((real)x[i] - m) * s * w[i] + b[i]);
    *mean = m, *rstd = s;
}
inline void documented_layernorm_backward(act* dx, const act* dy, const act* x, real mean, real rstd, const real* w,
                                          int C) {
    auto norm = [&](int i) { return ((real)x[i] - mean) * rstd; };
    real a = documented_sum(C, [&](int i) { return (real)dy[i] * w[i]; }) / C;
    real b = documented_sum(C, [&](int i) { return (real)dy[i] * w[i] * norm(i); }) / C;
    for (int i = 0; i < C; i++) dx[i] = act((real)dx[i] + ((real)dy[i] * w[i] - a - norm(i) * b) * rstd);
}
