// The GEMM of a GPU: cuBLASLt. Part of matmul.cuh, whose row function is the definition; sums have another order here.
// What a reader would get wrong:
// - cuBLASLt is column-major. A row-major (R, S) is its S x R, and out^T = b a^T: its A is our b, its m our N.
// - "TN", the only layout of FP8 before and beside sm_100, means that both operands are contiguous along k.
// - Codes beyond K, up to ld, are zeros, so that K is rounded up for nothing; see what comes with an Operand below.
// - Scale pointers and the bias pointer have to be set before an algorithm is looked for, although it does not depend
//   on them, and again with every call, because plans are shared by all GEMMs of a shape.
// - An FP32 scale lies 16 bytes apart from the next: versions up to 13.1 want it, although nobody promised that.
// - The search can say SUCCESS and return nothing.
//
// On a GPU codes come contiguous along k (on sm_100 those with one scale may not), ld a multiple of 32, zeros beyond K,
// data aligned to 256 bytes, `factor` to 16; byte scales of sm_100 and later in tiles (`swizzled`), padded with zeros.
// What comes otherwise, an odd vocabulary say, is multiplied all the same, decoded to BF16.
#pragma once
#include "ops/hardware.h"
#include "run/screen.h"
#include <cublasLt.h>
#include <tuple>

// --- 1. what a plan is --------------------------------------------------------------------------------------------
// All that an algorithm depends on, in cuBLASLt's terms: D (m, n) = op(A) op(B), transposed A (k, m), B (k, n) if `T`.
struct LtProblem {
    int64_t m, n, k;
    Elem a, b, d;
    bool a_T, b_T; // contiguous along k: op(A) = A^T; op(B) = B, despite the name
    int64_t lda, ldb, ldd;
    int scale_mode = -1; // of A and B; -1: none
    bool scales_given = false, device_alpha = false, bias = false, fast_accum = false;
    unsigned align_a = 256, align_b = 256, align_d = 256, align_scales = 256, align_bias = 256;
    auto operator<=>(const LtProblem&) const = default;
};
struct LtPointers {
    const void *a, *b;
    void* d;
    const void *scale_a = nullptr, *scale_b = nullptr, *bias = nullptr;
    const float* alpha = nullptr; // on the device, or null: 1 * scale
    float scale = 1;
    bool accumulate = false;
};
struct LtPlan {
    cublasLtMatmulDesc_t op = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
    cublasLtMatmulAlgo_t algo;
    size_t workspace = 0;
    std::string refused; // why there is none
    bool told = false;
};
struct Lt {
    cublasLtHandle_t handle = nullptr;
    int family = 0, cc = 0; // 100 and 103, for example
    std::map<LtProblem, LtPlan> plans;
    std::map<GemmKind, std::string> failed; // kinds that this card got wrong, and how: emulated from then on
    char* memory = nullptr;                 // LT_SCALARS, then the workspace
    size_t workspace = 0;
    int slot = 0;
    std::string said; // by the library, since the last call
    bool insist = false;     // --native: emulation is an error
    bool was_native = false; // the last GEMM of codes
    bool unchecked = false;  // for tests: the library's own refusals alone
};
inline Lt lt;
constexpr size_t LT_SCALARS = 4096; // 16 bytes each: beta 0, beta 1, then alphas, by turns: the next GEMM may start early

inline cudaDataType_t lt_type(Elem e) {
    return e == Elem::f32 ? CUDA_R_32F : e == Elem::e4m3 ? CUDA_R_8F_E4M3 : e == Elem::e5m2 ? CUDA_R_8F_E5M2
         : e == Elem::e2m1 ? CUDA_R_4F_E2M1 : CUDA_R_16BF;
}
inline std::string lt_text(const LtProblem& p) {
    std::string s = format("m %lld n %lld k %lld, A %s %c lda %lld, B %s %c ldb %lld, D %s ldd %lld",
                           (long long)p.m, (long long)p.n, (long long)p.k, format_of(p.a).name, "NT"[p.a_T],
                           (long long)p.lda, format_of(p.b).name, "TN"[p.b_T], (long long)p.ldb, format_of(p.d).name,
                           (long long)p.ldd);
    return s + format(", scale mode %d%s%s%s, aligned to %u %u %u, scales %u, bias %u", p.scale_mode,
                      p.bias ? ", bias" : "", p.device_alpha ? ", alpha on the device" : "",
                      p.fast_accum ? ", fast accumulation" : "", p.align_a, p.align_b, p.align_d, p.align_scales,
                      p.align_bias);
}
inline unsigned alignment_of(const void* p) { // up to 256 bytes
    uintptr_t low = (uintptr_t)p & -(uintptr_t)p;
    return low && low < 256 ? (unsigned)low : 256;
}

