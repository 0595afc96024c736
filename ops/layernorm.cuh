// LayerNorm (Ba, Kiros, Hinton 2016), eps 1e-5: y = (x - mean) / sqrt(var + eps) * w + b, over the C channels of each
// of N rows. The backward pass adds into dx (the residual stream's gradient arrives there first) and into dw, db.
#pragma once
#include "ops/fused.cuh"

// y null: only the statistics
HD inline void layernorm_row(Lanes g, act* y, real* mean_out, real* rstd_out, const act* x, const real* w,
                             const real* b, int C) {
    real mean = g.sum(C, [](real x) { return x; }, x) / C;
    real var = g.sum(C, [=](real x) { real d = x - mean; return d * d; }, x) / C;
    real rstd = 1 / sqrt_(var + (real)1e-5f);
    if (y) g.map(C, y, [=](real x, real w, real b) { return (x - mean) * rstd * w + b; }, x, w, b);
    if (g.first()) *mean_out = (real)mean, *rstd_out = (real)rstd;
}
void layernorm_forward(act* y, real* mean, real* rstd, const act* x, const real* w, const real* b, int N, int C,
                       Sink sink) {
    if (sink) {
        for_rows("layernorm", 1.0 * N * C * sizeof(act), N, [=] HD(Lanes g, int n) {
            layernorm_row(g, nullptr, mean + n, rstd + n, x + (size_t)n * C, w, b, C);
        });
        return in_tiles("layernorm", sink.keeps ? y : nullptr, sink, N, C, [=] HD(int n, int c, real x) {
            return (x - mean[n]) * rstd[n] * w[c] + b[c];
        }, x);
    }
    for_rows("layernorm", 2.0 * N * C * sizeof(act), N, [=] HD(Lanes g, int n) {
        layernorm_row(g, y + (size_t)n * C, mean + n, rstd + n, x + (size_t)n * C, w, b, C);
    });
}

struct NormMeans { real dnorm, dnorm_norm; }; // over a row, of dy * w and of that times (x - mean) * rstd
HD inline NormMeans layernorm_backward_means(Lanes g, const act* dy, const act* x, real mean, real rstd, const real* w,
                                             int C) {
    return {g.sum(C, [](real dy, real w) { return dy * w; }, dy, w) / C,
            g.sum(C, [=](real dy, real x, real w) { return dy * w * ((x - mean) * rstd); }, dy, x, w) / C};
}
HD INLINE real layernorm_backward_element(real dx, real dy, real x, NormMeans m, real mean, real rstd, real w) {
    return dx + (dy * w - m.dnorm - (x - mean) * rstd * m.dnorm_norm) * rstd;
}
HD inline void layernorm_backward_row(Lanes g, act* dx, const act* dy, const act* x, real mean, real rstd,
                                      const real* w, int C) {
    NormMeans m = layernorm_backward_means(g, dy, x, mean, rstd, w, C);
    g.map(C, dx, [=](real dx, real dy, real x, real w) {
        return layernorm_backward_element(dx, dy, x, m, mean, rstd, w);
    }, dx, dy, x, w);
}
HD inline void layernorm_backward_panel(Lanes g, real* dw, real* db, const act* dy, const act* x, const real* mean,
                                        const real* rstd, Panel p, int C) {
    size_t at = (size_t)p.row * C + p.col, to = (size_t)p.index * C + p.col;
    const real *m = mean + p.row, *s = rstd + p.row;
    g.sum_down(p.rows, p.cols, C, dw + to, [=](int r, real dy, real x) { return dy * ((x - m[r]) * s[r]); }, dy + at,
               x + at);
    g.sum_down(p.rows, p.cols, C, db + to, [](int, real dy) { return dy; }, dy + at);
}
void layernorm_backward(act* dx, real* dw, real* db, const act* dy, const act* x, const real* mean, const real* rstd,
                        const real* w, real* partial, int N, int C, Sink sink) {
    if (sink) {
        NormMeans* means = (NormMeans*)partial;
        for_rows("layernorm_backward", 2.0 * N * C * sizeof(act), N, [=] HD(Lanes g, int n) {
            size_t at = (size_t)n * C;
            NormMeans m = layernorm_backward_means(g, dy + at, x + at, mean[n], rstd[n], w, C);
            if (g.first()) means[n] = m;
        });
        in_tiles("layernorm_backward", dx, sink, N, C, [=] HD(int n, int c, real dx, real dy, real x) {
            return layernorm_backward_element(dx, dy, x, means[n], mean[n], rstd[n], w[c]);
        }, (const act*)dx, dy, x);
    } else
        for_rows("layernorm_backward", 4.0 * N * C * sizeof(act), N, [=] HD(Lanes g, int n) {
            size_t at = (size_t)n * C;
            layernorm_backward_row(g, dx + at, dy + at, x + at, mean[n], rstd[n], w, C);
        });
    real *dw_partial = partial, *db_partial = partial + (size_t)panels(N) * C;
    for_rows("layernorm_backward_weight", 2.0 * N * C * sizeof(act), panels(N) * column_groups(C),
             [=] HD(Lanes g, int j) {
                 layernorm_backward_panel(g, dw_partial, db_partial, dy, x, mean, rstd, panel(j, N, C), C);
             });
    add_panels(dw, dw_partial, N, C);
    add_panels(db, db_partial, N, C);
}
