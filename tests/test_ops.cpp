// Every operation against a textbook loop in double, from the very numbers that the operation read. Bounds: H = 2^-8 is
// the relative error of one rounding to BF16, U = 2^-24 that of one to FP32, and an FP32 result that went through k
// roundings is within k U of the sum of its terms' magnitudes (first order; k is rounded up and pays for the second).
#include "close.h"
#include "documented.h"
#include "drive.h"

namespace { // test files share one program

static const double H = 0x1p-8, U = 0x1p-24, TINY = 0x1p-133;         // TINY: BF16 subnormals
static double roundings_of_sum(int n) { return (n + 127) / 128 + 7; } // that one term of Lanes::sum goes through
using Acts = std::vector<act>;
using Reals = std::vector<real>;
using Vector = std::vector<double>;

TEST_CASE("layernorm equals the textbook within BF16 rounding, forward and backward") {
    struct {
        int N, C;
    } shapes[] = {{1, 1}, {3, 2}, {63, 3}, {64, 31}, {65, 33}, {130, 127}, {5, 129}, {2, 771}};
    for (auto shape : shapes) {
        const int N = shape.N, C = shape.C;
        INFO("N ", N, " C ", C);
        Acts x = normals<act>(N * C, 1, 1.5, 0.4), dy = normals<act>(N * C, 2), dx0 = normals<act>(N * C, 3), y(N * C);
        Reals w = normals<real>(C, 4, 0.5, 1), b = normals<real>(C, 5), mean(N), rstd(N);
        layernorm_forward(y.data(), mean.data(), rstd.data(), x.data(), w.data(), b.data(), N, C);
        Acts dx = dx0;
        Reals dw0 = normals<real>(C, 6), db0 = normals<real>(C, 7), dw = dw0, db = db0, partial(2 * panels(N) * C);
        layernorm_backward(dx.data(), dw.data(), db.data(), dy.data(), x.data(), mean.data(), rstd.data(), w.data(),
                           partial.data(), N, C);

        Vector y1(N * C), y_bound(N * C), mean1(N), mean_bound(N), rstd1(N), rstd_bound(N), dx1(N * C), dx_bound(N * C);
        Vector dw1(dw0.begin(), dw0.end()), db1(db0.begin(), db0.end()), dw_size(C), db_size(C), dw_bound(C),
            db_bound(C);
        const double k = roundings_of_sum(C);
        for (int n = 0; n < N; n++) {
            const act *xn = &x[n * C], *dyn = &dy[n * C];
            double m = 0, size = 0, var = 0;
            for (int i = 0; i < C; i++) m += xn[i] / (double)C, size += fabs(xn[i]) / C;
            for (int i = 0; i < C; i++) var += (xn[i] - m) * (xn[i] - m) / C;
            double r = 1 / sqrt(var + 1e-5), off = (k + 1) * U * size; // off: the error of the mean
            // off enters the variance squared; 1e-5f is U off; the variance has k + 4 roundings, half of them count
            double r_off = (k + 8) * U + off * off / (var + 1e-5);
            mean1[n] = m, mean_bound[n] = off, rstd1[n] = r, rstd_bound[n] = r_off * r;
            for (int i = 0; i < C; i++) {
                double norm = (xn[i] - m) * r;
                y1[n * C + i] = norm * w[i] + b[i];
                y_bound[n * C + i] = H * fabs(y1[n * C + i]) + U * (fabs(norm * w[i]) * 4 + fabs(b[i])) +
                                     fabs(w[i]) * (off * r + fabs(norm) * r_off);
            }
            // backward: mean and rstd are inputs, as they were stored
            m = mean[n], r = rstd[n];
            double a = 0, a_size = 0, c = 0, c_size = 0;
            for (int i = 0; i < C; i++) {
                double g = dyn[i] * (double)w[i] / C, norm = (xn[i] - m) * r;
                a += g, a_size += fabs(g), c += g * norm, c_size += fabs(g * norm);
            }
            for (int i = 0; i < C; i++) {
                double g = dyn[i] * (double)w[i], norm = (xn[i] - m) * r, before = dx0[n * C + i];
                dx1[n * C + i] = before + (g - a - norm * c) * r;
                dx_bound[n * C + i] = H * fabs(dx1[n * C + i]) + TINY +
                                      (k + 10) * U * (fabs(before) + (fabs(g) + a_size + fabs(norm) * c_size) * r);
                dw1[i] += dyn[i] * norm, dw_size[i] += fabs(dyn[i] * norm);
                db1[i] += dyn[i], db_size[i] += fabs(dyn[i]);
            }
        }
        for (int i = 0; i < C;
             i++) { // a term: 4 roundings, 64 down its panel, one for each panel, one into the gradient
            dw_bound[i] = (70 + panels(N)) * U * (dw_size[i] + fabs(dw0[i]));
            db_bound[i] = (70 + panels(N)) * U * (db_size[i] + fabs(db0[i]));
        }
        check_close("mean", mean, mean1, mean_bound), check_close("rstd", rstd, rstd1, rstd_bound);
        check_close("y", y, y1, y_bound), check_close("dx", dx, dx1, dx_bound);
        check_close("dw", dw, dw1, dw_bound), check_close("db", db, db1, db_bound);

        Reals dw2 = dw0;
        documented_sum_down(dw2.data(), N, C, [&](int n, int c) {
            return (real)dy[n * C + c] * (((real)x[n * C + c] - mean[n]) * rstd[n]);
        });
        check_same_bits("dw in the documented order", dw, dw2);
    }
}

TEST_CASE("linear equals the textbook within BF16 rounding, with every kernel, and accumulates over microbatches") {
    struct {
        int N, C, OC;
    } shapes[] = {{1, 1, 1}, {3, 2, 5}, {63, 33, 7}, {64, 31, 130}, {65, 127, 3}, {130, 5, 129}, {2, 129, 67}};
    for (auto shape : shapes)
        for (bool accumulate : {false, true}) {
            const int N = shape.N, C = shape.C, OC = shape.OC;
            INFO("N ", N, " C ", C, " OC ", OC, " accumulate ", accumulate);
            Acts x = normals<act>(N * C, 1), w = normals<act>(OC * C, 2), b = normals<act>(OC, 3),
                 dy = normals<act>(N * OC, 4);
            Reals dw0 = accumulate ? normals<real>(OC * C, 5) : Reals(OC * C, 0), db0 = normals<real>(OC, 6);
            // of a product of K terms: K - 1 roundings in pair order, at most K / 32 + 17 in an AMX unit's order, and 1
            auto k = [](int K) { return K + 18; };
            Vector y1(N * OC), y_bound(N * OC), dx1(N * C), dx_bound(N * C), dw1(OC * C), dw_bound(OC * C), db1(OC),
                db_bound(OC);
            for (int n = 0; n < N; n++)
                for (int o = 0; o < OC; o++) {
                    double sum = b[o], size = fabs(sum);
                    for (int i = 0; i < C; i++) sum += x[n * C + i] * (double)w[o * C + i];
                    for (int i = 0; i < C; i++) size += fabs(x[n * C + i] * (double)w[o * C + i]);
                    y1[n * OC + o] = sum, y_bound[n * OC + o] = H * fabs(sum) + k(C) * U * size + TINY;
                }
            for (int i = 0; i < C; i++) {
                for (int n = 0; n < N; n++) {
                    double sum = 0, size = 0;
                    for (int o = 0; o < OC; o++) sum += dy[n * OC + o] * (double)w[o * C + i];
                    for (int o = 0; o < OC; o++) size += fabs(dy[n * OC + o] * (double)w[o * C + i]);
                    dx1[n * C + i] = sum, dx_bound[n * C + i] = H * fabs(sum) + k(OC) * U * size + TINY;
                }
                for (int o = 0; o < OC; o++) {
                    double sum = dw0[o * C + i], size = fabs(sum);
                    for (int n = 0; n < N; n++) sum += dy[n * OC + o] * (double)x[n * C + i];
                    for (int n = 0; n < N; n++) size += fabs(dy[n * OC + o] * (double)x[n * C + i]);
                    dw1[o * C + i] = sum, dw_bound[o * C + i] = k(N) * U * size + TINY;
                }
            }
            for (int o = 0; o < OC; o++) {
                double sum = db0[o], size = fabs(sum);
                for (int n = 0; n < N; n++) sum += dy[n * OC + o], size += fabs(dy[n * OC + o]);
                db1[o] = sum, db_bound[o] = (66 + panels(N)) * U * size;
            }
            for (Kernels kernels : {Kernels::reference, Kernels::portable, Kernels::fast}) {
                INFO("kernels ", (int)kernels);
                machine.kernels = kernels;
                Acts y(N * OC, act(NAN)), dx(N * C, act(NAN)); // NaN: has to be overwritten
                Reals dw = accumulate ? dw0 : Reals(OC * C, NAN), db = db0, partial(panels(N) * OC);
                Linear l;
                l.weight = {.rows = OC, .cols = C, .grad = dw.data(), .operand = w.data()};
                l.bias = {.cols = OC, .grad = db.data(), .operand = b.data()};
                linear_forward(y.data(), l, x.data(), N);
                linear_backward(dx.data(), l, dy.data(), x.data(), N, accumulate, partial.data());
                check_close("y", y, y1, y_bound), check_close("dx", dx, dx1, dx_bound);
                check_close("dw", dw, dw1, dw_bound), check_close("db", db, db1, db_bound);
                static Acts y0, dx0;
                static Reals dw_first;
                if (kernels == Kernels::reference) y0 = y, dx0 = dx, dw_first = dw;
                if (kernels == Kernels::portable) // its twin, to the bit
                    check_same_bits("y", y, y0), check_same_bits("dx", dx, dx0), check_same_bits("dw", dw, dw_first);
            }
            machine.kernels = Kernels::fast;
        }
}

TEST_CASE("gelu equals the textbook within BF16 rounding on every finite BF16, forward and backward") {
    Acts x;
    for (uint32_t u = 0; u < 65536; u++)
        if ((u & 0x7fff) < 0x5f80) x.emplace_back(bits_as<float>(u << 16)); // |x| < 2^64: x^3 has to be finite
    size_t n = x.size();
    Acts y(n), dx(n), dy = normals<act>(n, 1);
    gelu_forward(y.data(), x.data(), 1, (int)n);
    gelu_backward(dx.data(), dy.data(), x.data(), 1, (int)n);
    Vector y1(n), y_bound(n), dx1(n), dx_bound(n);
    for (size_t i = 0; i < n; i++) {
        double v = x[i], a = fabs(v), u = sqrt(2 / M_PI) * (v + 0.044715 * v * v * v), t = tanh(u);
        double du = sqrt(2 / M_PI) * (1 + 3 * 0.044715 * v * v), steep = std::isinf(u) ? 0 : 1 - t * t;
        // u goes through 7 roundings, constants included, and |u| (1 - tanh^2 u) <= 0.45; tanh_ adds 2 ulp, 4 U
        double t_off = 8 * U;
        y1[i] = 0.5 * v * (1 + t);
        y_bound[i] = H * fabs(y1[i]) + 0.5 * a * (t_off + 2 * U) + TINY;
        dx1[i] = dy[i] * (0.5 * (1 + t) + 0.5 * v * steep * du);
        // 1 - t^2 is off by 2 t_off and a rounding; where it vanishes (|x| > 10: t is 1 for both) so does its error
        double off = 0.5 * t_off + 2 * U + (a > 10 ? 0 : 0.5 * a * du * (2 * t_off + 2 * U + 8 * U * steep));
        dx_bound[i] = H * fabs(dx1[i]) + fabs(dy[i]) * off + TINY;
    }
    check_close("y", y, y1, y_bound), check_close("dx", dx, dx1, dx_bound);
}

TEST_CASE("residual is the rounded sum, to the bit") {
    size_t n = 2 * PIECE + 37;
    Acts a = normals<act>(n, 1), b = normals<act>(n, 2), y(n), want(n);
    residual_forward(y.data(), a.data(), b.data(), n);
    for (size_t i = 0; i < n; i++) want[i] = act((float)a[i] + (float)b[i]);
    check_same_bits("y", y, want);
}

TEST_CASE("classifier equals the textbook: loss and gradient, ignored targets, logits of any size") {
    struct {
        int N, V;
        double sigma;
    } shapes[] = {{1, 1, 1},     {63, 2, 3},  {64, 31, 1},   {65, 127, 1},
                  {130, 61, 10}, {5, 317, 1}, {3, 1001, 30}, {2, 129, 1e4}};
    for (auto shape : shapes) {
        const int N = shape.N, V = shape.V;
        INFO("N ", N, " V ", V, " sigma ", shape.sigma);
        Acts logits = normals<act>(N * V, 1, shape.sigma, shape.sigma), d = logits, untouched = logits;
        Reals loss(N, NAN), loss2(N, NAN);
        std::vector<int> targets(N);
        for (int n = 0; n < N; n++) targets[n] = n % 5 == 3 ? -1 : n % 7 == 1 ? V - 1 : (n * 13) % V;
        const real scale = 0.7f / N;
        classifier(loss2.data(), untouched.data(), targets.data(), scale, false, N, V);
        check_same_bits("logits where no gradient is asked for", untouched, logits);
        classifier(loss.data(), d.data(), targets.data(), scale, true, N, V);
        check_same_bits("loss with and without gradient", loss, loss2);

        Vector loss1(N), loss_bound(N), d1(N * V), d_bound(N * V);
        for (int n = 0; n < N; n++) {
            const act* z = &logits[n * V];
            double top = -INFINITY, bottom = INFINITY, sum = 0;
            for (int v = 0; v < V; v++) top = std::max(top, (double)z[v]), bottom = std::min(bottom, (double)z[v]);
            for (int v = 0; v < V; v++) sum += exp(z[v] - top);
            if (targets[n] < 0) continue; // 0, bound 0
            // z - top rounds by U of at most `range`, beyond which exp is 0 (104); exp_ and log_ are good to 2 ulp, 4 U
            double range = std::min(top - bottom, 104.0), e_off = (range + 4) * U,
                   sum_off = e_off + roundings_of_sum(V) * U;
            loss1[n] = log(sum) + top - z[targets[n]];
            loss_bound[n] = sum_off + U * (5 * log(sum) + 3 * fabs(top) + 3 * fabs(z[targets[n]]));
            for (int v = 0; v < V; v++) {
                double p = exp(z[v] - top) / sum, hit = v == targets[n], want = (p - hit) * scale;
                d1[n * V + v] = want;
                d_bound[n * V + v] =
                    H * fabs(want) + (e_off + sum_off + 4 * U) * p * scale + 2 * U * hit * scale + TINY;
            }
        }
        check_close("loss", loss, loss1, loss_bound), check_close("dlogits", d, d1, d_bound);
    }
}

TEST_CASE(
    "embedding is the rounded sum of its rows; its gradient adds repeated tokens in ascending order, to the bit") {
    struct {
        int B, T, C, V;
    } shapes[] = {{1, 1, 1, 1}, {3, 5, 2, 4}, {7, 9, 33, 11}, {2, 32, 127, 70}, {5, 13, 129, 2}, {2, 65, 3, 500}};
    for (auto shape : shapes) {
        const int B = shape.B, T = shape.T, C = shape.C, V = shape.V, N = B * T;
        INFO("B ", B, " T ", T, " C ", C, " V ", V);
        GPT g; // only for its batch
        std::vector<int> tokens(N), targets(N), t(N), t2(N), distinct(N), first(N + 1), positions(N);
        for (int n = 0; n < N; n++) tokens[n] = n * n * 7 % V;
        g.tokens = t.data(), g.targets = t2.data(), g.use = Use::training;
        g.index = {0, distinct.data(), first.data(), positions.data()};
        set_batch(g, tokens, targets);
        Reals wte = normals<real>(V * C, 1), wpe = normals<real>(T * C, 2);
        Acts x(N * C), want(N * C), dx = normals<act>(N * C, 3);
        embedding_forward(x.data(), tokens.data(), wte.data(), wpe.data(), B, T, C);
        Reals dwte = normals<real>(V * C, 4), dwpe = normals<real>(T * C, 5), dwte1 = dwte, dwpe1 = dwpe;
        embedding_backward_tokens(dwte.data(), dx.data(), g.index, N, C);
        embedding_backward_positions(dwpe.data(), dx.data(), B, T, C);
        for (int c = 0; c < C; c++) {
            for (int n = 0; n < N; n++) want[n * C + c] = act(wte[tokens[n] * C + c] + wpe[n % T * C + c]);
            for (int v = 0; v < V; v++) {
                real s = 0;
                for (int n = 0; n < N; n++)
                    if (tokens[n] == v) s += dx[n * C + c];
                dwte1[v * C + c] += s;
            }
            for (int t = 0; t < T; t++) {
                real s = 0;
                for (int b = 0; b < B; b++) s += dx[(b * T + t) * C + c];
                dwpe1[t * C + c] += s;
            }
        }
        check_same_bits("x", x, want), check_same_bits("dwte", dwte, dwte1), check_same_bits("dwpe", dwpe, dwpe1);
    }
}

// --- the update ------------------------------------------------------------------------------------------------------
static GPT small_model(Config c, int B, int T) {
    GPT g;
    allocate(g, c, Use::training, B, T);
    initialise(g, 1);
    return g;
}
static void random_gradients(GPT& g, uint64_t seed, double sigma) {
    for_each_param(g, [&](const std::string&, Param& p) {
        Reals x = normals<real>(p.size(), seed++, sigma);
        std::copy(x.begin(), x.end(), p.grad);
    });
}
static double norm_in_double(GPT& g) {
    double sum = 0;
    for_each_param(g, [&](const std::string&, Param& p) {
        for (size_t i = 0; i < p.size(); i++) sum += (double)p.grad[i] * p.grad[i];
    });
    return sqrt(sum);
}
TEST_CASE("gradient_norm is the L2 norm of all gradients together, and is not finite if one of them is not") {
    GPT g = small_model({1, 3, 21, 7, 200}, 1, 7); // parameters on both sides of PIECE, and not multiples of it
    for (double sigma : {1.0, 1e-12, 1e12}) {
        random_gradients(g, 5, sigma);
        double want = norm_in_double(g);
        // a square goes through 1 rounding and a sum over PIECE; the root halves relative errors
        CHECK(std::fabs(gradient_norm(g) / want - 1) <= (1 + roundings_of_sum(PIECE)) / 2 * U);
    }
    int last = 0;
    for_each_param(g, [&](const std::string&, Param& p) {
        for (real bad : {(real)NAN, (real)INFINITY}) {
            real& x = p.grad[last ? p.size() - 1 : 0];
            real keep = x;
            x = bad;
            CHECK(!std::isfinite(gradient_norm(g)));
            CHECK(g.result->bad == 1);
            Reals before(p.w, p.w + p.size());
            update(g, 1, 0.1, 0.1);
            check_same_bits("not updated", Reals(p.w, p.w + p.size()), before);
            x = keep, g.result->bad = 0;
        }
        last = !last;
    });
    release(g);
}
TEST_CASE("update follows PyTorch's AdamW in double: decay on matrices only, clipping, bias correction, over 6 steps") {
    struct {
        double lr, decay, clip;
    } settings[] = {{1e-3, 0.1, 1}, {0.05, 0, 0}, {3e-4, 0.5, 1e6}};
    for (auto s : settings) {
        INFO("lr ", s.lr, " decay ", s.decay, " clip ", s.clip);
        GPT g = small_model({1, 3, 21, 7, 200}, 1, 7);
        struct Oracle {
            Vector w, m, v, size, off;
        };
        std::vector<Oracle> oracle;
        for_each_param(g, [&](const std::string&, Param& p) {
            Vector zero(p.size());
            oracle.push_back({Vector(p.w, p.w + p.size()), zero, zero, zero, zero});
        });
        for (int t = 1; t <= 6; t++) {
            random_gradients(g, 100 * t, t == 3 ? 1e-9 : 0.1); // one step in which eps counts
            double norm = norm_in_double(g), clip = s.clip > 0 ? std::min(1.0, s.clip / (norm + 1e-6)) : 1;
            gradient_norm(g, s.clip); // its bound: the test above; one more rounding is the factor's own
            CHECK(std::fabs(g.result->factor / clip - 1) <= ((1 + roundings_of_sum(PIECE)) / 2 + 1) * U);
            g.result->factor = (real)clip;
            update(g, t, s.lr, s.decay);
            size_t i = 0;
            for_each_param(g, [&](const std::string& name, Param& p) {
                Oracle& o = oracle[i++];
                bool matrix = name.find(".bias") == std::string::npos && name.find("ln_") == std::string::npos;
                std::vector<double> operand(p.size()), operand_bound(p.size());
                for (size_t j = 0; j < p.size(); j++) {
                    double grad = p.grad[j] * clip, before = o.w[j];
                    o.w[j] *= 1 - s.lr * (matrix ? s.decay : 0);
                    o.m[j] = 0.9 * o.m[j] + 0.1 * grad;
                    o.v[j] = 0.95 * o.v[j] + 0.05 * grad * grad;
                    double step = s.lr / (1 - pow(0.9, t)), root = sqrt(o.v[j]) / sqrt(1 - pow(0.95, t)) + 1e-8;
                    o.w[j] -= step * o.m[j] / root;
                    // m loses digits where gradients cancel, so its error is relative to the mean |gradient|: a step
                    // adds 8 U (1 - 0.9f is 4 U off 0.1), which later steps carry on. The rest of the quotient is good
                    // to 20 U. w itself: 3 roundings, one of them of lr * decay.
                    o.size[j] = 0.9 * o.size[j] + 0.1 * fabs(grad);
                    o.off[j] += 3 * U * fabs(before) + step * o.size[j] / root * (8 * t + 20) * U;
                }
                Vector bound = o.off;
                Reals w(p.w, p.w + p.size());
                check_close(name, w, o.w, bound);
                Acts want(p.size()), got(p.operand, p.operand + p.size());
                for (size_t j = 0; j < p.size(); j++) want[j] = act(p.w[j]);
                check_same_bits(name + ", rounded", got, want);
            });
        }
        release(g);
    }
}

// --- any number of threads -------------------------------------------------------------------------------------------
TEST_CASE("every operation returns the same bits with 1, 2 and 3 threads") {
    auto run = [](int threads) {
        Threads with(threads);
        // large enough for the packed product to use its threads; the row functions use them at any size
        const int B = 2, T = 35, C = machine.kernels == Kernels::reference ? 35 : 130, V = 131, N = B * T;
        GPT g = small_model({1, 5, C, T, V}, B, T);
        for_each_param(g, [seed = 9](const std::string&, Param& p) mutable {
            Reals w = normals<real>(p.size(), seed++, 0.3);
            std::copy(w.begin(), w.end(), p.w);
        });
        publish(g);
        std::vector<int> tokens(N), targets(N);
        for (int n = 0; n < N; n++) tokens[n] = n * n % V, targets[n] = n * 3 % V;
        Reals all;
        for (int t = 1; t <= 2; t++) {
            g.pass.micro = t - 1;
            set_batch(g, tokens, targets);
            all.push_back((real)gpt_forward(g, B, T, 1.0f / N));
            gpt_backward(g, B, T);
            all.push_back((real)gradient_norm(g, 1));
            update(g, t, 1e-3, 0.1);
        }
        for_each_param(g, [&](const std::string&, Param& p) {
            all.insert(all.end(), p.w, p.w + p.size());
            all.insert(all.end(), p.grad, p.grad + p.size());
        });
        release(g);
        return all;
    };
    for (Kernels kernels : {Kernels::reference, Kernels::fast}) {
        machine.kernels = kernels;
        Reals one = run(1);
        check_same_bits("2 threads", run(2), one);
        check_same_bits("3 threads", run(3), one);
    }
    machine.kernels = Kernels::fast;
}

} // namespace
