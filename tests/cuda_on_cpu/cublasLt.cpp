// cuBLASLt's rules as sentences, and its product in double precision.
#include "cublasLt.h"
#include "fp8.cuh"
#include "standin.h"
#include <algorithm>

StandInLt standin_lt;

struct cublasLtContext {};
struct LtLayout {
    cudaDataType type;
    uint64_t rows, cols;
    int64_t ld;
    bool operator==(const LtLayout&) const = default;
};
struct LtMatmulDesc {
    int compute, scale_type, pointer_mode = CUBLASLT_POINTER_MODE_HOST, transa = CUBLAS_OP_N, transb = CUBLAS_OP_N;
    int epilogue = CUBLASLT_EPILOGUE_DEFAULT, bias_type = -1, mode_a = 0, mode_b = 0;
    int8_t fast_accum = 0;
    const void *bias = nullptr, *scale_a = nullptr, *scale_b = nullptr, *scale_c = nullptr, *scale_d = nullptr,
               *amax_d = nullptr;
};
struct LtPreference {
    uint64_t workspace = 0;
    uint32_t align[4] = {256, 256, 256, 256}; // a b c d
};

namespace {
cublasLtLoggerCallback_t callback = nullptr;
int logged = 0; // a mask; bit 0: errors
PRINTF_LIKE(2, 3) cublasStatus_t refuse(cublasStatus_t s, const char* fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    standin_lt.last_error = vformat(fmt, ap);
    va_end(ap);
    if (callback && (logged & 1)) callback(1, "stand-in", standin_lt.last_error.c_str());
    return s;
}
constexpr auto OK = CUBLAS_STATUS_SUCCESS;
constexpr auto INVALID = CUBLAS_STATUS_INVALID_VALUE, UNSUPPORTED = CUBLAS_STATUS_NOT_SUPPORTED;

Format format_of(cudaDataType t) {
    return t == CUDA_R_16BF      ? BF16
           : t == CUDA_R_8F_E4M3 ? E4M3
           : t == CUDA_R_8F_E5M2 ? E5M2
           : t == CUDA_R_4F_E2M1 ? E2M1
                                 : FP32;
}
const char* name(cudaDataType t) { return format_of(t).name; }
bool fp8(cudaDataType t) { return t == CUDA_R_8F_E4M3 || t == CUDA_R_8F_E5M2; }
bool fp4(cudaDataType t) { return t == CUDA_R_4F_E2M1; }
bool narrow(cudaDataType t) { return fp8(t) || fp4(t); }
constexpr int VEC128 = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F, BLK128 = CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
bool by_128(int mode) { return mode == VEC128 || mode == BLK128; }
bool aligned(const void* p, size_t to) { return (uintptr_t)p % to == 0; }
int family() { return standin.cc == 89 ? 89 : standin.cc / 10 * 10; }

// The sizes of op(A), op(B): m, n, k.
struct Sizes {
    uint64_t m, n, k;
};
Sizes sizes_of(const LtMatmulDesc& op, const LtLayout& a, const LtLayout& d) {
    return {d.rows, d.cols, op.transa == CUBLAS_OP_T ? a.rows : a.cols};
}

// Everything that is known before the matrices are.
cublasStatus_t check(const LtMatmulDesc& op, const LtLayout& a, const LtLayout& b, const LtLayout& c,
                     const LtLayout& d) {
    auto [m, n, k] = sizes_of(op, a, d);
    bool ta = op.transa == CUBLAS_OP_T, tb = op.transb == CUBLAS_OP_T;
    if ((ta ? a.cols : a.rows) != m || (tb ? b.cols : b.rows) != k || (tb ? b.rows : b.cols) != n || c.rows != m ||
        c.cols != n)
        return refuse(INVALID, "shapes do not fit: A %llu x %llu, B %llu x %llu, C %llu x %llu, D %llu x %llu",
                      (unsigned long long)a.rows, (unsigned long long)a.cols, (unsigned long long)b.rows,
                      (unsigned long long)b.cols, (unsigned long long)c.rows, (unsigned long long)c.cols,
                      (unsigned long long)d.rows, (unsigned long long)d.cols);
    if (!m || !n || !k) return refuse(INVALID, "a matrix without elements");
    for (auto [l, which] : {std::pair(&a, 'A'), {&b, 'B'}, {&c, 'C'}, {&d, 'D'}})
        if (l->ld < (int64_t)l->rows)
            return refuse(INVALID, "ld of %c is %lld, less than its %llu rows", which, (long long)l->ld,
                          (unsigned long long)l->rows);
    if (op.compute != CUBLAS_COMPUTE_32F || op.scale_type != CUDA_R_32F)
        return refuse(UNSUPPORTED, "compute type and scale type must be FP32");

    // types
    bool out_ok = d.type == CUDA_R_16BF || d.type == CUDA_R_32F;
    bool both_narrow = (fp8(a.type) && fp8(b.type)) || (fp4(a.type) && fp4(b.type));
    if (a.type == CUDA_R_8F_E5M2 && b.type == CUDA_R_8F_E5M2) return refuse(UNSUPPORTED, "E5M2 x E5M2 does not exist");
    if (!(a.type == CUDA_R_16BF && b.type == CUDA_R_16BF && out_ok) && !(both_narrow && out_ok) &&
        !(a.type == CUDA_R_32F && b.type == CUDA_R_32F && d.type == CUDA_R_32F))
        return refuse(UNSUPPORTED, "unsupported combination of types: A %s, B %s, D %s", name(a.type), name(b.type),
                      name(d.type));
    if (c.type != d.type) return refuse(UNSUPPORTED, "C is %s and D %s", name(c.type), name(d.type));
    if (fp8(a.type) && family() < 89) return refuse(UNSUPPORTED, "sm_%d does not multiply FP8", standin.cc);
    if (fp4(a.type) && family() < 100) return refuse(UNSUPPORTED, "sm_%d does not multiply FP4", standin.cc);

    // scales
    for (auto [l, mode, scale, which] :
         {std::tuple(&a, op.mode_a, op.scale_a, 'A'), {&b, op.mode_b, op.scale_b, 'B'}}) {
        if (!narrow(l->type)) {
            if (scale || mode)
                return refuse(UNSUPPORTED, "a scale for %c, whose type %s has none", which, name(l->type));
            continue;
        }
        if (mode == CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3 ? !fp4(l->type) : !fp8(l->type))
            return refuse(UNSUPPORTED, "scale mode %d of %c is not for %s", mode, which, name(l->type));
        bool block =
            mode == CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3 || mode == CUBLASLT_MATMUL_MATRIX_SCALE_VEC32_UE8M0;
        if (mode != CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F && !block && !by_128(mode))
            return refuse(UNSUPPORTED, "scale mode %d of %c is not known here", mode, which);
        if (by_128(mode) ? family() != 90 : block && family() < 100)
            return refuse(UNSUPPORTED, "sm_%d has no scale mode %d", standin.cc, mode);
        if (mode && !scale) return refuse(INVALID, "scale mode %d of %c wants a scale pointer", mode, which);
        if (!aligned(scale, 16)) return refuse(INVALID, "the scale of %c is not aligned to 16 bytes", which);
    }
    bool blocks_of_128 = by_128(op.mode_a) && by_128(op.mode_b);
    if (blocks_of_128 ? op.mode_a == BLK128 && op.mode_b == BLK128 : op.mode_a != op.mode_b)
        return refuse(UNSUPPORTED, "scale modes %d and %d do not mix", op.mode_a, op.mode_b);
    if (op.scale_d || op.amax_d)
        return refuse(UNSUPPORTED, "a scale or an amax of D, whose type %s has none", name(d.type));
    if (op.scale_c) return refuse(UNSUPPORTED, "a scale of C");

    // layouts
    if (both_narrow && !(ta && !tb) && (fp4(a.type) || family() != 100))
        return refuse(UNSUPPORTED, "%s on sm_%d supports only TN input layout, got %c%c", fp4(a.type) ? "FP4" : "FP8",
                      standin.cc, "NT"[ta], "NT"[tb]);
    if (both_narrow) {
        uint64_t by = fp4(a.type) ? 32 : 16;
        if (m % 16) return refuse(UNSUPPORTED, "m = %llu must be divisible by 16", (unsigned long long)m);
        if (blocks_of_128 && n % 8)
            return refuse(UNSUPPORTED, "n = %llu must be divisible by 8", (unsigned long long)n);
        if (tb && n % 16) return refuse(UNSUPPORTED, "n = %llu must be divisible by 16", (unsigned long long)n);
        if (k % by) return refuse(UNSUPPORTED, "k = %llu must be divisible by %d", (unsigned long long)k, (int)by);
        if (a.ld % by) return refuse(UNSUPPORTED, "lda = %lld must be divisible by %d", (long long)a.ld, (int)by);
        if (b.ld % by) return refuse(UNSUPPORTED, "ldb = %lld must be divisible by %d", (long long)b.ld, (int)by);
        if (d.ld * (d.type == CUDA_R_32F ? 4 : 2) % 16)
            return refuse(UNSUPPORTED, "ldd = %lld is not a multiple of 16 bytes", (long long)d.ld);
    }
    if (a.ld * (int64_t)format_of(a.type).bits() / 8 > INT32_MAX ||
        b.ld * (int64_t)format_of(b.type).bits() / 8 > INT32_MAX)
        return refuse(UNSUPPORTED, "a leading dimension of 2 GiB");

    // what happens at the end
    if (op.epilogue != CUBLASLT_EPILOGUE_DEFAULT && op.epilogue != CUBLASLT_EPILOGUE_BIAS)
        return refuse(UNSUPPORTED, "epilogue %d is not known here", op.epilogue);
    if (op.epilogue == CUBLASLT_EPILOGUE_BIAS) {
        int type = both_narrow ? (int)CUDA_R_16BF : (int)d.type;
        if (op.bias_type != type)
            return refuse(UNSUPPORTED, "a bias of type %d where only %d goes", op.bias_type, type);
        if (!op.bias) return refuse(INVALID, "epilogue BIAS without a bias pointer, which the search must know");
        if (!aligned(op.bias, 16)) return refuse(INVALID, "the bias is not aligned to 16 bytes");
    } else if (op.bias) return refuse(INVALID, "a bias pointer without the epilogue that reads it");
    if (op.fast_accum) {
        if (!fp8(a.type) || op.mode_a) return refuse(UNSUPPORTED, "FAST_ACCUM can be set only for FP8 with one scale");
        if (family() != 89 && family() != 90)
            return refuse(UNSUPPORTED, "FAST_ACCUM has no effect on sm_%d", standin.cc);
    }
    return OK;
}
// What an algorithm was looked for with; pointers are not part of it, but which of them there are is.
uint64_t fingerprint(const LtMatmulDesc& o, const LtLayout& a, const LtLayout& b, const LtLayout& c,
                     const LtLayout& d) {
    uint64_t h = standin.cc;
    for (uint64_t w :
         {(uint64_t)o.compute, (uint64_t)o.scale_type, (uint64_t)o.pointer_mode, (uint64_t)o.transa, (uint64_t)o.transb,
          (uint64_t)o.epilogue, (uint64_t)o.bias_type, (uint64_t)o.mode_a, (uint64_t)o.mode_b, (uint64_t)o.fast_accum,
          (uint64_t)!o.bias, (uint64_t)!o.scale_a, (uint64_t)!o.scale_b})
        h = mix(h, w);
    for (const LtLayout* l : {&a, &b, &c, &d})
        for (uint64_t w : {(uint64_t)l->type, l->rows, l->cols, (uint64_t)l->ld}) h = mix(h, w);
    return h;
}

// --- the product ---------------------------------------------------------------------------------------------------
double element(const void* data, cudaDataType t, size_t i) {
    if (t == CUDA_R_32F) return ((const float*)data)[i];
    if (t == CUDA_R_16BF) return (float)((const bf16*)data)[i];
    const uint8_t* codes = (const uint8_t*)data;
    static const auto tables = [] {
        std::array<std::array<double, 256>, 2> t;
        for (int c = 0; c < 256; c++) t[0][c] = decode(E4M3, c), t[1][c] = decode(E5M2, c);
        return t;
    }();
    return fp4(t) ? decode(E2M1, codes[i / 2] >> i % 2 * 4 & 15) : tables[t == CUDA_R_8F_E5M2][codes[i]];
}
// op(X) with its block scales as rows of k, `outer` of them.
std::vector<double> rows_of(const void* data, const LtLayout& l, bool k_down, uint64_t outer, uint64_t k, int mode,
                            const void* scale, char which) {
    std::vector<double> x(outer * k);
    for (uint64_t o = 0; o < outer; o++)
        for (uint64_t i = 0; i < k; i++) x[o * k + i] = element(data, l.type, k_down ? o * l.ld + i : i * l.ld + o);
    if (mode == CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F) return x;
    if (by_128(mode)) { // M or N along memory for rows of 128; for 128 x 128 K, in lines of a multiple of 4
        uint64_t KB = (k + 127) / 128, lines = mode == VEC128 ? KB : (outer + 127) / 128;
        uint64_t used = mode == VEC128 ? outer : KB, length = (used + 3) / 4 * 4;
        bool confused = which == 'B' && standin_lt.b_is_k_major;
        for (uint64_t at = 0; at < lines * length; at++) {
            float s = ((const float*)scale)[at];
            uint64_t line = at / length, in = at % length;
            if (in >= used && s != 0)
                fail("scale %llu of %c is padding and not zero but %g", (unsigned long long)at, which, s);
            if (in >= used) continue;
            uint64_t kb = mode == VEC128 ? line : in, o = mode == VEC128 ? in : line * 128;
            if (confused && mode == VEC128) kb = at % KB, o = at / KB;
            for (uint64_t r = o; r < std::min(outer, mode == VEC128 ? o + 1 : o + 128); r++)
                for (uint64_t i = kb * 128; i < std::min(k, kb * 128 + 128); i++) x[r * k + i] *= s;
        }
        return x;
    }
    uint64_t N = mode == CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3 ? 16 : 32, KB = (k + N - 1) / N;
    uint64_t wide = (KB + 3) / 4 * 4, tall = (outer + 127) / 128 * 128;
    const uint8_t* bytes = (const uint8_t*)scale;
    for (uint64_t at = 0; at < wide * tall; at++) { // the inverse of where a scale is stored, from the manual
        uint64_t tile = at / 512, in = at % 512;
        uint64_t o = tile / (wide / 4) * 128 + in % 16 / 4 * 32 + in / 16, kb = tile % (wide / 4) * 4 + in % 4;
        if (o >= outer || kb >= KB) {
            if (bytes[at])
                fail("scale %llu of %c is padding and not zero but 0x%02x", (unsigned long long)at, which, bytes[at]);
            continue;
        }
        double s = N == 32 ? decode(E8M0, bytes[at]) : decode(E4M3, bytes[at] & 0x7f);
        for (uint64_t i = kb * N; i < std::min(k, kb * N + N); i++) x[o * k + i] *= s;
    }
    return x;
}
struct Call {
    LtMatmulDesc op;
    LtLayout a, b, d;
    const void *A, *B, *C;
    void* D;
    const float *alpha, *beta; // where they are on the device; host values were read
    float alpha_value, beta_value;
    void* workspace;
    size_t workspace_bytes;
};
void multiply(const Call& f) {
    auto [m, n, k] = sizes_of(f.op, f.a, f.d);
    if (f.workspace_bytes) memset(f.workspace, 0xab, f.workspace_bytes);
    auto A = rows_of(f.A, f.a, f.op.transa == CUBLAS_OP_T, m, k, f.op.mode_a, f.op.scale_a, 'A');
    auto B = rows_of(f.B, f.b, f.op.transb == CUBLAS_OP_N, n, k, f.op.mode_b, f.op.scale_b, 'B');
    double alpha = f.alpha ? *f.alpha : f.alpha_value, beta = f.beta ? *f.beta : f.beta_value;
    if (narrow(f.a.type)) alpha *= standin_lt.wrong_by;
    for (auto [mode, scale] : {std::pair(f.op.mode_a, f.op.scale_a), {f.op.mode_b, f.op.scale_b}})
        if (mode == CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F && scale) alpha *= *(const float*)scale;
    for (uint64_t j = 0; j < n; j++)
        for (uint64_t i = 0; i < m; i++) {
            const double *x = &A[i * k], *y = &B[j * k];
            double part[8] = {}, sum = 0;
            uint64_t l = 0;
            for (; l + 8 <= k; l += 8)
                for (int p = 0; p < 8; p++) part[p] += x[l + p] * y[l + p];
            for (; l < k; l++) sum += x[l] * y[l];
            for (double p : part) sum += p;
            size_t at = j * f.d.ld + i;
            sum *= alpha;
            if (beta != 0) sum += beta * element(f.C, f.d.type, at);
            if (f.op.epilogue == CUBLASLT_EPILOGUE_BIAS) sum += element(f.op.bias, (cudaDataType)f.op.bias_type, i);
            if (f.d.type == CUDA_R_32F) ((float*)f.D)[at] = (float)sum;
            else ((bf16*)f.D)[at] = bf16((float)sum);
        }
}
void marker() {} // an address that names this kernel
} // namespace

