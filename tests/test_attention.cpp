// Attention: the CPU's twin against the row functions, to the bit, and both against the textbook.
#include "ops/ops.cuh"
#include "textbook_attention.h"

namespace { // test files share one program

using Result = Attention;
static Result attend(Kernels kernels, Heads d, const Acts& qkv, const Acts& dout, const Acts* o_given = nullptr,
                     const Reals* lse_given = nullptr) {
    machine.kernels = kernels;
    size_t n = d.B * d.T * d.C(), square = attention_scratch(d);
    Result r = {Acts(n, act(NAN)), Acts(3 * n, act(NAN)), Reals(d.rows(), NAN)}; // NaN: has to be overwritten
    Reals s(square, NAN), dp(square, NAN);                                       // and what was not, is not read
    Acts p(square, act(NAN)), ds(square, act(NAN));
    AttentionScratch scratch = {s.data(), dp.data(), p.data(), ds.data()};
    attention_forward(r.o.data(), r.lse.data(), qkv.data(), scratch, d);
    const Acts& o = o_given ? *o_given : r.o;
    const Reals& lse = lse_given ? *lse_given : r.lse;
    attention_backward(r.dqkv.data(), dout.data(), qkv.data(), o.data(), lse.data(), scratch, d);
    machine.kernels = Kernels::fast;
    return r;
}
static const Heads shapes[] = {{2, 1, 1, 1},  {1, 2, 3, 2},   {2, 5, 2, 3},    {1, 63, 1, 5},   {2, 64, 1, 7},
                               {1, 65, 3, 9}, {1, 130, 2, 7}, {1, 129, 1, 33}, {1, 200, 1, 64}, {1, 31, 1, 129}};

TEST_CASE("attention: the CPU's twin with portable kernels returns the row functions' bits, forward and backward") {
    for (Heads d : shapes)
        for (double sigma : {0.3, 1.0, 4.0}) {
            INFO("B ", d.B, " T ", d.T, " NH ", d.NH, " HS ", d.HS, " sigma ", sigma);
            size_t n = d.B * d.T * d.C();
            Acts qkv = normals<act>(3 * n, 1, sigma), dout = normals<act>(n, 2);
            Result rows = attend(Kernels::reference, d, qkv, dout), twin = attend(Kernels::portable, d, qkv, dout);
            check_same_bits("o", twin.o, rows.o);
            check_same_bits("lse", twin.lse, rows.lse);
            check_same_bits("dqkv", twin.dqkv, rows.dqkv);
        }
}

TEST_CASE("attention equals the textbook with every kernel, forward and backward") {
    for (Heads d : shapes) {
        const size_t n = d.B * d.T * d.C();
        Acts qkv = normals<act>(3 * n, 3), dout = normals<act>(n, 4);
        // The backward pass gets o and lse as given numbers, so that its bound has no forward error in it.
        Result given = attend(Kernels::reference, d, qkv, dout);
        Textbook want = textbook_attention(d, qkv, dout, given.o, given.lse);
        for (Kernels kernels : {Kernels::reference, Kernels::portable, Kernels::fast}) {
            INFO("B ", d.B, " T ", d.T, " NH ", d.NH, " HS ", d.HS, " kernels ", (int)kernels);
            Result r = attend(kernels, d, qkv, dout, &given.o, &given.lse);
            check_close("o", r.o, want.o, want.o_bound);
            check_close("lse", r.lse, want.lse, want.lse_bound);
            check_close("dqkv", r.dqkv, want.dqkv, want.dqkv_bound);
        }
    }
}

TEST_CASE("attention: a token sees no later one; large scores neither overflow nor lose the maximum") {
    Heads d = {1, 70, 2, 5};
    size_t C = d.C(), n = d.T * C;
    Acts qkv = normals<act>(3 * n, 1), dout = normals<act>(n, 2), changed = qkv;
    int from = 40;
    for (size_t i = from * 3 * C; i < 3 * n; i++) changed[i] = act(100 * (float)qkv[i]); // scores up to about 10^4
    for (Kernels kernels : {Kernels::reference, Kernels::portable, Kernels::fast}) {
        Result a = attend(kernels, d, qkv, dout), b = attend(kernels, d, changed, dout);
        a.o.resize(from * C), b.o.resize(d.T * C);
        for (act x : b.o) REQUIRE(std::isfinite((float)x));
        for (real x : b.lse) REQUIRE(std::isfinite(x));
        for (act x : b.dqkv) REQUIRE(std::isfinite((float)x));
        b.o.resize(from * C);
        check_same_bits("o before the change", b.o, a.o);
    }
}

} // namespace
