// Residual additions, bias gradients, and other ops that know no rows.
#pragma once
#include "ops/lanes.cuh"

// A launch takes the tensor in pieces of this many elements.
constexpr int PIECE = 4096;
HD inline size_t pieces(size_t n) { return (n + PIECE - 1) / PIECE; }
HD inline int piece_size(size_t n, int i) {
    size_t left = n - (size_t)i * PIECE;
    return left < PIECE ? (int)left : PIECE;
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