// The library's rules: "" or what it would refuse, or worse, take.
inline std::string lt_refusal(const LtProblem& p, int cc, size_t version) {
    bool fp4 = p.a == Elem::e2m1 || p.b == Elem::e2m1, narrow = is_codes(p.a) || is_codes(p.b);
    auto is8 = [](Elem e) { return e == Elem::e4m3 || e == Elem::e5m2; };
    int by = fp4 ? 32 : 16, f = family_of(cc);
    if (p.lda < (p.a_T ? p.k : p.m) || p.ldb < (p.b_T ? p.k : p.n) || p.ldd < p.m) return "a leading dimension is too small";
    if (!narrow) {
        if (p.a != p.b || (p.a == Elem::f32 && p.d != Elem::f32)) return "its operands are of two types";
        if (p.fast_accum || p.scale_mode > 0 || p.scales_given) return "scales and fast accumulation are for FP8 and FP4";
        return p.bias && p.align_bias < 16 ? "the bias is not aligned to 16 bytes" : "";
    }
    bool for_fp4 = p.scale_mode == CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3;
    if (fp4 ? p.a != p.b || !for_fp4 : !is8(p.a) || !is8(p.b) || for_fp4 || p.scale_mode < 0)
        return "no kernel multiplies these two formats";
    if (p.a == Elem::e5m2 && p.b == Elem::e5m2) return "E5M2 x E5M2 does not exist";
    if (f < 89 || (p.scale_mode > 0 && f < 100)) return format("sm_%d has no such tensor cores", cc);
    if (!(p.a_T && p.b_T) && (fp4 || f != 100)) return "only operands contiguous along k (TN) are multiplied";
    if (p.m % 16) return format("m = %lld is not a multiple of 16", (long long)p.m);
    if (!p.b_T && p.n % 16) return format("n = %lld is not a multiple of 16", (long long)p.n);
    if (p.k % by) return format("k = %lld is not a multiple of %d", (long long)p.k, by);
    if (p.lda % by || p.ldb % by) return format("leading dimensions %lld and %lld are no multiples of %d", (long long)p.lda, (long long)p.ldb, by);
    if (p.ldd * (p.d == Elem::f32 ? 4 : 2) % 16) return format("rows of %lld elements are not 16 bytes apart", (long long)p.ldd);
    if (p.align_a < 16 || p.align_b < 16 || p.align_d < 16) return "a matrix is not aligned to 16 bytes";
    if (p.scales_given && p.align_scales < 16) return "a scale is not aligned to 16 bytes";
    if (p.scale_mode > 0 && !p.scales_given) return "scales of blocks are missing";
    if (p.bias && (p.align_bias < 16 || p.d != Elem::bf16)) return "only a BF16 bias, aligned to 16 bytes, is added to FP8";
    if (p.fast_accum && (p.scale_mode != 0 || !has_fast_accum(cc))) return "fast accumulation is for FP8 with one scale, on sm_89 and sm_90";
    if (fp4 && cc == 103 && p.m % 64 && version < 130300) return "before CUDA 13.2, FP4 with m no multiple of 64 is wrong on sm_103";
    return "";
}

