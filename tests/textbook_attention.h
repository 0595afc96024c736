// Attention by the textbook, in double precision, and how far each number may be off.
#pragma once
#include "close.h"
#include "ops/heads.cuh"

using Acts = std::vector<act>;
using Reals = std::vector<real>;
struct Attention { // what both passes leave
    Acts o, dqkv;
    Reals lse;
};
struct Textbook {
    std::vector<double> o, o_bound, lse, lse_bound, dqkv, dqkv_bound;
};
// The backward pass from o and lse as given numbers.
inline Textbook textbook_attention(Heads d, const std::vector<act>& qkv, const std::vector<act>& dout,
                                   const std::vector<act>& o_given, const std::vector<real>& lse_given,
                                   bool flash = false) {
    using Vector = std::vector<double>;
    const int B = d.B, T = d.T, NH = d.NH, HS = d.HS;
    const size_t n = d.B * d.T * d.C();
    const double scale = 1 / sqrt(HS), sum_of_T = (T + 127) / 128 + 7, sum_of_HS = (HS + 127) / 128 + 7;
    // H, U: one rounding to BF16, to FP32. A dot product of n terms goes through n - 1 roundings in pair order, through
    // n / 32 + 17 at most in an AMX unit's, and one for its scale.
    // flash.cuh adds 16 products at a time to a sum; a tensor core cuts each of the 17 to at least 23 bits below the
    // largest, 2 U each. Its exponentials: exp2_approx is 4 U off; c and lse * LOG2E are 4 U off, top * c is rounded, and
    // both grow with what is subtracted; sums are shrunk once per tile of at least 32 keys, each time by an exponential.
    const double H = 0x1p-8, U = 0x1p-24, TINY = flash ? 0x1p-120 : 0x1p-133; // exp2_approx has no denormals
    auto k = [=](int n) { return flash ? 34 * ((n + 15) / 16) : n + 19; };
    auto more = [=](double size) { return flash ? 8 * size + 8 * (T / 32 + 2) : 0; };
    const double k_D = flash ? k(HS) + HS : sum_of_HS + 1;

    Textbook w = {Vector(n), Vector(n), Vector(d.rows()), Vector(d.rows()), Vector(3 * n), Vector(3 * n)};
    Vector &o = w.o, &o_bound = w.o_bound, &lse = w.lse, &dqkv = w.dqkv, &bound = w.dqkv_bound;
    auto at = [&](const std::vector<act>& x, size_t i) { return (double)x[i]; };
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
                double sum_off = worst + (top - bottom + 4 + sum_of_T + more(fabs(top) + fabs(bottom))) * U;
                double p_off = sum_off + worst + (top - bottom + 4 + 3 + more(fabs(top) + fabs(bottom))) * U;
                lse[row] = log(sum) + top;
                w.lse_bound[row] = sum_off + U * (5 * log(sum) + 2 * fabs(top) + fabs(lse[row]));
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
                    double term = at(dout, out(t, i)) * at(o_given, out(t, i));
                    D += term, D_size += fabs(term);
                }
                for (int j = 0; j <= t; j++) {
                    double dp = 0, dp_size = 0, p = exp(s[j] - lse_given[row]);
                    for (int i = 0; i < HS; i++) {
                        double term = at(dout, out(t, i)) * at(qkv, value(j, i));
                        dp += term, dp_size += fabs(term);
                    }
                    double off =
                        s_off[j] + (fabs(s[j] - lse_given[row]) + 4 + more(fabs(s[j]) + fabs(lse_given[row]))) * U;
                    double ds = p * (dp - D) * scale;
                    double ds_off =
                        fabs(ds) * (off + 5 * U) + p * scale * (k(HS) * dp_size + k_D * D_size) * U * (1 + off);
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
    return w;
}
