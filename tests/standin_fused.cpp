// Casts fused to their producers return the bits of the row functions, one after the other; and a whole training step of
// every recipe, as cards of four families run it, those of the CPU.
#include "close.h"
#include "drive.h"
#include "lab/keys.cuh"
#include "standin.h"
#include "model.cuh"

namespace {
using Acts = std::vector<act>;
using Reals = std::vector<real>;
struct Codes { // what a sink fills: garbage before
    std::vector<uint8_t> codes, transposed;
    std::vector<float> factors, amax;
    Reals sums, partial;
    Codes(int R, int C)
        : codes(R * code_ld(E4M3, C), 0xab), transposed(C * code_ld(E4M3, R), 0xab), factors(2, -1), amax(1, 0.25f),
          sums(C, 0.5f), partial(partial_size(R, C), NAN) {}
    Sink sink(Format f, const float* scale, int R, int C) {
        return {codes.data(),
                transposed.data(),
                code_ld(f, C),
                code_ld(f, R),
                f,
                scale,
                factors.data(),
                amax.data(),
                true,
                sums.data(),
                partial.data() + partial_size(R, C) - (size_t)panels(R) * C};
    }
    void check(const Codes& want) const {
        CHECK(codes == want.codes);
        CHECK(transposed == want.transposed);
        CHECK(factors == want.factors);
        CHECK(amax == want.amax);
        check_same_bits("sums", sums, want.sums);
    }
};
Codes unfused(const Acts& x, Format f, const float* scale, int R, int C) {
    Codes c(R, C);
    Cast cast = {.elem = f, .scaling = Scaling::delayed};
    cast_tensor(c.codes.data(), c.amax.data(), x.data(), scale, cast, false, R, C);
    transpose_codes(c.transposed.data(), c.codes.data(), f, R, C);
    c.factors = {1 / *scale, *scale};
    bias_backward(c.sums.data(), x.data(), c.partial.data(), R, C);
    return c;
}
// op(y, sink), y (R, C), which starts as `before`: with sinks of all kinds the same as without one and a cast afterwards.
template <class Op> void check_fused(const char* what, Op op, const Acts& before, Format f, int R, int C, bool writes) {
    INFO(std::string(what), " ", R, " x ", C, ", ", f.name);
    const std::vector<float> scales(1, 3.7f);
    const float* scale = scales.data();
    Acts y = before;
    op(y, Sink());
    Codes want = unfused(y, f, scale, R, C);
    in_every_order([&](Order o) {
        for (bool keeps : {true, false}) {
            if (o != orders[0] && keeps == (o == orders[1])) continue;
            Acts z = before;
            Codes got(R, C);
            Sink all = got.sink(f, scale, R, C);
            all.keeps = keeps;
            op(z, all);
            got.check(want);
            if (keeps) check_same_bits("BF16", z, y);
        }
        if (o != orders[0]) return;
        Codes got(R, C), untouched(R, C);
        Sink alone = got.sink(f, scale, R, C); // codes alone: nothing else is touched
        alone.keeps = false, alone.transposed = nullptr, alone.amax = nullptr, alone.sums = nullptr;
        Acts kept = before;
        op(kept, alone);
        CHECK(got.codes == want.codes);
        CHECK(got.transposed == untouched.transposed);
        CHECK(got.amax == untouched.amax);
        if (!writes) check_same_bits("BF16, not asked for", kept, before);
    });
}
} // namespace

