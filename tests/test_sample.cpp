// Sampling: a cache of keys and values changes no bit of a logit and no token, in any format; how a token is drawn; what
// a window does when it is full.
#include "close.h"
#include "lab/harness.cuh"
#include <algorithm>

namespace { // test files share one program

using Acts = std::vector<act>;
using Reals = std::vector<real>;
const Kernels all_kernels[] = {Kernels::reference, Kernels::portable, Kernels::fast};
const Format formats[] = {BF16, E4M3, E5M2};

struct UseKernels { // while it lives
    explicit UseKernels(Kernels k) { machine.kernels = k; }
    ~UseKernels() { machine.kernels = Kernels::fast; }
};
// A model whose attention is far from uniform, and keys and values beyond what E4M3 holds, above and below.
struct Model {
    GPT g;
    explicit Model(Config c, Format kv = BF16, int T = 0) {
        allocate(g, c, Use::inference, 1, T ? T : c.seq_len);
        initialise(g, 3);
        for_each_param(g, [&](const std::string& name, Param& p) {
            for (size_t i = 0; i < p.size(); i++)
                if (p.rows) p.w[i] *= 8;
                else if (name.ends_with("c_attn.bias"))
                    p.w[i] = i % 7 ? 0.3f * (real)random_normal(9, i) : i % 2 ? 900 : 1e-4f;
        });
        publish(g);
        g.kv = kv;
    }
    ~Model() { release(g); }
    Model(const Model&) = delete;
};
struct Cached : KvCache {
    explicit Cached(const GPT& g) { allocate(*this, g.kv, g.config.layers, g.T, g.config.channels); }
    ~Cached() { release(*this); }
    Cached(const Cached&) = delete;
};
std::vector<int> some_tokens(size_t n, int V, uint64_t seed = 5) {
    std::vector<int> t(n);
    for (size_t i = 0; i < n; i++) t[i] = (int)(random_bits(seed, i) % (uint64_t)V);
    return t;
}
Acts logits_after(GPT& g, const std::vector<int>& tokens, KvCache* cache) {
    std::copy(tokens.begin(), tokens.end(), g.tokens);
    std::fill(g.logits, g.logits + g.config.vocab, act(NAN));
    gpt_next(g, (int)tokens.size(), cache);
    return Acts(g.logits, g.logits + g.config.vocab);
}
const Config configs[] = {{2, 3, 15, 17, 23}, {3, 2, 66, 70, 130}, {1, 1, 1, 5, 3}, {2, 4, 128, 64, 256}};

TEST_CASE("attention: queries behind a cache find the whole's bits, however the tokens arrive") {
    for (Heads d : {Heads{1, 5, 2, 3}, {1, 65, 3, 9}, {1, 130, 2, 7}, {1, 200, 1, 64}, {1, 140, 2, 33}})
        for (Kernels kernels : all_kernels)
            for (Format f : formats) {
                UseKernels use(kernels);
                INFO("T ", d.T, " NH ", d.NH, " HS ", d.HS, " kernels ", (int)kernels, " ", f.name);
                size_t C = d.C(), n = d.T * C, square = d.rows() * d.T;
                Acts qkv = normals<act>(3 * n, 1, 2), o(n), p(square);
                Reals lse(d.rows()), s(square);
                AttentionScratch scratch = {s.data(), nullptr, p.data(), nullptr};
                round_keys_values(qkv.data(), f, d);
                attention_forward(o.data(), lse.data(), qkv.data(), scratch, d);
                for (int step : {1, 3, 64, 70}) {
                    KvCache cache;
                    allocate(cache, f, 2, d.T + 3, (int)C);
                    Acts got(n, act(NAN));
                    Reals lse_got(d.rows(), NAN);
                    for (int t = 0; t < d.T; t += step) {
                        int T = std::min(step, d.T - t);
                        attention_forward(&got[t * C], lse_got.data(), &qkv[t * 3 * C], cache, 1, scratch,
                                          {1, T, d.NH, d.HS, t});
                        for (int h = 0; h < d.NH; h++)
                            for (int i = 0; i < T; i++) REQUIRE(lse_got[h * T + i] == lse[h * d.T + t + i]);
                    }
                    check_same_bits("o", got, o);
                    release(cache);
                }
            }
}
TEST_CASE("attention: a cache refuses tokens that it has no room for") {
    KvCache cache;
    allocate(cache, BF16, 1, 4, 6);
    CHECK_THROWS_AS(attention_forward(nullptr, nullptr, nullptr, cache, 0, {}, {1, 2, 2, 3, 3}), Error);
    CHECK_THROWS_AS(attention_forward(nullptr, nullptr, nullptr, cache, 0, {}, {2, 1, 2, 3, 0}), Error);
    CHECK_THROWS_AS(allocate(cache, E8M0, 1, 4, 6), Error);
    release(cache);
}
TEST_CASE("sampling: logits with a cache, without one, and in a whole forward pass are the same bits, every position") {
    for (Config c : configs)
        for (Format f : formats)
            for (Kernels kernels : all_kernels) {
                if (kernels == Kernels::reference && c.channels > 20) continue; // slow on purpose
                UseKernels use(kernels);
                INFO("C ", c.channels, " T ", c.seq_len, " ", f.name, " kernels ", (int)kernels);
                Model m(c, f);
                GPT& g = m.g;
                Cached cache(g);
                const int T = c.seq_len, V = c.vocab;
                std::vector<int> tokens = some_tokens(T, V);
                std::copy(tokens.begin(), tokens.end(), g.tokens);
                std::fill(g.targets, g.targets + T, -1);
                gpt_forward(g, 1, T);
                Acts whole(g.logits, g.logits + (size_t)T * V);
                for (act x : whole) REQUIRE(std::isfinite((float)x));
                for (int first : {1, T / 2 + 1}) {
                    cache.past = 0;
                    for (int done = 0, n; done < T; done += n) { // a prompt of `first`, then one by one
                        n = done ? 1 : first;
                        auto at = tokens.begin() + done;
                        Acts cached = logits_after(g, std::vector<int>(at, at + n), &cache);
                        CHECK(cache.past == done + n);
                        size_t row = (size_t)(done + n - 1) * V;
                        check_same_bits("cached", cached, Acts(whole.begin() + row, whole.begin() + row + V));
                        if (done % 17 == 1)
                            check_same_bits("recomputed",
                                            logits_after(g, std::vector<int>(tokens.begin(), at + n), nullptr), cached);
                    }
                }
            }
}
TEST_CASE("sampling: with a cache and without, token for token; formats, prompts, windows that run full") {
    for (Config c : {configs[0], configs[2], Config{2, 3, 33, 34, 100}})
        for (Format f : formats)
            for (Kernels kernels : {Kernels::portable, Kernels::fast}) {
                UseKernels use(kernels);
                Model m(c, f);
                Cached cache(m.g);
                for (int prompt : {1, c.seq_len, 2 * c.seq_len + 3}) {
                    INFO("C ", c.channels, " ", f.name, " kernels ", (int)kernels, " prompt ", prompt);
                    std::vector<int> text = some_tokens(prompt, c.vocab);
                    Draw draw = {1.3, 0, 0.9, 4};
                    const int count = 2 * c.seq_len;
                    std::vector<int> with = sample_tokens(m.g, text, count, draw, &cache);
                    CHECK(with == sample_tokens(m.g, text, count, draw));
                    CHECK(with.size() == text.size() + count);
                    CHECK(std::equal(text.begin(), text.end(), with.begin()));
                }
            }
}
TEST_CASE("sampling: a window that is full starts again with the last half of the text") {
    for (auto size : {std::pair(12, 8), {9, 9}, {4, 1}, {4, 2}})
        for (int prompt : {1, 7, 30}) {
            const int T = size.second;
            Model m({2, 2, 12, size.first, 40}, BF16, T);
            Cached cache(m.g);
            std::vector<int> text = some_tokens(prompt, 40),
                             got = sample_tokens(m.g, text, 25, {.temperature = 0}, &cache);
            int seen = std::min(prompt, T); // tokens that the model sees
            for (int i = 0; i < 25; i++) {
                if (seen > T) seen = std::max(T / 2, 1);
                Acts logits = logits_after(m.g, std::vector<int>(text.end() - seen, text.end()), nullptr);
                int best = 0;
                for (int v = 1; v < 40; v++)
                    if ((real)logits[v] > (real)logits[best]) best = v;
                text.push_back(best), seen++;
            }
            INFO("T ", T, " prompt ", prompt);
            CHECK(got == text);
        }
}
TEST_CASE("sampling: an FP8 cache takes half the bytes of BF16's, which are 2 L T C elements") {
    Model m({3, 2, 10, 7, 5});
    KvCache caches[3];
    for (int i = 0; i < 3; i++) allocate(caches[i], formats[i], 3, 7, 10);
    CHECK(caches[0].bytes == 2 * 3 * 7 * 10 * 2);
    CHECK(2 * caches[1].bytes == caches[0].bytes);
    CHECK(2 * caches[2].bytes == caches[0].bytes);
    for (auto& c : caches) release(c);
}
TEST_CASE("a format of keys and values rounds k and v to the nearest of its numbers, saturating, and leaves q alone") {
    Config c = {1, 2, 34, 20, 30};
    Model plain(c);
    std::vector<int> tokens = some_tokens(20, 30);
    auto qkv = [&](GPT& g) {
        std::copy(tokens.begin(), tokens.end(), g.tokens), std::fill(g.targets, g.targets + 20, -1);
        gpt_forward(g, 1, 20);
        return Acts(g.blocks[0].qkv, g.blocks[0].qkv + 20 * 3 * 34);
    };
    Acts from = qkv(plain.g);
    for (Format f : {E4M3, E5M2}) {
        Model m(c, f);
        Acts got = qkv(m.g), want = from;
        int saturated = 0;
        for (size_t i = 0; i < want.size(); i++) {
            if (i % (3 * 34) < 34) continue;
            float x = want[i], best = 0; // the nearest, by trying them all; ties are for tests of encode()
            for (uint32_t code = 0; code < 256; code++) {
                float v = decode(f, code);
                if (std::isfinite(v) && std::fabs(v - x) < std::fabs(best - x)) best = v;
            }
            REQUIRE(std::fabs((float)got[i] - x) == std::fabs(best - x));
            saturated += std::fabs(x) > f.max, want[i] = got[i];
        }
        check_same_bits("q", got, want);
        CHECK((saturated > 0) == (f == E4M3)); // biases of 900
    }
}

// As the comment on Draw says it, in the plainest way.
int naive_draw(const std::vector<double>& logits, Draw d, double u) {
    std::vector<int> order(logits.size());
    for (size_t i = 0; i < order.size(); i++) order[i] = (int)i;
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    if (d.temperature == 0) return order[0];
    if (d.top_k > 0 && (size_t)d.top_k < order.size()) order.resize(d.top_k);
    std::vector<double> p;
    double sum = 0, kept = 0;
    for (int v : order) p.push_back(exp((logits[v] - logits[order[0]]) / d.temperature)), sum += p.back();
    size_t n = 0;
    while (n < p.size() && (n == 0 || kept < d.top_p * sum || d.top_p == 1)) kept += p[n++];
    double at = 0;
    for (size_t k = 0; k < n; k++)
        if ((at += p[k]) > u * kept) return order[k];
    return order[n - 1];
}
TEST_CASE("draw_token: temperature, top-k, then top-p, by the definition") {
    // Weights are powers of two, so that sums are exact and shares such as 1/2 are reached exactly: 1/2, 1/4, ..
    const double ln2 = 0.693147180559945309417;
    std::vector<double> halves = {-3 * ln2, -1 * ln2, -2 * ln2, -3 * ln2};
    for (int i = 0; i < 8; i++) {
        double u = (i + 0.5) / 8;
        CHECK(draw_token(halves, {1, 0, 1}, u) == std::vector{1, 1, 1, 1, 2, 2, 0, 3}[i]);
        CHECK(draw_token(halves, {1, 0, 0.4999}, u) == 1);
        CHECK(draw_token(halves, {1, 0, 0.5001}, u) == (u < 2.0 / 3 ? 1 : 2));
        CHECK(draw_token(halves, {1, 0, 0.76}, u) == (u < 4.0 / 7 ? 1 : u < 6.0 / 7 ? 2 : 0));
        CHECK(draw_token(halves, {1, 0, 0}, u) == 1);
        CHECK(draw_token(halves, {0, 0, 1}, u) == 1);
        CHECK(draw_token(halves, {1, 1, 1}, u) == 1);
        CHECK(draw_token(halves, {1, 3, 1}, u) == (u < 4.0 / 7 ? 1 : u < 6.0 / 7 ? 2 : 0)); // of equals the smaller
        CHECK(draw_token(halves, {1, 2, 0.66}, u) == 1);                                    // 2/3 of the two
    }
    for (int V : {1, 2, 63, 64, 65, 300, 1100})
        for (int shape = 0; shape < 3; shape++) {
            std::vector<double> logits(V);
            for (int v = 0; v < V; v++) // peaked; flat; full of ties
                logits[v] = shape == 2 ? (double)(random_bits(2, v) % 4) : (shape ? 0.01 : 4) * random_normal(1, v);
            for (double temperature : {0.0, 0.7, 2.0})
                for (int top_k : {0, 1, 50, 65, 1000, 9999})
                    for (double top_p : {0.0, 0.1, 0.5, 0.9, 0.999, 1.0})
                        for (int i = 0; i < 4; i++) {
                            double u = i < 3 ? random_uniform(7, i) : 0.9999; // sums differ in their last bits
                            Draw d = {temperature, top_k, top_p};
                            INFO("V ", V, " shape ", shape, " temperature ", temperature, " k ", top_k, " p ", top_p);
                            REQUIRE(draw_token(logits, d, u) == naive_draw(logits, d, u));
                        }
        }
}

} // namespace