// --- 2. plans -----------------------------------------------------------------------------------------------------
inline void lt_listen(int, const char*, const char* message) { lt.said = message; }
[[noreturn]] inline void lt_fail(const char* name, const char* call, const std::string& why, const LtProblem& p) {
    fail("%s: %s: %s%s%s (cuBLASLt %zu, sm_%d; %s). hint: CUBLASLT_LOG_LEVEL=5 in the environment says more", name, call,
         why.c_str(), lt.said.empty() ? "" : ": ", lt.said.c_str(), (size_t)cublasLtGetVersion(), lt.cc, lt_text(p).c_str());
}
inline void lt_check(cublasStatus_t s, const char* call, const LtProblem& p = {}) {
    if (s != CUBLAS_STATUS_SUCCESS) lt_fail("cuBLASLt", call, cublasLtGetStatusName(s), p);
}
inline size_t lt_workspace(int cc) { return (size_t)(cc >= 90 ? 64 : 32) << 20; }
// The library, its workspace and scalars, for machine.cc. Allocates; what was there for another card is given back.
inline void lt_start() {
    if (lt.handle && lt.family == machine.cc) return;
    if (lt.handle) {
        synchronize("cuBLASLt");
        for (auto& [p, plan] : lt.plans)
            if (plan.op) {
                cublasLtMatmulDescDestroy(plan.op);
                for (auto l : {plan.a, plan.b, plan.d}) cublasLtMatrixLayoutDestroy(l);
            }
        release_memory(lt.memory, LT_SCALARS + lt.workspace);
        lt.plans.clear(), lt.failed.clear();
    } else {
        if (size_t version = cublasLtGetVersion(); version < 120900)
            fail("cuBLASLt is version %zu, which mixes up MX scales. hint: CUDA 12.9 or later", version);
        cublasLtLoggerSetCallback(lt_listen), cublasLtLoggerSetMask(1);
        lt_check(cublasLtCreate(&lt.handle), "cublasLtCreate");
    }
    cudaDeviceProp card;
    cuda_check(cudaGetDeviceProperties(&card, 0), "cuBLASLt");
    lt.family = machine.cc, lt.cc = card.major * 10 + card.minor, lt.workspace = lt_workspace(lt.family), lt.slot = 0;
    lt.memory = allocate_zeroed(LT_SCALARS + lt.workspace);
    float* one = (float*)(lt.memory + 16);
    for_rows("beta", 4, 1, [=] HD(Lanes g, int) {
        if (g.first()) *one = 1;
    });
}
template <class T> void lt_set(LtPlan& plan, cublasLtMatmulDescAttributes_t what, const T& value) {
    lt_check(cublasLtMatmulDescSetAttribute(plan.op, what, &value, sizeof value), "cublasLtMatmulDescSetAttribute");
}
inline void lt_point(LtPlan& plan, const LtProblem& p, const LtPointers& q) {
    if (p.scales_given) {
        lt_set(plan, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, q.scale_a);
        lt_set(plan, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, q.scale_b);
    }
    if (p.bias) lt_set(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, q.bias);
}
// The plan of p, looked for once, with the pointers of its first call.
inline LtPlan& lt_plan(const LtProblem& p, const LtPointers& q) {
    auto [at, is_new] = lt.plans.try_emplace(p);
    LtPlan& plan = at->second;
    if (!is_new) {
        if (plan.refused.empty()) lt_point(plan, p, q);
        return plan;
    }
    if (!lt.unchecked) plan.refused = lt_refusal(p, lt.cc, cublasLtGetVersion());
    if (!plan.refused.empty()) return plan;
    lt_check(cublasLtMatmulDescCreate(&plan.op, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate", p); // no TF32
    lt_set(plan, CUBLASLT_MATMUL_DESC_TRANSA, (int32_t)(p.a_T ? CUBLAS_OP_T : CUBLAS_OP_N));
    lt_set(plan, CUBLASLT_MATMUL_DESC_TRANSB, (int32_t)(p.b_T ? CUBLAS_OP_N : CUBLAS_OP_T));
    if (p.device_alpha) lt_set(plan, CUBLASLT_MATMUL_DESC_POINTER_MODE, (int32_t)CUBLASLT_POINTER_MODE_DEVICE);
    if (p.scale_mode >= 0) {
        lt_set(plan, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, (int32_t)p.scale_mode);
        lt_set(plan, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, (int32_t)p.scale_mode);
    }
    if (p.fast_accum) lt_set(plan, CUBLASLT_MATMUL_DESC_FAST_ACCUM, (int8_t)1);
    if (p.bias) {
        lt_set(plan, CUBLASLT_MATMUL_DESC_EPILOGUE, (int32_t)CUBLASLT_EPILOGUE_BIAS);
        lt_set(plan, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, (int32_t)lt_type(p.d));
    }
    lt_point(plan, p, q);
    auto layout = [&](cublasLtMatrixLayout_t* l, Elem e, int64_t rows, int64_t cols, int64_t ld) {
        lt_check(cublasLtMatrixLayoutCreate(l, lt_type(e), rows, cols, ld), "cublasLtMatrixLayoutCreate", p);
    };
    layout(&plan.a, p.a, p.a_T ? p.k : p.m, p.a_T ? p.m : p.k, p.lda);
    layout(&plan.b, p.b, p.b_T ? p.k : p.n, p.b_T ? p.n : p.k, p.ldb);
    layout(&plan.d, p.d, p.m, p.n, p.ldd);
    cublasLtMatmulPreference_t wish;
    lt_check(cublasLtMatmulPreferenceCreate(&wish), "cublasLtMatmulPreferenceCreate", p);
    auto want = [&](cublasLtMatmulPreferenceAttributes_t what, auto value) {
        lt_check(cublasLtMatmulPreferenceSetAttribute(wish, what, &value, sizeof value), "a preference", p);
    };
    want(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (uint64_t)lt.workspace);
    want(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)p.align_a);
    want(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)p.align_b);
    want(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)p.align_d);
    want(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)p.align_d);
    cublasLtMatmulHeuristicResult_t best = {};
    int found = 0;
    lt.said.clear();
    cublasStatus_t s = cublasLtMatmulAlgoGetHeuristic(lt.handle, plan.op, plan.a, plan.b, plan.d, plan.d, wish, 1, &best, &found);
    cublasLtMatmulPreferenceDestroy(wish);
    if (s == CUBLAS_STATUS_SUCCESS && found) s = best.state;
    else if (s == CUBLAS_STATUS_SUCCESS) s = CUBLAS_STATUS_NOT_SUPPORTED;
    if (s != CUBLAS_STATUS_SUCCESS) plan.refused = std::string("it has no algorithm, ") + cublasLtGetStatusName(s) + (lt.said.empty() ? "" : ": " + lt.said);
    plan.algo = best.algo, plan.workspace = best.workspaceSize;
    return plan;
}
inline void lt_run(const char* name, LtPlan& plan, const LtProblem& p, const LtPointers& q) {
    float one = q.scale, beta = q.accumulate;
    const void *alpha = &one, *add = &beta;
    if (q.alpha) alpha = q.alpha, add = lt.memory + 16 * q.accumulate;
    lt.said.clear();
    cublasStatus_t s = cublasLtMatmul(lt.handle, plan.op, alpha, q.a, plan.a, q.b, plan.b, add, q.d, plan.d, q.d, plan.d,
                                      &plan.algo, lt.memory + LT_SCALARS, lt.workspace, (cudaStream_t)machine.stream);
    if (s != CUBLAS_STATUS_SUCCESS) lt_fail(name, "cublasLtMatmul", cublasLtGetStatusName(s), p);
    if (machine.debug) synchronize(name);
}