// --- the calls -----------------------------------------------------------------------------------------------------
cublasStatus_t cublasLtCreate(cublasLtHandle_t* h) {
    if (!standin.cards) return refuse(CUBLAS_STATUS_NOT_INITIALIZED, "no device");
    return *h = new cublasLtContext, OK;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t h) { return delete h, OK; }
size_t cublasLtGetVersion() { return standin_lt.version; }
const char* cublasLtGetStatusName(cublasStatus_t s) {
    switch (s) {
    case OK: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case INVALID: return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case UNSUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return "CUBLAS_STATUS_INTERNAL_ERROR";
    }
}
cublasStatus_t cublasLtLoggerSetCallback(cublasLtLoggerCallback_t f) { return callback = f, OK; }
cublasStatus_t cublasLtLoggerSetMask(int mask) { return logged = mask, OK; }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* d, cublasComputeType_t compute, cudaDataType_t scale) {
    return *d = new LtMatmulDesc{compute, scale}, OK;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) { return delete d, OK; }
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t what,
                                              const void* from, size_t bytes) {
    auto set = [&](auto& to) {
        if (!from || bytes != sizeof to)
            return refuse(INVALID, "attribute %d has %zu bytes, not %zu", (int)what, sizeof to, bytes);
        return memcpy(&to, from, bytes), OK;
    };
    switch (what) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE: return set(d->compute);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE: return set(d->scale_type);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE: return set(d->pointer_mode);
    case CUBLASLT_MATMUL_DESC_TRANSA: return set(d->transa);
    case CUBLASLT_MATMUL_DESC_TRANSB: return set(d->transb);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: return set(d->epilogue);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return set(d->bias);
    case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER: return set(d->scale_a);
    case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER: return set(d->scale_b);
    case CUBLASLT_MATMUL_DESC_C_SCALE_POINTER: return set(d->scale_c);
    case CUBLASLT_MATMUL_DESC_D_SCALE_POINTER: return set(d->scale_d);
    case CUBLASLT_MATMUL_DESC_AMAX_D_POINTER: return set(d->amax_d);
    case CUBLASLT_MATMUL_DESC_FAST_ACCUM: return set(d->fast_accum);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: return set(d->bias_type);
    case CUBLASLT_MATMUL_DESC_A_SCALE_MODE: return set(d->mode_a);
    case CUBLASLT_MATMUL_DESC_B_SCALE_MODE: return set(d->mode_b);
    }
    return refuse(INVALID, "attribute %d is not known here", (int)what);
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* l, cudaDataType type, uint64_t rows, uint64_t cols,
                                          int64_t ld) {
    return *l = new LtLayout{type, rows, cols, ld}, OK;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) { return delete l, OK; }
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* p) { return *p = new LtPreference, OK; }
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) { return delete p, OK; }
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                    cublasLtMatmulPreferenceAttributes_t what, const void* from,
                                                    size_t bytes) {
    bool workspace = what == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
    int i = (int)what - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;
    if (!workspace && (i < 0 || i > 3)) return refuse(INVALID, "preference %d is not known here", (int)what);
    if (bytes != (workspace ? 8 : 4)) return refuse(INVALID, "preference %d of %zu bytes", (int)what, bytes);
    memcpy(workspace ? (void*)&p->workspace : &p->align[i], from, bytes);
    return OK;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t op, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                              cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t p, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[], int* found) {
    *found = 0;
    if (!h) return refuse(CUBLAS_STATUS_NOT_INITIALIZED, "no handle");
    if (wanted < 1) return refuse(INVALID, "%d algorithms wanted", wanted);
    void* probe = nullptr; // refused in a capture, as a search may be
    if (cudaMallocHost(&probe, 1) != cudaSuccess)
        return refuse(CUBLAS_STATUS_INTERNAL_ERROR, "a search during a capture");
    cudaFreeHost(probe);
    standin_lt.heuristics++;
    if (standin_lt.in_vain || (standin_lt.in_vain_for_codes && narrow(a->type))) return OK;
    if (cublasStatus_t s = check(*op, *a, *b, *c, *d)) return s;
    uint32_t least = narrow(a->type) ? 16 : a->type == CUDA_R_32F ? 4 : 2; // what the weakest algorithm needs
    for (int i = 0; i < 4; i++)
        if (p->align[i] < (i < 2 || narrow(a->type) ? least : d->type == CUDA_R_32F ? 4 : 2))
            return refuse(UNSUPPORTED, "no algorithm for matrices aligned to %u bytes", p->align[i]);
    results[0] = {};
    uint64_t need = p->workspace >= 1 << 16 ? 1 << 16 : 0;
    results[0].algo.data[0] = fingerprint(*op, *a, *b, *c, *d);
    for (int i = 0; i < 4; i++) results[0].algo.data[1 + i] = p->align[i];
    results[0].algo.data[5] = results[0].workspaceSize = need;
    results[0].state = OK, *found = 1;
    return OK;
}
cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t op, const void* alpha, const void* A,
                              cublasLtMatrixLayout_t a, const void* B, cublasLtMatrixLayout_t b, const void* beta,
                              const void* C, cublasLtMatrixLayout_t c, void* D, cublasLtMatrixLayout_t d,
                              const cublasLtMatmulAlgo_t* algo, void* workspace, size_t bytes, cudaStream_t stream) {
    if (!h) return refuse(CUBLAS_STATUS_NOT_INITIALIZED, "no handle");
    if (cublasStatus_t s = check(*op, *a, *b, *c, *d)) return s;
    if (!algo) return refuse(INVALID, "no algorithm: every search is to be made once, before");
    if (algo->data[0] != fingerprint(*op, *a, *b, *c, *d))
        return refuse(INVALID, "the algorithm was found for another problem");
    const void* matrices[] = {A, B, C, D};
    for (int i = 0; i < 4; i++)
        if (!aligned(matrices[i], algo->data[1 + i]))
            return refuse(INVALID, "%c is not aligned to the %d bytes that the search was told", "ABCD"[i],
                          (int)algo -> data[1 + i]);
    if (!A || !B || !D || !alpha || !beta) return refuse(INVALID, "a null pointer");
    bool host = op->pointer_mode == CUBLASLT_POINTER_MODE_HOST;
    for (const void* p : {alpha, beta})
        if ((device_bytes(p) > 0) == host)
            return refuse(INVALID, "alpha or beta lies on the %s, but the pointer mode says %s",
                          host ? "device" : "host", host ? "host" : "device");
    if (!C && (!host || *(const float*)beta != 0)) return refuse(INVALID, "no C");
    if (C == D && !(*c == *d)) return refuse(INVALID, "C is D, but their layouts differ");
    if (bytes < algo->data[5])
        return refuse(INVALID, "the algorithm needs %zu bytes of workspace, not %zu", (size_t)algo->data[5], bytes);
    if (algo->data[5] && (!aligned(workspace, 256) || device_bytes(workspace) < bytes))
        return refuse(INVALID, "the workspace is not on the device, not that large or not aligned to 256 bytes");
    Call f = {*op,
              *a,
              *b,
              *d,
              A,
              B,
              C,
              D,
              host ? nullptr : (const float*)alpha,
              host ? nullptr : (const float*)beta,
              host ? *(const float*)alpha : 0,
              host ? *(const float*)beta : 0,
              workspace,
              (size_t)algo->data[5]};
    standin_lt.matmuls++;
    standin_lt.fast_accum = op->fast_accum, standin_lt.type_a = a->type, standin_lt.type_b = b->type;
    standin_lt.mode_a = op->mode_a, standin_lt.mode_b = op->mode_b;
    cudaLaunchConfig_t one = {};
    one.blockDim = dim3(32), one.stream = stream;
    cudaError_t e = launch_kernel(one, (const void*)marker, [f] {
        if (thread_index() == 0) multiply(f);
    });
    if (e != cudaSuccess)
        return refuse(CUBLAS_STATUS_EXECUTION_FAILED, "%s", cudaGetErrorString(e)), cudaGetLastError(),
               CUBLAS_STATUS_EXECUTION_FAILED;
    return OK;
}