TEST_CASE("fused casts: codes, transposed codes, amax, sums of columns and BF16 are those of the unfused pair") {
    OnCard card(90);
    for (auto [rows, cols] : {std::pair(1, 1), {3, 5}, {64, 64}, {65, 36}, {130, 132}, {31, 200}, {70, 63}})
        for (Format f : {E4M3, E5M2}) {
            const int R = rows, C = cols;
            const size_t n = (size_t)R * C;
            Acts x = normals<act>(n, 1), dy = normals<act>(n, 2), dx0 = normals<act>(n, 3);
            x[n / 2] = act(NAN), dy[n / 3] = act(INFINITY);
            const Reals w = normals<real>(C, 4), b = normals<real>(C, 5);
            auto test = [&](const char* what, auto op, bool writes = false) {
                check_fused(what, op, dx0, f, R, C, writes);
            };
            test("gelu", [&](Acts& y, Sink s) { gelu_forward(y.data(), x.data(), R, C, s); });
            test("gelu_backward", [&](Acts& y, Sink s) { gelu_backward(y.data(), dy.data(), x.data(), R, C, s); });
            Reals mean(R), rstd(R);
            test("layernorm", [&](Acts& y, Sink s) {
                std::fill(mean.begin(), mean.end(), NAN), std::fill(rstd.begin(), rstd.end(), NAN);
                layernorm_forward(y.data(), mean.data(), rstd.data(), x.data(), w.data(), b.data(), R, C, s);
            });
            test(
                "layernorm_backward",
                [&](Acts& y, Sink s) {
                    Reals dw(C), db(C), partial(partial_size(R, C), NAN);
                    layernorm_backward(y.data(), dw.data(), db.data(), dy.data(), x.data(), mean.data(), rstd.data(),
                                       w.data(), partial.data(), R, C, s);
                },
                true);
        }
}
TEST_CASE("fused casts of attention's output and of its gradient, whatever divides a tile and a panel") {
    OnCard card(90);
    for (Heads d : {Heads{1, 1, 1, 32},
                    {2, 17, 2, 64},
                    {1, 63, 1, 40},
                    {1, 130, 1, 64},
                    {1, 128, 2, 64},
                    {3, 64, 1, 24},
                    {1, 64, 1, 96},
                    {1, 192, 1, 8},
                    {1, 67, 1, 128},
                    {1, 128, 1, 128},
                    {2, 80, 1, 32},
                    {1, 9, 1, 12}})
        for (Format f : {E4M3, E5M2}) {
            if (f == E4M3 && d.HS != 32 && d.HS != 24) continue;
            INFO("B ", d.B, " T ", d.T, " NH ", d.NH, " HS ", d.HS);
            const int N = d.B * d.T, C = (int)d.C();
            const size_t n = (size_t)N * C, square = attention_scratch(d);
            const Acts qkv = normals<act>(3 * n, 1), dout = normals<act>(n, 2), before = normals<act>(3 * n, 3);
            Acts bad = qkv, o(n), p(square), ds(square);
            Reals lse(d.rows()), s(square), dp(square);
            bad[2 * C + 1] = act(NAN), bad[3 * n - 1] = act(INFINITY); // of v, of the first and of the last token
            AttentionScratch scratch = {s.data(), dp.data(), p.data(), ds.data()};
            attention_forward(o.data(), lse.data(), qkv.data(), scratch, d);
            auto forward = [&](const Acts& qkv) {
                return [&](Acts& y, Sink s) {
                    Reals lse(d.rows(), NAN);
                    attention_forward(y.data(), lse.data(), qkv.data(), scratch, d, s);
                };
            };
            check_fused("attention", forward(qkv), Acts(before.begin(), before.begin() + n), f, N, C, d.HS == 12);
            check_fused("with NaN", forward(bad), Acts(before.begin(), before.begin() + n), f, N, C, d.HS == 12);
            check_fused(
                "backward",
                [&](Acts& y, Sink s) {
                    attention_backward(y.data(), dout.data(), qkv.data(), o.data(), lse.data(), scratch, d, s);
                },
                before, f, N, 3 * C, d.HS == 12);
        }
}

