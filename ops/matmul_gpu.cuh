// The GEMM of a GPU: cuBLASLt. The row function in matmul.cuh is the definition; sums have another order here.
// What a reader would get wrong:
// - cuBLASLt is column-major. A row-major (R, S) is its S x R, and out^T = b a^T: its A is our b, its m our N.
// - "TN", the only layout of FP8 before and beside sm_100, means that both operands are contiguous along k.
// - Scale and bias pointers have to be set before an algorithm is looked for, although it does not depend on them, and
//   again with every call, because plans are shared by all GEMMs of a shape.
// - An FP32 scale lies 16 bytes apart from the next: versions up to 13.1 want it, although nobody promised that.
// - The search can say SUCCESS and return nothing.
// - alpha and beta lie both on the host or both on the device.
//
// On a GPU codes come contiguous along k (on sm_100 those with one scale may not), ld a multiple of 32, zeros beyond K
// up to ld, so that K is rounded up for nothing; data aligned to 256 bytes, `factor` to 16; byte scales of sm_100 and
// later in tiles (`swizzled`), padded with zeros, FP32 ones of sm_90 as scale_grid() says. What comes otherwise, an odd
// vocabulary say, is decoded to BF16.
#pragma once
#include "ops/matmul.cuh"
#include "run/screen.h"
#include <cublasLt.h>
#include <tuple>

// --- 1. what a plan is --------------------------------------------------------------------------------------------
// All that an algorithm depends on, in cuBLASLt's terms: D (m, n) = op(A) op(B).
struct LtProblem {
    int64_t m, n, k;
    Elem a, b, d;
    bool a_along, b_along; // contiguous along k: op(A) = A^T, op(B) = B
    int64_t lda, ldb, ldd;
    int mode_a = -1, mode_b = -1; // of scales; -1: none
    bool scales = false, device_alpha = false, bias = false, fast_accum = false;
    unsigned align_a = 256, align_b = 256, align_d = 256, align_scales = 256, align_bias = 256;
    auto operator<=>(const LtProblem&) const = default;
};
struct LtPointers {
    const void *a, *b;
    void* d;
    const void *scale_a = nullptr, *scale_b = nullptr, *bias = nullptr;
    const float* alpha = nullptr; // on the device; or null, and `scale` it is
    float scale = 1;
    bool accumulate = false;
};
struct LtPlan {
    cublasLtMatmulDesc_t op = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
    cublasLtMatmulAlgo_t algo;
    std::string refused; // why there is none
    bool told = false;   // the user, about that
    LtPlan() = default;
    LtPlan(const LtPlan&) = delete;
    void operator=(const LtPlan&) = delete;
    ~LtPlan() {
        if (op) cublasLtMatmulDescDestroy(op);
        for (auto l : {a, b, d})
            if (l) cublasLtMatrixLayoutDestroy(l);
    }
};
struct Lt {
    cublasLtHandle_t handle = nullptr;
    int family = 0, cc = 0; // 100 and 103, for example
    std::map<LtProblem, LtPlan> plans;
    char* memory = nullptr;                 // LT_SCALARS, then the workspace
    size_t workspace = 0;
    int slot = 0;
    std::string said;        // by the library, since the last call
    bool unchecked = false;  // for tests: the library's own refusals alone
};
inline Lt& lt = *new Lt; // left to the end of the process, which may come after that of the library
constexpr size_t LT_SCALARS = 4096; // 16 bytes each: beta 0, beta 1, then alphas, by turns: GEMMs may overlap

constexpr int SCALAR = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F, VEC16 = CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3,
              VEC32 = CUBLASLT_MATMUL_MATRIX_SCALE_VEC32_UE8M0, VEC128 = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F,
              BLK128 = CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
