// AdamW (Loshchilov and Hutter 2019) and the global gradient norm, as PyTorch's torch.optim.AdamW and
// clip_grad_norm_ compute them. Master weights, gradients and moments are FP32; the update also writes the BF16 copy
// of the weight that the next GEMMs read, so that no cast of a weight ever appears elsewhere.
#pragma once
#include "ops/elementwise.cuh"

struct AdamW {
    real lr, beta1, beta2, eps, weight_decay;
    real correction1, correction2; // 1 - beta1^t, sqrt(1 - beta2^t), t counted from 1
    real clip;                     // factor on every gradient: min(1, clip / (norm + 1e-6))
};
HD INLINE void adamw_element(real& w, real& m, real& v, real grad, AdamW o) {
    real gr = grad * o.clip;
    real m1 = o.beta1 * m + (1 - o.beta1) * gr;
    real v1 = o.beta2 * v + (1 - o.beta2) * gr * gr;
    real w1 = w * (1 - o.lr * o.weight_decay);
    w = w1 - o.lr / o.correction1 * m1 / (sqrt_(v1) / o.correction2 + o.eps);
    m = m1;
    v = v1;
}
// w, m, v, operand (n) are updated in place; grad (n). operand = w rounded to act; it may be w itself (ACT=real).
inline void adamw(real* w, act* operand, real* m, real* v, const real* grad, size_t n, AdamW o) {
    for_rows("adamw", n * (28.0 + sizeof(act)), pieces(n), [=] HD(Lanes g, int i) {
        size_t at = (size_t)i * PIECE;
        real *wi = w + at, *mi = m + at, *vi = v + at;
        act* qi = operand + at;
        const real* gi = grad + at;
        g.each(piece_size(n, i), [=](int k) {
            adamw_element(wi[k], mi[k], vi[k], gi[k], o);
            qi[k] = act(wi[k]);
        });
    });
}
// operand = master, rounded to act: after initialisation or loading. A no-op when they are the same memory.
inline void round_to_operand(act* operand, const real* w, size_t n) {
    if ((const void*)operand == (const void*)w) return;
    for_rows("round_to_operand", n * (4.0 + sizeof(act)), pieces(n), [=] HD(Lanes g, int i) {
        size_t at = (size_t)i * PIECE;
        g.map(piece_size(n, i), operand + at, [](real w) { return w; }, w + at);
    });
}
// squares[i] = sum of grad^2 over piece i; the host adds the pieces in order, in double
inline void squares_of(real* squares, const real* grad, size_t n) {
    for_rows("grad_norm", 4.0 * n, pieces(n), [=] HD(Lanes g, int i) {
        real s = g.sum(piece_size(n, i), [](real x) { return x * x; }, grad + (size_t)i * PIECE);
        if (g.first()) squares[i] = (real)s;
    });
}