// --- 3. operands that are converted first -------------------------------------------------------------------------
// y, as o.data lies but for its elements: BF16 or FP32 values with the scales of blocks, or E4M3 codes without them.
template <const Format& F, class Y> HD INLINE Y converted(uint32_t code, float scale) {
    if constexpr (sizeof(Y) == 1) return (Y)encode(E4M3, decode(F, code));
    else return Y(decode(F, code) * scale);
}
constexpr int CONVERTED = 2048; // elements of a launch row
template <const Format& F, class Y> HD inline void convert_part(Lanes g, Y* y, Operand o, int K, int pieces, int i) {
    size_t row = i / pieces, from = (size_t)(i % pieces) * CONVERTED, n = o.ld - from < CONVERTED ? o.ld - from : CONVERTED;
    const uint8_t* codes = (const uint8_t*)o.data;
    constexpr int per = F.bits() == 4 ? 4 : 8, E = 8; // bits of a code; a lane takes E of them
    auto scale_at = [&](size_t k) { return o.scales && sizeof(Y) > 1 ? k < (size_t)K ? block_scale(o, row, k) : 0 : 1; };
    if (o.ld % E == 0 && (uintptr_t)codes % E == 0) {
        struct alignas(E * sizeof(Y)) Out { Y v[E]; };
        g.each((int)(n / E), [=](int j) {
            size_t k = from + (size_t)j * E, at = row * o.ld + k;
            uint64_t word = per == 4 ? *(const uint32_t*)(codes + at / 2) : *(const uint64_t*)(codes + at);
            float scale = scale_at(k);
            Out out;
            for (int e = 0; e < E; e++) out.v[e] = converted<F, Y>((uint32_t)(word >> e * per) & ((1 << per) - 1), scale);
            *(Out*)(y + at) = out;
        });
    } else
        g.each((int)n, [=](int j) {
            size_t k = from + j, at = row * o.ld + k;
            y[at] = converted<F, Y>(per == 4 ? codes[at / 2] >> at % 2 * 4 & 15 : codes[at], scale_at(k));
        });
}
template <const Format& F, class Y> void convert_as(const char* name, Y* y, Operand o, int rows, int K) {
    int pieces = (int)blocks(o.ld, CONVERTED);
    for_rows(name, (double)rows * o.ld * (F.bits() / 8.0 + sizeof(Y)), (size_t)rows * pieces, [=] HD(Lanes g, int i) {
        convert_part<F, Y>(g, y, o, K, pieces, i);
    });
}
template <class Y> void convert(const char* name, char*& to, Operand& o, int rows, int K) {
    Y* y = (Y*)to;
    int lines = o.k_contiguous ? rows : K;
    for_format<E4M3, E5M2, E3M2, E2M3, E2M1>(name, format_of(o.elem), [&]<const Format& F>() {
        convert_as<F, Y>(name, y, o, lines, K);
    });
    o.data = y, to += (lines * o.ld * sizeof(Y) + 255) / 256 * 256;
}
// *alpha = what both operands and the caller multiply the sum by.
inline void set_alpha(float* alpha, Gemm s) {
    for_rows("alpha", 16, 1, [=] HD(Lanes g, int) {
        Factors f = factors_of(s);
        if (g.first()) *alpha = f.a * f.b;
    });
}
inline void add_bias(Gemm s) { // to an FP32 result
    real *out = (real*)s.out, *bias = (real*)s.bias;
    for_rows("bias", 12.0 * s.M * s.N, s.M, [=] HD(Lanes g, int m) {
        g.map(s.N, out + m * s.ld_out, [](real x, real b) { return x + b; }, out + m * s.ld_out, bias);
    });
}

