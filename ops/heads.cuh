// Where the heads of attention lie in its operands.
#pragma once
#include "ops/lanes.cuh"

struct Heads {
    int B, T, NH, HS;
    int past = 0; // tokens before the T queries; their keys and values are there too
    HD int keys() const { return past + T; }
    HD size_t C() const { return (size_t)NH * HS; }
    HD size_t rows() const { return (size_t)B * NH * T; } // one per (b, h, t), in that order
    HD real scale() const { return 1 / sqrt_((real)HS); }
    // where things of head h begin: qkv (B, T, 3C) holds q, k, v of each token, each (NH, HS); o (B, T, C)
    struct Row { size_t b, h, t; };
    HD Row row(size_t n) const { return {n / T / NH, n / T % NH, n % T}; }
    HD size_t q(Row r) const { return (r.b * T + r.t) * 3 * C() + r.h * HS; }
    HD size_t k(Row r) const { return q(r) + C(); }
    HD size_t v(Row r) const { return q(r) + 2 * C(); }
    HD size_t o(Row r) const { return (r.b * T + r.t) * C() + r.h * HS; }
};
