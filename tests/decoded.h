// What GEMMs read of codes and scales: fetch() of every element.
#pragma once
#include "ops/matmul.cuh"

// (O, K) of codes of f; `scales` as in Operand, of blocks of 1 x block, or rows x block
inline std::vector<float> decoded(const uint8_t* codes, Format f, int O, int K, const void* scales = nullptr,
                                  Elem scale_elem = Elem::f32, int block = 0, int rows = 1) {
    Operand o = codes_of(codes, f, true, code_ld(f, K));
    if (block) o.scales = scales, o.scale_elem = scale_elem, o.block = block, o.scale_rows = rows;
    if (block) o.ld_scales = blocks(K, block);
    std::vector<float> y;
    for (int r = 0; r < O; r++)
        for (int k = 0; k < K; k++) y.push_back((float)fetch(o, r, k));
    return y;
}