// --- 4. native or emulated ----------------------------------------------------------------------------------------
inline GemmKind kind_of(const Gemm& s) {
    auto side = [](const Operand& o) {
        return o.scales ? GemmSide{o.elem, o.scale_elem, o.block, o.exact} : GemmSide{o.elem};
    };
    return {side(s.a), side(s.b)};
}
inline std::string why_emulated_here(const Gemm& s) {
    GemmKind kind = kind_of(s);
    std::string why = why_emulated(kind, lt.cc, s.M, s.N, s.K, !s.a.k_contiguous || !s.b.k_contiguous);
    if (why.empty() && lt.failed.count(kind)) why = lt.failed[kind];
    if (why.empty() && kind.a.block && (!s.a.swizzled || !s.b.swizzled)) why = "scales are not in tiles";
    return why;
}
// K, or if both operands have zeros there, K rounded up.
inline int64_t padded_k(const Gemm& s, int64_t to) {
    int64_t k = (s.K + to - 1) / to * to;
    auto padded = [k](const Operand& o) { return is_codes(o.elem) && o.k_contiguous && (int64_t)o.ld >= k; };
    return padded(s.a) && padded(s.b) ? k : s.K;
}
inline void lt_describe(LtProblem& p, LtPointers& q, const Gemm& s) {
    p.m = s.N, p.n = s.M, p.lda = s.b.ld, p.ldb = s.a.ld, p.ldd = s.ld_out;
    p.a_T = s.b.k_contiguous, p.b_T = s.a.k_contiguous, p.d = s.out_elem;
    q.a = s.b.data, q.b = s.a.data, q.d = s.out, q.accumulate = s.accumulate;
    p.align_a = alignment_of(q.a), p.align_b = alignment_of(q.b), p.align_d = alignment_of(q.d);
    p.align_scales = std::min(alignment_of(q.scale_a), alignment_of(q.scale_b));
    if (p.bias) q.bias = s.bias, p.align_bias = alignment_of(q.bias);
}
inline float* next_alpha() {
    constexpr int slots = LT_SCALARS / 16 - 2;
    return (float*)(lt.memory + 32 + 16 * (lt.slot++ % slots));
}
inline char* scratch_of(const char* name, size_t bytes) {
    if (bytes > matmul_scratch.bytes) { // nobody planned it
        static char* own = nullptr;
        static size_t own_bytes = 0;
        synchronize(name);
        release_memory(own, own_bytes);
        matmul_scratch = {own = allocate_zeroed(bytes), own_bytes = bytes};
    }
    return matmul_scratch.memory;
}
// On its own tensor cores: fills p and q, converting what has to be.
inline void prepare_native(LtProblem& p, LtPointers& q, Gemm& s) {
    GemmKind kind = kind_of(s);
    p.scale_mode = is_fp4(kind)     ? CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3
                   : kind.a.block ? CUBLASLT_MATMUL_MATRIX_SCALE_VEC32_UE8M0
                                    : CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
    p.k = padded_k(s, kind.a.block ? 32 : 16);
    q.scale = s.scale_a * s.scale_b;
    if (kind.a.block == 0) q.scale_a = s.b.factor, q.scale_b = s.a.factor;
    else q.scale_a = s.b.scales, q.scale_b = s.a.scales;
    p.scales_given = q.scale_a || q.scale_b;
    p.device_alpha = kind.a.block && (s.a.factor || s.b.factor);
    p.fast_accum = s.fast_accum && !kind.a.block && has_fast_accum(lt.cc);
    p.bias = s.bias && s.out_elem == Elem::bf16;
}
inline void widen(const char* name, Gemm& s) {
    size_t bytes = matmul_scratch_bytes(s.a.ld * (s.a.k_contiguous ? s.M : s.K), s.b.ld * (s.b.k_contiguous ? s.N : s.K));
    char* to = scratch_of(name, bytes);
    GemmKind kind = kind_of(s);
    for (auto [side, o, rows] : {std::tuple(kind.a, &s.a, s.M), {kind.b, &s.b, s.N}})
        if (is_widened(side)) convert<uint8_t>("widen", to, *o, rows, s.K), o->elem = Elem::e4m3;
}
inline void decode_operands(const char* name, Gemm& s) {
    size_t bytes = matmul_scratch_bytes(s.a.ld * (s.a.k_contiguous ? s.M : s.K), s.b.ld * (s.b.k_contiguous ? s.N : s.K));
    char* to = scratch_of(name, bytes);
    Elem as = s.a.elem == Elem::f32 || s.b.elem == Elem::f32 ? Elem::f32 : Elem::bf16;
    for (auto [o, rows] : {std::pair(&s.a, s.M), {&s.b, s.N}})
        if (is_codes(o->elem)) {
            as == Elem::f32 ? convert<float>("decode", to, *o, rows, s.K) : convert<bf16>("decode", to, *o, rows, s.K);
            o->elem = as, o->scales = nullptr;
        }
}
// The GEMM s, or false: nothing was done, and it is the row function's.
inline bool matmul_gpu(const char* name, Gemm s, double bytes = 0, double flops = 0) {
    if (s.M == 0 || s.N == 0) return true;
    if (!s.a.exact || !s.b.exact || s.K == 0 || (s.accumulate && s.out_elem == Elem::bf16)) return false;
    lt_start();
    GemmKind kind = kind_of(s);
    LtProblem p = {};
    LtPointers q = {};
    LtPlan* plan = nullptr;
    const Gemm given = s;
    lt.was_native = false;
    if (is_codes(s.a.elem) && is_codes(s.b.elem) && why_emulated_here(s).empty()) {
        prepare_native(p, q, s);
        if (is_widened(kind.a) || is_widened(kind.b)) widen(name, s);
        p.a = s.b.elem, p.b = s.a.elem;
        lt_describe(p, q, s);
        plan = &lt_plan(p, q);
        if (!plan->refused.empty()) {
            if (!plan->told) note("%s is emulated: %s (%s)", name, plan->refused.c_str(), lt_text(p).c_str());
            plan->told = true;
            plan = nullptr, p = {}, q = {}, s = given;
        }
        lt.was_native = plan;
    }
    if (!plan) {
        if (lt.insist && kind.any_codes()) fail("--native: %s would be emulated: %s", name, why_emulated_here(given).c_str());
        p.k = s.K;
        if (kind.any_codes()) {
            if (is_codes(s.a.elem) && is_codes(s.b.elem)) p.k = padded_k(s, 8);
            decode_operands(name, s);
            p.device_alpha = given.a.factor || given.b.factor;
        }
        q.scale = s.scale_a * s.scale_b;
        p.a = s.b.elem, p.b = s.a.elem, p.bias = s.bias && (uintptr_t)s.bias % 16 == 0;
        if (s.bias && !p.bias && s.out_elem == Elem::bf16) return false;
        lt_describe(p, q, s);
        plan = &lt_plan(p, q);
        if (!plan->refused.empty()) lt_fail(name, "no plan", plan->refused, p);
    }
    if (p.device_alpha) {
        float* alpha = next_alpha();
        set_alpha(alpha, given);
        q.alpha = alpha;
    }
    profiled(name, bytes, flops, [&] { lt_run(name, *plan, p, q); });
    if (given.bias && !p.bias) add_bias(given);
    return true;
}

