// Casts of matrices against loops written from the definitions, one element at a time: every scaling, both directions,
// of BF16 and (in f32_casts.cpp) FP32, ragged shapes, special values. encode() itself is tested in test_formats.cpp.
#include "close.h"
#include "decoded.h"
#include <algorithm>
#include <random>

namespace { // test files share one program

// A matrix with the blocks that go wrong: of zeros, with NaN, with infinity, of subnormals, of the largest values, of
// one outlier; the rest spreads over 20 binades.
template <class T> std::vector<T> matrix(int R, int C, bool specials, int seed = 1) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<T> x((size_t)R * C);
    for (auto& v : x) v = T(normal(random) * std::ldexp(1.0f, (int)(random() % 20) - 10));
    if (!specials) return x;
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) {
            T& v = x[(size_t)r * C + c];
            int tile = r / 16 * 7 + c / 16;
            if (tile % 11 == 1) v = T(0.0f);
            if (tile % 11 == 2) v = T((float)v * 1e-38f);
            if (tile % 11 == 3 && random() % 3 == 0) v = T(v < T(0.0f) ? -0x1.fep127f : 0x1.fep127f);
            if (tile % 11 == 5 && random() % 60 == 0) v = T(NAN);
            if (tile % 11 == 7 && random() % 60 == 0) v = T(random() % 2 ? INFINITY : -INFINITY);
            if (tile % 11 == 8 && random() % 30 == 0) v = T(3e4f);
        }
    return x;
}

// x as rows of codes see it: at(o, k), with zeros behind the end.
template <class T> struct Rows {
    const T* x;
    bool transpose;
    int R, C, O = transpose ? C : R, K = transpose ? R : C;
    float at(int o, int k) const {
        if (o >= O || k >= K) return 0;
        return transpose ? (float)x[(size_t)k * C + o] : (float)x[(size_t)o * C + k];
    }
    // largest magnitude of a block, infinity if something in it is not finite
    float amax(int o, int k, Block b) const {
        float m = 0;
        for (int i = 0; i < b.rows; i++)
            for (int j = 0; j < b.cols; j++) m = std::isfinite(at(o + i, k + j)) ? std::max(m, std::fabs(at(o + i, k + j))) : INFINITY;
        for (int i = 0; i < b.rows; i++)
            for (int j = 0; j < b.cols; j++)
                if (!std::isfinite(at(o + i, k + j))) return INFINITY;
        return m;
    }
};
// The codes of a matrix whose element (o, k) is multiplied by multiplier(o, k), packed.
template <class T, class F>
std::vector<uint8_t> codes_of(const Rows<T>& x, Cast c, uint64_t key, F multiplier) {
    size_t row_bytes = c.elem.bits() == 4 ? (x.K + 1) / 2 : x.K;
    std::vector<uint8_t> codes(x.O * row_bytes);
    for (int o = 0; o < x.O; o++)
        for (int k = 0; k < x.K; k++) {
            float y = x.at(o, k) * multiplier(o, k);
            uint32_t code = c.round == Rounding::sr ? encode_stochastic(c.elem, y, draw24(row_key(key, o), k)) : encode(c.elem, y);
            if (c.elem.bits() == 4) codes[o * row_bytes + k / 2] |= (uint8_t)(code << k % 2 * 4);
            else codes[o * row_bytes + k] = (uint8_t)code;
        }
    return codes;
}
float two_to(int e) { return std::ldexp(1.0f, e); }

// NUMERICS of the scales once more, by search and by log2 of doubles rather than by bits.
uint32_t mx_byte(ScaleRule rule, Format f, float amax) {
    if (!std::isfinite(amax)) return 255;
    if (amax == 0) return 0;
    if (rule == ScaleRule::rceil) {
        float v = amax * (1.0f / f.max);
        uint32_t byte = 0;
        while (std::ldexp(1.0, (int)byte - 127) < v) byte++;
        return byte;
    }
    int emax = std::ilogb(f.max), e = std::ilogb((double)amax);
    double mantissa = amax / std::ldexp(1.0, e);
    if (rule == ScaleRule::ceil) e += mantissa > 1;
    if (rule == ScaleRule::even) e += mantissa >= 2 - std::ldexp(1.0, -f.mbits - 1); // rounds up to the next power of two
    return (uint32_t)std::clamp(e - emax + 127, 0, 254);
}

