// What tensor cores multiply natively through cuBLASLt, and what is emulated there: the same codes and scales, decoded
// exactly to BF16, and a BF16 GEMM. One function decides, why_emulated(); a run prints what it says, `./train recipes
// --cc N` prints it for cards that are not there, and docs/hardware.md is that output. What a reader would get wrong:
// - A chip may have an instruction that cuBLASLt has no kernel for: FP6, and FP4 with E8M0 scales, on Blackwell. There
//   the elements are widened: every E2M1, E2M3 and E3M2 value is an E4M3 value, so that the product is the same.
// - Emulation changes no number but the order of sums, and the speed is BF16's, less the decoding.
#pragma once
#include "ops/matmul_cpu.h"
#include "run/error.h"
#include <compare>

inline bool has_fast_accum(int cc) { return cc == 89 || cc == 90; } // elsewhere FP8 sums are FP32's in any case
inline int family_of(int cc) { return cc == 89 ? 89 : cc / 10 * 10; }

// One operand: BF16 or FP32 as it is, or codes with one FP32 scale (block 0), or a scale per `block` along k.
struct GemmSide {
    Elem elem = Elem::bf16, scale = Elem::f32;
    int block = 0;
    bool exact = true; // BF16 holds values times scales
    int rows = 1;      // of a block with an FP32 scale
    auto operator<=>(const GemmSide&) const = default;
};
inline bool is_codes(Elem e) { return e != Elem::bf16 && e != Elem::f32; }
struct GemmKind {
    GemmSide a, b;
    auto operator<=>(const GemmKind&) const = default;
    bool any_codes() const { return is_codes(a.elem) || is_codes(b.elem); }
};
inline bool is_fp4(const GemmKind& k) { return k.a.scale == Elem::e4m3; }
// Is this side given to cuBLASLt as E4M3 because it has no kernel for its own format?
inline bool is_widened(const GemmSide& s) {
    return s.scale != Elem::e4m3 && (s.elem == Elem::e3m2 || s.elem == Elem::e2m3 || s.elem == Elem::e2m1);
}
// "", or why cards of compute capability cc (90 is 9.0) emulate out (M, N) = a (M, K) b (N, K)^T. Without sizes:
// as far as the chip decides. k_apart: an operand is not contiguous along k, so that nothing pads it to 16.
inline std::string why_not_native(const GemmKind& g, int cc, int M, int N, int K, bool k_apart) {
    int f = family_of(cc);
    if (!g.any_codes()) return "";
    if (!is_codes(g.a.elem) || !is_codes(g.b.elem)) return "one operand is not quantized, and types do not mix";
    bool by_128 = g.a.block == 128 || g.b.block == 128;
    if (by_128 && f != 90) return format("sm_%d has no kernels for blocks of 128", cc);
    if (g.a.block != g.b.block || g.a.scale != g.b.scale) return "the scales of the two operands are of two kinds";
    if (g.a.block == 0 && f < 89) return format("sm_%d has no FP8 tensor cores", cc);
    if (g.a.scale == Elem::e8m0 && f < 100) return format("sm_%d has no MX tensor cores", cc);
    if (is_fp4(g) && f < 100) return format("sm_%d has no FP4 tensor cores", cc);
    if (g.a.elem == Elem::e5m2 && g.b.elem == Elem::e5m2) return "E5M2 x E5M2 has no kernel anywhere";
    if (g.a.rows == 128 && g.b.rows == 128) return "blocks of 128 x 128 on both sides have no kernel anywhere";
    auto odd = [](const char* name, int n, int of = 16) {
        return format("%s = %d is not a multiple of %d; the next that is: %d", name, n, of, (n + of - 1) / of * of);
    };
    if (N % 16) return odd("N", N);
    if (k_apart && K % 16) return odd("K", K);
    if (k_apart && M % 16) return odd("M", M);
    if (by_128 && M % 8) return odd("M", M, 8);
    return "";
}
inline std::string why_emulated(const GemmKind& g, int cc, int M = 0, int N = 0, int K = 0, bool k_apart = false) {
    std::string why = why_not_native(g, cc, M, N, K, k_apart);
    if (!why.empty() && (!g.a.exact || !g.b.exact))
        why += "; FP32 scales of blocks multiply sums, which is left to the row function, and slow: "
               "pow2_scales=1 is not";
    return why;
}
// The same for people: "native FP8", "native MXFP8, x widened to E4M3" or "emulated: " and why.
inline std::string how_multiplied(const GemmKind& g, int cc, const char* a = "a", const char* b = "b") {
    if (!g.any_codes()) return "BF16";
    if (std::string why = why_emulated(g, cc); !why.empty()) return "emulated: " + why;
    std::string wide, how = is_fp4(g)                 ? "native NVFP4"
                            : g.a.scale == Elem::e8m0 ? "native MXFP8"
                            : g.a.block == 128        ? "native FP8 in blocks of 128"
                                                      : "native FP8";
    if (is_widened(g.a) && is_widened(g.b)) return how + ", widened to E4M3";
    for (auto [side, name] : {std::pair(g.a, a), {g.b, b}})
        if (is_widened(side)) wide += (wide.empty() ? "" : ", ") + std::string(name);
    return wide.empty() ? how : how + ", " + wide + " widened to E4M3";
}
