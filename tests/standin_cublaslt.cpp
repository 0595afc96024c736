// GEMMs through cuBLASLt, on cards of every kind, against the row function and a sum in double.
#include "cublasLt.h"
#include "ops/matmul.cuh"
#include "standin.h"
#include "tests/close.h"
#include <memory>

namespace { // test files share one program

// n bytes aligned to 256, `off` bytes behind; what is around them is poison
struct Bytes {
    std::shared_ptr<char> memory;
    char* at;
    explicit Bytes(size_t n = 0, size_t off = 0)
        : memory((char*)aligned_alloc(256, (n + off + 511) / 256 * 256), free), at(memory.get() + off) {
        memset(memory.get(), 0xff, (n + off + 511) / 256 * 256);
    }
};
enum class How { plain, tensor, mx, nvfp4, blockwise };
struct Source {
    Operand o;
    Bytes data, scales, factor;
    int rows;
};
size_t up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// A random operand (rows, K). Of codes: what comes to a GPU, or with `ragged` rows that nothing was done for.
struct Shape {
    int rows, K;
    bool along = true; // contiguous along k
    bool swizzled = false, ragged = false;
    size_t off = 0, gap = 0; // bytes before, elements between rows
};
Source source(How how, Elem e, Shape s, uint64_t seed) {
    Source x;
    x.rows = s.rows;
    size_t lines = s.along ? s.rows : s.K, n = s.along ? s.K : s.rows, i = 0;
    size_t ld = (how == How::plain || s.ragged ? e == Elem::e2m1 ? up(n, 2) : n : up(n, 32)) + s.gap;
    auto random = [&](int64_t below) { return (int64_t)(random_bits(seed, i++) % below); };
    if (how == How::plain) {
        size_t size = e == Elem::bf16 ? 2 : 4;
        x.data = Bytes(lines * ld * size, s.off);
        for (size_t l = 0; l < lines; l++)
            for (size_t j = 0; j < n; j++) {
                float v = (float)random_normal(seed, i++);
                if (size == 2) ((bf16*)x.data.at)[l * ld + j] = bf16(v);
                else ((float*)x.data.at)[l * ld + j] = v;
            }
        x.o = {x.data.at, e, s.along, ld};
        return x;
    }
    Format f = format_of(e);
    x.data = Bytes(code_bytes(f, lines * ld), s.off);
    memset(x.data.at, 0, code_bytes(f, lines * ld));
    for (size_t l = 0; l < lines; l++)
        for (size_t j = 0; j < n; j++) {
            float v = f.max / 8 * (float)random_normal(seed, i++);
            uint32_t code = encode(f, v);
            uint8_t& to = (uint8_t&)x.data.at[f.bits() == 4 ? (l * ld + j) / 2 : l * ld + j];
            to = f.bits() == 4 ? (uint8_t)(to | code << (l * ld + j) % 2 * 4) : (uint8_t)code;
        }
    x.o = codes_of((uint8_t*)x.data.at, f, s.along, ld);
    x.factor = Bytes(16);
    float* factor = (float*)x.factor.at;
    if (how == How::tensor) *factor = 0.37f, x.o.factor = factor;
    if (how == How::tensor) return x;
    int N = how == How::mx ? 32 : how == How::nvfp4 ? 16 : 128;
    size_t KB = blocks(s.K, N);
    x.o.block = N, x.o.ld_scales = KB, x.o.scale_elem = how == How::mx ? Elem::e8m0 : how == How::nvfp4 ? Elem::e4m3 : Elem::f32;
    x.o.swizzled = s.swizzled;
    size_t bytes = how == How::blockwise ? 4 * s.rows * KB : s.swizzled ? tiled_scale_bytes(s.rows, KB) : s.rows * KB;
    x.scales = Bytes(bytes);
    if (s.swizzled) memset(x.scales.at, 0, bytes);
    for (int r = 0; r < s.rows; r++)
        for (size_t kb = 0; kb < KB; kb++) {
            size_t at = s.swizzled ? tiled_scale(r, kb, KB) : r * KB + kb;
            int power = (int)random(7) - 3;
            if (how == How::blockwise) ((float*)x.scales.at)[at] = exp2i(power);
            else x.scales.at[at] = (char)(how == How::mx ? 127 + power : encode(E4M3, exp2i(power) * (1 + 0.125f * random(8))));
        }
    x.o.scales = x.scales.at;
    if (how == How::nvfp4) *factor = 3.1f, x.o.factor = factor;
    return x;
}

struct Sides { How how; Elem a, b; };
const Sides fp8_sides[] = {{How::tensor, Elem::e4m3, Elem::e4m3},
                           {How::tensor, Elem::e5m2, Elem::e4m3},
                           {How::tensor, Elem::e4m3, Elem::e5m2}};
const Sides wide_sides[] = {{How::tensor, Elem::e2m1, Elem::e3m2}, {How::tensor, Elem::e2m3, Elem::e5m2}};
const Sides mx_sides[] = {{How::mx, Elem::e4m3, Elem::e4m3}, {How::mx, Elem::e5m2, Elem::e4m3},
                          {How::mx, Elem::e2m1, Elem::e2m1}, {How::mx, Elem::e3m2, Elem::e2m3},
                          {How::mx, Elem::e2m1, Elem::e5m2}};
const Sides fp4_sides[] = {{How::nvfp4, Elem::e2m1, Elem::e2m1}};

struct Want { // of a test GEMM
    int M, N, K;
    Elem out = Elem::bf16;
    bool bias = false, accumulate = false, fast_accum = false;
};
// Runs it on the present card and compares. Every product of two values is exact in FP32; the row function's sum passes
// K + 3 roundings (K - 1 additions, two factors, bias, accumulation), ours in double and one; then one of BF16, in each: 2^-8 twice.
void check_gemm(const std::string& what, Source& a, Source& b, Want w, size_t off = 0, size_t gap = 0) {
    INFO(what, " M ", w.M, " N ", w.N, " K ", w.K, " on sm_", standin.cc);
    size_t ld = w.N + gap, size = w.out == Elem::bf16 ? 2 : 4;
    Bytes out(w.M * ld * size, off), row(w.M * ld * size), bias(w.N * size);
    for (int i = 0; i < w.N; i++) {
        float v = (float)random_normal(77, i) * 100;
        size == 2 ? (void)(((bf16*)bias.at)[i] = bf16(v)) : (void)(((float*)bias.at)[i] = v);
    }
    auto get = [&](Bytes& m, size_t i) { return size == 2 ? (double)(float)((bf16*)m.at)[i] : ((float*)m.at)[i]; };
    for (size_t i = 0; w.accumulate && i < w.M * ld; i++) ((float*)out.at)[i] = ((float*)row.at)[i] = (float)(i % 17) * 10;
    Gemm g = {.out = row.at, .out_elem = w.out, .ld_out = ld, .M = w.M, .N = w.N, .K = w.K, .a = a.o, .b = b.o,
              .scale_a = 0.5f, .scale_b = 3, .accumulate = w.accumulate, .fast_accum = w.fast_accum};
    if (w.bias) g.bias = bias.at;
    for (int m = 0; m < w.M; m++) matmul_row(Lanes(), g, {}, m);
    Factors f = factors_of(g);
    std::vector<double> got, want, bound, values[2];
    for (auto [to, from] : {std::pair(&values[0], &a), {&values[1], &b}})
        for (int r = 0; r < from->rows; r++)
            for (int k = 0; k < w.K; k++) to->push_back(fabs(fetch(from->o, r, k)));
    for (int m = 0; m < w.M; m++)
        for (int n = 0; n < w.N; n++) {
            double size_of_sum = w.bias ? fabs(get(bias, n)) : 0;
            for (int k = 0; k < w.K; k++) size_of_sum += values[0][m * w.K + k] * values[1][n * w.K + k] * f.a * f.b;
            if (w.accumulate) size_of_sum += fabs((double)((m * ld + n) % 17) * 10);
            want.push_back(get(row, m * ld + n));
            bound.push_back((w.K + 6) * 0x1p-24 * size_of_sum + (size == 2 ? 0x1p-7 * fabs(want.back()) : 0) + 1e-30);
        }
    g.out = out.at;
    matmul("gemm", g);
    for (int m = 0; m < w.M; m++)
        for (int n = 0; n < w.N; n++) got.push_back(get(out, m * ld + n));
    check_close(what, got, want, bound);
    for (int m = 0; m < w.M; m++) // and nothing beside it
        for (size_t n = w.N; n < ld; n++)
            if (!w.accumulate) REQUIRE((uint8_t)out.at[(m * ld + n) * size] == 0xff);
}
bool narrow(int type) { return type == CUDA_R_8F_E4M3 || type == CUDA_R_8F_E5M2 || type == CUDA_R_4F_E2M1; }
const Want wants[] = {{33, 48, 96, Elem::bf16, true, false, true}, {7, 16, 40, Elem::f32, false, true},
                      {130, 16, 80, Elem::bf16},                   {3, 144, 272, Elem::bf16},
                      {1, 32, 1, Elem::f32, true},                 {17, 64, 129, Elem::f32}};

TEST_CASE("cuBLASLt: FP8 with a scale per tensor is multiplied natively from sm_89 on, any number of rows and any K") {
    for (int cc : {89, 90, 100, 120}) {
        OnCard card(cc);
        for (Sides s : fp8_sides)
            for (Want w : wants) {
                Source a = source(s.how, s.a, {w.M, w.K}, 1), b = source(s.how, s.b, {w.N, w.K}, 2);
                check_gemm("fp8", a, b, w);
                CHECK(narrow(standin_lt.type_a));
                CHECK((int)standin_lt.fast_accum == (w.fast_accum && (cc == 89 || cc == 90)));
            }
        for (Sides s : wide_sides)
            for (Want w : wants) {
                Source a = source(s.how, s.a, {w.M, w.K}, 1), b = source(s.how, s.b, {w.N, w.K}, 2);
                check_gemm("widened", a, b, w);
                CHECK(narrow(standin_lt.type_a));
                CHECK(narrow(standin_lt.type_b));
            }
    }
}
TEST_CASE("cuBLASLt: before sm_89, and wherever a layout is not FP8's, the same codes are decoded") {
    for (int cc : {80, 90, 120}) {
        OnCard card(cc);
        for (Sides s : fp8_sides)
            for (Want w : wants) {
                Shape as = {w.M, w.K}, bs = {w.N, w.K};
                if (cc == 90) as.along = false;
                if (cc == 120) bs.along = false;
                Source a = source(s.how, s.a, as, 1), b = source(s.how, s.b, bs, 2);
                check_gemm("decoded", a, b, w);
                CHECK(standin_lt.type_a == CUDA_R_16BF);
            }
    }
    OnCard card(90);
    for (Want w : {Want{33, 47, 96, Elem::bf16, true}, {5, 31, 96, Elem::f32, false, true}})
        for (Sides s : fp8_sides) { // an odd vocabulary
            Source a = source(s.how, s.a, {w.M, w.K}, 1), b = source(s.how, s.b, {w.N, w.K}, 2);
            check_gemm("odd N", a, b, w);
            CHECK(standin_lt.type_a == CUDA_R_16BF);
            Source c = source(s.how, s.a, {w.M, 37, true, false, true}, 1), d = source(s.how, s.b, {48, 37, true, false, true}, 2);
            check_gemm("ragged", c, d, {w.M, 48, 37, w.out});
            CHECK(standin_lt.type_a == CUDA_R_16BF);
        }
    for (Elem e : {Elem::e4m3, Elem::e2m1}) { // one side quantized
        Source a = source(How::tensor, e, {33, 100}, 1), b = source(How::plain, Elem::bf16, {48, 100}, 2);
        check_gemm("one side", a, b, {33, 48, 100, Elem::bf16, true});
        Source c = source(How::plain, Elem::f32, {48, 100, false}, 2);
        check_gemm("one side, FP32", a, c, {33, 48, 100, Elem::f32, true});
        CHECK(standin_lt.type_a == CUDA_R_32F);
    }
}
TEST_CASE("cuBLASLt: on sm_100 FP8 is multiplied in every layout, without transposed copies") {
    OnCard card(100);
    for (Sides s : fp8_sides)
        for (bool a_along : {false, true})
            for (bool b_along : {false, true})
                for (Want w : {Want{32, 48, 96, Elem::bf16, true}, {64, 16, 128, Elem::f32, false, true}}) {
                    Source a = source(s.how, s.a, {w.M, w.K, a_along}, 1), b = source(s.how, s.b, {w.N, w.K, b_along}, 2);
                    check_gemm("layouts", a, b, w);
                    CHECK(narrow(standin_lt.type_a));
                }
    Source a = source(How::tensor, Elem::e4m3, {33, 100, false}, 1), b = source(How::tensor, Elem::e4m3, {48, 100}, 2);
    check_gemm("odd rows", a, b, {33, 48, 100});
    CHECK(standin_lt.type_a == CUDA_R_16BF);
}
TEST_CASE("cuBLASLt: BF16 and FP32 in every layout, leading dimension and alignment") {
    OnCard card(90);
    for (Elem e : {Elem::bf16, Elem::f32})
        for (bool a_along : {false, true})
            for (bool b_along : {false, true})
                for (size_t gap : {0, 3})
                    for (Want w : wants) {
                        size_t size = e == Elem::bf16 ? 2 : 4;
                        if (e == Elem::f32) w.out = Elem::f32, w.fast_accum = false;
                        Source a = source(How::plain, e, {w.M, w.K, a_along, false, false, gap * size, gap}, 1);
                        Source b = source(How::plain, e, {w.N, w.K, b_along, false, false, gap * size, gap}, 2);
                        check_gemm(format_of(e).name, a, b, w, w.out == Elem::bf16 ? 2 * gap : 4 * gap, gap);
                        CHECK(standin_lt.type_a == (e == Elem::bf16 ? CUDA_R_16BF : CUDA_R_32F));
                    }
}
TEST_CASE("cuBLASLt: what it cannot do as it is defined is left to the row function") {
    OnCard card(90);
    long before = standin_lt.matmuls;
    Source a = source(How::plain, Elem::bf16, {9, 20}, 1), b = source(How::plain, Elem::bf16, {16, 20}, 2);
    Bytes out(2 * 9 * 16);
    memset(out.at, 0, 2 * 9 * 16);
    Gemm g = {.out = out.at, .out_elem = Elem::bf16, .ld_out = 16, .M = 9, .N = 16, .K = 20, .a = a.o, .b = b.o, .accumulate = true};
    matmul("bf16 sums", g);
    g.accumulate = false, g.K = 0, matmul("no K", g);
    g.K = 20, machine.kernels = Kernels::portable, matmul("portable", g);
    machine.kernels = Kernels::reference, matmul("reference", g), machine.kernels = Kernels::fast;
    CHECK(standin_lt.matmuls == before);
    g.M = 0, matmul("nothing", g);
    CHECK(standin_lt.matmuls == before);
    g.M = 9, matmul("bf16", g);
    CHECK(standin_lt.matmuls == before + 1);
}
TEST_CASE("cuBLASLt: a plan is looked for once, whatever the pointers, and again for another problem or card") {
    OnCard card(90);
    std::vector<Source> keep;
    auto run = [&](int M, int N, int K, Want extra = {}) {
        keep.push_back(source(How::tensor, Elem::e4m3, {M, K}, keep.size())), keep.push_back(source(How::tensor, Elem::e4m3, {N, K}, 2));
        Want w = extra;
        w.M = M, w.N = N, w.K = K;
        long before = standin_lt.heuristics;
        check_gemm("cached", keep[keep.size() - 2], keep.back(), w);
        return standin_lt.heuristics - before;
    };
    CHECK(run(3, 16, 80) == 1);
    CHECK(run(3, 16, 80) == 0);
    CHECK(run(3, 16, 79) == 0); // padded to the same
    CHECK(run(4, 16, 80) == 1);
    CHECK(run(3, 16, 80, {0, 0, 0, Elem::bf16, true}) == 1);
    CHECK(run(3, 16, 80, {0, 0, 0, Elem::bf16, true}) == 0);
    CHECK(run(3, 16, 80, {0, 0, 0, Elem::f32}) == 1);
    CHECK(run(3, 16, 80, {0, 0, 0, Elem::f32, false, true}) == 0); // beta decides nothing
    CHECK(run(3, 16, 80, {0, 0, 0, Elem::f32, false, true, true}) == 1); // fast accumulation
    standin.cc = 120, machine.cc = 120;
    CHECK(run(3, 16, 80) == 1);
}
TEST_CASE("cuBLASLt: MX and NVFP4 are multiplied natively from sm_100 on, narrow MX elements as E4M3, and else decoded") {
    for (int cc : {80, 90, 100, 120}) {
        OnCard card(cc);
        for (bool fp4 : {false, true})
            for (Sides s : mx_sides) {
                if (fp4) s = fp4_sides[0];
                for (Want w : wants) {
                    bool tiles = cc >= 100;
                    w.fast_accum = false;
                    Source a = source(s.how, s.a, {w.M, w.K, true, tiles}, 1);
                    Source b = source(s.how, s.b, {w.N, w.K, true, tiles}, 2);
                    check_gemm(format_of(s.a).name, a, b, w);
                    CHECK(narrow(standin_lt.type_a) == tiles);
                    if (tiles) CHECK(standin_lt.mode_a == (fp4 ? CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3
                                                               : CUBLASLT_MATMUL_MATRIX_SCALE_VEC32_UE8M0));
                    if (tiles) CHECK((standin_lt.type_a == CUDA_R_4F_E2M1) == fp4);
                }
                if (fp4) break;
            }
        Source a = source(How::mx, Elem::e2m1, {33, 100, true, cc >= 100}, 1), b = source(How::mx, Elem::e4m3, {47, 100, true, cc >= 100}, 2);
        check_gemm("odd N, scales in tiles", a, b, {33, 47, 100, Elem::bf16, true});
        CHECK(standin_lt.type_a == CUDA_R_16BF);
        Source c = source(How::mx, Elem::e2m1, {33, 100}, 1), d = source(How::nvfp4, Elem::e2m1, {48, 100}, 2);
        check_gemm("MX by NVFP4", c, d, {33, 48, 100});
        CHECK(standin_lt.type_a == CUDA_R_16BF);
        Source e = source(How::tensor, Elem::e4m3, {33, 100}, 1);
        check_gemm("FP8 by NVFP4", e, d, {33, 48, 100});
        Source f = source(How::plain, Elem::bf16, {33, 100}, 1);
        check_gemm("BF16 by NVFP4", f, d, {33, 48, 100});
    }
}
TEST_CASE("cuBLASLt: blocks of 128 with power-of-two scales are decoded everywhere") {
    for (int cc : {80, 90, 100}) {
        OnCard card(cc);
        for (Want w : wants) {
            Source a = source(How::blockwise, Elem::e4m3, {w.M, w.K}, 1), b = source(How::blockwise, Elem::e5m2, {w.N, w.K}, 2);
            check_gemm("blockwise", a, b, w);
            CHECK(standin_lt.type_a == CUDA_R_16BF);
        }
    }
}
} // namespace