namespace {
struct Trained {
    Reals losses, gradients, state; // gradients of the first step; at the end weights, gradients, scales
};
// Two steps of two microbatches, in all linears; the second in another recipe if there is a next one.
Trained train_twice(const Config& config, const Recipe& r, const Recipe* next = nullptr, bool fuses = true) {
    const int B = 2, T = config.seq_len, N = B * T;
    std::vector<int> tokens(N), targets(N);
    for (int i = 0; i < N; i++) tokens[i] = i * i % config.vocab, targets[i] = i == 2 ? -1 : i * 3 % config.vocab;
    GPT g;
    std::vector<RecipeStage> stages = {{0, r, std::vector<bool>(4 * config.layers + 1)}};
    if (next) stages.push_back({2, *next, stages[0].skip});
    allocate(g, config, Use::training, B, T, stages);
    initialise(g, 3);
    for_each_linear(g, [&](const std::string&, Linear& l) { // where somebody looks on, producers cast nothing
        for (Quantizer* q : {&l.x, &l.w, &l.dy})
            if (!fuses) q->watch = [](const Tensor&) {};
    });
    Trained all;
    for (int t = 1; t <= 2; t++) {
        if (t == 2 && next) set_stage(g, 1);
        for (int micro = 0; micro < 2; micro++) {
            g.pass = {true, 7, (uint64_t)t, (uint64_t)micro};
            set_batch(g, tokens, targets);
            all.losses.push_back((real)gpt_forward(g, B, T, 0.5f / N));
            gpt_backward(g, B, T);
        }
        all.losses.push_back((real)gradient_norm(g, 1));
        if (t == 1)
            for_each_param(g, [&](const std::string&, Param& p) {
                all.gradients.insert(all.gradients.end(), p.grad, p.grad + p.size());
            });
        update(g, t, 1e-4, 0.1);
    }
    synchronize("test");
    for_each_param(g, [&](const std::string&, Param& p) {
        all.state.insert(all.state.end(), p.w, p.w + p.size());
        all.state.insert(all.state.end(), p.grad, p.grad + p.size());
    });
    for (int i = 0; i < g.all_delayed; i++) all.state.push_back(g.delayed[i].scale);
    release(g);
    return all;
}
} // namespace
TEST_CASE("all of a step but GEMMs and attention returns the CPU's bits, for every recipe and every layout of copies") {
    const Config config{1, 2, 16, 20, 24}; // 40 tokens: copies along them are padded
    for (const Recipe& r : recipes) {
        machine.kernels = Kernels::reference;
        Trained want = train_twice(config, r);
        machine.kernels = Kernels::fast;
        for (int cc : {90, 100, 120}) {
            OnCard card(cc);
            machine.tensor_cores = false;
            INFO(r.name, " on sm_", cc);
            Trained got = train_twice(config, r);
            machine.tensor_cores = true;
            check_same_bits("losses", got.losses, want.losses), check_same_bits("state", got.state, want.state);
        }
    }
}
TEST_CASE(
    "a training step with all its fusions, attention's too, returns the bits of one without any, for every recipe") {
    for (const Config& config : {Config{1, 2, 32, 64, 24}, {1, 1, 40, 23, 51}})
        for (const Recipe& r : recipes)
            for (int cc : {90, 100, 120}) {
                bool hybrid = r.name == "hybrid";
                if (!is_per_tensor(r.x) || (!hybrid && (cc > 90 || config.channels == 40))) continue;
                OnCard card(cc);
                INFO(r.name, " on sm_", cc, ", ", config.channels, " channels");
                long before = machine.launches;
                Trained want = train_twice(config, r, nullptr, false);
                long middle = machine.launches;
                Trained got = train_twice(config, r);
                if (r.x.scaling != Scaling::current) CHECK(machine.launches - middle < middle - before);
                check_same_bits("losses", got.losses, want.losses), check_same_bits("state", got.state, want.state);
            }
}
namespace {
// All that may happen to a weight between its update and its next cast. Returns losses, weights, scales, histories.
Reals journey(const Recipe& r, const Recipe& next, bool fuses, long& weight_casts) {
    const Config config{1, 1, 24, 11, 36};
    const int B = 1, T = config.seq_len;
    std::vector<int> tokens(T), targets(T);
    for (int i = 0; i < T; i++) tokens[i] = i * i % config.vocab, targets[i] = i * 3 % config.vocab;
    Reals all;
    GPT one, two;
    for (GPT* g : {&one, &two})
        allocate(*g, config, Use::training, B, T, {{0, r, std::vector<bool>(5)}, {5, next, {}}}), initialise(*g, 3);
    GPT* g = &one;
    weight_casts = 0;
    auto watch = [&](bool on) {
        for_each_linear(*g, [&](const std::string&, Linear& l) {
            l.w.watch = on ? [&](const Tensor&) { weight_casts++; } : std::function<void(const Tensor&)>();
        });
    };
    auto forward = [&](int t, int micro, bool training) {
        g->pass = {training, 7, (uint64_t)t, (uint64_t)micro};
        set_batch(*g, tokens, targets);
        all.push_back((real)gpt_forward(*g, B, T, training ? 0.5f / T : 0));
        if (training) gpt_backward(*g, B, T);
    };
    for (int t = 1; t <= 8; t++) {
        watch(!fuses || t == 3);                              // somebody looks on
        if (t == 2) forward(t, 0, true), forward(t, 1, true); // and once more, from the same weights
        if (t == 4) forget_scales(*g);
        if (t == 5) set_stage(*g, 1);
        if (t == 6) { // goes on from what a checkpoint holds, and back to the first stage
            set_stage(two, 1);
            std::vector<Param*> from;
            for_each_param(one, [&](const std::string&, Param& p) { from.push_back(&p); });
            for_each_param(two, [&, i = 0](const std::string&, Param& p) mutable {
                for (auto m : {&Param::w, &Param::m, &Param::v}) std::copy_n(from[i]->*m, p.size(), p.*m);
                i++;
            });
            publish(two);
            std::copy_n(one.delayed, one.all_delayed, two.delayed);
            for (int i = 0; i < one.all_delayed; i++) two.delayed[i].last = 0;
            std::copy_n(one.history, (size_t)one.all_delayed * one.history_len, two.history);
            g = &two, watch(!fuses), set_stage(two, 0);
        }
        for (int micro = 0; micro < 2; micro++) forward(t, micro, true);
        watch(!fuses);
        if (t == 6) forward(t, 0, false);                  // a pass that records nothing comes before the update
        if (t < 3) gradient_norm(*g, 1, t == 1 ? 1 : 128); // of a loss scale
        else gradient_norm(*g, 1);
        g->result->bad = t == 7; // nothing is updated
        update(*g, t, 1e-2, 0.1);
        if (t != 3) forward(t, 0, false); // an evaluation
        if (t == 5) forward(t, 1, false);
        if (t == 8) publish(*g), forward(t, 0, true);
    }
    synchronize("test");
    for_each_param(two, [&](const std::string&, Param& p) { all.insert(all.end(), p.w, p.w + p.size()); });
    for (int i = 0; i < two.all_delayed; i++) all.push_back(two.delayed[i].scale);
    all.insert(all.end(), two.history, two.history + (size_t)two.all_delayed * two.history_len);
    release(one), release(two);
    return all;
}
} // namespace
TEST_CASE("weights cast by their update: scales, histories, losses are those of casts in the next forward pass") {
    auto row = [](const std::string& name) { return resolve(name, {}); };
    const Recipe hybrid = resolve("hybrid", {{"amax_history_len", "5"}}),
                 e5m2 = resolve("hybrid", {{"w.format", "e5m2"},
                                           {"x.format", "e4m3"},
                                           {"dy.format", "e4m3"},
                                           {"amax_history_len", "3"},
                                           {"margin", "1"}});
    for (auto [first, then] : {std::pair(hybrid, e5m2), {row("unit"), hybrid}, {hybrid, row("bf16")}})
        for (int cc : {90, 100}) {
            const Recipe &r = first, &next = then;
            if (cc > 90 && (r.name != "hybrid" || next.name != "hybrid")) continue;
            OnCard card(cc);
            INFO(r.name, ", then ", next.name, " on sm_", cc);
            long casts, unfused;
            Reals want = journey(r, next, false, unfused), got = journey(r, next, true, casts);
            check_same_bits("the journey", got, want);
            CHECK(casts == 5); // in step 3: each weight of five linears, in the first of its microbatches
        }
    // Nothing casts a weight that its update has cast; those that were published are cast, one for each linear.
    OnCard card(90);
    GPT g;
    allocate(g, {1, 1, 24, 11, 36}, Use::training, 1, 11, {{0, hybrid, std::vector<bool>(5)}});
    initialise(g, 3), set_batch(g, std::vector<int>(11, 1), std::vector<int>(11, 2));
    long launches[4];
    for (int t = 1; t <= 3; t++) {
        if (t == 3) publish(g);
        g.pass = {true, 7, (uint64_t)t, 0};
        long before = machine.launches;
        gpt_forward(g, 1, 11, 1), gpt_backward(g, 1, 11), launches[t] = machine.launches - before;
        gradient_norm(g), update(g, t, 1e-2, 0.1);
        for_each_linear(g, [](const std::string&, Linear& l) { CHECK(l.w.fresh); });
    }
    CHECK(launches[2] == launches[3] - 5);
    release(g);
}
TEST_CASE("amaxes are recorded for a delayed recipe to come, whatever casts before it, fused or not") {
    const Config config{1, 2, 16, 20, 24};
    auto row = [](const std::string& name) {
        return *std::find_if(recipes.begin(), recipes.end(), [&](auto& r) { return r.name == name; });
    };
    Recipe hybrid = row("hybrid");
    for (std::string first : {"bf16", "unit", "current", "mxfp8"}) {
        machine.kernels = Kernels::reference;
        Trained want = train_twice(config, row(first), &hybrid);
        machine.kernels = Kernels::fast;
        OnCard card(90);
        machine.tensor_cores = false;
        INFO(first, ", then hybrid");
        Trained got = train_twice(config, row(first), &hybrid);
        machine.tensor_cores = true;
        check_same_bits("losses", got.losses, want.losses), check_same_bits("state", got.state, want.state);
    }
}
TEST_CASE(
    "the head in chunks: the losses and dlnf of whole logits, to the bit; wte's gradient but for the order of sums") {
    const Config config{1, 2, 16, 100, 131};
    const int B = 3, T = config.seq_len, N = B * T, C = config.channels, V = config.vocab;
    struct Head {
        Reals losses, grad;
        Acts dlnf, dlogits, lnf;
        int chunk;
        size_t logits;
    };
    auto pass = [&](size_t most, Use use) { // two microbatches, the second shorter
        std::swap(most, most_logits);
        GPT g;
        allocate(g, config, use, B, T);
        std::swap(most, most_logits);
        initialise(g, 3);
        Head h;
        h.chunk = g.chunk, h.logits = g.arena.bytes["logits"];
        if (use != Use::inference) std::fill(g.wte.grad, g.wte.grad + g.wte.size(), NAN);
        for (int micro = 0; micro < 2; micro++) {
            int n = N - micro * T;
            std::vector<int> tokens(n), targets(n);
            for (int i = 0; i < n; i++) tokens[i] = i * i % V, targets[i] = i == 2 ? -1 : (i + micro) * 3 % V;
            g.pass = {use == Use::training, 7, 1, (uint64_t)micro};
            set_batch(g, tokens, targets);
            std::fill(g.losses, g.losses + N, 0);
            h.losses.push_back((real)gpt_forward(g, n / T, T, use == Use::inference ? 0 : 8.0f / N));
            h.losses.insert(h.losses.end(), g.losses, g.losses + n);
            if (use == Use::inference) continue;
            h.dlnf.insert(h.dlnf.end(), g.dbranch, g.dbranch + (size_t)n * C);
            h.lnf.insert(h.lnf.end(), g.lnf, g.lnf + (size_t)n * C);
            h.dlogits.insert(h.dlogits.end(), g.logits, g.logits + (size_t)std::min(n, g.chunk) * V);
        }
        if (use != Use::inference) h.grad.assign(g.wte.grad, g.wte.grad + g.wte.size());
        release(g);
        return h;
    };
    OnCard card(90);
    for (bool tensor_cores : {true, false}) {
        machine.tensor_cores = tensor_cores;
        Head whole = pass(most_logits, Use::training), parts = pass(1, Use::training);
        CHECK(whole.chunk == N);
        CHECK(parts.chunk == 128); // 128, 128, 44; then 128, 72
        CHECK(parts.logits == (128 * V * sizeof(act) + 255) / 256 * 256);
        check_same_bits("losses", parts.losses, whole.losses), check_same_bits("dlnf", parts.dlnf, whole.dlnf);
        check_same_bits("losses of an evaluation", pass(1, Use::inference).losses, whole.losses);
        // A sum of n products, exact in FP32, passes n roundings in any order, and that of 5 chunks one more for each.
        const double u = 0x1p-24, n = 2 * N - T, part = (n + 5) * u / (1 - (n + 5) * u);
        std::vector<double> bound(whole.grad.size());
        for (int i = 0; i < n; i++)
            for (int v = 0; v < V; v++)
                for (int c = 0; c < C; c++)
                    bound[v * C + c] += 2 * part * std::fabs((double)whole.dlogits[i * V + v] * whole.lnf[i * C + c]);
        check_close("wte's gradient", parts.grad, whole.grad, bound);
    }
    machine.tensor_cores = true;
    // Where a stage casts the head, and on the CPU, all rows are one chunk.
    auto chunk_of = [&](std::vector<RecipeStage> stages) {
        size_t most = std::exchange(most_logits, 1);
        GPT g;
        g.config = config, g.use = Use::training, g.B = B, g.T = T, g.stages = stages;
        shape_params(g), plan(g);
        most_logits = most;
        return g.chunk;
    };
    for (const Recipe& r : recipes) {
        std::vector<bool> none(5);
        bool casts = any_quantized(r);
        CHECK(chunk_of({{0, r, {}}}) == 128);
        CHECK(chunk_of({{0, r, none}}) == (casts ? N : 128));
        CHECK(chunk_of({{0, recipes[0], {}}, {9, r, none}}) == (casts ? N : 128));
    }
    machine.gpu = false;
    CHECK(chunk_of(bf16_only) == N);
    machine.gpu = true;
}
// Sums in another order, and P rounded before it is divided by its sum, move a BF16 by about its rounding, 2^-9 of it. Of
// elements with m mantissa bits, 2^-m apart, a share of 2^(m - 9) then falls to the other side of a tie, which moves them
// by 2^-m: in the mean 2^-m * sqrt(2^(m - 9)) = 2^-((m + 9) / 2) of a tensor's norm; for BF16 itself, m = 7, that is its
// rounding once more. A gradient goes through several casts, one after the other: twice that.
TEST_CASE("training steps of every recipe, native or emulated as each family of cards does, are the CPU's but for "
          "roundings") {
    for (const Config& config : {Config{1, 2, 32, 20, 48}, {1, 1, 40, 23, 51}}) // the other: nothing divides anything
        for (const Recipe& r : recipes) {
            Trained want = train_twice(config, r);
            int mbits = 7;
            for (const Cast* c : {&r.x, &r.w, &r.dy})
                if (is_quantized(*c)) mbits = std::min(mbits, c->elem.mbits);
            for (int cc : {80, 90, 100, 120}) {
                if (config.channels == 40 ? cc != 100 : cc == 120 && is_per_tensor(r.x)) continue; // as sm_90 does
                OnCard card(cc);
                INFO(r.name, " on sm_", cc, ", ", config.channels, " channels");
                long before = native.gemms;
                Trained got = train_twice(config, r);
                double off = 0, norm = 0;
                for (size_t i = 0; i < want.gradients.size(); i++)
                    off += pow(got.gradients[i] - want.gradients[i], 2), norm += pow(want.gradients[i], 2);
                double one = pow(2, -(mbits + 9) / 2.0); // a cast's share
                CHECK(sqrt(off / norm) < 2 * one);
                CHECK(std::fabs(got.losses[0] - want.losses[0]) < 1e-3);
                for (size_t i = 0; i < want.losses.size(); i++)
                    CHECK(std::fabs(got.losses[i] - want.losses[i]) < 2 * one * std::fabs(want.losses[i]));
                bool any = native.gemms > before;
                bool takes = r.x.block.cols == 128 ? cc == 90 : cc >= (is_per_tensor(r.x) ? 89 : 100);
                takes &= is_quantized(r.x);
                if (machine.cc == cc) CHECK((config.channels == 32 ? any == takes : any <= takes));
            }
        }
}
