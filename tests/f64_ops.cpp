// Every backward function against central differences, in double: here real = act = double, so what is left between the
// two is the error of the differences alone. Machine: the row functions; the CPU's twins are FP32.
#include "close.h"
#include "drive.h"

static_assert(std::is_same_v<act, double> && std::is_same_v<real, double>);
using Vector = std::vector<double>;

// df/dx by central differences D(h) = f' + h^2 f'''/6 + .., extrapolated to R(h) = (4 D(h) - D(2h)) / 3, whose error is
// -h^4 f^(5)/30. R(2h) is off by 16 times as much, so |R(2h) - R(h)| is 15 times the error of R(h): that is the
// tolerance, plus the rounding of f: k roundings of 2^-53 of its terms, divided by h. `size` bounds the sum of f's
// terms; k is 64 at most here, weighed by 4/3 + 1/6 in R.
struct Slope {
    double value, tolerance;
};
template <class F> Slope slope(double& x, double size, F f) {
    double keep = x, h = 0x1p-11;
    auto D = [&](double h) {
        double right = keep + h, left = keep - h;
        x = right;
        double up = f();
        x = left;
        double down = f();
        x = keep;
        return (up - down) / (right - left);
    };
    double d1 = D(h), d2 = D(2 * h), d4 = D(4 * h), fine = (4 * d1 - d2) / 3, coarse = (4 * d2 - d4) / 3;
    return {fine, std::fabs(coarse - fine) + 64 * 1.5 * 0x1p-53 * size / h};
}
// got: the gradient that `backward` left; x: what it is a gradient with respect to; f(): the loss; inexact: a further
// relative error, of constants
template <class F>
void check_gradient(const char* what, const double* got, double* x, size_t n, double size, F f, double inexact = 0) {
    for (size_t i : sample(n, 40)) {
        Slope s = slope(x[i], size, f);
        s.tolerance += inexact * std::fabs(s.value);
        REQUIRE_MESSAGE(s.tolerance < 1e-6 * (1 + std::fabs(s.value)), what, "[", i, "]: differences too coarse");
        REQUIRE_MESSAGE(std::fabs(got[i] - s.value) <= s.tolerance, what, "[", i, "] of ", n, ": ", got[i], ", slope ",
                        s.value, " +- ", s.tolerance);
    }
    CHECK(n > 0);
}
static double dot(const Vector& a, const Vector& b) {
    double s = 0;
    for (size_t i = 0; i < a.size(); i++) s += a[i] * b[i];
    return s;
}
static Vector minus(Vector a, const Vector& b) {
    for (size_t i = 0; i < a.size(); i++) a[i] -= b[i];
    return a;
}
static Threads one(1); // thousands of tiny launches: waking threads would take most of the time

TEST_CASE("f64: layernorm's gradients are its slopes, and are added to what is there") {
    struct {
        int N, C;
    } shapes[] = {{3, 1}, {1, 2}, {5, 3}, {4, 33}, {2, 128}, {67, 130}, {129, 7}};
    for (auto shape : shapes) {
        const int N = shape.N, C = shape.C;
        INFO("N ", N, " C ", C);
        Vector x = normals<double>(N * C, 1, 1.5, 0.3), w = normals<double>(C, 2, 0.5, 1), b = normals<double>(C, 3);
        Vector y(N * C), mean(N), rstd(N), dy = normals<double>(N * C, 4), partial(2 * panels(N) * C);
        Vector dx0 = normals<double>(N * C, 5), dw0 = normals<double>(C, 6), db0 = normals<double>(C, 7);
        auto loss = [&] {
            layernorm_forward(y.data(), mean.data(), rstd.data(), x.data(), w.data(), b.data(), N, C);
            return dot(y, dy);
        };
        loss();
        Vector dx = dx0, dw = dw0, db = db0;
        layernorm_backward(dx.data(), dw.data(), db.data(), dy.data(), x.data(), mean.data(), rstd.data(), w.data(),
                           partial.data(), N, C);
        check_gradient("dx", minus(dx, dx0).data(), x.data(), N * C, 2.0 * N * C, loss);
        check_gradient("dw", minus(dw, dw0).data(), w.data(), C, 2.0 * N * C, loss);
        check_gradient("db", minus(db, db0).data(), b.data(), C, 2.0 * N * C, loss);
    }
}

