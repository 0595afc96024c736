// Recipes on the path that training takes: linears of a small model, forward and backward, with operands of ours,
// against loops written from the definitions; the ring of amaxes; keys; what tensors.csv measures.
#include "close.h"
#include "lab/diagnostics.cuh"
#include "drive.h"
#include "lab/keys.cuh"
#include "run/options.h"
#include <algorithm>
#include <bit>

namespace { // test files share one program

using std::string;
const Kernels all_kernels[] = {Kernels::reference, Kernels::portable, Kernels::fast};

Recipe row(const string& text) { // hybrid:margin=1
    Stage s = parse_arms(text).at(0).stages.at(0);
    return resolve(s.name, s.keys);
}
struct Model : GPT {
    Threads one{1};
    Model(Config c, int B, const string& arm, bool head = false) {
        std::vector<RecipeStage> all;
        std::vector<Arm> arms = parse_arms(arm);
        for (const Stage& s : arms.at(0).stages)
            all.push_back({s.from_step, resolve(s.name, s.keys), std::vector<bool>(4 * c.layers + 1, false)});
        for (RecipeStage& s : all) s.skip.back() = !head;
        allocate(*this, c, Use::training, B, c.seq_len, all);
        initialise(*this, 1);
    }
    Model(const Model&) = delete;
    ~Model() { release(*this), accumulator = {}, machine.kernels = Kernels::fast; }
};
// A linear, forward and backward, as gpt_forward() and gpt_backward() do it. x is overwritten in between unless its
// linear keeps it.
struct Driven {
    GPT& g;
    Linear& l;
    int N = g.B * g.T, OC = l.weight.rows, C = l.weight.cols;
    std::vector<act> x, dy, y, dx, source; // source: what x was
    Driven(GPT& g, Linear& l) : g(g), l(l), source((size_t)N * C) {
        x.resize((size_t)N * C), dy.resize((size_t)N * OC), y.resize((size_t)N * OC), dx.resize((size_t)N * C);
    }
    void constant(float x, float w, float dy) {
        std::fill(this->x.begin(), this->x.end(), act(x)), std::fill(this->dy.begin(), this->dy.end(), act(dy));
        std::fill(l.weight.operand, l.weight.operand + l.weight.size(), act(w));
    }
    void forward() {
        l.x.filled = l.dy.filled = false, l.w.filled &= g.pass.micro > 0;
        linear_forward(y.data(), l, x.data(), N);
        if (g.pass.training) update_scales(g, false);
        std::copy(x.begin(), x.end(), source.begin());
    }
    void backward(bool accumulate = false) {
        if (!l.keeps_x) std::fill(x.begin(), x.end(), act(NAN));
        linear_backward(dx.data(), l, dy.data(), x.data(), N, accumulate, g.partial);
        update_scales(g, true);
    }
    void step(int64_t t) { g.pass = {true, 1, (uint64_t)t, 0}, forward(), backward(); }
};

// --- delayed scaling ---------------------------------------------------------------------------------------------
TEST_CASE("delayed: TransformerEngine's trace with margin 2; the first step runs at 1; other linears stay at 1") {
    Model g({1, 1, 16, 8, 20}, 1, "hybrid:margin=2");
    Driven d(g, g.blocks[0].attn_qkv);
    float x = 1, w = 1, dy = 1; // the scales that the next step's casts are to use
    for (int t = 1; t <= 4; t++) {
        float v = (float)t - 0.75f;
        d.constant(v, v + 0.25f, v + 0.5f);
        d.step(t);
        CHECK(d.l.x.copies[0].factors->scale == x);
        CHECK(d.l.x.copies[0].factors->scale_inv == 1 / x);
        CHECK(d.l.w.copies[0].factors->scale == w);
        CHECK(d.l.dy.copies[0].factors->scale == dy);
        x = 112 / v, w = 112 / (v + 0.25f), dy = 14336 / (v + 0.5f);
    }
    CHECK(d.l.x.delayed->scale == doctest::Approx(34.461538).epsilon(1e-7));
    CHECK(d.l.w.delayed->scale == 32);
    CHECK(d.l.dy.delayed->scale == doctest::Approx(3822.9333).epsilon(1e-7));
    CHECK(g.blocks[0].mlp_fc.x.delayed->scale == 1);
    CHECK(g.blocks[0].mlp_fc.x.delayed->position == 0);
}
TEST_CASE("delayed: zero changes nothing, a tiny amax gives FLT_MAX, infinity keeps the scale, NaN is ignored") {
    Model g({1, 1, 16, 8, 20}, 1, "e4m3:amax_history_len=1");
    Driven d(g, g.blocks[0].mlp_proj);
    struct {
        float value, first, scale;
        int observed;
    } steps[] = {{0, 0, 1, 0},      {1e-36f, 1e-36f, FLT_MAX, 1}, {1, INFINITY, FLT_MAX, 2}, {2, NAN, 224, 3},
                 {0, 0, 224, 3},    {NAN, NAN, 224, 3},           {0, NAN, 224, 3},          {-INFINITY, 3, 224, 4},
                 {-7, 3.5f, 64, 5}, {0.5f, -0.5f, 896, 6}};
    int t = 0;
    for (auto& s : steps) {
        INFO("step ", t);
        d.constant(s.value, s.value, s.value);
        d.x[5] = d.dy[5] = d.l.weight.operand[5] = act(s.first);
        d.step(++t);
        for (Quantizer* q : {&d.l.x, &d.l.w, &d.l.dy}) {
            CHECK(q->delayed->scale == s.scale);
            CHECK(q->delayed->position == 0); // of a ring of one
            CHECK(q->delayed->last == 0);
        }
    }
}
TEST_CASE("delayed: an infinite amax holds the scale until it has left the window") {
    Model g({1, 1, 16, 8, 20}, 1, "e4m3:amax_history_len=4");
    Driven d(g, g.blocks[0].attn_proj);
    const float amaxes[] = {INFINITY, 1, 2, 3, 4, 3, 0.5f, 1, 1, 1};
    const float scales[] = {1, 1, 1, 1, 112, 112, 112, 112, 448 / 3.0f, 448};
    for (int t = 0; t < 10; t++) {
        d.constant(amaxes[t], amaxes[t], -amaxes[t]);
        d.step(t + 1);
        for (Quantizer* q : {&d.l.x, &d.l.w, &d.l.dy}) CHECK(q->delayed->scale == scales[t]);
    }
}
TEST_CASE(
    "FP4 under one scale: an outlier makes zeros of what is 24 times smaller, in either copy, two codes to a byte") {
    const float values[8] = {0, 1, -4, 24, 3, -3, 72, -0.001f}; // 6 / 72: 1/12, 1/3, 2, 1/4; a quarter is a tie
    Model g({1, 1, 8, 1, 20}, 1, "mxfp4:scaling=current");
    Driven d(g, g.blocks[0].attn_proj);
    for (int i = 0; i < 8; i++) d.x[i] = act(values[i]);
    TensorStats s = {};
    d.l.x.watch = [&](const Tensor& t) {
        s = measure(t, g.measured);
        const Copy* x = d.l.x.copies;
        CHECK(std::vector<int>(x[0].codes, x[0].codes + 4) == std::vector<int>{0x00, 0x49, 0x80, 0x87});
        CHECK(std::vector<int>(x[1].codes, x[1].codes + 8) == std::vector<int>{0, 0, 9, 4, 0, 8, 7, 8}); // of one token
        for (int k : {0, 1}) CHECK(x[k].factors->scale == 6 / 72.0f);
        for (int k : {0, 1}) CHECK(x[k].factors->scale_inv == 1 / (6 / 72.0f));
    };
    d.step(1);
    CHECK(s.underflow == 50);
    CHECK(s.saturation == 0);
    CHECK((float)s.scale == 6 / 72.0f);
}
TEST_CASE("current: scale 4.48 and the codes that go with it; powers of two; amax 0, infinity and NaN give scale 1") {
    const float values[8] = {0, 1, -2, 3, 0.1f, -0.7f, 100, -0.001f};
    struct {
        const char* arm;
        float scale;
        std::vector<int> codes;
    } cases[] = {{"current", 4.48f, {0x00, 0x49, 0xd1, 0x55, 0x2e, 0xc5, 0x7e, 0x82}},
                 {"current:pow2_scales=1", 4, {0x00, 0x48, 0xd0, 0x54, 0x2d, 0xc3, 0x7c, 0x82}}};
    for (auto& c : cases) {
        Model g({1, 1, 8, 1, 20}, 1, c.arm);
        Driven d(g, g.blocks[0].attn_proj);
        for (int i = 0; i < 8; i++) d.x[i] = act(values[i]);
        d.step(1);
        Copy& x = d.l.x.copies[0];
        CHECK(std::vector<int>(x.codes, x.codes + 8) == c.codes);
        CHECK(x.factors->scale == c.scale);
        CHECK(x.factors->scale_inv == 1 / c.scale);
        for (auto [value, scale] : {std::pair(0.0f, 1.0f), {INFINITY, 1}, {1e-38f, 0}}) {
            d.constant(value, value, value);
            d.step(2);
            float most = c.scale == 4 ? 0x1p127f : FLT_MAX; // of 448 / 1e-38
            CHECK(x.factors->scale == (scale ? scale : most));
        }
        d.constant(NAN, 1, 1); // NaN left out, there is nothing: amax 0
        d.step(3);
        CHECK(x.factors->scale == 1);
        CHECK(d.l.w.copies[0].factors->scale == (c.scale == 4 ? 256 : 448));
    }
}

// An array with the newest amax in front, rolled by one at every update, as TransformerEngine keeps it.
struct Shifting {
    std::vector<float> history;
    float max, scale = 1;
    void update(float last, Algo algo) {
        if (last == 0) return;
        history[0] = last;
        float amax = algo == Algo::max ? *std::max_element(history.begin(), history.end()) : history[0];
        std::rotate(history.begin(), history.begin() + 1, history.end());
        history[0] = 0;
        if (amax > 0 && amax < INFINITY) scale = std::isinf(max / amax) ? FLT_MAX : max / amax;
    }
};
template <class T> float naive_amax(const T* x, size_t n) { // NaN left out
    float m = 0;
    for (size_t i = 0; i < n; i++) m = std::fabs((float)x[i]) > m ? std::fabs((float)x[i]) : m;
    return m;
}
TEST_CASE(
    "delayed: the ring does what TransformerEngine's shifting array does, on traces with zeros, infinities, NaN") {
    Threads one(1);
    for (Algo algo : {Algo::max, Algo::most_recent})
        for (auto [L, capacity, updates] : {std::tuple(1, 1, 30),
                                            {2, 2, 30},
                                            {4, 4, 60},
                                            {4, 7, 60},
                                            {1, 5, 30},
                                            {2, 1024, 1100},
                                            {1024, 1024, 1500},
                                            {1000, 1024, 2100}}) {
            constexpr int count = 3, n = 70;
            INFO("L ", L, " of ", capacity, ", algo ", (int)algo);
            std::vector<float> history(count * capacity);
            Delayed state[count];
            Shifting expected[count];
            for (int i = 0; i < count; i++) {
                float max = ldexpf(i == 2 ? 57344 : 448, -(3 * i - 2)); // margins -2, 1, 4
                state[i] = {1, 0, max, 0}, expected[i] = {std::vector<float>(L), max, 1};
            }
            uint64_t draw = 0;
            auto random = [&](int n) { return random_bits(L + capacity, draw++) % n; };
            bool same = true;
            for (int u = 0; u < updates; u++) {
                for (int i = 0; i < count; i++) {
                    float largest = 0; // of the one or two casts before the update
                    for (int casts = 0, all = random(4) ? 1 : 2; casts < all; casts++) {
                        // amaxes that fall on the whole make every one that leaves the window move the scale
                        float size = exp2f((float)random(8) - (i == 0 ? 16.0f * u / L : 0));
                        auto x = normals<act>(n, draw++, i == 0 && size < 1e-30f ? 1e-30 : size);
                        uint64_t kind = random(16);
                        for (act& v : x)
                            if (kind == 0 || (kind == 1 && random(9) == 0)) v = act(kind == 0 ? 0.0f : NAN);
                        if (kind == 2 && u % 3 == 0 && (i == 2 || (i == 0 && L < 10))) x[random(n)] = act(INFINITY);
                        if (kind == 3) std::fill(x.begin(), x.end(), act(NAN));
                        uint8_t codes[n];
                        cast_tensor(codes, &state[i].last, x.data(), &state[i].scale, Cast{E4M3}, false, 1, n);
                        largest = std::max(largest, naive_amax(x.data(), n));
                    }
                    expected[i].update(largest, algo);
                }
                update_scales(state, history.data(), count, capacity, L, algo);
                for (int i = 0; i < count && same; i++) {
                    same = state[i].scale == expected[i].scale && state[i].last == 0;
                    INFO("update ", u, ", operand ", i, ": ", state[i].scale, " but ", expected[i].scale);
                    REQUIRE(same);
                }
            }
        }
}
TEST_CASE(
    "delayed: two stages with windows of their own share one ring; the scale is the one of the stage that uses it") {
    Model g({1, 1, 16, 8, 20}, 1, "hybrid:amax_history_len=2:margin=1+e4m3:amax_history_len=5@7");
    Driven d(g, g.blocks[0].attn_qkv);
    REQUIRE(g.history_len == 5);
    const float amaxes[] = {8, 1, 4, 0.5f, 0.25f, 2, 0.125f, 0.0625f, 1, 1, 3, 1};
    std::vector<float> seen;
    for (int t = 1; t <= 12; t++) {
        if (t == 7) set_stage(g, 1);
        float v = amaxes[t - 1];
        d.constant(v, v, v);
        d.step(t);
        size_t L = t < 7 ? 2 : 5, first = seen.size() < L ? 0 : seen.size() - L;
        float amax = seen.empty() ? 0 : *std::max_element(seen.begin() + first, seen.end());
        INFO("step ", t);
        for (Quantizer* q : {&d.l.x, &d.l.w, &d.l.dy}) {
            float max = (t < 7 ? q == &d.l.dy ? 57344 : 448 : 448) / (t < 7 ? 2.0f : 1.0f);
            CHECK(q->copies[0].factors->scale == (seen.empty() ? 1 : max / amax));
        }
        seen.push_back(v);
    }
}
std::vector<int> random_tokens(int n, int V, uint64_t seed) {
    std::vector<int> t;
    for (int i = 0; i < n; i++) t.push_back((int)(random_bits(seed, i) % V));
    return t;
}
TEST_CASE(
    "delayed: with 4 microbatches x and dy are recorded and updated after each, w cast and recorded in the first; "
    "evaluation records nothing") {
    for (const char* arm : {"hybrid:amax_history_len=5", "e4m3:amax_compute_algo=most_recent", "bf16+hybrid@9"}) {
        INFO(string(arm));
        Model g({2, 2, 32, 16, 40}, 2, arm);
        const bool bf16 = g.stages.size() > 1; // there amaxes are recorded for a stage to come
        struct Watched {
            Shifting expected;
            float last = 0;
            int casts = 0;
        };
        std::map<const Quantizer*, Watched> watched;
        auto delayed = recorded_for(g, 0);
        for_each_operand(g, [&](const string& layer, const string& operand, Quantizer& q) {
            if (layer == "lm_head") return;
            float max = operand == "dy" ? delayed.dy.elem.max : 448;
            watched[&q] = {{std::vector<float>(delayed.amax_history_len), max}};
            q.watch = [&](const Tensor& t) {
                Watched& w = watched[t.quantizer];
                w.casts++;
                if (g.pass.training) w.last = std::max(w.last, naive_amax(t.data, (size_t)t.rows * t.cols));
                if (!bf16) CHECK(t.quantizer->copies[0].factors->scale == w.expected.scale);
            };
        });
        auto update_expected = [&](bool backward) {
            for_each_operand(g, [&](const string& layer, const string& operand, Quantizer& q) {
                if (layer == "lm_head" || (operand == "dy") != backward) return;
                Watched& w = watched[&q];
                w.expected.update(std::exchange(w.last, 0.0f), delayed.amax_compute_algo);
                CHECK(q.delayed->scale == w.expected.scale);
            });
        };
        auto expect_casts = [&](int x, int w, int dy) {
            for_each_operand(g, [&](const string& layer, const string& operand, Quantizer& q) {
                if (layer != "lm_head") CHECK(watched[&q].casts == (operand == "x" ? x : operand == "w" ? w : dy));
            });
        };
        int evals = 0;
        auto evaluate = [&] {
            g.pass.training = false;
            for (int i = 0; i < 2; i++) {
                g.pass.micro = i;
                set_batch(g, random_tokens(32, 40, 90 + i), random_tokens(32, 40, 80 + i));
                gpt_forward(g, 2, 16);
            }
            evals++;
        };
        evaluate();
        for (int t = 1; t <= 3; t++) {
            for (int m = 0; m < 4; m++) {
                g.pass = {true, 1, (uint64_t)t, (uint64_t)m};
                set_batch(g, random_tokens(32, 40, 8 * t + m), random_tokens(32, 40, 8 * t + m + 1));
                gpt_forward(g, 2, 16, 1 / 128.0f);
                update_expected(false);
                gpt_backward(g, 2, 16);
                update_expected(true);
                int trained = 4 * (t - 1) + m + 1;
                expect_casts(trained + 2 * evals, t + evals, trained);
            }
            gradient_norm(g, 1), update(g, t, 0.05, 0.1); // far enough for w's amaxes to move
            if (t == 2) evaluate(), evaluate();
        }
    }
}

// --- GEMMs -------------------------------------------------------------------------------------------------------
// The smallest power of two that divides v; 0 has none.
double lowest_bit(double v) {
    if (v == 0) return INFINITY;
    int e;
    double m = frexp(std::fabs(v), &e) * 0x1p53;
    return ldexp(1.0, std::countr_zero((uint64_t)m) + e - 53);
}
// What a GEMM multiplies, from codes and scales: O rows of K. v includes the scales of blocks, if BF16 has them.
struct Decoded {
    int O = 0, K = 0, block = 0;
    std::vector<double> v, multiplier; // multiplier: what elements were multiplied by before their cast
    std::vector<float> late;           // FP32 scales of blocks that are not in v
    float factor = 1;                  // of the whole tensor
    bool nvfp4 = false, quantized = false;
};
Decoded decoded(const Tensor& t, Along k, bool stored = false) { // stored: the copy, whether or not that GEMM reads it
    const Quantizer& q = *t.quantizer;
    const Cast& c = q.cast;
    Decoded d;
    d.O = k == Along::cols ? t.rows : t.cols, d.K = k == Along::cols ? t.cols : t.rows;
    d.quantized = stored || q.quantized[(int)k];
    bool per_tensor = c.scaling == Scaling::unit || c.scaling == Scaling::delayed || c.scaling == Scaling::current;
    bool one_copy = per_tensor && c.elem.bits() > 4; // for both GEMMs
    if (d.quantized && !per_tensor && k == Along::rows && c.rht) d.K = (d.K + 15) / 16 * 16;
    const Copy& copy = q.copies[one_copy ? 0 : (int)k];
    size_t K = d.K, row_bytes = c.elem.bits() == 4 ? (K + 1) / 2 : K;
    int N = c.scaling == Scaling::mx ? 32 : c.scaling == Scaling::nvfp4 ? 16 : 128;
    size_t KB = (K + N - 1) / N;
    if (d.quantized && per_tensor) d.factor = copy.factors->scale_inv;
    if (d.quantized && c.scaling == Scaling::nvfp4) d.factor = copy.factors->amax, d.nvfp4 = true;
    for (int o = 0; o < d.O; o++)
        for (size_t i = 0; i < K; i++) {
            size_t source = k == Along::cols ? o * K + i : i * d.O + o;
            if (!d.quantized) {
                d.v.push_back((float)t.data[source]);
                continue;
            }
            uint8_t byte = copy.codes[one_copy ? source : o * row_bytes + (c.elem.bits() == 4 ? i / 2 : i)];
            double value = decode(c.elem, c.elem.bits() == 4 ? i % 2 ? byte >> 4 : byte & 15 : byte), scale = 1;
            if (c.scaling == Scaling::mx)
                scale = decode(E8M0, copy.scales[o * KB + i / 32]), d.multiplier.push_back(1 / scale);
            if (c.scaling == Scaling::nvfp4) {
                scale = decode(E4M3, copy.scales[o * KB + i / 16]);
                d.multiplier.push_back(scale ? 2688 / (scale * copy.factors->amax) : FLT_MAX);
            }
            if (c.scaling == Scaling::blockwise) {
                float s = ((const float*)copy.scales)[(c.block.rows == 1 ? o : o / 128) * KB + i / 128];
                d.multiplier.push_back(1.0 / s);
                if (c.pow2_scales) scale = s;
                else d.late.push_back(s);
            }
            if (per_tensor) d.multiplier.push_back(copy.factors->scale);
            d.v.push_back(value * scale);
        }
    return d;
}
double factor_of(const Decoded& d) { return d.nvfp4 ? (double)d.factor / 2688 : d.factor; }

// The copies hold what the operand holds, to the precision of the format: none is of another tensor, or transposed, or
// scaled by another block's scale. Off by half a step (a whole one under stochastic rounding): relative 2^-(mbits + 1),
// or in terms of the smallest step. What lies beyond the format's max became the max.
void check_copies(const Tensor& t, const act* source) {
    const Cast& c = t.quantizer->cast;
    for (Along k : {Along::cols, Along::rows}) {
        if (!t.quantizer->quantized[(int)k]) continue;
        Decoded d = decoded(t, k);
        const bool transformed = k == Along::rows && t.quantizer->transforms();
        double steps = c.round == Rounding::sr ? 1 : 0.5;
        auto at = [&](int o, int i) {
            size_t j = k == Along::cols ? (size_t)o * d.K + i : (size_t)i * d.O + o;
            return k == Along::rows && i >= t.rows ? 0.0 : (double)(float)source[j];
        };
        for (int o = 0; o < d.O; o++)
            for (int i = 0; i < d.K; i++) {
                double want = at(o, i), size = 0;
                if (transformed) { // H = diag(sign) Hadamard / 4, and BF16 rounds: 2^-8 of it, FP32 sums far less
                    want = 0;
                    for (int j = 0; j < 16; j++) {
                        const char* sign = "+++-+------+-+--";
                        double v = at(o, i / 16 * 16 + j) * (sign[j] == '+' ? 1 : -1) / 4;
                        want += std::popcount((unsigned)(j & i % 16)) % 2 ? -v : v, size += std::fabs(v);
                    }
                }
                size_t e = (size_t)o * d.K + i;
                double got = d.v[e] * (d.late.empty() ? 1 : d.late[e]) * factor_of(d), m = d.multiplier[e];
                double slack = transformed ? 0x1p-7 * std::fabs(want) + 0x1p-20 * size : 0x1p-20 * std::fabs(want);
                double bound =
                    steps * std::max(ldexp(std::fabs(want), -c.elem.mbits), exp2(1 - c.elem.bias - c.elem.mbits) / m);
                if (std::fabs(want) * m > c.elem.max) want = copysign(c.elem.max / m, want);
                if (std::fabs(got - want) <= bound + slack) continue;
                FAIL_CHECK("copy along " << (int)k << ", row " << o << ", element " << i << ": " << got << " for "
                                         << want);
                return;
            }
    }
}
struct Exact {
    size_t outputs = 0, exact = 0;
};
// out (M, N) = epilogue(sum over k of a(m, k) b(n, k)). Where all terms are multiples of some power of two and their
// magnitudes add up to 2^24 of it at most, FP32 sums are exact in any order, and the output has to be the documented
// epilogue's, to the bit. Else: a sum of K products, which are exact, is off by g(K) A, A = sum |a b|, g(n) = n u / (1 -
// n u), u = 2^-24; five more roundings in FP32 follow (two factors, their own, bias, what was there) and 2^-8 of BF16's.
template <class Out>
void check_gemm(const char* name, const Decoded& a, const Decoded& b, const Out* out, const act* bias,
                const float* before, int every, Exact& count) {
    REQUIRE(a.K == b.K);
    std::vector<double> bit_a, bit_b;
    for (double v : a.v) bit_a.push_back(lowest_bit(v));
    for (double v : b.v) bit_b.push_back(lowest_bit(v));
    float fa = a.nvfp4 ? a.factor * (1 / 2688.0f) : a.factor, fb = b.nvfp4 ? b.factor * (1 / 2688.0f) : b.factor;
    if (a.nvfp4 && b.nvfp4) fa = a.factor * b.factor / (2688.0f * 2688.0f), fb = 1;
    const bool rounds = std::is_same_v<Out, act>, late = !a.late.empty() || !b.late.empty();
    for (int m = 0; m < a.O; m += m + every < a.O ? every : std::max(1, a.O - 1 - m))
        for (int n = 0; n < b.O; n++) {
            size_t i = (size_t)m * a.K, j = (size_t)n * b.K, at = (size_t)m * b.O + n;
            double sum = 0, size = 0;
            float parts = 0; // of blocks, each with its scales
            bool exact = true;
            for (int k0 = 0; k0 < a.K; k0 += late ? 128 : a.K) {
                double part = 0, part_size = 0, bit = INFINITY;
                for (int k = k0; k < a.K && (!late || k < k0 + 128); k++) {
                    double term = a.v[i + k] * b.v[j + k];
                    part += term, part_size += std::fabs(term), bit = std::min(bit, bit_a[i + k] * bit_b[j + k]);
                }
                float sa = a.late.empty() ? 1 : a.late[i + k0], sb = b.late.empty() ? 1 : b.late[j + k0];
                exact &= part_size == 0 || part_size <= 0x1p24 * bit;
                sum += part * sa * sb, size += part_size * sa * sb, parts += (float)part * sa * sb;
            }
            float acc = (late ? parts : (float)sum) * fa * fb;
            if (bias) acc += (float)bias[n];
            if (before) acc = before[at] + acc;
            double want = sum * fa * fb + (bias ? (float)bias[n] : 0) + (before ? before[at] : 0);
            double u = 0x1p-24, K = a.K,
                   magnitude =
                       size * fa * fb + (bias ? std::fabs((float)bias[n]) : 0) + (before ? std::fabs(before[at]) : 0);
            double bound = (K * u / (1 - K * u) + 5 * u + (late ? 3 * u : 0)) * magnitude;
            if (rounds) bound += 0x1p-8 * (std::fabs(want) + bound);
            count.outputs++, count.exact += exact;
            float got = (float)out[at];
            if (exact ? got == (float)Out(acc) : std::fabs(got - want) <= bound) continue;
            FAIL_CHECK(string(name) << "[" << m << ", " << n << "] of " << a.O << " x " << b.O << ", K " << a.K << ": "
                                    << got << ", want " << (exact ? (float)Out(acc) : want)
                                    << string(exact ? " exactly, or +- " : " +- ") << bound);
            return;
        }
}
// One microbatch of a linear, its three GEMMs against what its quantizers hold, which hold what they were given. Forward
// is checked before backward, which takes the memory of copies that only fprop reads.
void check_microbatch(Driven& d, int micro, int every, Exact& count) {
    Linear& l = d.l;
    std::vector<float> before(l.weight.grad, l.weight.grad + l.weight.size());
    d.g.pass = {true, 1, 1, (uint64_t)micro};
    d.forward();
    Tensor x = {d.source.data(), d.N, d.C, &l.x}, w = {l.weight.operand, d.OC, d.C, &l.w},
           dy = {d.dy.data(), d.N, d.OC, &l.dy};
    check_copies(x, x.data), check_copies(w, w.data);
    check_gemm("fprop", decoded(x, Along::cols), decoded(w, Along::cols), d.y.data(), l.bias.operand, nullptr, every,
               count);
    d.backward(micro > 0);
    check_copies(dy, dy.data);
    check_gemm("dgrad", decoded(dy, Along::cols), decoded(w, Along::rows), d.dx.data(), nullptr, nullptr, every, count);
    check_gemm("wgrad", decoded(dy, Along::rows), decoded(x, Along::rows), l.weight.grad, nullptr,
               micro ? before.data() : nullptr, every, count);
}
enum class Data { integers, normals };
void fill(Driven& d, Data data, uint64_t seed) {
    auto set = [&](act* to, size_t n, float scale) {
        seed += 1000;
        for (size_t i = 0; i < n; i++) {
            const float integers[] = {0, 1, 2, 3, 4, 6, 6, 6}; // of E2M1
            uint64_t u = random_bits(seed, i);
            float z = (float)random_normal(seed, i) * (u % 97 ? scale : 40 * scale);
            to[i] = act(data == Data::normals ? z : (u & 8 ? 1.0f : -1.0f) * integers[u & 7]);
        }
    };
    set(d.x.data(), d.x.size(), 1), set(d.dy.data(), d.dy.size(), 1e-3f);
    set(d.l.weight.operand, d.l.weight.size(), 0.02f);
    if (d.l.bias.cols) set(d.l.bias.operand, d.l.bias.size(), 0.02f);
}
std::vector<string> arms_to_multiply() {
    std::vector<string> arms = recipe_names();
    for (const char* arm :
         {"current:pow2_scales=1", "blockwise:pow2_scales=0", "blockwise:pow2_scales=0:w.scaling=mx", "hybrid:dgrad=0",
          "nvfp4:fprop=0", "mxfp8:wgrad=0", "mxfp4:rht=1:round=sr:scale_rule=floor", "nvfp4:rht=0:w.block=1x16",
          "hybrid:dy.scaling=mx", "nvfp4:w.scaling=delayed", "mxfp8:dy.scaling=none",
          "hybrid:round=sr:x.scaling=current", "mxfp4:scaling=current", "hybrid:format=e2m1:round=sr",
          "current:w.format=e2m1:dgrad=0:pow2_scales=1", "unit:x.format=e2m1:fprop=0", "mxfp6:scaling=delayed"})
        arms.push_back(arm);
    return arms;
}
TEST_CASE(
    "fprop, dgrad and wgrad multiply what the codes stand for: every recipe, ragged and aligned shapes, all kernels, "
    "two microbatches") {
    for (const string& arm : arms_to_multiply()) {
        Exact integers, normals;
        for (bool ragged : {true, false}) {
            Config c = ragged ? Config{1, 2, 50, 37, 70} : Config{1, 2, 64, 64, 128};
            Model g(c, ragged ? 1 : 2, arm, true);
            for (Linear* l : {&g.head, &g.blocks[0].mlp_proj})
                for (Data data : {Data::integers, Data::normals})
                    for (Kernels kernels : all_kernels) {
                        // The definition is slow, and knows no tails; whether it rounds as the others do is a test of GEMMs.
                        bool defined = kernels == Kernels::reference || arm.find("blockwise:pow2_scales=0") == 0;
                        if (kernels != Kernels::fast && (!ragged || data == Data::normals)) continue;
                        if (defined && (!ragged || l != &g.head)) continue;
                        INFO(arm, string(ragged ? ", ragged" : ", aligned"), ", kernels ", (int)kernels, ", data ",
                             (int)data, string(l == &g.head ? ", lm_head" : ", c_proj"));
                        machine.kernels = kernels;
                        for (int i = 0; i < g.all_delayed; i++) g.delayed[i].scale = 1;
                        Driven d(g, *l);
                        int every = kernels == Kernels::fast && ragged ? 1 : 9;
                        for (int micro : {0, 1}) {
                            std::vector<act> w(l->weight.operand, l->weight.operand + l->weight.size());
                            fill(d, data, micro + 1);
                            if (micro) std::copy(w.begin(), w.end(), l->weight.operand);
                            check_microbatch(d, micro, every, data == Data::integers ? integers : normals);
                        }
                    }
        }
        INFO(arm, ": ", integers.exact, " of ", integers.outputs, " exact");
        CHECK(integers.exact >= 0.9 * integers.outputs); // or the data says nothing about bits
    }
}
TEST_CASE("accum: sums keep so many bits, cut towards zero, and move to FP32 after so many products") {
    for (const char* arm :
         {"bf16:accum=7/8", "unit:accum=14/128", "mxfp8:accum=14/128", "mxfp4:accum=3/5", "nvfp4:accum=10/32"}) {
        INFO(string(arm));
        Model g({1, 2, 50, 37, 70}, 1, arm, true);
        machine.kernels = Kernels::reference;
        Recipe r = row(arm);
        Driven d(g, g.blocks[0].mlp_proj);
        fill(d, Data::normals, 3);
        auto check = [&](const Tensor& t, Along k, const Tensor& u, Along j, auto* out, const act* bias) {
            Decoded a = decoded(t, k), b = decoded(u, j);
            float fa = a.nvfp4 ? a.factor * b.factor / (2688.0f * 2688.0f) : a.factor, fb = a.nvfp4 ? 1 : b.factor;
            bool plain = true; // would FP32 have given the same?
            for (int m = 0; m < a.O; m++)
                for (int n = 0; n < b.O; n++) {
                    float total = 0, acc = 0;
                    double all = 0;
                    for (int p = 0; p < a.K; p++) {
                        double term = a.v[(size_t)m * a.K + p] * b.v[(size_t)n * b.K + p];
                        float s = (float)((long double)acc + term); // exact in 64 bits, rounded once
                        int e;
                        double bits = frexp((double)s, &e);
                        acc = (float)ldexp(trunc(ldexp(bits, r.accum.mbits + 1)), e - r.accum.mbits - 1), all += term;
                        if ((p + 1) % r.accum.interval == 0) total += acc, acc = 0;
                    }
                    total += acc;
                    plain &= std::fabs(total - all) <= 1e-6 * std::fabs(all);
                    float want = total * fa * fb;
                    if (bias) want += (float)bias[n];
                    if ((float)out[(size_t)m * b.O + n] == (float)std::remove_cvref_t<decltype(*out)>(want)) continue;
                    FAIL_CHECK("[" << m << ", " << n << "]: " << (float)out[(size_t)m * b.O + n] << ", want " << want);
                    return;
                }
            CHECK(!plain);
        };
        Tensor x = {d.source.data(), d.N, d.C, &d.l.x}, w = {d.l.weight.operand, d.OC, d.C, &d.l.w},
               dy = {d.dy.data(), d.N, d.OC, &d.l.dy};
        g.pass = {true, 1, 1, 0};
        d.forward();
        check(x, Along::cols, w, Along::cols, d.y.data(), d.l.bias.operand);
        d.backward();
        check(dy, Along::cols, w, Along::rows, d.dx.data(), nullptr);
        check(dy, Along::rows, x, Along::rows, d.l.weight.grad, nullptr);
    }
}
TEST_CASE(
    "stochastic rounding draws anew for every seed, step, microbatch, linear and copy, and the same for the same") {
    Model g({2, 1, 32, 32, 20}, 1, "mxfp4:round=sr");
    auto codes = [&](Linear& l, Pass pass, int copy) { // of dy, whose matrix is symmetric: both copies hold the same
        Driven d(g, l);
        fill(d, Data::normals, 5);
        for (int n = 0; n < 32; n++)
            for (int c = 0; c < n; c++) d.dy[n * 32 + c] = d.dy[c * 32 + n];
        g.pass = pass;
        l.w.filled = false;
        d.forward(), d.backward();
        return std::vector<uint8_t>(l.dy.copies[copy].codes, l.dy.copies[copy].codes + 32 * 16);
    };
    Linear &a = g.blocks[0].attn_proj, &b = g.blocks[1].attn_proj;
    auto first = codes(a, {true, 1, 1, 0}, 0);
    CHECK(codes(a, {true, 1, 1, 0}, 0) == first);
    CHECK(codes(a, {true, 2, 1, 0}, 0) != first);
    CHECK(codes(a, {true, 1, 2, 0}, 0) != first);
    CHECK(codes(a, {true, 1, 1, 1}, 0) != first);
    CHECK(codes(b, {true, 1, 1, 0}, 0) != first);
    CHECK(codes(a, {true, 1, 1, 0}, 1) != first);
    machine.kernels = Kernels::reference;
    CHECK(codes(a, {true, 1, 1, 0}, 0) == first);
}

// --- keys --------------------------------------------------------------------------------------------------------
string get(const Recipe& r, const string& key) {
    for (const RecipeKey& k : recipe_keys)
        if (key == k.name) return k.get(r);
    size_t dot = key.find('.');
    const Cast& c = key[0] == 'x' ? r.x : key[0] == 'w' ? r.w : r.dy;
    for (const CastKey& k : cast_keys)
        if (key.substr(dot + 1) == k.name) return k.get(c);
    return "no such key";
}
TEST_CASE("every key sets what it names, for one operand or for all; the later of two wins") {
    struct {
        const char *key, *arm, *value, *other;
    } keys[] = {
        {"scaling", "hybrid", "current", "unit"},
        {"format", "mxfp8", "e3m2", "e2m1"},
        {"block", "nvfp4:rht=0", "1x16", "16x16"},
        {"scale_rule", "mxfp8", "floor", "even"},
        {"round", "mxfp4", "sr", "rne"},
        {"pow2_scales", "current", "1", "0"},
        {"rht", "mxfp4:wgrad=0", "1", "0"},
        {"amax_history_len", "hybrid", "16", "1"},
        {"amax_compute_algo", "hybrid", "most_recent", "max"},
        {"margin", "e4m3", "2", "-1"},
        {"fprop", "mxfp8", "0", "1"},
        {"dgrad", "mxfp8", "0", "1"},
        {"wgrad", "mxfp8", "0", "1"},
        {"fast_accum", "current", "0", "1"},
        {"skip", "unit", "first1/last1", "h.0.*"},
        {"lr", "bf16", "0.002", "1e-05"},
        {"loss_scale", "bf16", "4096", "0.5"},
        {"accum", "bf16", "14/128", "3/1"},
        {"init_scale", "bf16", "0.1", "10"},
        {"nudge", "bf16", "1", "-1"},
        {"outlier", "mxfp8", "128", "0.5"},
        {"jump", "current", "128/100/1", "0.25/1/20"},
        {"forget", "hybrid", "250", "1"},
    };
    for (auto& k : keys) {
        string key = k.key;
        INFO(key);
        bool of_operand =
            std::any_of(std::begin(cast_keys), std::end(cast_keys), [&](auto& c) { return key == c.name; });
        const std::vector<string> operands =
            of_operand ? std::vector<string>{"x.", "w.", "dy."} : std::vector<string>{""};
        Recipe plain = row(k.arm);
        auto with = [&](const string& keys) { return row(string(k.arm) + keys); };
        Recipe one = with(":" + key + "=" + k.value), two = with(":" + key + "=" + k.other + ":" + key + "=" + k.value),
               other = with(":" + key + "=" + k.value + ":" + key + "=" + k.other);
        for (const string& operand : operands) {
            if (operand + key == "w.rht") continue;
            CHECK(get(one, operand + key) == k.value);
            CHECK(get(two, operand + key) == k.value);
            CHECK(get(other, operand + key) == k.other);
            if (!of_operand) continue;
            Recipe alone = with(":" + operand + key + "=" + k.value);
            for (const string& o : operands) {
                INFO(operand, " ", o);
                CHECK(get(alone, o + key) == (o == operand ? k.value : get(plain, o + key)));
            }
            CHECK(get(with(":" + key + "=" + k.value + ":" + operand + key + "=" + k.other), operand + key) == k.other);
        }
    }
    for (auto& name : key_names())
        if (name.find('.') == string::npos)
            CHECK(std::any_of(std::begin(keys), std::end(keys), [&](auto& k) { return name == k.key; }));
    Recipe r = row("hybrid:dy.scaling=current:dy.format=e4m3");
    CHECK(std::vector<string>{get(r, "x.scaling"), get(r, "dy.scaling"), get(r, "dy.format")} ==
          std::vector<string>{"delayed", "current", "e4m3"});
    // Another scaling brings its usual block, formats that it takes, and nothing that it has no use for.
    CHECK(block_text(row("hybrid:scaling=mx").x.block) == "1x32");
    CHECK(row("hybrid:scaling=nvfp4").dy.elem == E2M1);
    CHECK(row("hybrid:scaling=blockwise").w.pow2_scales);
    CHECK(row("nvfp4:scaling=blockwise").x.elem == E4M3);
    CHECK(row("mxfp4:scaling=current").x.elem == E2M1);
    CHECK(is_per_tensor(row("mxfp8:scaling=unit").w));
    CHECK(!row("nvfp4:scaling=current").x.rht);
    CHECK(row("nvfp4:scaling=mx").x.rht);
    CHECK(!any_quantized(row("hybrid:scaling=none")));
}
TEST_CASE(
    "a recipe or key that is none, a value that is none, and rows that nothing multiplies are refused with reasons") {
    auto refused = [](const string& arm) {
        Stage s = parse_arms(arm).at(0).stages.at(0);
        try {
            resolve(s.name, s.keys);
        } catch (const KeyError& e) {
            return e.text + (e.known.empty() ? "" : "; nearest " + nearest(e.word, e.known));
        }
        return string("accepted");
    };
    struct {
        const char* arm;
        std::vector<string> says;
    } wrong[] = {
        {"hybird", {"no recipe hybird", "nearest hybrid"}},
        {"mxfp", {"nearest mxfp"}},
        {"hybrid:margins=1", {"margins", "nearest margin"}},
        {"hybrid:y.format=e4m3", {"y.format", "nearest x.format"}},
        {"hybrid:x.margin=1", {"x.margin"}},
        {"hybrid:amax_history=4", {"nearest amax_history_len"}},
        {"hybrid:scaling=mxfp8", {"none", "unit", "delayed", "current", "blockwise", "mx", "nvfp4"}},
        {"hybrid:format=fp8", {"e4m3, e5m2, e3m2, e2m3, e2m1"}},
        {"hybrid:format=bf16", {"e4m3, e5m2, e3m2, e2m3, e2m1"}},
        {"mxfp8:scale_rule=up", {"rceil, floor, ceil, even"}},
        {"mxfp8:round=nearest", {"rne, sr"}},
        {"hybrid:amax_compute_algo=min", {"max, most_recent"}},
        {"nvfp4:block=16", {"ROWSxCOLS"}},
        {"nvfp4:block=1x16x", {"ROWSxCOLS"}},
        {"nvfp4:w.block=1x32", {"w.block=1x32", "nvfp4", "1x16 16x16"}},
        {"mxfp8:block=32x32", {"x.block=32x32", "1x32"}},
        {"hybrid:block=1x32", {"block"}},
        {"blockwise:format=e2m1", {"x.format=e2m1", "blockwise", "e4m3 e5m2"}},
        {"nvfp4:format=e4m3", {"x.format=e4m3", "e2m1"}},
        {"hybrid:margin=1.5", {"whole number"}},
        {"hybrid:margin=101", {"-100", "100"}},
        {"hybrid:margin=one", {"-100", "100"}},
        {"hybrid:amax_history_len=0", {"from 1"}},
        {"hybrid:fprop=2", {"from 0 to 1"}},
        {"hybrid:lr=0", {"lr=0"}},
        {"hybrid:lr=nan", {"lr=nan"}},
        {"hybrid:loss_scale=inf", {"loss_scale=inf"}},
        {"bf16:accum=14", {"BITS/INTERVAL"}},
        {"bf16:accum=24/128", {"BITS/INTERVAL"}},
        {"bf16:accum=14/0", {"BITS/INTERVAL"}},
        {"bf16:accum=14/128x", {"BITS/INTERVAL"}},
        {"bf16:margin=1", {"bf16 has no use for margin"}},
        {"bf16:format=e4m3", {"no use for format"}},
        {"bf16:block=1x16", {"no use for block"}},
        {"bf16:fprop=0", {"no use for fprop"}},
        {"bf16:skip=first1", {"no use for skip"}},
        {"mxfp8:margin=1", {"no use for margin"}},
        {"current:amax_history_len=4", {"no use for amax_history_len"}},
        {"hybrid:scaling=current:margin=1", {"no use for margin"}},
        {"hybrid:scale_rule=floor", {"no use for scale_rule"}},
        {"hybrid:pow2_scales=1", {"no use for pow2_scales"}},
        {"hybrid:rht=1", {"no use for rht"}},
        {"nvfp4:fast_accum=0", {"no use for fast_accum"}},
        {"hybrid:fprop=0:fast_accum=0", {"no use for fast_accum"}},
        {"hybrid:w.pow2_scales=1:x.scaling=current", {"no use for w.pow2_scales"}},
        {"hybrid:x.format=e5m2", {"E5M2", "wgrad"}},
        {"hybrid:w.format=e5m2", {"E5M2", "dgrad"}},
        {"hybrid:format=e5m2:dy.format=e4m3", {"E5M2", "fprop"}},
        {"mxfp8:format=e5m2", {"E5M2"}},
        {"nvfp4:x.rht=0", {"rht"}},
        {"mxfp4:dy.rht=1", {"rht"}},
        {"nvfp4:x.scaling=current", {"rht"}},
        {"nvfp4:w.rht=1", {"w.rht"}},
        {"hybrid:fprop=0:dgrad=0:wgrad=0", {"nothing to quantize"}},
    };
    for (auto& w : wrong) {
        string text = refused(w.arm);
        INFO(string(w.arm), ": ", text);
        CHECK(text != "accepted");
        for (auto& says : w.says) CHECK(text.find(says) != string::npos);
    }
    for (const char* fine :
         {"hybrid:w.format=e5m2:dgrad=0", "hybrid:x.format=e5m2:wgrad=0", "mxfp8:dy.format=e5m2", "hybrid:format=e2m1",
          "mxfp6:scaling=unit", "nvfp4:x.rht=0:dy.rht=0", "nvfp4:x.rht=0:wgrad=0", "blockwise:x.block=128x128"}) {
        INFO(string(fine));
        CHECK(refused(fine) == "accepted");
    }
}

// --- what is measured, what is stored ----------------------------------------------------------------------------
TEST_CASE("measure: underflow, saturation, SQNR and bias of the copy, as a loop in double finds them") {
    std::vector<string> arms = arms_to_multiply();
    arms.erase(arms.begin()); // bf16
    for (const string& arm : arms) {
        Model g({1, 2, 50, 37, 70}, 1, arm, true);
        Driven d(g, g.blocks[0].mlp_proj);
        fill(d, Data::normals, 7);
        for (std::vector<act>* x : {&d.x, &d.dy})
            for (size_t i = 0; i < x->size(); i += 9)
                (*x)[i] = act(i % 2 ? 0.0f : i % 4 ? 3e4f * (float)(*x)[i] : 1e-5f * (float)(*x)[i]);
        for (size_t i = 0; i < 40; i++) d.x[i] = act(0.0f);   // a block of zeros
        if (d.l.x.delayed) d.l.x.delayed->scale = 448 / 2.5f; // an old one: much lies beyond the max
        int watched = 0;
        for (auto [name, q] : {std::pair("x", &d.l.x), {"w", &d.l.w}, {"dy", &d.l.dy}}) {
            string what = arm + " " + name;
            q->watch = [&, what](const Tensor& t) {
                INFO(what);
                watched++;
                Along k = t.quantizer->needs(Along::cols, true) ? Along::cols : Along::rows;
                if (!t.quantizer->needs(k, true)) return;
                TensorStats s = measure(t, g.measured);
                Decoded c = decoded(t, k, true);
                const bool transformed = k == Along::rows && t.quantizer->transforms();
                const act* source = transformed ? t.quantizer->transformed : t.data;
                double amax = 0, in = 0, out = 0, above = 0, near = 0, xx = 0, dd = 0, diff = 0, magnitude = 0, off = 0;
                for (int o = 0; o < c.O; o++)
                    for (int i = 0; i < c.K; i++) {
                        double x = (float)source[k == Along::cols ? (size_t)o * c.K + i : (size_t)i * c.O + o];
                        size_t e = (size_t)o * c.K + i;
                        double y = c.v[e] * (c.late.empty() ? 1 : c.late[e]) * factor_of(c);
                        double scaled = std::fabs(x) * c.multiplier[e], max = t.quantizer->cast.elem.max;
                        amax = std::max(amax, std::fabs(x)), in += x != 0, out += y != 0;
                        above += scaled > max * (1 + 1e-6), near += scaled > max * (1 - 1e-6);
                        xx += x * x, dd += (x - y) * (x - y), diff += y - x, off += std::fabs(y - x),
                            magnitude += std::fabs(x);
                    }
                double count = (double)c.O * c.K;
                CHECK(s.amax == amax);
                CHECK(s.underflow == doctest::Approx(100 * (in - out) / count).epsilon(1e-12));
                CHECK(s.saturation >= 100 * above / count * (1 - 1e-12));
                CHECK(s.saturation <= 100 * near / count * (1 + 1e-12)); // a product may round across the max
                // Sums of up to 200 floats, 200 u = 1.2e-5 relative, in dB 10 / ln 10 of both; and x - q, where u q (and
                // another of what scales q) is up to 30 dB, 32-fold, more of it.
                CHECK(std::fabs(s.sqnr_db - 10 * log10(xx / dd)) <= 3e-4);
                CHECK(std::fabs(s.bias - 100 * diff / magnitude) <= 100 * (1.2e-5 * off / magnitude + 3 * 0x1p-24));
                Scaling how = t.quantizer->cast.scaling;
                bool has_scale = how == Scaling::unit || how == Scaling::delayed || how == Scaling::current;
                CHECK(std::isnan(s.scale) == !has_scale);
                if (has_scale) CHECK((float)s.scale == t.quantizer->copies[(int)k].factors->scale);
                if (how == Scaling::delayed && what.ends_with(" x")) CHECK(s.saturation > 1);
            };
        }
        d.step(1);
        CHECK(watched == 3);
    }
}
TEST_CASE("hybrid and mxfp8 keep less of a linear's input than bf16, and nothing else more") {
    auto bytes = [](const string& arm) {
        Model g({4, 4, 128, 64, 256}, 12, arm);
        return g.arena.bytes;
    };
    auto bf16 = bytes("bf16");
    for (const char* arm : {"hybrid", "e4m3", "current", "unit"}) {
        auto b = bytes(arm);
        INFO(string(arm));
        const char *inputs = "saved inputs of linears", *saved = "saved activations";
        CHECK((double)b[inputs] <= 0.52 * (double)bf16[inputs]);
        CHECK((double)(b[inputs] + b[saved]) <= 0.86 * (double)(bf16[inputs] + bf16[saved]));
        for (const char* same : {"master weights", "weight operands", "gradients", "optimizer moments", "logits"})
            CHECK(b[same] == bf16[same]);
        CHECK(b["weight codes"] >= 4 * 12 * 128 * 128);
    }
    // half a byte, and an eighth of a byte for scales, for every element of a copy along tokens; but att is kept
    CHECK((double)bytes("nvfp4")["saved inputs of linears"] <= 0.3 * (double)bf16["saved inputs of linears"]);
    CHECK((double)bytes("mxfp8")["saved inputs of linears"] <= 0.53 * (double)bf16["saved inputs of linears"]);
    auto fp4 = bytes("mxfp4:scaling=current"); // two copies of half a byte
    CHECK(fp4["weight codes"] <= bytes("current")["weight codes"]);
    CHECK((double)fp4["saved inputs of linears"] <= 0.27 * (double)bf16["saved inputs of linears"]);
    CHECK(bytes("bf16+hybrid@5")["scales"] >= 4 * 4 * 3 * 1024 * sizeof(float)); // records from the first step on
    CHECK(bytes("bf16")["scales"] == 0);
    CHECK(bytes("mxfp8")["scales"] < 100000);
}

} // namespace
