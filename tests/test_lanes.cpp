// The host's side of the seam: the verbs' order, their rules for NaN, and launches.
#include "close.h"
#include "documented.h"
#include "ops/ops.cuh"
#include "ops/ops.cuh"

namespace { // test files share one program

static bool same(real a, real b) { return bits_as<uint32_t>(a) == bits_as<uint32_t>(b); }

TEST_CASE("sum and max return the bits of the documented order, at every length and alignment") {
    auto a = normals<act>(700, 1);
    auto b = normals<real>(700, 2);
    Lanes g;
    for (int n = 0; n <= 650; n += n < 150 ? 1 : 25)
        for (int at : {0, 1, 3}) {
            const act* x = a.data() + at;
            const real* y = b.data() + at;
            REQUIRE(same(g.sum(
                             n, [](real x) { return x; }, x),
                         documented_sum(n, [&](int i) { return (real)x[i]; })));
            auto times = [](real x, real y) { return x * y - 1; }; // not 0 where both are
            REQUIRE(same(g.sum(n, times, x, y), documented_sum(n, [&](int i) { return times(x[i], y[i]); })));
            auto negative = [](real y) { return -1 - y * y; };
            REQUIRE(same(g.max(n, negative, y), documented_max(n, [&](int i) { return negative(y[i]); })));
            REQUIRE(same(g.max_nan(n, negative, y), documented_max(n, [&](int i) { return negative(y[i]); })));
        }
}
TEST_CASE("max ignores NaN, max_nan returns it, wherever it stands; both find infinities and negatives") {
    auto self = [](real x) { return x; };
    Lanes g;
    CHECK(g.max(0, self, (real*)nullptr) == -INFINITY);
    CHECK(g.max_nan(0, self, (real*)nullptr) == -INFINITY);
    for (int n : {1, 3, 16, 17, 128, 131, 300})
        for (int at = 0; at < n; at++) {
            std::vector<real> x(n, -5);
            x[(at + 1) % n] = -2;
            x[at] = NAN;
            REQUIRE(std::isnan(g.max_nan(n, self, x.data())));
            REQUIRE(g.max(n, self, x.data()) == (n == 1 ? -INFINITY : -2));
            x[at] = INFINITY;
            REQUIRE(g.max_nan(n, self, x.data()) == INFINITY);
            REQUIRE(g.max(n, self, x.data()) == INFINITY);
            x[at] = -INFINITY;
            REQUIRE(g.max_nan(n, self, x.data()) == (n == 1 ? -INFINITY : -2));
            x[at] = -1;
            REQUIRE(g.max(n, self, x.data()) == -1);
            std::fill(x.begin(), x.end(), -NAN);
            REQUIRE(g.max(n, self, x.data()) == -INFINITY);
            REQUIRE(std::isnan(g.max_nan(n, self, x.data())));
        }
}
TEST_CASE("map writes n elements and no more, in place too; each visits every index once") {
    auto a = normals<act>(400, 1);
    auto b = normals<real>(400, 2);
    for (int n = 0; n <= 300; n++)
        for (int at : {0, 1}) {
            std::vector<act> y(n + 20, act(7.0f)), z = a;
            Lanes().map(
                n, y.data() + at, [](real x, real y) { return x - y; }, a.data() + at, b.data() + at);
            Lanes().map(
                n, z.data() + at, [](real x, real y) { return x - y; }, z.data() + at, b.data() + at);
            std::vector<int> visits(n);
            Lanes().each(n, [&](int i) { visits[i]++; });
            for (int i = 0; i < n; i++) {
                REQUIRE(y[at + i].bits == act((real)a[at + i] - b[at + i]).bits);
                REQUIRE(z[at + i].bits == y[at + i].bits);
                REQUIRE(visits[i] == 1);
            }
            for (int i = n; i < n + 19; i++) REQUIRE(y[at + i] == 7);
            for (int i = n; i < n + 19; i++) REQUIRE(z[at + i].bits == a[at + i].bits);
        }
}
TEST_CASE("LayerNorm returns the bits of an ascending loop in the documented order") {
    for (int C : {1, 2, 3, 15, 16, 17, 31, 127, 128, 129, 300}) {
        const int N = 3;
        auto x = normals<act>(N * C, 1), dy = normals<act>(N * C, 2), dx = normals<act>(N * C, 3), dx2 = dx;
        auto w = normals<real>(C, 4), b = normals<real>(C, 5);
        std::vector<act> y(N * C), y2(N * C);
        std::vector<real> mean(N), rstd(N), mean2(N), rstd2(N), dw(C), db(C), partial(2 * C);
        layernorm_forward(y.data(), mean.data(), rstd.data(), x.data(), w.data(), b.data(), N, C);
        layernorm_backward(dx.data(), dw.data(), db.data(), dy.data(), x.data(), mean.data(), rstd.data(), w.data(),
                           partial.data(), N, C);
        for (int n = 0; n < N; n++) {
            size_t at = (size_t)n * C;
            documented_layernorm(&y2[at], &mean2[n], &rstd2[n], &x[at], w.data(), b.data(), C);
            documented_layernorm_backward(&dx2[at], &dy[at], &x[at], mean[n], rstd[n], w.data(), C);
        }
        check_same_bits("y", y, y2), check_same_bits("dx", dx, dx2);
        check_same_bits("mean", mean, mean2), check_same_bits("rstd", rstd, rstd2);
    }
}
TEST_CASE("column sums: panels cover every element once, and add up in the documented order") {
    for (int N : {1, 63, 64, 65, 130, 257})
        for (int C : {1, 3, 127, 128, 129, 256, 260}) {
            INFO("N ", N, " C ", C);
            std::vector<int> covered(N * C);
            for (int j = 0; j < panels(N) * column_groups(C); j++) {
                Panel p = panel(j, N, C);
                for (int r = 0; r < p.rows; r++)
                    for (int c = 0; c < p.cols; c++) covered[(p.row + r) * C + p.col + c]++;
                REQUIRE(p.index == p.row / 64);
            }
            for (int n : covered) REQUIRE(n == 1);

            auto dy = normals<act>(N * C, 1);
            auto db = normals<real>(C, 2), want = db;
            std::vector<real> partial(panels(N) * C, NAN);
            bias_backward(db.data(), dy.data(), partial.data(), N, C);
            documented_sum_down(want.data(), N, C, [&](int r, int c) { return (real)dy[r * C + c]; });
            check_same_bits("db", db, want);
        }
}
TEST_CASE("for_rows runs every row once for any number of threads, and counts what it does") {
    for (int threads : {1, 2, 3}) {
        Threads with(threads);
        for (size_t N : {0, 1, 2, 1000}) {
            std::vector<int> visits(N + 1);
            int* v = visits.data();
            for_rows("visit", 0, N, [=](Lanes, int n) { v[n]++; });
            for (size_t n = 0; n < N; n++) REQUIRE(visits[n] == 1);
            REQUIRE(visits[N] == 0);
        }
        machine.profile = true, machine.costs.clear();
        for (int i = 0; i < 3; i++)
            for_rows(
                "visit", 40, 7, [](Lanes, int) {}, 5);
        machine.profile = false;
        auto cost = machine.costs["visit"];
        CHECK(cost.calls == 3);
        CHECK(cost.bytes == 120);
        CHECK(cost.flops == 15);
    }
    CHECK_THROWS_AS(for_rows("visit", 0, (size_t)1 << 31, [](Lanes, int) {}), Error);
}

} // namespace
