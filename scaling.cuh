// Recipes: which number format each GEMM operand is stored in, and how it is scaled. A linear layer y = x w^T is three
// GEMMs, and each asks quantize() for the copies of its two operands:
//
//     fprop  y  = x  w^T   contracts over input channels
//     dgrad  dx = dy w     contracts over output channels
//     wgrad  dw = dy^T x   contracts over tokens
//
// The recipe bf16 casts nothing: operands are BF16 values as they stand (FP32 in ./train-f32), FP32 accumulates.
#pragma once
#include "ops/matmul.cuh"

struct Recipe {
    const char* name;
};
constexpr Recipe recipes[] = {
    {"bf16"},
};
inline const Recipe* find_recipe(const std::string& name) {
    for (const Recipe& r : recipes)
        if (name == r.name) return &r;
    return nullptr;
}

// A GEMM operand before it is cast, (rows, cols), row-major.
struct Tensor {
    const act* data;
    int rows, cols;
};
// The copy of t that a GEMM multiplies when it contracts along t's columns (each row is a vector), or along its rows.
enum class Along { cols, rows };
inline Operand quantize(const Tensor& t, Along contraction) {
    return contraction == Along::cols ? rows_of(t.data, t.cols) : columns_of(t.data, t.cols);
}