TEST_CASE("f64: linear's three products and its bias sum are the slopes of y = x w^T + b") {
    machine.kernels = Kernels::reference;
    struct {
        int N, C, OC;
    } shapes[] = {{1, 1, 1}, {3, 1, 2}, {5, 7, 11}, {67, 5, 3}, {2, 33, 129}, {130, 3, 1}};
    for (auto shape : shapes)
        for (bool accumulate : {false, true}) {
            const int N = shape.N, C = shape.C, OC = shape.OC;
            INFO("N ", N, " C ", C, " OC ", OC, " accumulate ", accumulate);
            Vector x = normals<double>(N * C, 1), w = normals<double>(OC * C, 2), b = normals<double>(OC, 3);
            Vector y(N * OC), dy = normals<double>(N * OC, 4), partial(panels(N) * OC);
            Vector dw0 = accumulate ? normals<double>(OC * C, 5) : Vector(OC * C, 0), db0 = normals<double>(OC, 6);
            Vector dx(N * C, NAN), dw = accumulate ? dw0 : Vector(OC * C, NAN), db = db0; // NaN: has to be overwritten
            Linear l;
            l.weight = {.rows = OC, .cols = C, .w = w.data(), .grad = dw.data(), .operand = w.data()};
            l.bias = {.cols = OC, .w = b.data(), .grad = db.data(), .operand = b.data()};
            auto loss = [&] {
                linear_forward(y.data(), l, x.data(), N);
                return dot(y, dy);
            };
            linear_backward(dx.data(), l, dy.data(), x.data(), N, accumulate, partial.data());
            double size = N * OC * (1 + sqrt(C));
            check_gradient("dx", dx.data(), x.data(), N * C, size, loss);
            check_gradient("dw", minus(dw, dw0).data(), w.data(), OC * C, size, loss);
            check_gradient("db", minus(db, db0).data(), b.data(), OC, size, loss);
        }
}

TEST_CASE("f64: attention's gradients of q, k and v are its slopes") {
    machine.kernels = Kernels::reference;
    Heads shapes[] = {{1, 1, 1, 1}, {2, 1, 3, 5},  {1, 2, 1, 3}, {2, 5, 3, 1},
                      {2, 8, 2, 7}, {1, 9, 1, 33}, {1, 35, 2, 3}};
    for (Heads d : shapes) {
        INFO("B ", d.B, " T ", d.T, " NH ", d.NH, " HS ", d.HS);
        size_t NC = d.B * d.T * d.C(), square = d.rows() * d.T;
        Vector qkv = normals<double>(3 * NC, 1), dout = normals<double>(NC, 2), o(NC), lse(d.rows()), dqkv(3 * NC, NAN);
        Vector s(square, NAN), dp(square, NAN), p(square, NAN), ds(square, NAN); // NaN: what is not written is not read
        AttentionScratch scratch = {s.data(), dp.data(), p.data(), ds.data()};
        auto loss = [&] {
            attention_forward(o.data(), lse.data(), qkv.data(), scratch, d);
            return dot(o, dout);
        };
        loss();
        attention_backward(dqkv.data(), dout.data(), qkv.data(), o.data(), lse.data(), scratch, d);
        check_gradient("dqkv", dqkv.data(), qkv.data(), 3 * NC, NC, loss);
    }
}

TEST_CASE("f64: gelu's gradient is its slope, in place too") {
    size_t n = 2 * PIECE + 5;
    Vector x(n), y(n), dy = normals<double>(n, 1);
    for (size_t i = 0; i < n; i++) x[i] = -7 + 14.0 * i / (n - 1);
    x[n / 2] = 0;
    auto loss = [&] {
        gelu_forward(y.data(), x.data(), 1, (int)n);
        return dot(y, dy);
    };
    Vector dx(n, NAN), in_place = dy;
    gelu_backward(dx.data(), dy.data(), x.data(), 1, (int)n);
    gelu_backward(in_place.data(), in_place.data(), x.data(), 1, (int)n);
    check_same_bits("in place", in_place, dx);
    // 0.134145 and 3 * 0.044715 are rounded to FP32 apart, 2^-24 relative each, and meet x^2 <= 49 in the derivative
    check_gradient("dx", dx.data(), x.data(), n, 4.0 * n, loss, 2 * 0x1p-24 * 0.134145 * 49);
}

TEST_CASE("f64: the classifier leaves the slope of its loss, and nothing where the target is ignored") {
    struct {
        int N, V;
    } shapes[] = {{3, 1}, {4, 2}, {5, 7}, {3, 33}, {2, 128}, {3, 131}};
    for (auto shape : shapes) {
        const int N = shape.N, V = shape.V;
        INFO("N ", N, " V ", V);
        Vector logits = normals<double>(N * V, 1, 2), losses(N);
        std::vector<int> targets(N);
        for (int n = 0; n < N; n++) targets[n] = n == 1 ? -1 : (n * 5 + V - 1) % V;
        const double scale = 0.375;
        auto loss = [&] {
            classifier(losses.data(), logits.data(), targets.data(), scale, false, N, V);
            double sum = 0;
            for (double l : losses) sum += l;
            return sum * scale;
        };
        Vector dlogits = logits;
        loss();
        Vector without = losses;
        classifier(losses.data(), dlogits.data(), targets.data(), scale, true, N, V);
        check_same_bits("loss with and without gradient", losses, without);
        check_gradient("dlogits", dlogits.data(), logits.data(), N * V, N * 8.0, loss);
        CHECK(losses[1] == 0);
        for (int v = 0; v < V; v++) REQUIRE(dlogits[V + v] == 0);
    }
}

