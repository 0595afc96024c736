// GELU (Hendrycks and Gimpel 2016; the tanh form that GPT-2 uses), residual additions, bias gradients.
#pragma once
#include "ops/lanes.cuh"

// These ops know no rows: a launch takes the tensor in pieces of this many elements.
constexpr int PIECE = 4096;
inline size_t pieces(size_t n) { return (n + PIECE - 1) / PIECE; }
HD inline int piece_size(size_t n, int i) {
    size_t left = n - (size_t)i * PIECE;
    return left < PIECE ? (int)left : PIECE;
}

HD INLINE real gelu(real x) {
    real u = (real)0.7978845608f * (x + (real)0.044715f * x * x * x); // sqrt(2 / pi)
    return (real)0.5f * x * (1 + tanh_(u));
}
HD INLINE real gelu_derivative(real x) {
    real t = tanh_((real)0.7978845608f * (x + (real)0.044715f * x * x * x));
    real du = (real)0.7978845608f * (1 + (real)0.134145f * x * x); // 3 * 0.044715
    return (real)0.5f * (1 + t) + (real)0.5f * x * (1 - t * t) * du;
}
// y, x (n)
inline void gelu_forward(act* y, const act* x, size_t n) {
    for_rows("gelu", 2.0 * n * sizeof(act), pieces(n), [=] HD(Lanes g, int i) {
        size_t at = (size_t)i * PIECE;
        g.map(piece_size(n, i), y + at, [](real x) { return gelu(x); }, x + at);
    });
}
// dx = dy * gelu'(x); dx may be dy
inline void gelu_backward(act* dx, const act* dy, const act* x, size_t n) {
    for_rows("gelu_backward", 3.0 * n * sizeof(act), pieces(n), [=] HD(Lanes g, int i) {
        size_t at = (size_t)i * PIECE;
        g.map(piece_size(n, i), dx + at, [](real dy, real x) { return dy * gelu_derivative(x); }, dy + at, x + at);
    });
}
// y = a + b; the gradient flows to both unchanged, so there is no backward
inline void residual_forward(act* y, const act* a, const act* b, size_t n) {
    for_rows("residual", 3.0 * n * sizeof(act), pieces(n), [=] HD(Lanes g, int i) {
        size_t at = (size_t)i * PIECE;
        g.map(piece_size(n, i), y + at, [](real a, real b) { return a + b; }, a + at, b + at);
    });
}
// x *= factor
inline void multiply(act* x, real factor, size_t n) {
    for_rows("multiply", 2.0 * n * sizeof(act), pieces(n), [=] HD(Lanes g, int i) {
        size_t at = (size_t)i * PIECE;
        g.map(piece_size(n, i), x + at, [=](real x) { return factor * x; }, x + at);
    });
}
template <class T> void fill_zero(T* y, size_t n) {
    for_rows("fill_zero", (double)n * sizeof(T), pieces(n), [=] HD(Lanes g, int i) {
        T* to = y + (size_t)i * PIECE;
        g.each(piece_size(n, i), [=](int k) { to[k] = T(0.0f); });
    });
}
// db (OC) += column sums of dy (N, OC); partial: panels(N) * OC floats
inline void bias_backward(real* db, const act* dy, real* partial, int N, int OC) {
    for_rows("bias_backward", (double)N * OC * sizeof(act), (size_t)panels(N) * column_groups(OC),
             [=] HD(Lanes g, int j) {
                 Panel p = panel(j, N, OC);
                 g.sum_down(p.rows, p.cols, OC, partial + (size_t)p.index * OC + p.col, [](int, real dy) { return dy; },
                            dy + (size_t)p.row * OC + p.col);
             });
    add_panels(db, partial, N, OC);
}
