// The launches of what scaling.cuh says of scales.
#pragma once
#include "scaling.cuh"

void update_scales(Delayed* state, float* history, int count, int capacity, int L, Algo algo, bool again) {
    for_rows("update_scales", 4.0 * count * L, count, [=] HD(Lanes g, int i) {
        update_scale(g, state + i, history + (size_t)i * capacity, capacity, L, algo, again);
    });
}
void set_factors(Copy::Factors* f, const float* scale, float max, bool pow2) {
    for_rows("scale", 32, 1, [=] HD(Lanes g, int) {
        float s = scale ? *scale : max ? scale_for(max, f->amax, 1) : 1;
        if (pow2) s = power_of_two_below(s);
        if (g.first()) f->scale = s, f->scale_inv = 1 / s;
    });
}
