// What a cast did to an operand: the launches of lab/diagnostics.cuh and lab/infer.cuh.
#pragma once
#include "scaling.cuh"

// What an element of the copy was multiplied by.
HD INLINE float multiplier_of(const Operand& o, const Copy::Factors& f, size_t row, size_t k) {
    if (!o.scales) return f.scale;
    float s = block_scale(o, row, k);
    if (o.scale_elem != Elem::e4m3) return 1 / s;
    float m = 1 / (s * (1 / nvfp4_encode_scale(f.amax)));
    return m < FLT_MAX ? m : FLT_MAX;
}
void measure_rows(float* sums, float* scratch, const Operand& copy, const Operand& source, const Copy::Factors& factors,
                  float max, int first, int count, int C) {
    const Copy::Factors* f = &factors; // may lie on the device
    for_rows("measure", 2.0 * count * C * sizeof(act), count, [=] HD(Lanes g, int i) {
        size_t r = first + i;
        float *x = scratch + 3 * (size_t)i * C, *q = x + C, *scaled = q + C, *out = sums + r * SUMS;
        float factor = factor_of(copy);
        g.each(C, [=](int k) {
            x[k] = (float)fetch(source, r, k), q[k] = (float)fetch(copy, r, k) * factor;
            scaled[k] = x[k] * multiplier_of(copy, *f, r, k);
        });
        g.sync();
        auto square = [](real a) { return a * a; };
        auto nonzero = [](real a) { return (real)(a != 0); };
        float s[SUMS] = {(float)g.sum(C, nonzero, x), (float)g.sum(C, nonzero, q),
                         (float)g.sum(C, [=](real y) { return (real)(y > max || y < -max); }, scaled),
                         (float)g.sum(C, square, x), (float)g.sum(C, [=](real x, real q) { return square(x - q); }, x, q),
                         (float)g.sum(C, [](real x, real q) { return q - x; }, x, q), (float)g.sum(C, Magnitude(), x),
                         (float)g.max(C, Magnitude(), x)};
        for (int k = 0; k < SUMS && g.first(); k++) out[k] = s[k];
    });
}
void count_beyond(real* counts, const act* x, const float* scale, float max, int R, int C) {
    for_rows("saturation", (double)R * C * sizeof(act), R, [=] HD(Lanes g, int r) {
        real n = g.sum(C, [=](real x) { return (real)((float)x * *scale > max || (float)x * *scale < -max); },
                       x + (size_t)r * C);
        if (g.first()) counts[r] = n;
    });
}