TEST_CASE("f64: both embeddings' gradients are the slopes of x = wte[token] + wpe[t], with repeated tokens") {
    struct {
        int B, T, C, V;
    } shapes[] = {{1, 1, 1, 1}, {2, 5, 3, 4}, {3, 7, 33, 40}, {2, 3, 129, 2}};
    for (auto shape : shapes) {
        const int B = shape.B, T = shape.T, C = shape.C, V = shape.V, N = B * T;
        INFO("B ", B, " T ", T, " C ", C, " V ", V);
        Vector wte = normals<double>(V * C, 1), wpe = normals<double>(T * C, 2), x(N * C),
               dx = normals<double>(N * C, 3);
        std::vector<int> tokens(N), distinct, first, positions;
        for (int n = 0; n < N; n++) tokens[n] = n * n % V;
        for (int v = 0; v < V; v++) {
            int before = (int)positions.size();
            for (int n = 0; n < N; n++)
                if (tokens[n] == v) positions.push_back(n);
            if ((int)positions.size() > before) distinct.push_back(v), first.push_back(before);
        }
        first.push_back(N);
        TokenIndex index = {(int)distinct.size(), distinct.data(), first.data(), positions.data()};
        Vector dwte0 = normals<double>(V * C, 4), dwpe0 = normals<double>(T * C, 5), dwte = dwte0, dwpe = dwpe0;
        embedding_backward_tokens(dwte.data(), dx.data(), index, N, C);
        embedding_backward_positions(dwpe.data(), dx.data(), B, T, C);
        auto loss = [&] {
            embedding_forward(x.data(), tokens.data(), wte.data(), wpe.data(), B, T, C);
            return dot(x, dx);
        };
        check_gradient("dwte", minus(dwte, dwte0).data(), wte.data(), V * C, 4.0 * N * C, loss);
        check_gradient("dwpe", minus(dwpe, dwpe0).data(), wpe.data(), T * C, 4.0 * N * C, loss);
    }
}

// Weights as after some training, not as after initialise(), where some gradients are too faint to see a mistake in.
static void random_weights(GPT& g) {
    uint64_t seed = 100;
    for_each_param(g, [&](const std::string& name, Param& p) {
        bool norm = name.find("ln_") != std::string::npos && name.find("weight") != std::string::npos;
        Vector w = normals<double>(p.size(), seed++, p.rows ? 0.8 / sqrt(p.cols) : 0.3, norm ? 1 : 0);
        std::copy(w.begin(), w.end(), p.w);
    });
    publish(g);
}
TEST_CASE("f64: every parameter's gradient is the slope of the loss, over two microbatches") {
    machine.kernels = Kernels::reference;
    Config configs[] = {{2, 3, 15, 7, 23}, {1, 1, 5, 3, 2}, {0, 1, 3, 4, 130}};
    for (Config c : configs) {
        INFO("L ", c.layers, " C ", c.channels, " V ", c.vocab);
        const int B = 2, maxT = c.seq_len;
        const float dloss = 0x1p-5f; // exact, unlike 1 / tokens
        GPT g;
        allocate(g, c, Use::training, B, maxT);
        random_weights(g);
        // The second microbatch is shorter: the last position has a gradient from the first one only.
        auto forward = [&](int m, float dloss) {
            int T = m ? maxT - 1 : maxT;
            std::vector<int> tokens(B * T), targets(B * T);
            for (int n = 0; n < B * T; n++) {
                tokens[n] = (int)(random_bits(m, n) % (c.vocab + 1) / 2),
                targets[n] = (int)(random_bits(m + 9, n) % c.vocab);
                if (n == 1) targets[n] = -1;
            }
            set_batch(g, tokens, targets);
            g.pass.micro = m;
            return gpt_forward(g, B, T, dloss) * B * T;
        };
        for_each_param(g, [](const std::string&, Param& p) { std::fill(p.grad, p.grad + p.size(), NAN); }); // stale
        for (int m = 0; m < 2; m++) forward(m, dloss), gpt_backward(g, B, m ? maxT - 1 : maxT);
        auto loss = [&] { return (forward(0, 0) + forward(1, 0)) * dloss; };
        for_each_param(g, [&](const std::string& name, Param& p) {
            CAPTURE(name);
            double largest = 0, sum = 0;
            for (size_t i = 0; i < p.size(); i++) sum += p.grad[i], largest = std::max(largest, std::fabs(p.grad[i]));
            CHECK(std::isfinite(sum));
            CHECK(largest > 1e-4); // faint gradients would prove little
            // gelu's constants as above; the losses are of the order of log V, and there are two times B * T of them
            double inexact = 2 * 0x1p-24 * 0.134145 * 49, size = 2 * B * maxT * dloss * 8;
            for (size_t i : sample(p.size(), 5)) {
                Slope s = slope(p.w[i], size, loss);
                s.tolerance += inexact * largest;
                REQUIRE_MESSAGE(s.tolerance < 1e-5 * (1 + largest), name, "[", i, "]: differences too coarse");
                REQUIRE_MESSAGE(std::fabs(p.grad[i] - s.value) <= s.tolerance, name, "[", i, "]: ", p.grad[i],
                                ", slope ", s.value, " +- ", s.tolerance);
            }
        });
        release(g);
    }
}