long compared = 0;
template <class V> void same(const V& got, const V& want, const std::string& what) {
    REQUIRE(got.size() == want.size());
    for (size_t i = 0; i < got.size(); i++) {
        compared++;
        if (memcmp(&got[i], &want[i], sizeof got[i]) && (got[i] == got[i] || want[i] == want[i])) { // NaN has no bits
            INFO(what << " differs at " << i << " of " << got.size());
            CHECK((double)got[i] == (double)want[i]);
            return;
        }
    }
}
#ifdef __SANITIZE_ADDRESS__ // ten times slower; the ragged ends are what it is for
const std::pair<int, int> SHAPES[] = {{1, 1}, {17, 33}, {64, 64}, {65, 70}, {33, 1}, {1, 65}};
constexpr int SANITIZED = 1;
#else
constexpr int SANITIZED = 0;
const std::pair<int, int> SHAPES[] = {{1, 1}, {3, 5}, {16, 16}, {17, 33}, {64, 64}, {65, 130}, {130, 65}, {33, 200}, {200, 31}, {1, 257}, {257, 1}, {128, 160}};
#endif

// work(x as Rows, transpose, R, C, what) for every shape, both directions, the fast and the reference kernels
template <class T, class F> void each_case(F work) {
    for (auto [R, C] : SHAPES)
        for (bool specials : {false, true}) {
            auto x = matrix<T>(R, C, specials, R * 1000 + C);
            for (bool transpose : {false, true})
                for (auto kernels : {Kernels::fast, Kernels::reference}) { // differ in columns only
                    if (!transpose && kernels == Kernels::reference) continue;
                    machine.kernels = kernels;
                    work(Rows<T>{x.data(), transpose, R, C},
                         format("%d x %d%s%s", R, C, transpose ? " transposed" : "", kernels == Kernels::fast ? "" : ", reference"));
                }
        }
    machine.kernels = Kernels::fast;
}
const uint64_t KEY = draw_key(42, 7, 0, 3, 1, 0);

template <class T> void check_tensor() {
    for (Format f : {E4M3, E5M2, E3M2, E2M3, E2M1})
        for (Rounding round : {Rounding::rne, Rounding::sr})
            each_case<T>([&](const Rows<T>& x, const std::string& what) {
                Cast c = {.elem = f, .round = round};
                float scale = 3.5f, amax = 0.25f, want = 0.25f;
                for (int o = 0; o < x.O; o++)
                    for (int k = 0; k < x.K; k++)
                        if (!std::isnan(x.at(o, k))) want = std::max(want, std::fabs(x.at(o, k)));
                size_t row_bytes = f.bits() == 4 ? (x.K + 1) / 2 : x.K;
                std::vector<uint8_t> codes(x.O * row_bytes, 0xee);
                cast_tensor(codes.data(), &amax, x.x, &scale, c, x.transpose, x.R, x.C, KEY);
                same(codes, codes_of(x, c, KEY, [&](int, int) { return scale; }), what);
                CHECK(amax == want);
                float again = 0;
                amax_tensor(&again, x.x, (size_t)x.R * x.C);
                if (want > 0.25f) CHECK(again == want);
                std::vector<float> y = decoded(codes.data(), f, x.O, x.K), expect;
                for (int o = 0; o < x.O; o++)
                    for (int k = 0; k < x.K; k++) {
                        uint32_t q = f.bits() == 4 ? codes[o * row_bytes + k / 2] >> k % 2 * 4 & 15 : codes[o * row_bytes + k];
                        expect.push_back(decode(f, q));
                    }
                same(y, expect, what + " decoded");
            });
}
TEST_CASE("casts per tensor give the codes of encode(x * scale), and record the amax of the unscaled x without NaN") {
    check_tensor<act>();
}

