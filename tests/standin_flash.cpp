// Flash attention on the stand-in: against the textbook and the row functions, with threads in every order.
#include "ops/attention.cuh"
#include "standin.h"
#include "textbook_attention.h"

namespace { // test files share one program

using Acts = std::vector<act>;
using Reals = std::vector<real>;
struct Result {
    Acts o, dqkv;
    Reals lse;
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
    machine.kernels = kernels;
    Result r = attend(d, qkv, dout);
    machine.kernels = Kernels::fast;
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
                double a = check_close("o", r.o, want.o, want.o_bound);
                double b = check_close("lse", r.lse, want.lse, want.lse_bound);
                double c = check_close("dqkv", r.dqkv, want.dqkv, want.dqkv_bound);
                MESSAGE(a, " ", b, " ", c);
            });
        }
}

} // namespace
