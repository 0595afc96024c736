// AdamW (Loshchilov and Hutter 2019) and the global gradient norm, as PyTorch's torch.optim.AdamW and
// clip_grad_norm_ compute them. Master weights, gradients and moments are FP32; the update also writes the BF16 copy
// of the weight that the next GEMMs read, so that no cast of a weight ever appears elsewhere.
#pragma once
#include "ops/fused.cuh"

HD INLINE void adamw_element(real& w, real& m, real& v, real grad, real factor, AdamW o) {
    real gr = grad * factor;
    real m1 = o.beta1 * m + (1 - o.beta1) * gr;
    real v1 = o.beta2 * v + (1 - o.beta2) * gr * gr;
    real w1 = w * (1 - o.lr * o.weight_decay);
    w = w1 - o.lr / o.correction1 * m1 / (sqrt_(v1) / o.correction2 + o.eps);
    m = m1;
    v = v1;
}
void adamw(real* w, act* operand, real* m, real* v, const real* grad, const StepResult* result, size_t n, AdamW o,
           Sink sink, int C) {
    if (sink)
        return in_tiles("adamw", operand, sink, (int)(n / C), C, [=] HD(int, int, real& w, real& m, real& v, real g) {
            if (!result->bad) adamw_element(w, m, v, g, result->factor, o);
            return w;
        }, w, m, v, grad);
    for_rows("adamw", n * (28.0 + sizeof(act)), pieces(n), [=] HD(Lanes g, int i) {
        size_t at = (size_t)i * PIECE;
        real *wi = w + at, *mi = m + at, *vi = v + at;
        act* qi = operand + at;
        const real *gi = grad + at, factor = result->factor;
        if (result->bad) return;
        g.each(piece_size(n, i), [=](int k) {
            adamw_element(wi[k], mi[k], vi[k], gi[k], factor, o);
            qi[k] = act(wi[k]);
        });
    });
}
void round_to_operand(act* operand, const real* w, size_t n) {
    if ((const void*)operand == (const void*)w) return;
    for_rows("round_to_operand", n * (4.0 + sizeof(act)), pieces(n), [=] HD(Lanes g, int i) {
        size_t at = (size_t)i * PIECE;
        g.map(piece_size(n, i), operand + at, [](real w) { return w; }, w + at);
    });
}
void squares_of(real* squares, const real* grad, size_t n) {
    for_rows("grad_norm", 4.0 * n, pieces(n), [=] HD(Lanes g, int i) {
        real s = g.sum(piece_size(n, i), [](real x) { return x * x; }, grad + (size_t)i * PIECE);
        if (g.first()) squares[i] = (real)s;
    });
}
// What they and others add up to, in double: lane l adds elements l, l + 32, .., then the lanes pair up.
template <class T> HD inline double sum_in_double(Lanes g, const T* x, size_t n) {
    double s[LANES] = {}; // a lane of the device needs its own alone
    for (size_t i = 0; i < n; i += LANES)
        if (on_device()) s[0] += i + thread_index() % LANES < n ? (double)x[i + thread_index() % LANES] : 0.0;
        else g.each((int)(n - i < LANES ? n - i : LANES), [&](int l) { s[l] += (double)x[i + l]; });
    for (int m = LANES / 2; m > 0; m /= 2)
        if (on_device()) s[0] += shfl_xor(s[0], m);
        else g.each(m, [&](int l) { s[l] += s[l + m]; });
    return s[0];
}
void mean_of(StepResult* result, const real* losses, bool first, int N) {
    for_rows("mean_loss", 4.0 * N, 1, [=] HD(Lanes g, int) {
        double mean = sum_in_double(g, losses, N) / N;
        if (g.first()) result->batch = mean, result->loss = (first ? 0 : result->loss) + mean;
    });
}
void norm_of(StepResult* result, double* parts, const real* squares, size_t n, double clip, double loss_scale) {
    for_rows("grad_norm", 4.0 * n, pieces(n), [=] HD(Lanes g, int i) {
        double s = sum_in_double(g, squares + (size_t)i * PIECE, piece_size(n, i));
        if (g.first()) parts[i] = s;
    });
    for_rows("grad_norm", 8.0 * pieces(n), 1, [=] HD(Lanes g, int) {
        double norm = sqrt(sum_in_double(g, parts, pieces(n))) / loss_scale, shrink = clip / (norm + 1e-6);
        if (!g.first()) return;
        result->norm = norm, result->factor = (real)((clip > 0 && shrink < 1 ? shrink : 1) / loss_scale);
        result->bad |= !(norm < INFINITY) || !(fabs(result->loss) < INFINITY);
    });
}