template <class T> void check_mx() {
    for (Format f : {E4M3, E5M2, E3M2, E2M3, E2M1})
        for (auto rule : {ScaleRule::rceil, ScaleRule::floor, ScaleRule::ceil, ScaleRule::even})
            each_case<T>([&](const Rows<T>& x, const std::string& what) {
                Cast c = {.elem = f, .rule = rule, .round = rule == ScaleRule::ceil ? Rounding::sr : Rounding::rne};
                size_t KB = (x.K + 31) / 32, row_bytes = f.bits() == 4 ? (x.K + 1) / 2 : x.K;
                std::vector<uint8_t> scales(x.O * KB, 0xee), want(x.O * KB), codes(x.O * row_bytes, 0xee);
                for (int o = 0; o < x.O; o++)
                    for (size_t b = 0; b < KB; b++) want[o * KB + b] = (uint8_t)mx_byte(rule, f, x.amax(o, (int)b * 32, {1, 32}));
                cast_mx(codes.data(), scales.data(), x.x, c, x.transpose, x.R, x.C, KEY);
                same(scales, want, what + " scales");
                same(codes, codes_of(x, c, KEY, [&](int o, int k) {
                         int byte = want[o * KB + k / 32];
                         return byte == 255 ? 1 : two_to(127 - byte);
                     }), what);
                std::vector<float> y = decoded(codes.data(), f, x.O, x.K, scales.data(), Elem::e8m0, 32), expect;
                for (int o = 0; o < x.O; o++)
                    for (int k = 0; k < x.K; k++) {
                        uint32_t q = f.bits() == 4 ? codes[o * row_bytes + k / 2] >> k % 2 * 4 & 15 : codes[o * row_bytes + k];
                        int byte = want[o * KB + k / 32];
                        expect.push_back(decode(f, q) * (byte == 255 ? NAN : two_to(byte - 127)));
                    }
                same(y, expect, what + " decoded");
            });
}
TEST_CASE("MX casts: scale bytes by each rule, codes and decoded values of every format") { check_mx<act>(); }

template <class T> void check_float8() {
    for (Block block : {Block{1, 128}, Block{128, 128}})
        for (bool pow2 : {true, false})
            each_case<T>([&](const Rows<T>& x, const std::string& what) {
                Cast c = {.elem = pow2 ? E4M3 : E5M2, .block = block, .pow2_scales = pow2};
                size_t KB = (x.K + 127) / 128, OB = (x.O + block.rows - 1) / block.rows;
                std::vector<float> scale_inv(OB * KB, -1), want(OB * KB), scale(OB * KB);
                for (size_t o = 0; o < OB; o++)
                    for (size_t b = 0; b < KB; b++) {
                        float amax = x.amax((int)o * block.rows, (int)b * 128, block), s = c.elem.max / amax;
                        if (amax == 0 || !std::isfinite(amax)) s = 1;
                        if (std::isinf(s)) s = FLT_MAX;
                        if (pow2) s = two_to(std::ilogb(s));
                        scale[o * KB + b] = s, want[o * KB + b] = 1 / s;
                    }
                std::vector<uint8_t> codes((size_t)x.O * x.K, 0xee);
                cast_float8(codes.data(), scale_inv.data(), x.x, c, x.transpose, x.R, x.C);
                same(scale_inv, want, what + " scales");
                same(codes, codes_of(x, c, 0, [&](int o, int k) { return scale[o / block.rows * KB + k / 128]; }), what);
                std::vector<float> y = decoded(codes.data(), c.elem, x.O, x.K, scale_inv.data(), Elem::f32, 128, block.rows), expect;
                for (int o = 0; o < x.O; o++)
                    for (int k = 0; k < x.K; k++)
                        expect.push_back(decode(c.elem, codes[(size_t)o * x.K + k]) * want[o / block.rows * KB + k / 128]);
                same(y, expect, what + " decoded");
            });
}
TEST_CASE("Float8 blocks of 1 x 128 and 128 x 128: scales, codes and decoded values") { check_float8<act>(); }