inline cudaDataType_t lt_type(Elem e) {
    return e == Elem::f32    ? CUDA_R_32F
           : e == Elem::e4m3 ? CUDA_R_8F_E4M3
           : e == Elem::e5m2 ? CUDA_R_8F_E5M2
           : e == Elem::e2m1 ? CUDA_R_4F_E2M1
                             : CUDA_R_16BF;
}
inline std::string lt_text(const LtProblem& p) {
    auto side = [](char name, Elem e, char op, int64_t ld) {
        return format(", %c %s %c ld %lld", name, format_of(e).name, op, (long long)ld);
    };
    return format("m %lld n %lld k %lld", (long long)p.m, (long long)p.n, (long long)p.k) +
           side('A', p.a, "NT"[p.a_along], p.lda) + side('B', p.b, "TN"[p.b_along], p.ldb) +
           side('D', p.d, 'N', p.ldd) + (p.bias ? ", bias" : "") + (p.device_alpha ? ", alpha on the device" : "") +
           format(", scale modes %d %d%s, aligned to %u %u %u, scales %u, bias %u", p.mode_a, p.mode_b,
                  p.fast_accum ? ", fast accumulation" : "", p.align_a, p.align_b, p.align_d, p.align_scales,
                  p.align_bias);
}
inline unsigned alignment_of(const void* p) { // up to 256 bytes
    uintptr_t low = (uintptr_t)p & -(uintptr_t)p;
    return low && low < 256 ? (unsigned)low : 256;
}

// The library's rules: "" or what it would refuse, or worse, take.
inline std::string lt_refusal(const LtProblem& p, int cc, size_t version) {
    bool fp4 = p.a == Elem::e2m1 || p.b == Elem::e2m1;
    auto fp8 = [](Elem e) { return e == Elem::e4m3 || e == Elem::e5m2; };
    int by = fp4 ? 32 : 16, f = family_of(cc), mode = std::max(p.mode_a, p.mode_b);
    int out_bytes = p.d == Elem::f32 ? 4 : 2;
    if (p.lda < (p.a_along ? p.k : p.m) || p.ldb < (p.b_along ? p.k : p.n) || p.ldd < p.m)
        return "a leading dimension is too small";
    if (p.bias && p.align_bias < 16) return "the bias is not aligned to 16 bytes";
    if (!is_codes(p.a) && !is_codes(p.b)) {
        if (p.a != p.b || (p.a == Elem::f32 && p.d != Elem::f32)) return "its matrices are of two types";
        return p.fast_accum || mode > 0 || p.scales ? "scales and fast accumulation are for FP8 and FP4" : "";
    }
    if (fp4 ? p.a != p.b || mode != VEC16 : !fp8(p.a) || !fp8(p.b) || mode < 0 || mode == VEC16)
        return "no kernel multiplies these two formats with such scales";
    bool by_128 = mode >= VEC128; // either of them, but not 128 x 128 with itself
    if (by_128 ? std::min(p.mode_a, p.mode_b) != VEC128 : p.mode_a != p.mode_b || mode > VEC32)
        return format("scale modes %d and %d do not mix", p.mode_a, p.mode_b);
    if (p.a == Elem::e5m2 && p.b == Elem::e5m2) return "E5M2 x E5M2 does not exist";
    if (f < 89 || (by_128 ? f != 90 : mode > 0 && f < 100)) return format("sm_%d has no such tensor cores", cc);
    if (!(p.a_along && p.b_along) && (fp4 || f != 100)) return "only operands contiguous along k (TN) are multiplied";
    if (p.m % 16) return format("m = %lld is not a multiple of 16", (long long)p.m);
    if (by_128 && p.n % 8) return format("n = %lld is not a multiple of 8", (long long)p.n);
    if (!p.b_along && p.n % 16) return format("n = %lld is not a multiple of 16", (long long)p.n);
    if (p.k % by) return format("k = %lld is not a multiple of %d", (long long)p.k, by);
    if (p.lda % by || p.ldb % by) return format("lda and ldb are not multiples of %d", by);
    if (p.ldd * out_bytes % 16) return "rows of the output are not 16 bytes apart";
    if (p.align_a < 16 || p.align_b < 16 || p.align_d < 16) return "a matrix is not aligned to 16 bytes";
    if (p.scales ? p.align_scales < 16 : mode > 0) return "a scale is missing or not aligned to 16 bytes";
    if (p.bias && p.d != Elem::bf16) return "FP8 takes a BF16 bias alone";
    if (p.fast_accum && (mode > 0 || !has_fast_accum(cc)))
        return "fast accumulation is for FP8 with one scale, on sm_89 and sm_90";
    if (fp4 && cc == 103 && p.m % 64 && version < 130300)
        return "FP4 is wrong on sm_103 before CUDA 13.2 where m is not a multiple of 64";
    return "";
}

