// GEMMs through cuBLASLt, on cards of every kind, against the row function and a sum in double.
#include "cublasLt.h"
#include "lab/native.cuh"
#include "ops/matmul_gpu.cuh"
#include "standin.h"
#include "tests/close.h"
#include <memory>

namespace { // test files share one program

// A card whose GEMMs are cuBLASLt's, whatever a test before has asked for.
struct LtCard : OnCard {
    explicit LtCard(int cc = 90) : OnCard(cc) { machine.kernels = Kernels::fast; }
};
// n bytes aligned to 256, `off` bytes behind; what is around them is poison
struct Bytes {
    std::shared_ptr<char> memory;
    char* at;
    explicit Bytes(size_t n = 0, size_t off = 0)
        : memory((char*)aligned_alloc(256, (n + off + 511) / 256 * 256), free), at(memory.get() + off) {
        memset(memory.get(), 0xff, (n + off + 511) / 256 * 256);
    }
};
enum class How { plain, tensor, mx, nvfp4, blockwise, squares };
struct Source {
    Operand o;
    Bytes data, scales, factor;
    int rows;
};
size_t up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// A random operand (rows, K). Of codes: what comes to a GPU, or with `ragged` rows that nothing was done for.
struct Shape {
    int rows, K;
    bool along = true;                     // contiguous along k
    bool swizzled = false, ragged = false; // scales lie as the card's GEMMs read them; rows are not padded
    size_t off = 0, gap = 0;               // bytes before, elements between rows
    bool exact = true;                     // FP32 scales are powers of two
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
    x.o.block = N, x.o.ld_scales = KB,
    x.o.scale_elem = how == How::mx      ? Elem::e8m0
                     : how == How::nvfp4 ? Elem::e4m3
                                         : Elem::f32;
    if (N == 128) { // the manual: M- or N-major of 1 x 128, K-major of 128 x 128, in lines of a multiple of 4
        int tall = how == How::squares ? 128 : 1;
        size_t OB = blocks(s.rows, tall), line = !s.swizzled ? KB : up(tall == 1 ? OB : KB, 4);
        bool down = s.swizzled && tall == 1;
        x.scales = Bytes(4 * (down ? KB : OB) * line);
        for (size_t at = 0; at < (down ? KB : OB) * line; at++) {
            float v = exp2i((int)random(7) - 3) * (s.exact ? 1 : 1 + 0.125f * random(8));
            ((float*)x.scales.at)[at] = at % line < (down ? OB : KB) ? v : 0;
        }
        x.o.scales = x.scales.at, x.o.scale_rows = tall, x.o.exact = s.exact;
        x.o.ld_scales = down ? 1 : line, x.o.scale_step = down ? line : 1;
        return x;
    }
    x.o.swizzled = s.swizzled;
    size_t bytes = s.swizzled ? tiled_scale_bytes(s.rows, KB) : s.rows * KB;
    x.scales = Bytes(bytes);
    if (s.swizzled) memset(x.scales.at, 0, bytes);
    for (int r = 0; r < s.rows; r++)
        for (size_t kb = 0; kb < KB; kb++) {
            size_t at = s.swizzled ? tiled_scale(r, kb, KB) : r * KB + kb;
            int power = (int)random(7) - 3;
            x.scales.at[at] =
                (char)(how == How::mx ? 127 + power : encode(E4M3, exp2i(power) * (1 + 0.125f * random(8))));
        }
    x.o.scales = x.scales.at;
    if (how == How::nvfp4) *factor = 3.1f, x.o.factor = factor;
    return x;
}

struct Sides {
    How how;
    Elem a, b;
};
const Sides fp8_sides[] = {{How::tensor, Elem::e4m3, Elem::e4m3},
                           {How::tensor, Elem::e5m2, Elem::e4m3},
                           {How::tensor, Elem::e4m3, Elem::e5m2}};
const Sides wide_sides[] = {{How::tensor, Elem::e2m1, Elem::e3m2}, {How::tensor, Elem::e2m3, Elem::e5m2}};
const Sides mx_sides[] = {{How::mx, Elem::e4m3, Elem::e4m3},
                          {How::mx, Elem::e5m2, Elem::e4m3},
                          {How::mx, Elem::e2m1, Elem::e2m1},
                          {How::mx, Elem::e3m2, Elem::e2m3},
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
    for (size_t i = 0; w.accumulate && i < w.M * ld; i++)
        ((float*)out.at)[i] = ((float*)row.at)[i] = (float)(i % 17) * 10;
    Gemm g = {.out = row.at,
              .out_elem = w.out,
              .ld_out = ld,
              .M = w.M,
              .N = w.N,
              .K = w.K,
              .a = a.o,
              .b = b.o,
              .scale_a = 0.5f,
              .scale_b = 3,
              .accumulate = w.accumulate,
              .fast_accum = w.fast_accum};
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
const Want wants[] = {{33, 48, 96, Elem::bf16, true, false, true},
                      {7, 16, 40, Elem::f32, false, true},
                      {130, 16, 80, Elem::bf16},
                      {3, 144, 272, Elem::bf16},
                      {1, 32, 1, Elem::f32, true},
                      {17, 64, 129, Elem::f32}};

TEST_CASE("cuBLASLt: FP8 with a scale per tensor is multiplied natively from sm_89 on, any number of rows and any K") {
    for (int cc : {89, 90, 100, 120}) {
        LtCard card(cc);
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
        LtCard card(cc);
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
    LtCard card(90);
    for (Want w : {Want{33, 47, 96, Elem::bf16, true}, {5, 31, 96, Elem::f32, false, true}})
        for (Sides s : fp8_sides) { // an odd vocabulary
            Source a = source(s.how, s.a, {w.M, w.K}, 1), b = source(s.how, s.b, {w.N, w.K}, 2);
            check_gemm("odd N", a, b, w);
            CHECK(standin_lt.type_a == CUDA_R_16BF);
            Source c = source(s.how, s.a, {w.M, 37, true, false, true}, 1),
                   d = source(s.how, s.b, {48, 37, true, false, true}, 2);
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
    LtCard card(100);
    for (Sides s : fp8_sides)
        for (bool a_along : {false, true})
            for (bool b_along : {false, true})
                for (Want w : {Want{32, 48, 96, Elem::bf16, true}, {64, 16, 128, Elem::f32, false, true}}) {
                    Source a = source(s.how, s.a, {w.M, w.K, a_along}, 1),
                           b = source(s.how, s.b, {w.N, w.K, b_along}, 2);
                    check_gemm("layouts", a, b, w);
                    CHECK(narrow(standin_lt.type_a));
                }
    Source a = source(How::tensor, Elem::e4m3, {33, 100, false}, 1), b = source(How::tensor, Elem::e4m3, {48, 100}, 2);
    check_gemm("odd rows", a, b, {33, 48, 100});
    CHECK(standin_lt.type_a == CUDA_R_16BF);
}
TEST_CASE("cuBLASLt: BF16 and FP32 in every layout, leading dimension and alignment") {
    LtCard card(90);
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
    LtCard card(90);
    long before = standin_lt.matmuls;
    Source a = source(How::plain, Elem::bf16, {9, 20}, 1), b = source(How::plain, Elem::bf16, {16, 20}, 2);
    Bytes out(2 * 9 * 16);
    memset(out.at, 0, 2 * 9 * 16);
    Gemm g = {.out = out.at,
              .out_elem = Elem::bf16,
              .ld_out = 16,
              .M = 9,
              .N = 16,
              .K = 20,
              .a = a.o,
              .b = b.o,
              .accumulate = true};
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
    LtCard card(90);
    std::vector<Source> keep;
    auto run = [&](int M, int N, int K, Want extra = {}) {
        keep.push_back(source(How::tensor, Elem::e4m3, {M, K}, keep.size())),
            keep.push_back(source(How::tensor, Elem::e4m3, {N, K}, 2));
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
    CHECK(run(3, 16, 80, {0, 0, 0, Elem::f32, false, true}) == 0);       // beta decides nothing
    CHECK(run(3, 16, 80, {0, 0, 0, Elem::f32, false, true, true}) == 1); // fast accumulation
    standin.cc = 120, machine.cc = 120;
    CHECK(run(3, 16, 80) == 1);
}
TEST_CASE(
    "cuBLASLt: MX and NVFP4 are multiplied natively from sm_100 on, narrow MX elements as E4M3, and else decoded") {
    for (int cc : {80, 90, 100, 120}) {
        LtCard card(cc);
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
                    if (tiles)
                        CHECK(standin_lt.mode_a == (fp4 ? CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3
                                                        : CUBLASLT_MATMUL_MATRIX_SCALE_VEC32_UE8M0));
                    if (tiles) CHECK((standin_lt.type_a == CUDA_R_4F_E2M1) == fp4);
                }
                if (fp4) break;
            }
        Source a = source(How::mx, Elem::e2m1, {33, 100, true, cc >= 100}, 1),
               b = source(How::mx, Elem::e4m3, {47, 100, true, cc >= 100}, 2);
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
TEST_CASE("cuBLASLt: a block that holds NaN spoils its row and no other, natively and decoded") {
    for (int cc : {90, 100}) {
        LtCard card(cc);
        for (auto [how, nan] : {std::pair(How::nvfp4, 0x7f), {How::mx, 0xff}}) {
            const int M = 5, K = 40; // blocks that do not fill the padded row
            Source a = source(how, Elem::e2m1, {M, K, true, cc >= 100}, 1);
            Source b = source(how, Elem::e2m1, {16, K, true, cc >= 100}, 2);
            a.scales.at[cc >= 100 ? tiled_scale(3, 0, a.o.ld_scales) : 3 * a.o.ld_scales] = (char)nan;
            Bytes out(M * 16 * 4);
            float* y = (float*)out.at;
            matmul("nan", {.out = y, .out_elem = Elem::f32, .ld_out = 16, .M = M, .N = 16, .K = K, .a = a.o, .b = b.o});
            CHECK(narrow(standin_lt.type_a) == (cc >= 100));
            for (int i = 0; i < M * 16; i++) REQUIRE(std::isnan(y[i]) == (i / 16 == 3));
        }
    }
}
TEST_CASE("cuBLASLt: blocks of 128 whose scales lie as on a CPU are decoded, or the row function's, everywhere") {
    for (int cc : {80, 90, 100}) {
        LtCard card(cc);
        std::vector<Want> all(std::begin(wants), std::end(wants));
        all.push_back({40, 48, 300}); // whose sizes sm_90 would multiply
        for (Want w : all) {
            Source a = source(How::blockwise, Elem::e4m3, {w.M, w.K}, 1),
                   b = source(How::blockwise, Elem::e5m2, {w.N, w.K}, 2);
            check_gemm("blockwise", a, b, w);
            CHECK(standin_lt.type_a == CUDA_R_16BF);
            a.o.exact = false;
            long before = standin_lt.matmuls;
            check_gemm("blockwise, row function", a, b, w);
            CHECK(standin_lt.matmuls == before);
        }
    }
}
const Sides sides_of_128[] = {{How::blockwise, Elem::e4m3, Elem::e4m3}, {How::blockwise, Elem::e5m2, Elem::e4m3}};
TEST_CASE("cuBLASLt: sm_90 multiplies blocks of 128 natively, powers of two or not, where both sizes allow it") {
    LtCard card(90);
    for (Sides s : sides_of_128)
        for (auto [a_is, b_is] : {std::pair(How::blockwise, How::blockwise),
                                  {How::blockwise, How::squares},
                                  {How::squares, How::blockwise},
                                  {How::squares, How::squares}})
            for (bool exact : {true, false})
                for (Want w : {Want{40, 48, 300, Elem::bf16, true, false, true},
                               {8, 16, 40, Elem::f32, false, true},
                               {136, 16, 272, Elem::bf16},
                               {24, 144, 129, Elem::f32},
                               {33, 48, 300, Elem::bf16, true},
                               {40, 47, 300, Elem::f32}}) {
                    Source a = source(a_is, s.a, {w.M, w.K, true, true, false, 0, 0, exact}, 1);
                    Source b = source(b_is, s.b, {w.N, w.K, true, true, false, 0, 0, exact}, 2);
                    standin_lt.type_a = -1;
                    check_gemm("blocks of 128", a, b, w);
                    bool native = w.M % 8 == 0 && w.N % 16 == 0 && (a_is == How::blockwise || b_is == How::blockwise);
                    CHECK(standin_lt.type_a == (native ? CUDA_R_8F_E4M3 : exact ? CUDA_R_16BF : -1)); // A is our b
                    if (!native) continue;
                    CHECK(standin_lt.fast_accum == 0);
                    CHECK(standin_lt.mode_a == (b_is == How::blockwise ? 4 : 5));
                    CHECK(standin_lt.mode_b == (a_is == How::blockwise ? 4 : 5));
                }
}
// A matrix (R, C) whose blocks are of very different size, its quantizer and its copies.
struct Cast128 {
    Quantizer q;
    std::vector<act> x;
    std::vector<Bytes> memory;
    int R, C;
    Cast128(Cast cast, int R, int C, uint64_t seed) : x(normals<act>((size_t)R * C, seed)), R(R), C(C) {
        static const Pass training = {true};
        q.cast = cast, q.pass = &training, q.quantized[0] = q.quantized[1] = true;
        for (int i = 0; i < R * C; i++) x[i] = act((float)x[i] * exp2i((i / C * 7 + i % C / 128 * 5) % 13 - 6));
        for (Along k : {Along::cols, Along::rows}) {
            CopyBytes b = q.bytes(k, R, C);
            for (size_t bytes : {b.codes, b.scales, (size_t)16}) memory.emplace_back(bytes);
            auto at = [&](int i) { return memory[memory.size() - 3 + i].at; };
            q.copies[(int)k] = {(uint8_t*)at(0), (uint8_t*)at(1), nullptr, (Copy::Factors*)at(2)};
        }
    }
    Operand operator()(Along k) { return quantize({x.data(), R, C, &q}, k); }
};
// Scales that lie the other way round, K-major, are the plausible mistake: the result is of the right size. Here blocks
// are so different that it is not.
TEST_CASE("cuBLASLt: what sm_90 casts in blocks of 128 it multiplies natively, in all three GEMMs, as the CPU does") {
    const int T = 40, C = 304, OC = 272;
    for (bool pow2 : {true, false}) {
        Cast row = {.elem = E4M3, .scaling = Scaling::blockwise, .block = {1, 128}, .pow2_scales = pow2}, grad = row,
             tile = row;
        grad.elem = E5M2, tile.block = {128, 128};
        std::vector<double> want[3], bound[3];
        for (bool on_card : {false, true}) {
            std::unique_ptr<LtCard> card(on_card ? new LtCard(90) : nullptr);
            Cast128 x(row, T, C, 1), w(tile, OC, C, 2), dy(grad, T, OC, 3);
            struct {
                int M, N, K;
                Operand a, b;
            } gemms[] = {{T, OC, C, x(Along::cols), w(Along::cols)},
                         {T, C, OC, dy(Along::cols), w(Along::rows)},
                         {OC, C, T, dy(Along::rows), x(Along::rows)}};
            for (int i = 0; i < 3; i++) {
                auto& [M, N, K, a, b] = gemms[i];
                INFO("gemm ", i, ", power-of-two scales ", pow2);
                Bytes out(4 * M * N);
                float* y = (float*)out.at;
                Gemm g = {.out = y, .out_elem = Elem::f32, .ld_out = (size_t)N, .M = M, .N = N, .K = K, .a = a, .b = b};
                CHECK(a.exact == pow2);
                if (on_card) {
                    standin_lt.type_a = -1;
                    matmul("gemm", g);
                    CHECK(narrow(standin_lt.type_a));
                    check_close("y", std::vector<float>(y, y + M * N), want[i], bound[i]);
                    continue;
                }
                for (int m = 0; m < M; m++) matmul_row(Lanes(), g, {}, m);
                want[i].assign(y, y + M * N);
                for (int m = 0; m < M; m++)
                    for (int n = 0; n < N; n++) {
                        double size = 0;
                        for (int k = 0; k < K; k++) size += fabs((double)fetch(a, m, k) * fetch(b, n, k));
                        bound[i].push_back((K + 6) * 0x1p-24 * size); // as in check_gemm
                    }
            }
        }
    }
}
std::vector<GemmKind> kinds() {
    std::vector<GemmKind> all;
    auto add = [&](auto& sides) {
        for (Sides s : sides) {
            Elem scale = s.how == How::mx ? Elem::e8m0 : s.how == How::nvfp4 ? Elem::e4m3 : Elem::f32;
            int block = s.how == How::mx ? 32 : s.how == How::nvfp4 ? 16 : 0;
            all.push_back({{s.a, scale, block}, {s.b, scale, block}});
        }
    };
    add(fp8_sides), add(wide_sides), add(mx_sides), add(fp4_sides);
    for (Sides s : sides_of_128)
        for (int rows : {1, 128})
            for (bool exact : {true, false})
                all.push_back({{s.a, Elem::f32, 128, exact}, {s.b, Elem::f32, 128, exact, rows}});
    return all;
}
void forget() { // as a run that begins
    native.failed.clear(), native.insist = false;
    standin_lt = {};
}
TEST_CASE("cuBLASLt: every native kind passes its check, and a chip that is wrong by 5 % is found out and emulated") {
    for (int cc : {80, 89, 90, 100, 120}) {
        LtCard card(cc);
        for (double wrong_by : {1.0, 1.05}) {
            forget();
            standin_lt.wrong_by = wrong_by;
            for (GemmKind k : kinds()) {
                INFO("sm_", cc, " ", how_multiplied(k, cc), " of ", format_of(k.a.elem).name, " x ",
                     format_of(k.b.elem).name);
                prove_native({k});
                CHECK((native.failed.count(k) > 0) == (why_emulated(k, cc).empty() && wrong_by != 1));
            }
            if (wrong_by == 1) continue;
            native.failed.clear(), standin_lt = {}, standin_lt.b_is_k_major = true;
            for (GemmKind k : kinds()) {
                prove_native({k});
                CHECK((native.failed.count(k) > 0) == (why_emulated(k, cc).empty() && k.a.block == 128));
            }
            standin_lt = {}, standin_lt.wrong_by = wrong_by, prove_native(kinds());
            Source a = source(How::tensor, Elem::e4m3, {33, 96}, 1), b = source(How::tensor, Elem::e4m3, {48, 96}, 2);
            check_gemm("broken FP8", a, b, {33, 48, 96});
            CHECK(standin_lt.type_a == CUDA_R_16BF);
            native.failed.clear(), native.insist = true;
            if (cc > 80)
                CHECK_THROWS_WITH_AS(prove_native(kinds()), doctest::Contains("--native: native FP8 fails its check"),
                                     Error);
            else CHECK_NOTHROW(prove_native(kinds()));
        }
        forget();
    }
}
TEST_CASE("cuBLASLt: --native makes emulation an error that says why") {
    LtCard card(90);
    lt_start(), forget();
    native.insist = true;
    Source a = source(How::mx, Elem::e4m3, {33, 96}, 1), b = source(How::mx, Elem::e4m3, {48, 96}, 2);
    Bytes out(33 * 48 * 4);
    Gemm g = {.out = out.at, .out_elem = Elem::f32, .ld_out = 48, .M = 33, .N = 48, .K = 96, .a = a.o, .b = b.o};
    CHECK_THROWS_WITH_AS(matmul("wgrad", g), "--native: wgrad would be emulated: sm_90 has no MX tensor cores", Error);
    Source c = source(How::tensor, Elem::e4m3, {33, 96}, 1), d = source(How::tensor, Elem::e4m3, {47, 96}, 2);
    g.a = c.o, g.b = d.o, g.N = 47;
    CHECK_THROWS_WITH_AS(matmul("fprop", g),
                         "--native: fprop would be emulated: N = 47 is not a multiple of 16; the next that is: 48",
                         Error);
    Source e = source(How::plain, Elem::bf16, {33, 96}, 1), f = source(How::plain, Elem::bf16, {47, 96}, 2);
    g.a = e.o, g.b = f.o;
    CHECK_NOTHROW(matmul("fprop", g));
    forget();
}
TEST_CASE("cuBLASLt: a search that says SUCCESS and finds nothing is emulation of codes, and an error of BF16") {
    LtCard card(89); // which no test before has used, so that no plan is there
    lt_start(), forget();
    lt.plans.clear();
    Source a = source(How::tensor, Elem::e4m3, {5, 96}, 1), b = source(How::tensor, Elem::e4m3, {16, 96}, 2);
    Source c = source(How::plain, Elem::bf16, {5, 96}, 1), d = source(How::plain, Elem::bf16, {16, 96}, 2);
    Bytes out(5 * 16 * 4);
    Gemm g = {.out = out.at, .out_elem = Elem::f32, .ld_out = 16, .M = 5, .N = 16, .K = 96, .a = c.o, .b = d.o};
    check_gemm("there", c, d, {5, 16, 96}); // BF16 out: its plan is there
    standin_lt.in_vain = true;
    CHECK_THROWS_WITH_AS(
        matmul("fprop", g),
        doctest::Contains("fprop: no plan: there is no algorithm, CUBLAS_STATUS_NOT_SUPPORTED (cuBLASLt 130100, sm_89; "
                          "m 16 n 5 k 96, A bf16 T ld 96, B bf16 N ld 96, D fp32 N ld 16"),
        Error);
    standin_lt.in_vain = false, standin_lt.in_vain_for_codes = true;
    check_gemm("in vain", a, b, {5, 16, 96});
    CHECK(standin_lt.type_a == CUDA_R_16BF);
    long before = standin_lt.heuristics;
    check_gemm("in vain, again", a, b, {5, 16, 96});
    CHECK(standin_lt.heuristics == before);
    lt.plans.clear(), forget();
}
// --- what the stand-in refuses ------------------------------------------------------------------------------------
// A call of the library itself, FP8, that every card from sm_89 on takes; each violation changes one thing.
struct Raw {
    int m = 32, n = 24, k = 64, lda = 64, ldb = 64, ldd = 32;
    cudaDataType_t a = CUDA_R_8F_E4M3, b = CUDA_R_8F_E4M3, c = CUDA_R_16BF, d = CUDA_R_16BF, scale_type = CUDA_R_32F;
    cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
    int ta = CUBLAS_OP_T, tb = CUBLAS_OP_N, mode_a = 0, mode_b = 0, epilogue = CUBLASLT_EPILOGUE_DEFAULT,
        bias_type = -1;
    int pointer_mode = CUBLASLT_POINTER_MODE_HOST;
    int8_t fast = 0;
    bool scales = true, bias_given = false, scale_on_d = false, amax_on_d = false, scale_on_c = false;
    int off_a = 0, off_b = 0, off_d = 0, off_scale = 0, off_bias = 0, off_workspace = 0, align = 256;
    bool pad = false, no_c = false, other_c = false, device_scalars = false, change_after = false;
    float beta = 0;
    uint64_t workspace = 1 << 16, give = 1 << 16;
    bool host_workspace = false;
};
Raw raw_mx(cudaDataType_t type = CUDA_R_8F_E4M3) {
    Raw r;
    r.a = r.b = type;
    r.mode_a = r.mode_b =
        type == CUDA_R_4F_E2M1 ? CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3 : CUBLASLT_MATMUL_MATRIX_SCALE_VEC32_UE8M0;
    return r;
}
// "" or the sentence it was refused with
std::string call(const Raw& r) {
    standin_lt.last_error = "";
    auto ok = [](cublasStatus_t s) { return s == CUBLAS_STATUS_SUCCESS; };
    Bytes A(1 << 15), B(1 << 15), D(1 << 15), scales(4096 + 64), bias(4096);
    memset(A.at, 0x18, 1 << 15), memset(B.at, 0x18, 1 << 15), memset(scales.at, 0, 4096 + 64), memset(bias.at, 0, 4096);
    bool tiles = r.mode_a == 1 || r.mode_a == 2;
    for (int o = 0; o < 32; o++) // as block scales: rows o, blocks kb
        for (int kb = 0; kb < r.k / (r.mode_a == 1 ? 16 : 32) && tiles; kb++)
            scales.at[r.off_scale + tiled_scale(o, kb, 4)] =
                56; // n is 24: the rest is padding for B, and is cleared below
    Bytes scales_b(4096 + 64);
    memcpy(scales_b.at, scales.at, 4096);
    for (int o = r.n; o < 32 && tiles; o++)
        for (int kb = 0; kb < 4; kb++) scales_b.at[r.off_scale + tiled_scale(o, kb, 4)] = 0;
    if (r.pad && tiles) scales.at[r.off_scale + tiled_scale(100, 1, 4)] = (char)0xff;
    for (auto [mode, at, n] :
         {std::tuple(r.mode_a, &scales, r.m), {r.mode_b, &scales_b, r.n}}) // of 128: one block of K
        for (int i = 0; i < (mode == 4 ? n : mode == 5 ? 1 + r.pad : 0); i++) ((float*)(at->at + r.off_scale))[i] = 1;
    if (!r.mode_a) *(float*)(scales.at + r.off_scale) = 1, *(float*)(scales_b.at + r.off_scale) = 1;
    cublasLtHandle_t h;
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t a, b, c, d;
    cublasLtMatmulPreference_t wish;
    REQUIRE(ok(cublasLtCreate(&h)));
    REQUIRE(ok(cublasLtMatmulDescCreate(&op, r.compute, r.scale_type)));
    auto set = [&](cublasLtMatmulDescAttributes_t what, auto v) {
        REQUIRE(ok(cublasLtMatmulDescSetAttribute(op, what, &v, sizeof v)));
    };
    set(CUBLASLT_MATMUL_DESC_TRANSA, (int32_t)r.ta), set(CUBLASLT_MATMUL_DESC_TRANSB, (int32_t)r.tb);
    set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, (int32_t)r.mode_a),
        set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, (int32_t)r.mode_b);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, (int32_t)r.epilogue),
        set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, (int32_t)r.bias_type);
    set(CUBLASLT_MATMUL_DESC_POINTER_MODE, (int32_t)r.pointer_mode), set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, r.fast);
    const void* p = scales.at + r.off_scale;
    if (r.scales) set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, p);
    p = scales_b.at + r.off_scale;
    if (r.scales) set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, p);
    p = scales.at;
    if (r.scale_on_d) set(CUBLASLT_MATMUL_DESC_D_SCALE_POINTER, p);
    if (r.amax_on_d) set(CUBLASLT_MATMUL_DESC_AMAX_D_POINTER, p);
    if (r.scale_on_c) set(CUBLASLT_MATMUL_DESC_C_SCALE_POINTER, p);
    p = bias.at + r.off_bias;
    if (r.bias_given) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p);
    bool ta = r.ta == CUBLAS_OP_T, tb = r.tb == CUBLAS_OP_T;
    cublasLtMatrixLayoutCreate(&a, r.a, ta ? r.k : r.m, ta ? r.m : r.k, r.lda);
    cublasLtMatrixLayoutCreate(&b, r.b, tb ? r.n : r.k, tb ? r.k : r.n, r.ldb);
    cublasLtMatrixLayoutCreate(&c, r.c, r.m, r.n, r.ldd + 8 * r.other_c),
        cublasLtMatrixLayoutCreate(&d, r.d, r.m, r.n, r.ldd);
    cublasLtMatmulPreferenceCreate(&wish);
    cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &r.workspace, 8);
    for (int i = 0; i < 4; i++) {
        uint32_t align = r.align;
        REQUIRE(ok(cublasLtMatmulPreferenceSetAttribute(
            wish, (cublasLtMatmulPreferenceAttributes_t)(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES + i), &align, 4)));
    }
    cublasLtMatmulHeuristicResult_t best;
    int found;
    cublasStatus_t s = cublasLtMatmulAlgoGetHeuristic(h, op, a, b, c, d, wish, 1, &best, &found);
    if (ok(s)) {
        REQUIRE(found == 1);
        if (r.change_after) set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, (int8_t)!r.fast);
        char* device = allocate_zeroed(1 << 17);
        float one = 1, *scalars = (float*)(device + (1 << 16) + 4096);
        scalars[0] = 1, scalars[1] = r.beta;
        s = cublasLtMatmul(h, op, r.device_scalars ? scalars : &one, A.at + r.off_a, a, B.at + r.off_b, b,
                           r.device_scalars ? (void*)(scalars + 1) : (void*)&r.beta, r.no_c ? nullptr : D.at + r.off_d,
                           c, D.at + r.off_d, d, &best.algo, r.host_workspace ? bias.at : device + r.off_workspace,
                           r.give, (cudaStream_t)machine.stream);
        release_memory(device, 1 << 17);
    }
    CHECK(ok(s) == standin_lt.last_error.empty());
    cublasLtMatmulPreferenceDestroy(wish), cublasLtMatmulDescDestroy(op), cublasLtDestroy(h);
    for (auto l : {a, b, c, d}) cublasLtMatrixLayoutDestroy(l);
    return standin_lt.last_error;
}
template <class F> Raw with(F change, Raw r = {}) {
    change(r);
    return r;
}
TEST_CASE("cuBLASLt's stand-in takes what the library takes") {
    for (int cc : {89, 90, 100, 103, 120, 121}) {
        LtCard card(cc);
        INFO("sm_", cc);
        CHECK(call({}) == "");
        CHECK(call(with([](Raw& r) { r.n = 23; })) == "");
        CHECK(call(with([](Raw& r) { r.scales = false; })) == "");
        CHECK(call(with([](Raw& r) { r.b = CUDA_R_8F_E5M2; })) == "");
        CHECK(call(with([](Raw& r) { r.c = r.d = CUDA_R_32F, r.beta = 1; })) == "");
        CHECK(call(with([](Raw& r) {
                  r.c = r.d = CUDA_R_32F, r.epilogue = CUBLASLT_EPILOGUE_BIAS, r.bias_given = true,
                  r.bias_type = CUDA_R_16BF;
              })) == "");
        CHECK(call(with([](Raw& r) { r.pointer_mode = 1, r.device_scalars = true; })) == "");
        CHECK(call(with([](Raw& r) { r.no_c = true; })) == "");
        CHECK(call(with([](Raw& r) {
                  r.a = r.b = CUDA_R_16BF, r.scales = false, r.k = 7, r.lda = 9, r.ldb = 7, r.off_a = 2, r.align = 2;
              })) == "");
        for (auto [a, b] : {std::pair(4, 4), {4, 5}, {5, 4}})
            if (cc == 90) CHECK(call(with([a = a, b = b](Raw& r) { r.mode_a = a, r.mode_b = b; })) == "");
        if (cc < 100) continue;
        CHECK(call(raw_mx()) == "");
        CHECK(call(raw_mx(CUDA_R_4F_E2M1)) == "");
    }
}
TEST_CASE("cuBLASLt's stand-in refuses what some version of the library does, and says which rule it was") {
    const auto fp4 = raw_mx(CUDA_R_4F_E2M1);
    struct Violation {
        std::vector<int> cards;
        const char* says;
        Raw r;
    };
    const std::vector<int> all = {89, 90, 100, 120};
    const Violation violations[] = {
        {{80, 86}, "does not multiply FP8", {}},
        {{90, 120}, "supports only TN input layout, got NN", with([](Raw& r) { r.ta = CUBLAS_OP_N; })},
        {{89, 90, 121}, "supports only TN input layout, got TT", with([](Raw& r) { r.tb = CUBLAS_OP_T; })},
        {{100, 120}, "FP4 on sm_1", with([](Raw& r) { r.ta = CUBLAS_OP_N; }, fp4)},
        {all, "E5M2 x E5M2", with([](Raw& r) { r.a = r.b = CUDA_R_8F_E5M2; })},
        {all, "unsupported combination of types: A e4m3, B bf16", with([](Raw& r) { r.b = CUDA_R_16BF; })},
        {all, "unsupported combination of types: A bf16, B fp32",
         with([](Raw& r) { r.a = CUDA_R_16BF, r.b = CUDA_R_32F; })},
        {all, "D e4m3", with([](Raw& r) { r.d = CUDA_R_8F_E4M3; })},
        {all, "C is bf16 and D fp32", with([](Raw& r) { r.d = CUDA_R_32F; })},
        {all, "k = 72 must be divisible by 16", with([](Raw& r) { r.k = 72, r.lda = r.ldb = 80; })},
        {{100, 120}, "k = 48 must be divisible by 32", with([](Raw& r) { r.k = 48; }, fp4)},
        {all, "lda = 72 must be divisible by 16", with([](Raw& r) { r.lda = 72; })},
        {all, "ldb = 72 must be divisible by 16", with([](Raw& r) { r.ldb = 72; })},
        {{100, 120}, "ldb = 80 must be divisible by 32", with([](Raw& r) { r.ldb = 80; }, fp4)},
        {all, "m = 24 must be divisible by 16", with([](Raw& r) { r.m = 24; })},
        {{100}, "n = 24 must be divisible by 16", with([](Raw& r) { r.tb = CUBLAS_OP_T; })},
        {all, "ldd = 36 is not a multiple of 16 bytes", with([](Raw& r) { r.ldd = 36; })},
        {all, "less than its 64 rows", with([](Raw& r) { r.lda = 48; })},
        {all, "A is not aligned to the 256 bytes", with([](Raw& r) { r.off_a = 16; })},
        {all, "B is not aligned to the 16 bytes", with([](Raw& r) { r.off_b = 8, r.align = 16; })},
        {all, "C is not aligned to the 256 bytes", with([](Raw& r) { r.off_d = 128; })},
        {all, "no algorithm for matrices aligned to 8 bytes", with([](Raw& r) { r.align = 8; })},
        {all, "scale of A is not aligned to 16 bytes", with([](Raw& r) { r.off_scale = 4; })},
        {{100, 120}, "scale of A is not aligned to 16 bytes", with([](Raw& r) { r.off_scale = 8; }, raw_mx())},
        {{89, 90}, "has no scale mode 2", raw_mx()},
        {{89, 90}, "does not multiply FP4", fp4},
        {{100, 120}, "wants a scale pointer", with([](Raw& r) { r.scales = false; }, raw_mx())},
        {{100, 120}, "scale mode 2 of A is not for e2m1", with([](Raw& r) { r.mode_a = r.mode_b = 2; }, fp4)},
        {{100, 120}, "scale mode 1 of A is not for e4m3", with([](Raw& r) { r.mode_a = r.mode_b = 1; })},
        {{100, 120}, "scale mode 0 of A is not for e2m1", with([](Raw& r) { r.mode_a = r.mode_b = 0; }, fp4)},
        {{100, 120}, "scale modes 2 and 0 do not mix", with([](Raw& r) { r.mode_b = 0; }, raw_mx())},
        {all, "scale mode 3 of A is not known here", with([](Raw& r) { r.mode_a = r.mode_b = 3; })},
        {{89, 100, 120}, "has no scale mode 4", with([](Raw& r) { r.mode_a = r.mode_b = 4; })},
        {{90}, "scale modes 5 and 5 do not mix", with([](Raw& r) { r.mode_a = r.mode_b = 5; })},
        {{90}, "scale modes 0 and 4 do not mix", with([](Raw& r) { r.mode_b = 4; })},
        {{90}, "n = 20 must be divisible by 8", with([](Raw& r) { r.mode_a = 5, r.mode_b = 4, r.n = 20; })},
        {{90}, "scale mode 5 of A wants a scale", with([](Raw& r) { r.mode_a = 5, r.mode_b = 4, r.scales = false; })},
        {{90}, "scale of A is not aligned", with([](Raw& r) { r.mode_a = r.mode_b = 4, r.off_scale = 4; })},
        {{90}, "is padding and not zero but 1", with([](Raw& r) { r.mode_a = 5, r.mode_b = 4, r.pad = true; })},
        {{90}, "FAST_ACCUM can be set only for FP8", with([](Raw& r) { r.mode_a = r.mode_b = 4, r.fast = 1; })},
        {{100, 120}, "is padding and not zero but 0xff", with([](Raw& r) { r.pad = true; }, raw_mx())},
        {{100, 120}, "is padding and not zero but 0xff", with([](Raw& r) { r.pad = true; }, fp4)},
        {all, "a scale for A, whose type bf16 has none", with([](Raw& r) { r.a = r.b = CUDA_R_16BF; })},
        {all, "a scale or an amax of D", with([](Raw& r) { r.scale_on_d = true; })},
        {all, "a scale or an amax of D", with([](Raw& r) { r.amax_on_d = true; })},
        {all, "a scale of C", with([](Raw& r) { r.scale_on_c = true; })},
        {all, "epilogue BIAS without a bias pointer",
         with([](Raw& r) { r.epilogue = CUBLASLT_EPILOGUE_BIAS, r.bias_type = CUDA_R_16BF; })},
        {all, "a bias pointer without the epilogue", with([](Raw& r) { r.bias_given = true; })},
        {all, "a bias of type 0 where only 14 goes", with([](Raw& r) {
             r.epilogue = CUBLASLT_EPILOGUE_BIAS, r.bias_given = true, r.bias_type = CUDA_R_32F, r.c = r.d = CUDA_R_32F;
         })},
        {all, "a bias of type -1", with([](Raw& r) { r.epilogue = CUBLASLT_EPILOGUE_BIAS, r.bias_given = true; })},
        {all, "bias is not aligned", with([](Raw& r) {
             r.epilogue = CUBLASLT_EPILOGUE_BIAS, r.bias_given = true, r.bias_type = CUDA_R_16BF, r.off_bias = 2;
         })},
        {all, "epilogue 2 is not known here", with([](Raw& r) { r.epilogue = CUBLASLT_EPILOGUE_RELU; })},
        {{89, 90, 100}, "FAST_ACCUM can be set only for FP8", with([](Raw& r) {
             r.a = r.b = CUDA_R_16BF, r.scales = false, r.fast = 1;
         })},
        {{100}, "FAST_ACCUM can be set only for FP8", with([](Raw& r) { r.fast = 1; }, raw_mx())},
        {{100, 120}, "FAST_ACCUM has no effect on sm_1", with([](Raw& r) { r.fast = 1; })},
        {all, "must be FP32", with([](Raw& r) { r.compute = CUBLAS_COMPUTE_32F_FAST_TF32; })},
        {all, "must be FP32", with([](Raw& r) { r.scale_type = CUDA_R_16BF; })},
        {{89, 90}, "found for another problem", with([](Raw& r) { r.change_after = true; })},
        {all, "C is D, but their layouts differ", with([](Raw& r) { r.other_c = true; })},
        {all, "no C", with([](Raw& r) { r.no_c = true, r.beta = 1; })},
        {all, "no C", with([](Raw& r) { r.no_c = true, r.pointer_mode = 1, r.device_scalars = true; })},
        {all, "alpha or beta lies on the device, but the pointer mode says host",
         with([](Raw& r) { r.device_scalars = true; })},
        {all, "alpha or beta lies on the host, but the pointer mode says device",
         with([](Raw& r) { r.pointer_mode = 1; })},
        {all, "needs 65536 bytes of workspace, not 100", with([](Raw& r) { r.give = 100; })},
        {all, "workspace is not", with([](Raw& r) { r.off_workspace = 16; })},
        {all, "workspace is not", with([](Raw& r) { r.host_workspace = true; })},
        {all, "a matrix without elements", with([](Raw& r) { r.n = 0; })},
    };
    for (auto& v : violations)
        for (int cc : v.cards) {
            LtCard card(cc);
            INFO("sm_", cc, ": ", v.says);
            CHECK(call(v.r).find(v.says) != std::string::npos);
            if (call(v.r).find(v.says) == std::string::npos) MESSAGE(standin_lt.last_error);
        }
    LtCard card;
    cublasLtMatmulDesc_t op;
    cublasLtMatmulDescCreate(&op, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    int64_t wide = 1;
    CHECK(cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_TRANSA, &wide, 8) == CUBLAS_STATUS_INVALID_VALUE);
    CHECK(standin_lt.last_error == "attribute 3 has 4 bytes, not 8");
    CHECK(cublasLtMatmulDescSetAttribute(op, (cublasLtMatmulDescAttributes_t)99, &wide, 8) ==
          CUBLAS_STATUS_INVALID_VALUE);
    cublasLtMatmulDescDestroy(op);
}
// What the wrapper believes of the library is what the stand-in enforces.
TEST_CASE("cuBLASLt: the rules that are checked before a call are those that the call is refused by") {
    int refused = 0, taken = 0;
    for (int cc : {80, 89, 90, 100, 103, 120}) {
        LtCard card(cc);
        for (int i = 0; i < 4000; i++) {
            uint64_t bits = random_bits(5, cc * 10000 + i);
            auto pick = [&](auto... of) {
                std::common_type_t<decltype(of)...> all[] = {of...};
                auto v = all[bits % sizeof...(of)];
                bits = bits / sizeof...(of);
                return v;
            };
            auto rarely = [&](auto usual, auto odd) {
                return pick(usual, usual, usual, usual, usual, usual, usual, odd);
            };
            LtProblem p = {};
            p.a = pick(Elem::bf16, Elem::e4m3, Elem::e4m3, Elem::e5m2, Elem::e2m1),
            p.b = rarely(p.a, pick(Elem::bf16, Elem::e4m3, Elem::e5m2, Elem::f32));
            p.d = pick(Elem::bf16, Elem::f32);
            p.m = rarely(64, 56), p.n = rarely(48, pick(24, 20)), p.k = rarely(64, pick(48, 40));
            p.a_along = rarely(true, false), p.b_along = rarely(true, false);
            p.lda = rarely(64, pick(96, 80, 72, 40)), p.ldb = rarely(64, pick(96, 80, 72, 40)),
            p.ldd = rarely(64, pick(66, 72, 40));
            p.mode_a = p.mode_b = is_codes(p.a) || is_codes(p.b) ? p.a == Elem::e2m1 ? 1 : pick(0, 0, 0, 2, 4, 5) : -1;
            if (p.mode_a == 5) p.mode_b = 4;
            p.mode_a = rarely(p.mode_a, pick(0, 1, 2, 3, 4, 5)), p.mode_b = rarely(p.mode_b, pick(0, 2, 4, 5));
            if ((p.mode_a < 0) != (p.mode_b < 0)) p.mode_a = p.mode_b = std::max(p.mode_a, p.mode_b);
            p.scales = p.mode_a >= 0 && rarely(true, false);
            p.fast_accum = rarely(false, true), p.bias = pick(false, false, true);
            p.align_scales = rarely(16, 8), p.align_bias = rarely(16, 2);
            Bytes scales(4096), bias(4096);
            LtPointers q = {};
            q.scale_a = q.scale_b = scales.at + (p.align_scales == 8 ? 8 : 0),
            q.bias = bias.at + (p.align_bias == 2 ? 2 : 0);
            standin_lt.last_error = "";
            lt_start();
            lt.cc = cc;
            lt.plans.clear();
            standin_lt.version = 130300; // the search does not know what older ones compute wrongly
            std::string ours = lt_refusal(p, cc, standin_lt.version);
            lt.unchecked = true; // the search, whatever our rules say
            LtPlan& unchecked = lt_plan(p, q);
            lt.unchecked = false;
            INFO("sm_", cc, " ", lt_text(p), ": ours \"", ours, "\", the library's \"", unchecked.refused, "\"");
            bool same = ours.empty() == unchecked.refused.empty();
            REQUIRE(same);
            (ours.empty() ? taken : refused)++;
        }
    }
    CHECK(taken > 1000);
    CHECK(refused > 1000);
    lt.plans.clear(), lt.family = 0, forget();
}
TEST_CASE("cuBLASLt: a captured GEMM runs when the graph does, with what then lies there; a search belongs before") {
    LtCard card(100);
    lt_start(), forget();
    Source a = source(How::nvfp4, Elem::e2m1, {5, 96, true, true}, 1),
           b = source(How::nvfp4, Elem::e2m1, {16, 96, true, true}, 2);
    Bytes out(5 * 16 * 4);
    float* first = (float*)out.at;
    Gemm g = {.out = out.at, .out_elem = Elem::f32, .ld_out = 16, .M = 5, .N = 16, .K = 96, .a = a.o, .b = b.o};
    matmul("warm", g);
    float once = *first;
    REQUIRE(once != 0);
    cudaStream_t s = (cudaStream_t)machine.stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    REQUIRE(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal) == cudaSuccess);
    *first = -1;
    matmul("captured", g);
    CHECK(*first == -1);
    REQUIRE(cudaStreamEndCapture(s, &graph) == cudaSuccess);
    REQUIRE(cudaGraphInstantiate(&exec, graph) == cudaSuccess);
    REQUIRE(cudaGraphLaunch(exec, s) == cudaSuccess);
    CHECK(*first == once);
    *(float*)a.factor.at *= 2;
    REQUIRE(cudaGraphLaunch(exec, s) == cudaSuccess);
    CHECK(*first == 2 * once);
    cudaGraphExecDestroy(exec), cudaGraphDestroy(graph);
    REQUIRE(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal) == cudaSuccess);
    g.M = 4;
    CHECK_THROWS_AS(matmul("new", g), Error);
    CHECK(standin_lt.last_error == "a search during a capture");
    CHECK(cudaStreamEndCapture(s, &graph) != cudaSuccess);
    cudaGetLastError();
    lt.plans.clear();
}
} // namespace