template <class T> void check_nvfp4() {
    for (Block block : {Block{1, 16}, Block{16, 16}})
        for (Rounding round : {Rounding::rne, Rounding::sr})
            each_case<T>([&](const Rows<T>& x, const std::string& what) {
                Cast c = {.elem = E2M1, .block = block, .round = round};
                size_t KB = (x.K + 15) / 16, OB = (x.O + block.rows - 1) / block.rows, row_bytes = (x.K + 1) / 2;
                float amax_t = 0, got_amax = -1;
                for (int o = 0; o < x.O; o += block.rows)
                    for (int k = 0; k < x.K; k += 16)
                        if (float m = x.amax(o, k, block); m < INFINITY) amax_t = std::max(amax_t, m);
                float S_enc = amax_t > 0 ? std::min(2688 / amax_t, FLT_MAX) : 1, S_dec = 1 / S_enc;
                std::vector<uint8_t> scales(x.O * KB, 0xee), want(x.O * KB), codes(x.O * row_bytes, 0xee);
                std::vector<float> m(x.O * KB), scratch(OB * KB);
                for (int o = 0; o < x.O; o++)
                    for (size_t b = 0; b < KB; b++) {
                        float amax = x.amax(o / block.rows * block.rows, (int)b * 16, block);
                        uint32_t s = encode(E4M3, std::min(amax * (S_enc * (1.0f / 6)), FLT_MAX));
                        want[o * KB + b] = (uint8_t)(amax < INFINITY ? s : 0x7f);
                        m[o * KB + b] = amax < INFINITY ? std::min(1 / (decode(E4M3, s) * S_dec), FLT_MAX) : 1;
                    }
                cast_nvfp4(codes.data(), scales.data(), &got_amax, scratch.data(), x.x, c, x.transpose, x.R, x.C, KEY);
                CHECK(got_amax == amax_t);
                same(scales, want, what + " scales");
                same(codes, codes_of(x, c, KEY, [&](int o, int k) { return m[o * KB + k / 16]; }), what);
                {
                    std::vector<float> y = decoded(codes.data(), E2M1, x.O, x.K, scales.data(), Elem::e4m3, 16), expect;
                    for (int o = 0; o < x.O; o++)
                        for (int k = 0; k < x.K; k++) {
                            float s = decode(E4M3, want[o * KB + k / 16]), q = decode(E2M1, codes[o * row_bytes + k / 2] >> k % 2 * 4 & 15);
                            expect.push_back(q * s);
                        }
                    same(y, expect, what + " decoded");
                }
            });
}
TEST_CASE("NVFP4 blocks of 1 x 16 and 16 x 16: the tensor's amax, scales, codes and decoded values") {
    check_nvfp4<act>();
    MESSAGE("compared with loops from the definitions: " << compared << " codes, scales and values");
}

TEST_CASE("casts of BF16 by powers of two in 16-bit lanes give encode(x * multiplier), for every BF16 and 30 binades of scales") {
    std::vector<bf16> x(65536), columns(65536);
    for (uint32_t b = 0; b < 65536; b++) { // rows of 32; as columns, 32 panels of (32, 64)
        x[b].bits = (uint16_t)b;
        columns[b / 2048 * 2048 + b % 32 * 64 + b / 32 % 64] = x[b];
    }
    long compared = 0, wrong = 0;
    for (Format f : {E4M3, E5M2, E3M2, E2M3, E2M1})
        for (int clip = -28; clip <= 1; clip += 1 + SANITIZED * 5) { // by so many binades is the largest element above the format's
            std::vector<float> m(2048);
            std::vector<uint32_t> amax(2048);
            for (int b = 0; b < 2048; b++) {
                amax[b] = magnitude((float)x[b * 32 + 31]);
                int field = 127 + 127 + f.emax() + clip - (int)(amax[b] >> 23);
                m[b] = exp2i(std::clamp(field, 0, 254) - 127);
            }
            for (int b = 0; b < 2048; b += 64) {
                const bf16 *row = &x[b * 32], *panel = &columns[b * 32];
                uint8_t codes[2048];
                uint32_t words[512];
                int E = f.bits() == 4 ? 8 : 4;
                for (int i = 0; i < 64; i++) // one block at a time, so that one that does not fit excludes no others
                    if (cast_rows_by_powers(codes, row + i * 32, f, &m[b + i], &amax[b + i], 1))
                        for (int k = 0; k < 32; k++) {
                            uint32_t code = E == 8 ? codes[k / 2] >> k % 2 * 4 & 15 : codes[k];
                            compared++, wrong += code != encode(f, (float)row[i * 32 + k] * m[b + i]);
                        }
                if (cast_columns_by_powers(words, panel, f, &m[b], &amax[b]))
                    for (int k = 0; k < 32; k++)
                        for (int w = 0; w < 64; w++) {
                            uint32_t code = words[k / E * 64 + w] >> k % E * (32 / E) & ((1u << 32 / E) - 1);
                            compared++, wrong += code != encode(f, (float)panel[k * 64 + w] * m[b + w]);
                        }
            }
        }
    CHECK(wrong == 0);
    if (!compared) SKIP("this processor has no 16-bit lanes with shifts of their own, so casts by powers of two take FP32's");
    MESSAGE("compared with encode(x * 2^k): " << compared << " codes from 16-bit lanes, mismatches: " << wrong);
    CHECK(compared > 2000000);
}

