// GELU (Hendrycks and Gimpel 2016), in the tanh form that GPT-2 uses.
#pragma once
#include "ops/fused.cuh"

HD INLINE real gelu(real x) {
    real u = (real)0.7978845608f * (x + (real)0.044715f * x * x * x); // sqrt(2 / pi)
    return (real)0.5f * x * (1 + tanh_(u));
}
HD INLINE real gelu_derivative(real x) {
    real t = tanh_((real)0.7978845608f * (x + (real)0.044715f * x * x * x));
    real du = (real)0.7978845608f * (1 + (real)0.134145f * x * x); // 3 * 0.044715
    return (real)0.5f * (1 + t) + (real)0.5f * x * (1 - t * t) * du;
}
void gelu_forward(act* y, const act* x, int N, int C, Sink sink) {
    if (sink)
        return in_tiles("gelu", sink.keeps ? y : nullptr, sink, N, C, [] HD(int, int, real x) { return gelu(x); }, x);
    size_t n = (size_t)N * C;
    for_rows("gelu", 2.0 * n * sizeof(act), pieces(n), [=] HD(Lanes g, int i) {
        size_t at = (size_t)i * PIECE;
        g.map(piece_size(n, i), y + at, [](real x) { return gelu(x); }, x + at);
    });
}
void gelu_backward(act* dx, const act* dy, const act* x, int N, int C, Sink sink) {
    if (sink)
        return in_tiles("gelu_backward", sink.keeps ? dx : nullptr, sink, N, C,
                        [] HD(int, int, real dy, real x) { return dy * gelu_derivative(x); }, dy, x);
    size_t n = (size_t)N * C;
    for_rows("gelu_backward", 3.0 * n * sizeof(act), pieces(n), [=] HD(Lanes g, int i) {
        size_t at = (size_t)i * PIECE;
        g.map(piece_size(n, i), dx + at, [](real dy, real x) { return dy * gelu_derivative(x); }, dy + at, x + at);
    });
}