// --- 2. plans -----------------------------------------------------------------------------------------------------
[[noreturn]] inline void lt_fail(const char* name, const char* call, const std::string& why, const LtProblem& p) {
    fail("%s: %s: %s%s%s (cuBLASLt %zu, sm_%d; %s). hint: CUBLASLT_LOG_LEVEL=5 in the environment says more", name,
         call, why.c_str(), lt.said.empty() ? "" : ": ", lt.said.c_str(), (size_t)cublasLtGetVersion(), lt.cc,
         lt_text(p).c_str());
}
inline void lt_check(cublasStatus_t s, const char* call, const LtProblem& p = {}) {
    if (s != CUBLAS_STATUS_SUCCESS) lt_fail("cuBLASLt", call, cublasLtGetStatusName(s), p);
}
inline size_t lt_bytes(int family) { return LT_SCALARS + ((size_t)(family >= 90 ? 64 : 32) << 20); } // it allocates
// The library, its workspace and scalars, for machine.cc; what was there for another card is given back.
inline void lt_start() {
    if (lt.handle && lt.family == machine.cc) return;
    if (lt.handle) {
        synchronize("cuBLASLt");
        release_memory(lt.memory, lt_bytes(lt.family));
        lt.plans.clear(), native.failed.clear();
    } else {
        if (size_t version = cublasLtGetVersion(); version < 120900)
            fail("cuBLASLt is version %zu, which knows no block scales or confuses them. hint: CUDA 12.9", version);
        cublasLtLoggerSetCallback([](int, const char*, const char* message) { lt.said = message; });
        cublasLtLoggerSetMask(1);
        lt_check(cublasLtCreate(&lt.handle), "cublasLtCreate");
    }
    cudaDeviceProp card;
    cuda_check(cudaGetDeviceProperties(&card, 0), "cuBLASLt");
    lt.family = machine.cc, lt.cc = card.major * 10 + card.minor;
    lt.memory = allocate_zeroed(lt_bytes(lt.family)), lt.workspace = lt_bytes(lt.family) - LT_SCALARS;
    float* one = (float*)(lt.memory + 16);
    for_rows("beta", 4, 1, [=] HD(Lanes g, int) {
        if (g.first()) *one = 1;
    });
}
template <class T> void lt_set(LtPlan& plan, cublasLtMatmulDescAttributes_t what, T value) {
    lt_check(cublasLtMatmulDescSetAttribute(plan.op, what, &value, sizeof value), "cublasLtMatmulDescSetAttribute");
}
inline void lt_point(LtPlan& plan, const LtProblem& p, const LtPointers& q) {
    if (p.scales) {
        lt_set(plan, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, q.scale_a);
        lt_set(plan, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, q.scale_b);
    }
    if (p.bias) lt_set(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, q.bias);
}
// Looks for an algorithm, with the pointers of its first call.
inline void lt_make(LtPlan& plan, const LtProblem& p, const LtPointers& q) {
    auto layout = [&](cublasLtMatrixLayout_t* l, Elem e, int64_t rows, int64_t cols, int64_t ld) {
        lt_check(cublasLtMatrixLayoutCreate(l, lt_type(e), rows, cols, ld), "cublasLtMatrixLayoutCreate", p);
    };
    layout(&plan.a, p.a, p.a_along ? p.k : p.m, p.a_along ? p.m : p.k, p.lda);
    layout(&plan.b, p.b, p.b_along ? p.k : p.n, p.b_along ? p.n : p.k, p.ldb);
    layout(&plan.d, p.d, p.m, p.n, p.ldd);
    cublasStatus_t s = cublasLtMatmulDescCreate(&plan.op, CUBLAS_COMPUTE_32F, CUDA_R_32F); // no TF32
    lt_check(s, "cublasLtMatmulDescCreate", p);
    auto set = [&](cublasLtMatmulDescAttributes_t what, int32_t value) { lt_set(plan, what, value); };
    set(CUBLASLT_MATMUL_DESC_TRANSA, p.a_along ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_TRANSB, p.b_along ? CUBLAS_OP_N : CUBLAS_OP_T);
    if (p.device_alpha) set(CUBLASLT_MATMUL_DESC_POINTER_MODE, CUBLASLT_POINTER_MODE_DEVICE);
    if (p.mode_a >= 0) {
        set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, p.mode_a);
        set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, p.mode_b);
    }
    if (p.fast_accum) lt_set(plan, CUBLASLT_MATMUL_DESC_FAST_ACCUM, (int8_t)1);
    if (p.bias) {
        set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
        set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, lt_type(p.d));
    }
    lt_point(plan, p, q);
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
    s = cublasLtMatmulAlgoGetHeuristic(lt.handle, plan.op, plan.a, plan.b, plan.d, plan.d, wish, 1, &best, &found);
    cublasLtMatmulPreferenceDestroy(wish);
    if (s == CUBLAS_STATUS_SUCCESS) s = found ? best.state : CUBLAS_STATUS_NOT_SUPPORTED;
    if (s != CUBLAS_STATUS_SUCCESS)
        plan.refused = std::string("there is no algorithm, ") + cublasLtGetStatusName(s) +
                       (lt.said.empty() ? "" : ": " + lt.said);
    plan.algo = best.algo;
}
inline LtPlan& lt_plan(const LtProblem& p, const LtPointers& q) {
    if (machine.recording && !lt.plans.count(p)) fail("no algorithm has been looked for: %s", lt_text(p).c_str());
    auto [at, is_new] = lt.plans.try_emplace(p);
    LtPlan& plan = at->second;
    if (is_new && !lt.unchecked) plan.refused = lt_refusal(p, lt.cc, cublasLtGetVersion());
    if (plan.refused.empty()) is_new ? lt_make(plan, p, q) : lt_point(plan, p, q);
    return plan;
}
inline void lt_run(const char* name, LtPlan& plan, const LtProblem& p, const LtPointers& q) {
    float beta = q.accumulate;
    const void *alpha = &q.scale, *add = &beta;
    if (q.alpha) alpha = q.alpha, add = lt.memory + 16 * q.accumulate;
    lt.said.clear();
    cublasStatus_t s =
        cublasLtMatmul(lt.handle, plan.op, alpha, q.a, plan.a, q.b, plan.b, add, q.d, plan.d, q.d, plan.d, &plan.algo,
                       lt.memory + LT_SCALARS, lt.workspace, (cudaStream_t)machine.stream);
    if (s != CUBLAS_STATUS_SUCCESS) lt_fail(name, "cublasLtMatmul", cublasLtGetStatusName(s), p);
    if (machine.debug) synchronize(name);
}