TEST_CASE("a tile-scaled matrix and its transpose have the same codes and scales") {
    const int R = 48, C = 80;
    auto x = matrix<act>(R, C, false);
    Cast c = {.elem = E2M1, .block = {16, 16}};
    std::vector<uint8_t> q(R * C / 2), qt(R * C / 2), s(R * C / 16), st(R * C / 16);
    std::vector<float> scratch(R * C / 256);
    float amax;
    cast_nvfp4(q.data(), s.data(), &amax, scratch.data(), x.data(), c, false, R, C);
    cast_nvfp4(qt.data(), st.data(), &amax, scratch.data(), x.data(), c, true, R, C);
    for (int r = 0; r < R; r++)
        for (int k = 0; k < C; k++) {
            CHECK((q[(r * C + k) / 2] >> k % 2 * 4 & 15) == (qt[(k * R + r) / 2] >> r % 2 * 4 & 15));
            CHECK(s[r * (C / 16) + k / 16] == st[k * (R / 16) + r / 16]);
        }
}

TEST_CASE("casts give the same bits for one thread and for several") {
    const int R = 300, C = 520;
    auto x = matrix<act>(R, C, true);
    for (bool transpose : {false, true}) {
        std::vector<uint8_t> codes[2], scales[2];
        float amax[2] = {0, 0};
        for (int several : {0, 1}) {
            Threads threads{several ? 5 : 1};
            codes[several].resize(R * C), scales[several].resize(R * C / 4);
            cast_mx(codes[several].data(), scales[several].data(), x.data(), {.elem = E5M2, .round = Rounding::sr}, transpose, R, C, KEY);
            std::vector<uint8_t> unused(R * C);
            cast_tensor(unused.data(), &amax[several], x.data(), nullptr, {.elem = E4M3}, transpose, R, C);
        }
        CHECK(codes[0] == codes[1]);
        CHECK(scales[0] == scales[1]);
        CHECK(amax[0] == amax[1]);
    }
}

TEST_CASE("stochastic casts: the mean over 2^16 elements is within 4 sigma, copies and rows draw differently") {
    const int R = 256, C = 256;
    for (Format f : {E4M3, E5M2, E2M1})
        for (float v : {(float)act(0.3f), (float)act(1.3f), (float)act(1.01f), (float)act(-2.9f), (float)act(0.0007f)}) {
            std::vector<act> x(R * C, act(v));
            std::vector<uint8_t> a(R * C), b(R * C), s(R * C / 32);
            Cast c = {.elem = f, .round = Rounding::sr};
            cast_mx(a.data(), s.data(), x.data(), c, false, R, C, KEY);
            cast_mx(b.data(), s.data(), x.data(), c, false, R, C, KEY + 1);
            std::vector<float> y = decoded(a.data(), f, R, C, s.data(), Elem::e8m0, 32);
            float lo = y[0], hi = y[0];
            double sum = 0, pairs = 0;
            for (float d : y) lo = std::min(lo, d), hi = std::max(hi, d), sum += d;
            CHECK(lo <= v);
            CHECK(v <= hi);
            double p = hi > lo ? (v - lo) / (hi - lo) : 0, sigma = (hi - lo) * std::sqrt(p * (1 - p) / (R * C));
            INFO(f.name << " of " << v << ": between " << lo << " and " << hi << ", mean " << sum / (R * C));
            CHECK(std::fabs(sum / (R * C) - v) <= 4 * sigma + 1e-9 * std::fabs(v));
            if (hi == lo) continue;
            CHECK(a != b);
            // neighbours along a row and down a column are independent: their sample covariance, in units of its sigma
            for (int step : {1, 2, C, C + 1}) {
                pairs = 0;
                for (int i = 0; i + step < R * C; i++) pairs += ((y[i] > v) - p) * ((y[i + step] > v) - p);
                CHECK(std::fabs(pairs) <= 4.5 * p * (1 - p) * std::sqrt(R * C));
            }
        }
}

