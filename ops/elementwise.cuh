// Residual additions, bias gradients, and other ops that know no rows.
#pragma once
#include "ops/fused.cuh"

void residual_forward(act* y, const act* a, const act* b, size_t n) {
    for_rows("residual", 3.0 * n * sizeof(act), pieces(n), [=] HD(Lanes g, int i) {
        size_t at = (size_t)i * PIECE;
        g.map(piece_size(n, i), y + at, [](real a, real b) { return a + b; }, a + at, b + at);
    });
}
void multiply(act* x, real factor, size_t n) {
    for_rows("multiply", 2.0 * n * sizeof(act), pieces(n), [=] HD(Lanes g, int i) {
        size_t at = (size_t)i * PIECE;
        g.map(piece_size(n, i), x + at, [=](real x) { return factor * x; }, x + at);
    });
}
void copy(act* y, const act* x, size_t n) {
    for_rows("copy", 2.0 * n * sizeof(act), pieces(n), [=] HD(Lanes g, int i) {
        size_t at = (size_t)i * PIECE;
        g.map(piece_size(n, i), y + at, [](real x) { return x; }, x + at);
    });
}
void cast_in_tiles(const act* x, Sink s, int R, int C) {
    in_tiles("cast_tiles", nullptr, s, R, C, [] HD(int, int, real x) { return x; }, x);
}
void transpose_codes(uint8_t* to, const uint8_t* from, Format f, int R, int C) {
    size_t ld_to = code_ld(f, R), ld_from = code_ld(f, C);
    for_rows("transpose_codes", 2.0 * R * C, C, [=] HD(Lanes g, int c) {
        uint8_t* row = to + c * ld_to;
        g.each((int)ld_to, [=](int r) { row[r] = r < R ? from[r * ld_from + c] : 0; });
    });
}
void add_panels(real* sum, const real* partial, int N, int C) {
    int P = panels(N);
    for_rows("add_panels", 4.0 * (P + 2) * C, column_groups(C), [=] HD(Lanes g, int j) {
        Panel p = panel(j, 1, C);
        const real* from = partial + p.col;
        real* to = sum + p.col;
        g.each(p.cols, [=](int c) {
            real s = 0;
            for (int i = 0; i < P; i++) s += from[(size_t)i * C + c];
            to[c] += s;
        });
    });
}
void bias_backward(real* db, const act* dy, real* partial, int N, int OC) {
    for_rows("bias_backward", (double)N * OC * sizeof(act), (size_t)panels(N) * column_groups(OC),
             [=] HD(Lanes g, int j) {
                 Panel p = panel(j, N, OC);
                 g.sum_down(p.rows, p.cols, OC, partial + (size_t)p.index * OC + p.col, [](int, real dy) { return dy; },
                            dy + (size_t)p.row * OC + p.col);
             });
    add_panels(db, partial, N, OC);
}
