// Attention: the CPU's twin against the row functions, to the bit, and both against the textbook.
#include "close.h"
#include "ops/attention.cuh"

namespace { // test files share one program

using Acts = std::vector<act>;
using Reals = std::vector<real>;
using Vector = std::vector<double>;

namespace { // test files share one program
struct Result {
    Acts o, dqkv;
    Reals lse;
};
} // namespace
static Result attend(Kernels kernels, Heads d, const Acts& qkv, const Acts& dout, const Acts* o_given = nullptr,
                     const Reals* lse_given = nullptr) {
    machine.kernels = kernels;
    size_t n = d.B * d.T * d.C(), square = attention_needs_scratch() ? d.rows() * d.T : 0;
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
    // H, U: one rounding to BF16, to FP32. A dot product of n terms goes through n - 1 roundings in pair order, through
    // n / 32 + 17 at most in an AMX unit's, and one for its scale.
    const double H = 0x1p-8, U = 0x1p-24, TINY = 0x1p-133;
    auto k = [](int n) { return n + 19; };
    for (Heads d : shapes) {
        const int B = d.B, T = d.T, NH = d.NH, HS = d.HS;
        const size_t n = d.B * d.T * d.C();
        const double scale = 1 / sqrt(HS), sum_of_T = (T + 127) / 128 + 7, sum_of_HS = (HS + 127) / 128 + 7;
        Acts qkv = normals<act>(3 * n, 3), dout = normals<act>(n, 4);
        // The backward pass gets o and lse as given numbers, so that its bound has no forward error in it.
        Result given = attend(Kernels::reference, d, qkv, dout);

        Vector o(n), o_bound(n), lse(d.rows()), lse_bound(d.rows()), dqkv(3 * n), bound(3 * n);
        auto at = [&](const Acts& x, size_t i) { return (double)x[i]; };
        for (int b = 0; b < B; b++)
            for (int h = 0; h < NH; h++)
                for (int t = 0; t < T; t++) {
                    // element i of head h: of q, k, v of token t; of o
                    auto q = [&](int t, int i) { return ((size_t)b * T + t) * 3 * NH * HS + h * HS + i; };
                    auto key = [&](int t, int i) { return q(t, i) + NH * HS; };
                    auto value = [&](int t, int i) { return q(t, i) + 2 * NH * HS; };
                    auto out = [&](int t, int i) { return ((size_t)b * T + t) * NH * HS + h * HS + i; };
                    const size_t row = ((size_t)b * NH + h) * T + t;
                    Vector s(t + 1), s_off(t + 1);
                    double top = -INFINITY, bottom = INFINITY, worst = 0, sum = 0;
                    for (int j = 0; j <= t; j++) {
                        double size = 0;
                        for (int i = 0; i < HS; i++) {
                            double term = at(qkv, q(t, i)) * at(qkv, key(j, i)) * scale;
                            s[j] += term, size += fabs(term);
                        }
                        s_off[j] = k(HS) * U * size + 3 * U * fabs(s[j]); // the scale is 2 U off
                        top = std::max(top, s[j]), bottom = std::min(bottom, s[j]), worst = std::max(worst, s_off[j]);
                    }
                    for (int j = 0; j <= t; j++) sum += exp(s[j] - top);
                    // p = exp(s - top) / sum: both carry the errors of s, s - top and exp_ (2 ulp), the sum its own
                    double sum_off = worst + (top - bottom + 4 + sum_of_T) * U;
                    double p_off = sum_off + worst + (top - bottom + 4 + 3) * U;
                    lse[row] = log(sum) + top;
                    lse_bound[row] = sum_off + U * (5 * log(sum) + 2 * fabs(top) + fabs(lse[row]));
                    for (int i = 0; i < HS; i++) {
                        double size = 0;
                        for (int j = 0; j <= t; j++) {
                            double term = exp(s[j] - top) / sum * at(qkv, value(j, i));
                            o[out(t, i)] += term, size += fabs(term);
                        }
                        o_bound[out(t, i)] = H * fabs(o[out(t, i)]) + (H + p_off + k(T) * U) * size + TINY;
                    }
                    double D = 0, D_size = 0;
                    for (int i = 0; i < HS; i++) {
                        double term = at(dout, out(t, i)) * at(given.o, out(t, i));
                        D += term, D_size += fabs(term);
                    }
                    for (int j = 0; j <= t; j++) {
                        double dp = 0, dp_size = 0, p = exp(s[j] - given.lse[row]);
                        for (int i = 0; i < HS; i++) {
                            double term = at(dout, out(t, i)) * at(qkv, value(j, i));
                            dp += term, dp_size += fabs(term);
                        }
                        double off = s_off[j] + (fabs(s[j] - given.lse[row]) + 4) * U; // of p, relative
                        double ds = p * (dp - D) * scale;
                        double ds_off = fabs(ds) * (off + 5 * U) +
                                        p * scale * (k(HS) * dp_size + (sum_of_HS + 1) * D_size) * U * (1 + off);
                        // rounded to BF16 as operands of a product over at most T terms
                        double p_term = p * (off + H * (1 + off) + k(T) * U);
                        double ds_term = ds_off + (H + k(T) * U) * (fabs(ds) + ds_off);
                        for (int i = 0; i < HS; i++) {
                            dqkv[q(t, i)] += ds * at(qkv, key(j, i));
                            bound[q(t, i)] += ds_term * fabs(at(qkv, key(j, i)));
                            dqkv[key(j, i)] += ds * at(qkv, q(t, i));
                            bound[key(j, i)] += ds_term * fabs(at(qkv, q(t, i)));
                            dqkv[value(j, i)] += p * at(dout, out(t, i));
                            bound[value(j, i)] += p_term * fabs(at(dout, out(t, i)));
                        }
                    }
                }
        for (size_t i = 0; i < 3 * n; i++) bound[i] = H * fabs(dqkv[i]) + (1 + H) * bound[i] + TINY;
        for (Kernels kernels : {Kernels::reference, Kernels::portable, Kernels::fast}) {
            INFO("B ", B, " T ", T, " NH ", NH, " HS ", HS, " kernels ", (int)kernels);
            Result r = attend(kernels, d, qkv, dout, &given.o, &given.lse);
            check_close("o", r.o, o, o_bound);
            check_close("lse", r.lse, lse, lse_bound);
            check_close("dqkv", r.dqkv, dqkv, bound);
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