// --- 5. proof -----------------------------------------------------------------------------------------------------
// Is what this card multiplies natively what is meant? A small GEMM of this kind, natively and then emulated, as fprop
// (BF16 out, a bias, fast accumulation) and as wgrad (FP32, added to). Returns "", or what went wrong.
// Bound: tensor cores align the products of a step with the largest and cut 13 bits below it (Hopper's, the shortest
// known); K products and at most K / 16 sums are each cut once by 2^-13 of at most S = sum |a b|.
// Most values are positive, so that sums are near S and a scale that is found in a wrong place shows.
inline std::string native_check(GemmKind kind) {
    constexpr int M = 40, N = 192, K = 160; // more than one tile of scales in rows, and blocks that fill none
    lt_start();
    struct Side {
        std::vector<uint8_t> codes, scales;
        std::vector<float> values = {}; // (rows, K)
        float factor[4] = {1.25f};
        Operand o = {};
    } side[2];
    auto hash = [i = 0]() mutable { return (uint32_t)mix(7, i++); };
    char *memory = allocate_zeroed(1 << 20), *next = memory;
    auto upload = [&](const void* from, size_t bytes) {
        char* to = next;
        cuda_check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "native_check");
        return next += (bytes + 255) / 256 * 256, to;
    };
    for (int i = 0; i < 2; i++) {
        Side& s = side[i];
        auto [elem, scale, block, exact] = i ? kind.b : kind.a;
        Format f = format_of(elem);
        int rows = i ? N : M, KB = block ? K / block : 0;
        s.codes.resize(code_bytes(f, (size_t)rows * K)), s.scales.resize(tiled_scale_bytes(rows, KB));
        s.o = codes_of(s.codes.data(), f, true, K);
        if (block) {
            s.o.scales = s.scales.data(), s.o.scale_elem = scale, s.o.block = block, s.o.ld_scales = KB;
            s.o.swizzled = lt.family >= 100;
        }
        for (size_t at = 0; at < (size_t)rows * K; at++) {
            uint32_t code = encode(f, f.max * 0x1p-16f * (float)(int)(hash() % 0x10000) * (hash() % 8 ? 1 : -1));
            s.codes[f.bits() == 4 ? at / 2 : at] |= code << (f.bits() == 4 ? at % 2 * 4 : 0);
        }
        for (int r = 0; r < rows; r++)
            for (int kb = 0; kb < KB; kb++) {
                float v = exp2i((int)(hash() % 5) - 2) * (1 + (scale == Elem::e4m3 ? 0.125f * (float)(hash() % 8) : 0));
                s.scales[s.o.swizzled ? tiled_scale(r, kb, KB) : (size_t)r * KB + kb] = (uint8_t)encode(format_of(scale), v);
            }
        for (int r = 0; r < rows; r++)
            for (int k = 0; k < K; k++) s.values.push_back((float)fetch(s.o, r, k));
        s.o.data = upload(s.codes.data(), s.codes.size());
        if (block) s.o.scales = upload(s.scales.data(), s.scales.size());
        if (scale != Elem::e8m0) s.o.factor = (const float*)upload(s.factor, 16);
    }
    double factor = is_fp4(kind) ? 1.25 * 1.25 / (2688.0 * 2688) : side[0].o.factor ? 1.25 * 1.25 : 1;
    float unit = (float)factor * format_of(kind.a.elem).max * format_of(kind.b.elem).max; // about a product
    std::vector<bf16> bias(N);
    for (bf16& b : bias) b = bf16(unit * (float)(hash() % 64));
    std::string wrong;
    bool insist = std::exchange(lt.insist, false);
    for (bool fprop : {true, false}) {
        size_t bytes = (size_t)M * N * (fprop ? 2 : 4);
        std::vector<float> start(M * N, 20 * unit);
        Gemm g = {.out = nullptr, .out_elem = fprop ? Elem::bf16 : Elem::f32, .ld_out = N, .M = M, .N = N, .K = K,
                  .a = side[0].o, .b = side[1].o, .accumulate = !fprop, .fast_accum = fprop};
        if (fprop) g.bias = upload(bias.data(), 2 * N);
        std::vector<float> got[2];
        for (bool native : {true, false}) {
            g.out = upload(start.data(), 4 * M * N);
            if (!native) lt.failed[kind] = "it is being checked";
            bool done = matmul_gpu("native_check", g);
            if (!native) lt.failed.erase(kind);
            if (!done || lt.was_native != native) wrong = "cuBLASLt does not take it";
            synchronize("native_check");
            std::vector<char> out(bytes);
            cuda_check(cudaMemcpy(out.data(), g.out, bytes, cudaMemcpyDefault), "native_check");
            for (int i = 0; i < M * N; i++)
                got[native].push_back(fprop ? (float)((bf16*)out.data())[i] : ((float*)out.data())[i]);
        }
        for (int i = 0; i < M * N && wrong.empty(); i++) {
            double S = fprop ? fabs((float)bias[i % N]) : fabs(start[i]);
            for (int k = 0; k < K; k++)
                S += factor * fabs((double)side[0].values[i / N * K + k] * side[1].values[i % N * K + k]);
            double bound = (K + K / 16) * 0x1p-13 * S + (fprop ? 0x1p-7 * fabs(got[false][i]) : 0);
            if (!(fabs((double)got[true][i] - got[false][i]) <= bound))
                wrong = format("row %d, column %d of a small product is %g, and should be %g +- %.2g", i / N, i % N,
                               got[true][i], got[false][i], bound);
        }
    }
    lt.insist = insist;
    release_memory(memory, 1 << 20);
    return wrong;
}
// For every kind that a run will use: what a card gets wrong is emulated from then on, or an error if lt.insist.
inline void prove_native(const std::vector<GemmKind>& kinds) {
    lt_start();
    for (const GemmKind& k : kinds) {
        if (!k.any_codes() || lt.failed.count(k) || !why_emulated(k, lt.cc).empty()) continue;
        std::string wrong = native_check(k), what = how_multiplied(k, lt.cc);
        if (wrong.empty()) continue;
        if (lt.insist) fail("--native: %s fails its check on this card: %s", what.c_str(), wrong.c_str());
        note("%s fails its check on this card and is emulated: %s", what.c_str(), wrong.c_str());
        lt.failed[k] = "it failed its check on this card: " + wrong;
    }
}
