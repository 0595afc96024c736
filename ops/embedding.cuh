// Token and position embeddings. The gradient of wte gathers instead of scattering: the batch comes with the positions
// of every distinct token (a counting sort, made off the critical path), and one group adds them in ascending order.
// No atomics, the same bits every time.
#pragma once
#include "ops/ops.cuh"

HD inline void embedding_row(Lanes g, act* x, const real* wte, const real* wpe, int C) {
    g.map(C, x, [](real token, real position) { return token + position; }, wte, wpe);
}
void embedding_forward(act* x, const int* tokens, const real* wte, const real* wpe, int B, int T, int C) {
    size_t N = (size_t)B * T;
    for_rows("embedding", N * C * (8.0 + sizeof(act)), N, [=] HD(Lanes g, int n) {
        embedding_row(g, x + (size_t)n * C, wte + (size_t)tokens[n] * C, wpe + (size_t)(n % T) * C, C);
    });
}

void embedding_backward_tokens(real* dwte, const act* dx, TokenIndex x, int N, int C) {
    double bytes = (double)N * C * sizeof(act) + 8.0 * x.count * C;
    for_rows("embedding_backward", bytes, x.count, [=] HD(Lanes g, int i) {
        real* to = dwte + (size_t)x.distinct[i] * C;
        int from = x.first[i], count = x.first[i + 1] - from;
        const int* positions = x.positions;
        g.each(C, [=](int c) {
            real s = 0;
            for (int k = 0; k < count; k++) s += (real)dx[(size_t)positions[from + k] * C + c];
            to[c] += s;
        });
    });
}
void embedding_backward_positions(real* dwpe, const act* dx, int B, int T, int C) {
    for_rows("embedding_backward", (double)B * T * C * sizeof(act) + 8.0 * T * C, T, [=] HD(Lanes g, int t) {
        real* to = dwpe + (size_t)t * C;
        g.each(C, [=](int c) {
            real s = 0;
            for (int b = 0; b < B; b++) s += (real)dx[((size_t)b * T + t) * C + c];
            to[c] += s;
        });
    });
}