TEST_CASE("the random Hadamard transform is H x, orthogonal, and leaves products of matrices as they are") {
    const char* signs = "+++-+------+-+--";
    std::mt19937 random(3);
    for (int R : {16, 64, 7, 40})
        for (int C : {1, 3, 64, 70}) { // small integers: every sum below is exact
            const int R16 = (R + 15) / 16 * 16;
            std::vector<float> a(R * C), b(R * C), ha(R16 * C, NAN), hb(R16 * C, NAN);
            for (auto& v : a) v = (float)(int)(random() % 17) - 8;
            for (auto& v : b) v = (float)(int)(random() % 17) - 8;
            hadamard(ha.data(), a.data(), R, C), hadamard(hb.data(), b.data(), R, C);
            for (int r = 0; r < R16; r++)
                for (int c = 0; c < C; c++) {
                    float want = 0;
                    for (int i = 0; i < 16; i++) {
                        int row = r / 16 * 16 + i;
                        float v = row < R ? a[row * C + c] : 0;
                        want += (signs[i] == '-' ? -v : v) * (__builtin_parity(i & r % 16) ? -0.25f : 0.25f);
                    }
                    CHECK(ha[r * C + c] == want);
                }
            for (int i = 0; i < C; i += 5)
                for (int j = 0; j < C; j += 7) {
                    double plain = 0, transformed = 0;
                    for (int r = 0; r < R; r++) plain += a[r * C + i] * b[r * C + j];
                    for (int r = 0; r < R16; r++) transformed += ha[r * C + i] * hb[r * C + j];
                    CHECK(plain == transformed);
                }
        }
}

TEST_CASE("the tiled layout of scales is a permutation of its padded tiles") {
    for (auto [O, KB] : {std::pair<size_t, size_t>{128, 4}, {300, 9}, {1, 1}}) {
        std::vector<int> seen(tiled_scale_bytes(O, KB));
        for (size_t o = 0; o < (O + 127) / 128 * 128; o++)
            for (size_t kb = 0; kb < (KB + 3) / 4 * 4; kb++) seen.at(tiled_scale(o, kb, KB))++;
        CHECK(std::count(seen.begin(), seen.end(), 1) == (long)seen.size());
    }
    CHECK(tiled_scale(33, 2, 4) == 33 % 32 * 16 + 1 * 4 + 2);
    CHECK(tiled_scale(128, 0, 8) == 1024);
}

TEST_CASE("casts refuse formats and blocks that are none of theirs, and say which are") {
    std::vector<act> x(16);
    std::vector<float> f(16);
    std::vector<uint8_t> q(16), s(16);
    CHECK_THROWS_WITH(cast_tensor(q.data(), nullptr, x.data(), nullptr, {.elem = BF16}, false, 4, 4),
                      "cast_tensor: bf16 is not a format it takes. hint: those are e4m3 e5m2 e3m2 e2m3 e2m1");
    CHECK_THROWS_WITH(cast_mx(q.data(), s.data(), x.data(), {.elem = BF16}, false, 4, 4),
                      "cast_mx: bf16 is not a format it takes. hint: those are e4m3 e5m2 e3m2 e2m3 e2m1");
    CHECK_THROWS_WITH(cast_float8(q.data(), f.data(), x.data(), {.elem = E4M3, .block = {1, 32}}, false, 4, 4),
                      "cast_float8: blocks of 1 x 32. hint: it casts 1 x 128 and 128 x 128");
}

} // namespace