// --- 3. operands that are converted first -------------------------------------------------------------------------
// Elements of o, where it has them: values with the scales of blocks in BF16 or FP32, or E4M3 codes without.
template <const Format& F, class Y> HD INLINE Y converted(uint64_t code, float scale) {
    float v = decode(F, (uint32_t)code);
    if constexpr (sizeof(Y) == 1) return (Y)encode(E4M3, v);
    else return Y(v * scale);
}
constexpr int CONVERTED = 2048; // elements of a launch row
template <const Format& F, class Y> KERNEL void convert_kernel(Y* y, Operand o, int K, int pieces, int rows) {
    Lanes g;
    int i = (int)(((size_t)block_index() * block_size() + thread_index()) / LANES);
    if (i >= rows) return;
    size_t row = i / pieces, from = (size_t)(i % pieces) * CONVERTED, left = o.ld - from;
    int n = left < CONVERTED ? (int)left : CONVERTED;
    const uint8_t* codes = (const uint8_t*)o.data;
    constexpr int bits = F.bits() == 4 ? 4 : 8, E = 8; // of a code; codes that a lane takes at a time
    bool scaled = sizeof(Y) > 1 && o.scales;
    auto scale_of = [=](size_t k) { return !scaled ? 1 : k < (size_t)K ? block_scale(o, row, k) : 0; };
    if (o.ld % E == 0 && (uintptr_t)codes % E == 0) {
        struct alignas(E * sizeof(Y)) Out { Y v[E]; };
        g.each(n / E, [=](int j) {
            size_t k = from + (size_t)j * E, at = row * o.ld + k;
            uint64_t word = bits == 4 ? *(const uint32_t*)(codes + at / 2) : *(const uint64_t*)(codes + at);
            float scale = scale_of(k);
            Out out;
            for (int e = 0; e < E; e++) out.v[e] = converted<F, Y>(word >> e * bits & ((1 << bits) - 1), scale);
            *(Out*)(y + at) = out;
        });
    } else
        g.each(n, [=](int j) {
            size_t k = from + j, at = row * o.ld + k;
            y[at] = converted<F, Y>(bits == 4 ? codes[at / 2] >> at % 2 * 4 & 15 : codes[at], scale_of(k));
        });
}
template <const Format& F, class Y> void convert_as(const char* name, Y* y, Operand o, int rows, int K) {
    int pieces = (int)blocks(o.ld, CONVERTED);
    int n = rows * pieces; // a warp's each
    profiled(name, (double)rows * o.ld * (F.bits() / 8.0 + sizeof(Y)), 0, [&] {
        launch(name, convert_kernel<F, Y>, ((size_t)n * LANES + 255) / 256, 256, 0, y, o, K, pieces, n);
    });
}
template <class Y> void convert(const char* name, char* to, const Operand& o, int rows, int K) {
    for_format<E4M3, E5M2, E3M2, E2M3, E2M1>(name, format_of(o.elem), [&]<const Format& F>() {
        convert_as<F, Y>(name, (Y*)to, o, rows, K);
    });
}
// Operands of s that are codes (or of those, the ones to be widened) become `to`, in scratch memory.
inline void convert_operands(const char* name, Gemm& s, Elem to) {
    size_t lines[] = {(size_t)(s.a.k_contiguous ? s.M : s.K), (size_t)(s.b.k_contiguous ? s.N : s.K)};
    size_t bytes = matmul_scratch_bytes(s.a.ld * lines[0], s.b.ld * lines[1]);
    if (bytes > matmul_scratch.bytes) { // nobody has planned it
        static MatmulScratch own;
        synchronize(name);
        release_memory(own.memory, own.bytes);
        matmul_scratch = own = {allocate_zeroed(bytes), bytes};
    }
    char* at = matmul_scratch.memory;
    for (int i = 0; i < 2; i++) {
        Operand& o = i ? s.b : s.a;
        if (!is_codes(o.elem) || (to == Elem::e4m3 && !is_widened({o.elem}))) continue;
        if (to == Elem::e4m3) convert<uint8_t>("widen", at, o, (int)lines[i], s.K);
        else if (to == Elem::f32) convert<float>("decode", at, o, (int)lines[i], s.K);
        else convert<bf16>("decode", at, o, (int)lines[i], s.K);
        o.data = at, o.elem = to, at += (o.ld * lines[i] * sizeof(act) + 255) / 256 * 256;
    }
}

