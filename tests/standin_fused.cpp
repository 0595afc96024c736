// Casts fused to their producers return the bits of the row functions, one after the other; and a whole training step of
// every recipe, as cards of four families run it, those of the CPU.
#include "close.h"
#include "drive.h"
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
        return {codes.data(), transposed.data(), code_ld(f, C), code_ld(f, R), f, scale, factors.data(), amax.data(),
                true, sums.data(), partial.data() + partial_size(R, C) - (size_t)panels(R) * C};
    }
    void check(const Codes& want) const {
        CHECK(codes == want.codes);
        CHECK(transposed == want.transposed);
        CHECK(factors == want.factors);
        CHECK(amax == want.amax);
        check_same_bits("sums", sums, want.sums);
    }
};
Codes unfused(const Acts& x, Format f, float scale, int R, int C) {
    Codes c(R, C);
    Cast cast = {.elem = f, .scaling = Scaling::delayed};
    cast_tensor(c.codes.data(), c.amax.data(), x.data(), &scale, cast, false, R, C);
    transpose_codes(c.transposed.data(), c.codes.data(), f, R, C);
    c.factors = {1 / scale, scale};
    bias_backward(c.sums.data(), x.data(), c.partial.data(), R, C);
    return c;
}
} // namespace

TEST_CASE("fused casts: codes, transposed codes, amax, sums of columns and BF16 are those of the unfused pair") {
    OnCard card(90);
    for (auto [R, C] : {std::pair(1, 1), {3, 5}, {64, 64}, {65, 36}, {130, 132}, {31, 200}, {70, 63}})
        for (Format f : {E4M3, E5M2}) {
            INFO(R, " x ", C, ", ", f.name);
            const size_t n = (size_t)R * C;
            const float scale = 3.7f;
            Acts x = normals<act>(n, 1), dy = normals<act>(n, 2), dx0 = normals<act>(n, 3);
            x[n / 2] = act(NAN), dy[n / 3] = act(INFINITY);
            const Reals w = normals<real>(C, 4), b = normals<real>(C, 5);
            auto test = [&](const char* what, auto op) { // op(y, sink)
                INFO(what);
                Acts y = dx0;
                op(y, Sink());
                Codes want = unfused(y, f, scale, R, C);
                in_every_order([&](Order) {
                    Acts z = dx0;
                    Codes got(R, C);
                    op(z, got.sink(f, &scale, R, C));
                    got.check(want), check_same_bits("BF16", z, y);
                    Sink alone = got.sink(f, &scale, R, C); // codes alone: nothing else is touched
                    alone.keeps = false, alone.transposed = nullptr, alone.amax = nullptr, alone.sums = nullptr;
                    Codes none(R, C), before(R, C);
                    Acts kept = dx0;
                    alone.codes = none.codes.data(), alone.factors = none.factors.data();
                    op(kept, alone);
                    CHECK(none.codes == want.codes);
                    CHECK(none.transposed == before.transposed);
                    CHECK(none.amax == before.amax);
                    if (what != std::string("layernorm_backward")) check_same_bits("BF16, not asked for", kept, dx0);
                });
            };
            test("gelu", [&](Acts& y, Sink s) { gelu_forward(y.data(), x.data(), R, C, s); });
            test("gelu_backward", [&](Acts& y, Sink s) { gelu_backward(y.data(), dy.data(), x.data(), R, C, s); });
            Reals mean(R), rstd(R);
            test("layernorm", [&](Acts& y, Sink s) {
                std::fill(mean.begin(), mean.end(), NAN), std::fill(rstd.begin(), rstd.end(), NAN);
                layernorm_forward(y.data(), mean.data(), rstd.data(), x.data(), w.data(), b.data(), R, C, s);
            });
            test("layernorm_backward", [&](Acts& y, Sink s) {
                Reals dw(C), db(C), partial(partial_size(R, C), NAN);
                layernorm_backward(y.data(), dw.data(), db.data(), dy.data(), x.data(), mean.data(), rstd.data(), w.data(),
                                   partial.data(), R, C, s);
            });
        }
}
TEST_CASE("a training step of every recipe on every family of cards returns the CPU's bits") {
    const Config config{1, 2, 16, 20, 24};
    const int B = 2, T = config.seq_len, N = B * T;
    std::vector<int> tokens(N), targets(N);
    for (int i = 0; i < N; i++) tokens[i] = i * i % config.vocab, targets[i] = i == 2 ? -1 : i * 3 % config.vocab;
    auto train = [&](const Recipe& r, Reals& all) {
        GPT g;
        std::vector<bool> skip_none(5, false);
        allocate(g, config, Use::training, B, T, {{0, r, skip_none}});
        initialise(g, 3);
        for (int t = 1; t <= 2; t++) {
            for (int micro = 0; micro < 2; micro++) {
                g.pass = {true, 7, (uint64_t)t, (uint64_t)micro};
                set_batch(g, tokens, targets);
                all.push_back((real)gpt_forward(g, B, T, 0.5f / N));
                gpt_backward(g, B, T, micro > 0);
            }
            all.push_back((real)gradient_norm(g, 1));
            update(g, t, 1e-2, 0.1);
        }
        synchronize("test");
        for_each_param(g, [&](const std::string&, Param& p) {
            all.insert(all.end(), p.w, p.w + p.size()), all.insert(all.end(), p.grad, p.grad + p.size());
        });
        for (int i = 0; i < g.all_delayed; i++) all.push_back(g.delayed[i].scale), all.push_back(g.delayed[i].last);
        release(g);
    };
    for (const Recipe& r : recipes) {
        Reals want;
        machine.kernels = Kernels::reference;
        train(r, want);
        machine.kernels = Kernels::fast;
        for (int cc : {80, 90, 100, 120}) {
            OnCard card(cc);
            INFO(r.name, " on sm_", cc);
            Reals got;
            train(r, got);
            check_same_bits(r.name, got, want);
        }
    }
}
