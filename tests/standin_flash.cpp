// Flash attention on the stand-in: against the textbook and the row functions, with threads in every order.
#include "drive.h"
#include "ops/flash.cuh"
#include "ops/ops.cuh"
#include "standin.h"
#include "textbook_attention.h"

namespace { // test files share one program

struct Result : Attention {
    long launches = 0;
};
// Everything that may be read or has to be written is garbage before, inputs lie between NaNs.
Result attend(Heads d, const Acts& qkv, const Acts& dout, const Acts* o_given = nullptr,
              const Reals* lse_given = nullptr, int shift = 0) {
    size_t n = d.B * d.T * d.C(), square = shift ? d.rows() * d.T : attention_scratch(d);
    auto between = [&](const Acts& x) {
        Acts y(x.size() + 256, act(NAN));
        std::copy(x.begin(), x.end(), y.begin() + 128 + shift);
        return y;
    };
    Acts in = between(qkv), dy = between(dout), o = between(Acts(n, act(NAN))), dqkv = between(Acts(3 * n, act(NAN)));
    Reals lse(d.rows(), NAN), s(square, NAN), dp(square, NAN);
    Acts p(square, act(NAN)), ds(square, act(NAN));
    AttentionScratch scratch = {s.data(), dp.data(), p.data(), ds.data()};
    int at = 128 + shift;
    long before = machine.launches;
    attention_forward(&o[at], lse.data(), &in[at], scratch, d);
    Result r;
    r.o.assign(&o[at], &o[at] + n), r.lse = lse;
    if (o_given) std::copy(o_given->begin(), o_given->end(), &o[at]);
    if (lse_given) lse = *lse_given;
    attention_backward(&dqkv[at], &dy[at], &in[at], &o[at], lse.data(), scratch, d);
    r.dqkv.assign(&dqkv[at], &dqkv[at] + 3 * n);
    r.launches = machine.launches - before;
    for (const Acts* x : {&o, &dqkv}) // nothing beside them was written
        for (size_t i = 0; i < x->size(); i++)
            if (i < (size_t)at || i >= x->size() - 128 + shift) REQUIRE((*x)[i].bits == act(NAN).bits);
    return r;
}
Result attend_on(Kernels kernels, Heads d, const Acts& qkv, const Acts& dout) {
    Kernels before = std::exchange(machine.kernels, kernels);
    Result r = attend(d, qkv, dout);
    machine.kernels = before;
    return r;
}

TEST_CASE("flash attention equals the textbook within its roundings, with the same bits in every order of threads") {
    OnCard card;
    for (Heads d : {Heads{1, 1, 1, 32},
                    {2, 17, 2, 64},
                    {1, 63, 1, 40},
                    {1, 64, 2, 128},
                    {1, 65, 1, 80},
                    {2, 130, 2, 64},
                    {1, 257, 1, 32},
                    {1, 150, 1, 128},
                    {1, 129, 2, 96},
                    {3, 33, 1, 8},
                    {1, 200, 1, 64}})
        for (double sigma : {1.0, 3.0}) {
            if (sigma == 3 && d.HS != 64) continue;
            INFO("B ", d.B, " T ", d.T, " NH ", d.NH, " HS ", d.HS, " sigma ", sigma);
            size_t n = d.B * d.T * d.C();
            Acts qkv = normals<act>(3 * n, 3, sigma), dout = normals<act>(n, 4);
            machine.gpu = false;
            Result rows = attend_on(Kernels::reference, d, qkv, dout);
            machine.gpu = true;
            Textbook want = textbook_attention(d, qkv, dout, rows.o, rows.lse, true);
            Result first;
            in_every_order([&](Order order) {
                Result r = attend(d, qkv, dout, &rows.o, &rows.lse);
                CHECK(r.launches == 3);
                if (order != Order::ascending) {
                    check_same_bits("o", r.o, first.o), check_same_bits("lse", r.lse, first.lse);
                    check_same_bits("dqkv", r.dqkv, first.dqkv);
                    return;
                }
                first = r;
                check_close("o", r.o, want.o, want.o_bound);
                check_close("lse", r.lse, want.lse, want.lse_bound);
                check_close("dqkv", r.dqkv, want.dqkv, want.dqkv_bound);
                if (d.T == 130) { // the row functions are the definition: both are within the bounds of the textbook
                    for (auto* bound : {&want.o_bound, &want.lse_bound, &want.dqkv_bound})
                        for (double& x : *bound) x *= 2;
                    check_close("o", r.o, rows.o, want.o_bound), check_close("lse", r.lse, rows.lse, want.lse_bound);
                    check_close("dqkv", r.dqkv, rows.dqkv, want.dqkv_bound);
                }
            });
        }
}

TEST_CASE("flash attention serves BF16 heads of whole chunks, up to 128; the row functions serve the rest") {
    OnCard card;
    auto check = [](Heads d, bool flash, int shift = 0) {
        INFO("T ", d.T, " HS ", d.HS, " shift ", shift);
        size_t n = d.B * d.T * d.C();
        Acts qkv = normals<act>(3 * n, 3), dout = normals<act>(n, 4);
        Result r = attend(d, qkv, dout, nullptr, nullptr, shift);
        machine.gpu = false;
        Result rows = attend_on(Kernels::reference, d, qkv, dout);
        machine.gpu = true;
        size_t same = 0; // the row functions' bits, or at least in some places others
        for (size_t i = 0; i < 3 * n; i++) same += r.dqkv[i].bits == rows.dqkv[i].bits;
        CHECK((same == 3 * n) == !flash);
        CHECK(flash_serves(d) == (flash || shift));
    };
    check({1, 9, 1, 64}, true), check({1, 9, 1, 128}, true), check({1, 9, 1, 24}, true);
    check({1, 9, 1, 12}, false), check({1, 9, 1, 136}, false), check({1, 9, 1, 63}, false);
    check({1, 9, 1, 64}, false, 1), check({1, 9, 1, 64}, false, 4); // misaligned
    Heads d = {2, 9, 3, 64};
    CHECK(attention_scratch(d) == d.rows());
    CHECK(attention_scratch(d, true) == 3 * 9 * 9);
    CHECK(!flash_serves({1, 1, 1, 64, 5})); // a cache's
    for (Kernels k : {Kernels::reference, Kernels::portable}) {
        machine.kernels = k;
        check(d, false);
        CHECK(attention_scratch(d) == d.rows() * d.T);
    }
    machine.kernels = Kernels::fast, machine.gpu = false;
    CHECK(!flash_serves(d));
    CHECK(attention_scratch(d) == 0);
}
#ifdef ULP_STANDIN // which can say that a thread is of some block
TEST_CASE("flash attention's grid takes every tile of every head once, in groups, most work first") {
    Heads d = {2, 300, 4, 64}; // heads 0..7 in groups of 3, 3 and 2
    for (bool last_first : {false, true}) {
        FlashGrid grid = {8, 3, 3};
        std::vector<size_t> seen(8 * 3), group(8 * 3), tile(8 * 3);
        for (int i = 0; i < 24; i++) {
            this_thread.block = i;
            Heads::Row r = grid.block(d, last_first);
            REQUIRE(r.t % 128 == 0);
            size_t head = r.b * 4 + r.h;
            group[i] = head / 3, tile[i] = last_first ? 2 - r.t / 128 : r.t / 128;
            REQUIRE(head < 8);
            REQUIRE(r.t < 384);
            seen[head * 3 + r.t / 128]++;
            if (i) CHECK(std::pair(group[i], tile[i]) >= std::pair(group[i - 1], tile[i - 1]));
        }
        for (size_t n : seen) CHECK(n == 1);
    }
    this_thread.block = 0;
}
#endif
TEST_CASE("flash attention: a token sees no later one, not even a NaN in another tile; large scores stay finite") {
    OnCard card;
    Heads d = {1, 150, 1, 64};
    size_t C = d.C(), n = d.T * C, from = 128;
    Acts qkv = normals<act>(3 * n, 1), dout = normals<act>(n, 2), changed = qkv, large = qkv;
    for (size_t i = from * 3 * C; i < 3 * n; i++) changed[i] = act(NAN);
    for (act& x : large) x = act(100 * (float)x); // scores up to about 10^5
    Result a = attend(d, qkv, dout), b = attend(d, changed, dout), c = attend(d, large, dout);
    a.o.resize(from * C), b.o.resize(from * C);
    check_same_bits("o before the change", b.o, a.o);
    for (act x : c.o) REQUIRE(std::isfinite((float)x));
    for (act x : c.dqkv) REQUIRE(std::isfinite((float)x));
    for (real x : c.lse) REQUIRE(std::isfinite(x));
}
TEST_CASE(
    "a model whose attention is flash plans no (T, T) scratch, trains in every order to the same bits, and samples") {
    OnCard card;
    Config config = {1, 2, 64, 66, 23};
    const int B = 2, T = config.seq_len, N = B * T;
    std::vector<int> tokens(N), targets(N);
    for (int i = 0; i < N; i++) tokens[i] = i * i % config.vocab, targets[i] = i * 3 % config.vocab;
    auto train = [&](std::vector<real>& all, size_t* scratch) {
        GPT g;
        allocate(g, config, Use::training, B, T);
        initialise(g, 3);
        set_batch(g, tokens, targets);
        all.assign(1, (real)gpt_forward(g, B, T, 1.0f / N));
        gpt_backward(g, B, T);
        for_each_param(g, [&](const std::string&, Param& p) { all.insert(all.end(), p.grad, p.grad + p.size()); });
        if (scratch) *scratch = g.arena.bytes["scratch"];
        release(g);
    };
    std::vector<real> first, rows;
    size_t with_flash, without;
    in_every_order([&](Order o) {
        std::vector<real> all;
        train(all, &with_flash);
        if (o == orders[0]) first = all;
        check_same_bits("loss and gradients", all, first);
    });
    machine.kernels = Kernels::reference;
    train(rows, &without);
    machine.kernels = Kernels::fast;
    CHECK(with_flash + 10 * (size_t)B * 2 * T * T < without); // of 12 bytes for each score
    // Attention's outputs differ in single roundings to BF16, 2^-8; so do the few operations that follow.
    CHECK(fabs(first[0] - rows[0]) < 0x1p-8 * rows[0]);
    double off = 0, size = 0;
    for (size_t i = 1; i < rows.size(); i++) off += pow(first[i] - rows[i], 2), size += pow(rows[i], 2);
    CHECK(sqrt(off / size) < 0x1p-6);
    GPT g; // with a cache it is the row functions that attend
    KvCache cache;
    allocate(g, config, Use::inference, 1, T), allocate(cache, BF16, config.layers, T, config.channels);
    initialise(g, 3);
    std::copy_n(tokens.begin(), 5, g.tokens);
    gpt_next(g, 5, &cache);
    for (int v = 0; v < config.vocab; v++) REQUIRE(std::isfinite((float)g.logits[v]));
    release(g), release(cache);
}

} // namespace