// --- 4. native or emulated ----------------------------------------------------------------------------------------
inline GemmKind kind_of(const Gemm& s) {
    auto side = [](const Operand& o) {
        return o.scales ? GemmSide{o.elem, o.scale_elem, o.block, o.exact, o.scale_rows} : GemmSide{o.elem};
    };
    return {side(s.a), side(s.b)};
}
inline std::string why_emulated_here(const Gemm& s) {
    GemmKind kind = kind_of(s);
    std::string why = why_emulated(kind, lt.cc, s.M, s.N, s.K, !s.a.k_contiguous || !s.b.k_contiguous);
    if (why.empty() && native.failed.count(kind)) why = native.failed[kind];
    auto as_read = [&](const Operand& o, int rows) {
        if (o.scale_elem != Elem::f32) return o.swizzled;
        Grid at = scale_grid({o.scale_rows, o.block}, rows, blocks(s.K, o.block));
        return machine.layout.columns && o.ld_scales == at.row && o.scale_step == at.k;
    };
    if (why.empty() && kind.a.block && !(as_read(s.a, s.M) && as_read(s.b, s.N)))
        why = "its scales do not lie as cuBLASLt reads them";
    return why;
}
inline int64_t padded_k(const Gemm& s, int to) { // K, or where both operands have zeros there, the next multiple
    int64_t k = (s.K + to - 1) / to * to;
    auto padded = [k](const Operand& o) { return is_codes(o.elem) && o.k_contiguous && (int64_t)o.ld >= k; };
    return padded(s.a) && padded(s.b) ? k : s.K;
}
inline void set_alpha(float* alpha, Gemm s) { // what both operands and the caller multiply sums by
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
// The plan of s, or why there is none. as_codes: by what multiplies its codes; else s is converted, and a BF16 GEMM.
inline LtPlan& plan_for(const char* name, LtProblem& p, LtPointers& q, Gemm s, bool as_codes) {
    GemmKind kind = kind_of(s);
    p = {}, q = {};
    p.k = padded_k(s, !as_codes ? 8 : kind.a.scale == Elem::f32 ? 16 : 32), q.scale = s.scale_a * s.scale_b;
    if (as_codes) {
        bool one_scale = kind.a.block == 0;
        auto mode = [](const GemmSide& s) {
            if (s.block == 128) return s.rows == 1 ? VEC128 : BLK128;
            return s.block == 0 ? SCALAR : s.block == 16 ? VEC16 : VEC32;
        };
        p.mode_a = mode(kind.b), p.mode_b = mode(kind.a);
        q.scale_a = one_scale ? s.b.factor : s.b.scales, q.scale_b = one_scale ? s.a.factor : s.a.scales;
        p.scales = q.scale_a || q.scale_b, p.device_alpha = !one_scale && (s.a.factor || s.b.factor);
        p.fast_accum = s.fast_accum && one_scale && has_fast_accum(lt.cc);
        p.bias = s.bias && s.out_elem == Elem::bf16;
        if (is_widened(kind.a) || is_widened(kind.b)) convert_operands(name, s, Elem::e4m3);
    } else {
        p.device_alpha = s.a.factor || s.b.factor, p.bias = s.bias;
        bool f32 = s.a.elem == Elem::f32 || s.b.elem == Elem::f32;
        if (kind.any_codes()) convert_operands(name, s, f32 ? Elem::f32 : Elem::bf16);
    }
    p.m = s.N, p.n = s.M, p.a = s.b.elem, p.b = s.a.elem, p.d = s.out_elem;
    p.a_along = s.b.k_contiguous, p.b_along = s.a.k_contiguous;
    p.lda = s.b.ld, p.ldb = s.a.ld, p.ldd = s.ld_out;
    q.a = s.b.data, q.b = s.a.data, q.d = s.out, q.accumulate = s.accumulate;
    p.align_a = alignment_of(q.a), p.align_b = alignment_of(q.b), p.align_d = alignment_of(q.d);
    p.align_scales = std::min(alignment_of(q.scale_a), alignment_of(q.scale_b));
    if (p.bias && s.out_elem == Elem::f32 && alignment_of(s.bias) < 16) p.bias = false; // added afterwards
    if (p.bias) q.bias = s.bias, p.align_bias = alignment_of(q.bias);
    return lt_plan(p, q);
}
// The GEMM s, or false: nothing was done, and it is the row function's.
inline bool matmul_gpu(const char* name, const Gemm& s, double bytes = 0, double flops = 0) {
    if (s.M == 0 || s.N == 0) return true;
    bool bf16_out = s.out_elem == Elem::bf16;
    if (s.K == 0 || (bf16_out && (s.accumulate || alignment_of(s.bias) < 16))) return false;
    lt_start();
    LtProblem p;
    LtPointers q;
    LtPlan* plan = nullptr;
    bool any_codes = kind_of(s).any_codes();
    std::string why = why_emulated_here(s);
    if (native.used = any_codes && why.empty(); native.used) {
        plan = &plan_for(name, p, q, s, true);
        if (why = plan->refused; !why.empty()) {
            if (!plan->told && !native.insist) note("%s is emulated: %s (%s)", name, why.c_str(), lt_text(p).c_str());
            plan->told = true, native.used = false;
        }
    }
    if (!native.used) {
        if (any_codes && native.insist) fail("--native: %s would be emulated: %s", name, why.c_str());
        if (!s.a.exact || !s.b.exact) return false;
        plan = &plan_for(name, p, q, s, false);
        if (!plan->refused.empty()) lt_fail(name, "no plan", plan->refused, p);
    }
    if (p.device_alpha) {
        float* alpha = (float*)(lt.memory + 32) + 4 * (lt.slot++ % (LT_SCALARS / 16 - 2));
        set_alpha(alpha, s);
        q.alpha = alpha;
    }
    native.gemms += native.used;
    int speed = !is_codes(p.a) ? 1 : p.a == Elem::e2m1 ? 4 : 2; // of the tensor cores that are used
    profiled(name, bytes, flops, [&] { lt_run(name, *plan, p, q); }, speed);
    if (s.bias && !p.bias) add_bias(s);
    return true;
}
