// Every matrix here ends where a page begins that nothing may touch, and every output is surrounded by canaries: each
// test is also a test that nothing outside the matrices is read or written.
#include "ops/matmul_cpu.h"
#include "check.h"
#include "fp8.cuh"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <sys/mman.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace { // test files share one program

namespace {

float from_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
uint32_t to_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
float from_bf16(uint16_t h) { return from_bits((uint32_t)h << 16); }
uint16_t to_bf16(float f) { // by comparison: the nearer neighbour, or the even one
    if (std::isnan(f)) return 0x7fff;
    if (std::isinf(f)) return to_bits(f) >> 16;
    uint16_t down = to_bits(f) >> 16, up = down + 1;
    // double holds 2^128, which stands for the infinity above the largest BF16
    auto value = [](uint16_t h) {
        return std::isinf(from_bf16(h)) ? std::copysign(0x1p128, from_bf16(h)) : from_bf16(h);
    };
    double below = std::fabs(f - value(down)), above = std::fabs(value(up) - f);
    return below < above || (below == above && down % 2 == 0) ? down : up;
}

// n elements that end at a page nobody may touch
struct Buffer {
    Elem elem;
    size_t count, size;
    char *map, *at;
    Buffer(Elem elem, size_t count) : elem(elem), count(count) {
        size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = count * width();
        size = (bytes + page - 1) / page * page + page;
        map = (char*)mmap(nullptr, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        REQUIRE(map != MAP_FAILED);
        mprotect(map + size, page, PROT_NONE);
        at = map + size - bytes;
        memset(map, 0xa5, size);
    }
    Buffer(const Buffer&) = delete;
    ~Buffer() { munmap(map, size + (size_t)sysconf(_SC_PAGESIZE)); }
    size_t width() const { return elem == Elem::bf16 ? 2 : elem == Elem::f32 ? 4 : 1; }
    float get(size_t i) const {
        uint16_t h;
        float f;
        if (elem == Elem::bf16) return memcpy(&h, at + 2 * i, 2), from_bf16(h);
        return memcpy(&f, at + 4 * i, 4), f;
    }
    void set(size_t i, float f) {
        uint16_t h = to_bf16(f);
        if (elem == Elem::bf16) memcpy(at + 2 * i, &h, 2);
        else memcpy(at + 4 * i, &f, 4);
    }
};

using Random = std::mt19937_64;
int below(Random& r, int n) { return (int)(r() % (uint64_t)n); }
// Random sign and significand, exponents from -8 to 7. Products and partial sums stay clear of FP32's subnormals unless
// they cancel to exactly 0: AMX and dot products flush those.
float draw(Random& r) {
    uint64_t bits = r();
    return from_bits(((uint32_t)bits & 0x807fffff) | (uint32_t)(119 + (bits >> 32) % 16) << 23);
}

struct Matrix { // (rows, K) with ld a little larger than it must be
    bool k_contiguous;
    size_t ld;
    int rows, K;
    Buffer data;
    Matrix(Random& r, Elem elem, bool k_contiguous, int rows, int K)
        : k_contiguous(k_contiguous), ld((size_t)(k_contiguous ? K : rows) + (size_t)below(r, 4)), rows(rows), K(K),
          data(elem, rows && K ? at(rows - 1, K - 1) + 1 : 0) {
        for (size_t i = 0; i < data.count; i++) data.set(i, draw(r));
    }
    size_t at(int row, int k) const { return k_contiguous ? row * ld + k : k * ld + row; }
    float get(int row, int k) const { return data.get(at(row, k)); }
    void set(int row, int k, float f) { data.set(at(row, k), f); }
    Operand operand() const { return {data.at, data.elem, k_contiguous, ld}; }
};

struct Problem {
    int M, N, K;
    Matrix a, b;
    Buffer bias, out; // out has ld_out = N + 3 and starts as noise
    float scale_a, scale_b;
    bool with_bias, accumulate;
    Problem(Random& r, int M, int N, int K, Elem ea, Elem eb, Elem eo)
        : M(M), N(N), K(K), a(r, ea, below(r, 2), M, K), b(r, eb, below(r, 2), N, K), bias(eo, N), out(eo, M * ld()),
          scale_a(below(r, 2) ? 1 : draw(r)), scale_b(below(r, 2) ? 1 : draw(r)), with_bias(below(r, 2)),
          accumulate(below(r, 2)) {
        for (int n = 0; n < N; n++) bias.set(n, draw(r));
        for (size_t i = 0; i < out.count; i++) out.set(i, draw(r));
    }
    size_t ld() const { return (size_t)N + 3; }
    // the bytes of out and what surrounds it after matmul_cpu; out itself stays as it was
    std::vector<char> run(CpuKernel kernel) { return run(kernel, a.operand(), b.operand()); }
    std::vector<char> run(CpuKernel kernel, const Operand& a, const Operand& b) {
        std::vector<char> before(out.map, out.map + out.size);
        matmul_cpu({.out = out.at,
                    .out_elem = out.elem,
                    .ld_out = ld(),
                    .M = M,
                    .N = N,
                    .K = K,
                    .a = a,
                    .b = b,
                    .scale_a = scale_a,
                    .scale_b = scale_b,
                    .bias = with_bias ? bias.at : nullptr,
                    .accumulate = accumulate},
                   kernel);
        std::vector<char> after(out.map, out.map + out.size);
        memcpy(out.map, before.data(), before.size());
        return after;
    }
    // the same from a sum of products: sum(m, n) -> float
    template <class Sum> std::vector<char> expect(Sum sum) {
        std::vector<char> before(out.map, out.map + out.size);
        for (int m = 0; m < M; m++)
            for (int n = 0; n < N; n++) {
                float v = sum(m, n);
                v = v * scale_a, v = v * scale_b;
                if (with_bias) v = v + bias.get(n);
                if (accumulate) v = out.get(m * ld() + n) + v;
                out.set(m * ld() + n, v);
            }
        std::vector<char> after(out.map, out.map + out.size);
        memcpy(out.map, before.data(), before.size());
        return after;
    }
    float pair_order(int m, int n) const {
        float acc = 0;
        int k = 0;
        for (; k + 2 <= K; k += 2) {
            acc = std::fma(a.get(m, k + 1), b.get(n, k + 1), acc);
            acc = std::fma(a.get(m, k), b.get(n, k), acc);
        }
        return k < K ? std::fma(a.get(m, k), b.get(n, k), acc) : acc;
    }
    float tile_order(int m, int n) const {
        float acc = 0;
        for (int k0 = 0; k0 < K; k0 += 32) {
            float sum[2] = {0, 0};
            for (int k = k0; k < std::min(k0 + 32, K); k++) sum[k % 2] = std::fma(a.get(m, k), b.get(n, k), sum[k % 2]);
            acc = acc + (sum[0] + sum[1]);
        }
        return acc;
    }
};

#define SHOW(p) INFO(p.M, " x ", p.N, " x ", p.K, ", k contiguous: ", p.a.k_contiguous, p.b.k_contiguous)

// Sizes around every edge: lanes, chunks (16, 32), panels (32), blocks and stretches of K.
const int sides[] = {0, 1, 2, 7, 15, 16, 17, 31, 32, 33, 48, 61, 64, 67, 97},
          depths[] = {0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 191, 193, 257, 383, 385, 509, 777};
template <class Visit> void visit_problems(uint64_t seed, bool bf16_only, int count, Visit visit) {
    Random r(seed);
    auto elem = [&](bool only) { return only || below(r, 2) ? Elem::bf16 : Elem::f32; };
    for (int i = 0; i < count; i++) {
        int M = sides[below(r, std::size(sides))], N = sides[below(r, std::size(sides))];
        Problem p(r, M, N, depths[below(r, std::size(depths))], elem(bf16_only), elem(bf16_only), elem(false));
        SHOW(p);
        visit(p);
    }
    struct {
        int M, N, K;
    } large[] = {{40, 530, 4300}, {290, 35, 1100}, {3, 1300, 70}, {1100, 5, 40}};
    for (auto s : large) {
        Problem p(r, s.M, s.N, s.K, elem(bf16_only), elem(bf16_only), elem(false));
        SHOW(p);
        visit(p);
    }
}
// --- codes ---------------------------------------------------------------------------------------------------------
struct Code {
    Elem elem;
    Format format;
};
const Code codes[] = {
    {Elem::e4m3, E4M3}, {Elem::e5m2, E5M2}, {Elem::e3m2, E3M2}, {Elem::e2m3, E2M3}, {Elem::e2m1, E2M1}};
struct Scales {
    Elem elem;
    int block, rows; // block 0: none
};
const Scales scalings[] = {{Elem::f32, 0, 1},   {Elem::e8m0, 32, 1},   {Elem::e4m3, 16, 1},
                           {Elem::f32, 128, 1}, {Elem::f32, 128, 128}, {Elem::e4m3, 48, 16}};

// A matrix of codes, and the same in BF16 by the definition, element by element.
struct Coded {
    Code code;
    Scales how;
    bool k_contiguous;
    int rows, K;
    size_t ld, ld_scales;
    Buffer data, scales;
    alignas(64) uint16_t values[256];
    float scale_values[256];
    static int round_up(int n, int to) { return (n + to - 1) / to * to; }
    Coded(Random& r, Code code, Scales how, bool k_contiguous, int rows, int K)
        : code(code), how(how), k_contiguous(k_contiguous), rows(rows), K(K),
          ld((size_t)round_up(k_contiguous ? K : rows, 2) + 2 * (size_t)below(r, 3)),
          ld_scales(how.block ? (size_t)((K + how.block - 1) / how.block + below(r, 2)) : 0),
          data(code.elem, rows && K ? bytes(at(rows - 1, K - 1) + 1) : 0),
          scales(how.elem, how.block && rows && K ? scale_at(rows - 1, K - 1) + 1 : 0) {
        for (int c = 0; c < 256; c++) {
            scale_values[c] = decode(how.elem == Elem::e8m0 ? E8M0 : E4M3, (uint32_t)c);
            values[c] = c < 1 << code.format.bits() ? to_bf16(decode(code.format, (uint32_t)c)) : 0x7fff;
        }
        for (size_t i = 0; i < data.count; i++) data.at[i] = (char)r();
        for (int i = 0; i < rows; i++)
            for (int k = 0; k < K; k++) {
                uint32_t c;
                do c = (uint32_t)r() % (1u << code.format.bits());
                while (!std::isfinite(decode(code.format, c)));
                set(i, k, c);
            }
        for (size_t i = 0; i < scales.count; i++) {
            if (how.elem == Elem::f32) scales.set(i, draw(r));
            else if (how.elem == Elem::e8m0) scales.at[i] = (char)(117 + below(r, 20));
            else scales.at[i] = (char)below(r, 0x7f);
        }
    }
    bool halves() const { return code.elem == Elem::e2m1; }
    size_t bytes(size_t n) const { return halves() ? (n + 1) / 2 : n; }
    size_t at(int row, int k) const { return k_contiguous ? row * ld + k : k * ld + row; }
    size_t scale_at(int row, int k) const { return row / how.rows * ld_scales + k / how.block; }
    void set(int row, int k, uint32_t c) {
        size_t i = at(row, k), shift = i % 2 * 4;
        if (halves()) data.at[i / 2] = (char)((data.at[i / 2] & ~(15 << shift)) | c << shift);
        else data.at[i] = (char)c;
    }
    float get(int row, int k) const { // from the definition
        size_t i = at(row, k);
        uint32_t byte = (uint8_t)data.at[halves() ? i / 2 : i];
        float x = decode(code.format, halves() ? byte >> i % 2 * 4 & 15 : byte);
        if (!how.block) return x;
        size_t s = scale_at(row, k);
        x *= how.elem == Elem::f32 ? scales.get(s) : scale_values[(uint8_t)scales.at[s]];
        return from_bf16(to_bf16(x));
    }
    void decode_into(Matrix& m) const {
        for (int i = 0; i < rows; i++)
            for (int k = 0; k < K; k++) m.set(i, k, get(i, k));
    }
    Operand operand() const {
        Operand o = {data.at, code.elem, k_contiguous, ld};
        o.values = values;
        if (!how.block) return o;
        o.scales = scales.at, o.scale_elem = how.elem, o.scale_values = how.elem == Elem::f32 ? nullptr : scale_values;
        o.block = how.block, o.scale_rows = how.rows, o.ld_scales = ld_scales;
        return o;
    }
};
// NaN of one kind: sign and payload are the hardware's business.
std::vector<char> plain_nan(const Problem& p, std::vector<char> bytes) {
    char* out = bytes.data() + (p.out.at - p.out.map);
    const size_t width = p.out.width();
    for (size_t i = 0; i < p.out.count; i++) {
        uint32_t u = 0;
        memcpy((char*)&u + 4 - width, out + i * width, width);
        if (std::isnan(from_bits(u))) memset(out + i * width, 0x7f, width);
    }
    return bytes;
}
const CpuKernel all_kernels[] = {CpuKernel::plain, CpuKernel::avx2, CpuKernel::avx512, CpuKernel::dot, CpuKernel::amx};
// Every kernel here gives the same with the codes as with the matrices they stand for.
void check_codes(Problem& p, const Coded* a, const Coded* b) {
    if (a) a->decode_into(p.a);
    if (b) b->decode_into(p.b);
    for (CpuKernel k : all_kernels) {
        if (!cpu_kernel_available(k)) continue;
        CAPTURE(cpu_kernel_name(k));
        auto got = p.run(k, a ? a->operand() : p.a.operand(), b ? b->operand() : p.b.operand());
        CHECK((plain_nan(p, got) == plain_nan(p, p.run(k))));
    }
}
#define SHOW_CODES(p, a)                                                                                               \
    INFO(p.M, " x ", p.N, " x ", p.K, ", ", a.code.format.name, ", k contiguous ", a.k_contiguous, ", block ",         \
         a.how.rows, " x ", a.how.block)
template <class Visit> void visit_codes(Random& r, int count, Visit visit) {
    for (Code code : codes)
        for (Scales how : scalings)
            for (int i = 0; i < count; i++) {
                const bool along = how.block || code.elem == Elem::e2m1;
                int M = sides[below(r, std::size(sides))], N = sides[below(r, std::size(sides))];
                if (i == 0) M = 150, N = 33;
                const int K = i == 0 ? 288 : depths[below(r, std::size(depths))];
                Problem p(r, M, N, K, Elem::bf16, Elem::bf16, below(r, 2) ? Elem::bf16 : Elem::f32);
                Coded a(r, code, how, along || i % 2, M, K), b(r, code, how, along || i / 2 % 2, N, K);
                SHOW_CODES(p, a);
                visit(p, a, b);
            }
}
#define NEEDS(kernel)                                                                                                  \
    if (!cpu_kernel_available(kernel)) SKIP("this CPU lacks " + std::string(cpu_kernel_name(kernel)))

} // namespace

TEST_CASE("matmul_cpu: the portable kernel is the pair-order loop bit for bit, in all its forms") {
    visit_problems(1, false, 80, [](Problem& p) {
        auto want = p.expect([&](int m, int n) { return p.pair_order(m, n); });
        for (CpuKernel k : {CpuKernel::portable, CpuKernel::plain, CpuKernel::avx2, CpuKernel::avx512}) {
            CAPTURE(cpu_kernel_name(k));
            if (cpu_kernel_available(k)) CHECK((p.run(k) == want));
        }
    });
}
TEST_CASE("matmul_cpu: dot products give the portable kernel's bits on normal numbers") {
    NEEDS(CpuKernel::dot);
    visit_problems(2, true, 80, [](Problem& p) { CHECK((p.run(CpuKernel::dot) == p.run(CpuKernel::portable))); });
}
TEST_CASE("matmul_cpu: AMX sums in tile order, bit for bit on normal numbers") {
    NEEDS(CpuKernel::amx);
    visit_problems(3, true, 80, [](Problem& p) {
        CHECK((p.run(CpuKernel::amx) == p.expect([&](int m, int n) { return p.tile_order(m, n); })));
    });
}
TEST_CASE("matmul_cpu: every kernel is within its derived bound of a sum in double") {
    // Products of BF16 are exact in FP32 and in double. matmul_cpu.h derives the number of roundings; the sum in double
    // errs by another K 2^-53, which 1.001 covers, as it does the step from n u to n u / (1 - n u).
    const double u = 0x1p-24;
    visit_problems(4, true, 60, [&](Problem& p) {
        p.scale_a = p.scale_b = 1, p.with_bias = p.accumulate = false;
        if (p.out.elem == Elem::bf16) return;
        for (CpuKernel k : {CpuKernel::fast, CpuKernel::portable, CpuKernel::dot, CpuKernel::amx}) {
            if (!cpu_kernel_available(k)) continue;
            auto got = p.run(k);
            size_t start = (size_t)(p.out.at - p.out.map);
            double roundings = cpu_kernel_name(k) == std::string("AMX BF16") ? 15 + (p.K + 31) / 32 : p.K - 1;
            int wrong = 0;
            for (int m = 0; m < p.M; m++)
                for (int n = 0; n < p.N; n++) {
                    double sum = 0, size = 0;
                    for (int i = 0; i < p.K; i++) {
                        double x = (double)p.a.get(m, i) * p.b.get(n, i);
                        sum += x, size += std::fabs(x);
                    }
                    float v;
                    memcpy(&v, &got[start + 4 * (m * p.ld() + n)], 4);
                    wrong += !(std::fabs(v - sum) <= 1.001 * roundings * u * size);
                }
            CHECK(wrong == 0);
        }
    });
}
TEST_CASE("matmul_cpu: an FP32 operand takes the portable kernel whatever is asked for") {
    Random r(5);
    for (CpuKernel k : {CpuKernel::fast, CpuKernel::dot, CpuKernel::amx}) {
        if (!cpu_kernel_available(k)) continue;
        for (int i = 0; i < 2; i++) {
            Problem p(r, 33, 40, 50, i ? Elem::f32 : Elem::bf16, i ? Elem::bf16 : Elem::f32, Elem::f32);
            CHECK((p.run(k) == p.run(CpuKernel::portable)));
        }
    }
}
TEST_CASE("matmul_cpu: any number of threads, and a parallel region around it, give the same bits") {
#ifndef _OPENMP
    SKIP("built without OpenMP");
#else
    Random r(6);
    const int before = omp_get_max_threads();
    struct {
        int M, N, K;
    } shapes[] = {{700, 300, 130}, {97, 900, 1000}, {33, 70, 4500}};
    for (auto s : shapes)
        for (CpuKernel k : {CpuKernel::fast, CpuKernel::portable, CpuKernel::dot}) {
            if (!cpu_kernel_available(k)) continue;
            Problem p(r, s.M, s.N, s.K, Elem::bf16, Elem::bf16, Elem::f32);
            omp_set_num_threads(1);
            auto want = p.run(k);
            for (int threads : {2, 3, 5}) {
                omp_set_num_threads(threads);
                CHECK((p.run(k) == want));
            }
        }
    for (int M : {64, 160, 384}) // how these are cut among more threads than there are cores once never ended
        for (int N : {96, 160, 512}) {
            Problem p(r, M, N, 700, Elem::bf16, Elem::bf16, Elem::f32);
            omp_set_num_threads(1);
            auto want = p.run(CpuKernel::fast);
            for (int threads : {3, 4, 7, 16}) {
                omp_set_num_threads(threads);
                CHECK((p.run(CpuKernel::fast) == want));
            }
        }
    omp_set_num_threads(3);
    std::vector<std::unique_ptr<Problem>> p;
    std::vector<std::vector<char>> want, got(6);
    for (int i = 0; i < 6; i++) {
        p.push_back(
            std::make_unique<Problem>(r, 64, 64, 32 + i, Elem::bf16, i % 2 ? Elem::bf16 : Elem::f32, Elem::f32));
        want.push_back(p[i]->run(CpuKernel::fast));
    }
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < 6; i++) got[i] = p[i]->run(CpuKernel::fast);
    for (int i = 0; i < 6; i++) CHECK((got[i] == want[i]));
    omp_set_num_threads(before);
#endif
}
TEST_CASE("matmul_cpu: rows come out the same alone, or few, as among many, whatever the kernel and the threads") {
    Random r(77); // what sampling with a cache rests on; 8192 is where few rows no longer fit a workspace
    for (auto size : {std::pair(1, 1), {31, 32}, {33, 64}, {100, 97}, {64, 31}, {520, 768}, {40, 8192}, {40, 8193}})
        for (bool k_contiguous : {true, false}) {
            const int M = 40, N = size.first, K = size.second;
            Matrix a(r, Elem::bf16, true, M, K), b(r, Elem::bf16, k_contiguous, N, K);
            for (CpuKernel kernel : all_kernels) {
                if (!cpu_kernel_available(kernel)) continue;
                auto rows = [&](int first, int count) {
                    std::vector<float> out((size_t)count * N, NAN);
                    Operand some = a.operand();
                    some.data = (const uint16_t*)some.data + first * a.ld;
                    matmul_cpu({.out = out.data(),
                                .out_elem = Elem::f32,
                                .ld_out = (size_t)N,
                                .M = count,
                                .N = N,
                                .K = K,
                                .a = some,
                                .b = b.operand()},
                               kernel);
                    return out;
                };
                CAPTURE(cpu_kernel_name(kernel));
                INFO(N, " x ", K, ", k contiguous ", k_contiguous);
                const std::vector<float> whole = rows(0, M);
                for (int threads : {1, 3}) {
#ifdef _OPENMP
                    int before = omp_get_max_threads();
                    omp_set_num_threads(threads);
#endif
                    for (auto [first, count] : {std::pair(0, 1), {39, 1}, {5, 2}, {8, 16}, {3, 17}}) {
                        std::vector<float> some = rows(first, count);
                        CHECK(!memcmp(some.data(), whole.data() + (size_t)first * N, some.size() * sizeof(float)));
                    }
#ifdef _OPENMP
                    omp_set_num_threads(before);
#endif
                    (void)threads;
                }
            }
        }
}
TEST_CASE("matmul_cpu: infinities and NaN reach their own row and column, and padding adds none") {
    Random r(7);
    const float inf = INFINITY;
    for (CpuKernel k : {CpuKernel::plain, CpuKernel::avx2, CpuKernel::avx512, CpuKernel::dot, CpuKernel::amx}) {
        if (!cpu_kernel_available(k)) continue;
        CAPTURE(cpu_kernel_name(k));
        for (int K : {1, 2, 31, 33, 64, 385}) {
            Problem p(r, 19, 21, K, Elem::bf16, Elem::bf16, Elem::f32);
            p.scale_a = p.scale_b = 1, p.with_bias = p.accumulate = false;
            for (int n = 0; n < p.N; n++) p.b.set(n, K - 1, 2);
            for (int m = 0; m < p.M; m++) p.a.set(m, K - 1, 2);
            p.a.set(3, K - 1, inf), p.a.set(4, K - 1, -inf), p.a.set(5, 0, NAN), p.a.set(6, K - 1, inf);
            p.b.set(7, K - 1, 0), p.b.set(8, K - 1, -1), p.b.set(9, K - 1, NAN), p.b.set(18, K - 1, inf);
            auto got = p.run(k);
            size_t start = (size_t)(p.out.at - p.out.map);
            for (int m = 0; m < p.M; m++)
                for (int n = 0; n < p.N; n++) {
                    float v, want = p.pair_order(m, n);
                    memcpy(&v, &got[start + 4 * (m * p.ld() + n)], 4);
                    if (std::isnan(want)) CHECK(std::isnan(v));
                    else if (std::isinf(want)) CHECK(v == want);
                    else CHECK(std::isfinite(v));
                }
        }
    }
}
TEST_CASE("matmul_cpu: padding an odd K keeps an accumulator of -0") {
    // -1e-60 rounds to -0; then a pair whose second element is missing, whose first is 0 * -1 = -0
    Random r(8);
    Problem p(r, 1, 1, 3, Elem::f32, Elem::f32, Elem::f32);
    p.scale_a = p.scale_b = 1, p.with_bias = p.accumulate = false;
    const float a[] = {0, 1e-30f, 0}, b[] = {-1, -1e-30f, -1};
    for (int k = 0; k < 3; k++) p.a.set(0, k, a[k]), p.b.set(0, k, b[k]);
    REQUIRE(std::signbit(p.pair_order(0, 0)));
    for (CpuKernel k : {CpuKernel::plain, CpuKernel::avx2, CpuKernel::avx512})
        if (cpu_kernel_available(k)) CHECK((p.run(k) == p.expect([&](int m, int n) { return p.pair_order(m, n); })));
}
TEST_CASE("matmul_cpu: padding codes keeps an accumulator of -0") { // as above; the codes are -1, their scale 2^-80
    Random r(16);
    for (bool is_a : {false, true}) {
        Problem p(r, 1, 1, 3, is_a ? Elem::bf16 : Elem::f32, is_a ? Elem::f32 : Elem::bf16, Elem::f32);
        p.scale_a = p.scale_b = 1, p.with_bias = p.accumulate = false;
        Coded c(r, codes[0], {Elem::f32, 16, 1}, true, 1, 3);
        c.scales.set(0, 0x1p-80f);
        Matrix& other = is_a ? p.b : p.a;
        for (int k = 0; k < 3; k++) c.set(0, k, 0xb8), other.set(0, k, k == 1 ? 0x1p-80f : 0);
        c.decode_into(is_a ? p.a : p.b);
        REQUIRE(std::signbit(p.pair_order(0, 0)));
        auto want = p.expect([&](int m, int n) { return p.pair_order(m, n); });
        for (CpuKernel k : {CpuKernel::plain, CpuKernel::avx2, CpuKernel::avx512})
            if (cpu_kernel_available(k))
                CHECK((p.run(k, is_a ? c.operand() : p.a.operand(), is_a ? p.b.operand() : c.operand()) == want));
    }
}
TEST_CASE("matmul_cpu: the result is rounded to BF16 once, to nearest even; NaN is 0x7fff, subnormals stay") {
    Random r(9);
    std::vector<uint32_t> special = {0x7f7fffff, 0x7f7f7fff, 0x7f7f8000, 0x7f800000, 0xff800000,
                                     0x7f800001, 0xffc00000, 0x00000001, 0x00007fff, 0x00008000,
                                     0x00008001, 0x007fffff, 0x3f808000, 0x3f818000};
    for (int i = 0; i < 40000; i++) special.push_back((uint32_t)r() | (i % 2) << 15);
    const int M = (int)special.size();
    Problem p(r, M, 1, 1, Elem::f32, Elem::f32, Elem::bf16);
    p.scale_a = p.scale_b = 1, p.with_bias = p.accumulate = false;
    for (int m = 0; m < M; m++) p.a.set(m, 0, from_bits(special[m]));
    p.b.set(0, 0, 1);
    auto want = p.expect([&](int m, int) { return from_bits(special[m]) + 0.0f; }); // an accumulator starts at +0
    for (CpuKernel k : {CpuKernel::plain, CpuKernel::avx2, CpuKernel::avx512})
        if (cpu_kernel_available(k)) CHECK((p.run(k) == want));
}
TEST_CASE("matmul_cpu: a negative size or a kernel that is not there is an error, not a crash") {
    CHECK_THROWS(
        matmul_cpu({.out = nullptr, .out_elem = Elem::f32, .ld_out = 1, .M = -1, .N = 1, .K = 1, .a = {}, .b = {}}));
    for (CpuKernel k : {CpuKernel::dot, CpuKernel::amx, CpuKernel::avx2, CpuKernel::avx512}) {
        uint16_t one = 0x3f80;
        float out = 0;
        Operand o = {&one, Elem::bf16, true, 1};
        Gemm g = {.out = &out, .out_elem = Elem::f32, .ld_out = 1, .M = 1, .N = 1, .K = 1, .a = o, .b = o};
        if (cpu_kernel_available(k)) CHECK_NOTHROW(matmul_cpu(g, k));
        else CHECK_THROWS(matmul_cpu(g, k));
        CHECK(out == (cpu_kernel_available(k) ? 1 : 0));
    }
}
TEST_CASE("matmul_cpu: codes give the bits of the BF16 they stand for, in every format, scaling and kernel") {
    Random r(10);
    visit_codes(r, 5, [](Problem& p, Coded& a, Coded& b) { check_codes(p, &a, &b); });
}
TEST_CASE("matmul_cpu: scaled codes are rounded to nearest even where BF16 cannot hold the product") {
    // With a 1 x 1 result nothing else decides: one code times one scale times 1, from FP32's subnormals to infinity.
    Random r(11);
    for (Code code : codes)
        for (Elem elem : {Elem::f32, Elem::e8m0, Elem::e4m3})
            for (int i = 0; i < 4; i++) {
                const int M = 512;
                Problem p(r, M, 1, 1, Elem::bf16, Elem::bf16, Elem::f32);
                p.scale_a = p.scale_b = 1, p.with_bias = p.accumulate = false;
                Coded a(r, code, {elem, 16, 1}, true, M, 1);
                for (int m = 0; m < M; m++) {
                    a.set(m, 0, (uint32_t)(m % (1 << code.format.bits())));
                    size_t s = a.scale_at(m, 0);
                    if (elem == Elem::f32) a.scales.set(s, from_bits((uint32_t)r() | (uint32_t)(m % 2) << 15));
                    else a.scales.at[s] = elem == Elem::e8m0 ? (char)(below(r, 36) - 18) : (char)r();
                }
                p.b.set(0, 0, 1);
                SHOW_CODES(p, a);
                check_codes(p, &a, nullptr);
            }
}
TEST_CASE("matmul_cpu: NaN and infinite codes, and NaN scales, reach their own row or column") {
    Random r(12);
    visit_codes(r, 2, [&](Problem& p, Coded& a, Coded& b) {
        if (p.M < 3 || p.N < 3 || p.K < 1) return;
        p.scale_a = p.scale_b = 1, p.with_bias = p.accumulate = false;
        const Format f = a.code.format;
        std::vector<bool> bad(p.M); // rows whose scale or code is NaN
        if (f.specials != Specials::none) {
            a.set(1, p.K - 1, f.nan), a.set(p.M - 1, 0, f.nan | 0x80), bad[1] = bad[p.M - 1] = true;
            if (f == E5M2) b.set(2, p.K / 2, 0x7c);
        }
        if (a.how.block) {
            const size_t s = a.scale_at(p.M / 2, p.K - 1);
            if (a.how.elem == Elem::f32) a.scales.set(s, NAN);
            else a.scales.at[s] = (char)(a.how.elem == Elem::e8m0 ? 0xff : 0x7f);
            for (int m = 0; m < p.M; m++) bad[m] = bad[m] || m / a.how.rows == p.M / 2 / a.how.rows;
        }
        check_codes(p, &a, &b);
        auto got = p.run(CpuKernel::fast, a.operand(), b.operand());
        memcpy(p.out.map, got.data(), got.size());
        int wrong = 0;
        for (int m = 0; m < p.M; m++)
            for (int n = 0; n < p.N; n++)
                if (n != 2 || f != E5M2) wrong += std::isnan(p.out.get(m * p.ld() + n)) != bad[m];
        CHECK(wrong == 0);
    });
}
TEST_CASE("matmul_cpu: codes go with BF16, with FP32 and with other codes") {
    Random r(13);
    int other = 0;
    visit_codes(r, 3, [&](Problem& p, Coded& a, Coded& b) {
        if (p.M > 97) return;
        check_codes(p, &a, nullptr), check_codes(p, nullptr, &b);
        Problem q(r, p.M, p.N, p.K, Elem::bf16, Elem::f32, Elem::f32),
            t(r, p.M, p.N, p.K, Elem::f32, Elem::bf16, Elem::f32);
        check_codes(q, &a, nullptr), check_codes(t, nullptr, &b);
        Coded c(r, codes[other++ % 5], {Elem::e8m0, 64, 1}, true, p.N, p.K);
        check_codes(p, &a, &c);
    });
}
TEST_CASE("matmul_cpu: codes give the same bits with any number of threads, and over many tiles") {
    Random r(14);
    struct {
        int M, N, K;
    } shapes[] = {{700, 300, 130}, {97, 900, 1000}, {33, 70, 4500}};
    for (auto s : shapes)
        for (Code code : {codes[0], codes[4]}) {
            Problem p(r, s.M, s.N, s.K, Elem::bf16, Elem::bf16, Elem::f32);
            Coded a(r, code, {Elem::e8m0, 32, 1}, true, s.M, s.K), b(r, code, {Elem::f32, 128, 128}, true, s.N, s.K);
            a.decode_into(p.a), b.decode_into(p.b);
            auto want = p.run(CpuKernel::fast);
#ifdef _OPENMP
            const int before = omp_get_max_threads();
            for (int threads : {1, 2, 3}) {
                omp_set_num_threads(threads);
                CHECK((p.run(CpuKernel::fast, a.operand(), b.operand()) == want));
            }
            omp_set_num_threads(before);
#else
            CHECK((p.run(CpuKernel::fast, a.operand(), b.operand()) == want));
#endif
        }
}
TEST_CASE("matmul_cpu: an operand that breaks a rule is refused before anything is written") {
    Random r(15);
    auto refused = [&](const char* about, auto change, Code code = codes[0], Scales how = scalings[1]) {
        Problem p(r, 16, 16, 32, Elem::bf16, Elem::bf16, Elem::f32);
        Coded c(r, code, how, true, 16, 32);
        Operand o = c.operand();
        CHECK_NOTHROW(p.run(CpuKernel::fast, o, o));
        change(o);
        std::vector<char> before(p.out.map, p.out.map + p.out.size);
        CHECK_THROWS_WITH(p.run(CpuKernel::fast, o, p.b.operand()), doctest::Contains(about));
        CHECK_THROWS_WITH(p.run(CpuKernel::plain, p.a.operand(), o), doctest::Contains(about));
        CHECK((before == std::vector<char>(p.out.map, p.out.map + p.out.size)));
    };
    refused("not contiguous along k", [](Operand& o) { o.k_contiguous = false; });
    refused(
        "not contiguous along k", [](Operand& o) { o.k_contiguous = false; }, codes[4], scalings[0]);
    refused(
        "odd ld", [](Operand& o) { o.ld++; }, codes[4]);
    refused("no table", [](Operand& o) { o.values = nullptr; });
    refused("no table", [](Operand& o) { o.scale_values = nullptr; });
    refused("e8m0", [](Operand& o) { o.elem = Elem::e8m0; });
    refused("no codes", [](Operand& o) { o.elem = Elem::bf16; });
    refused("not e8m0, e4m3, f32", [](Operand& o) { o.scale_elem = Elem::e5m2; });
    for (int block : {0, -16, 8, 24}) refused("blocks of", [&](Operand& o) { o.block = block; });
    for (int rows : {0, -16, 8, 24}) refused("blocks of", [&](Operand& o) { o.scale_rows = rows; });
}

} // namespace
