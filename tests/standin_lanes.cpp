// The device's side of the seam, on a GPU made of fibers: every verb returns the host's bits.
#include "both_machines.h"
#include "documented.h"

TEST_CASE("stand-in: sum, max and max_nan give every lane the host's bits and those of the documented order") {
    OnCard card;
    const Acts a = normals<act>(700, 1);
    const Reals b = normals<real>(700, 2);
    for (int n : {0, 1, 2, 3, 4, 5, 31, 32, 33, 126, 127, 128, 129, 130, 131, 132, 255, 256, 260, 517, 640})
        for (int at : {0, 1, 2, 3, 4})    // of the BF16 row; packs at 0 and 4
            for (int bt : {0, 1, 2, 4}) { // of the FP32 row
                const act* x = a.data() + at;
                const real* y = b.data() + bt;
                auto times = [](real x, real y) { return x * y - 1; };
                Reals sum(LANES), top(LANES), top_nan(LANES);
                real *s = sum.data(), *t = top.data(), *u = top_nan.data();
                for_rows("reduce", 0, 1, [=](Lanes g, int) {
                    int lane = thread_index() % LANES;
                    s[lane] = g.sum(n, times, x, y), t[lane] = g.max(n, times, x, y),
                    u[lane] = g.max_nan(n, times, x, y);
                });
                real want = documented_sum(n, [&](int i) { return times(x[i], y[i]); });
                real want_top = documented_max(n, [&](int i) { return times(x[i], y[i]); });
                check_same_bits("sum", sum, Reals(LANES, want)), check_same_bits("max", top, Reals(LANES, want_top));
                check_same_bits("max_nan", top_nan, Reals(LANES, want_top));
                REQUIRE(!on_device());
                CHECK(bits_as<uint32_t>(Lanes().sum(n, times, x, y)) == bits_as<uint32_t>(want));
                CHECK(bits_as<uint32_t>(Lanes().max(n, times, x, y)) == bits_as<uint32_t>(want_top));
            }
}
TEST_CASE("stand-in: max ignores NaN and max_nan keeps it on the device too") {
    OnCard card;
    for (int n : {1, 5, 129})
        for (int bad = 0; bad < n; bad++) {
            Reals x(n, -3), out(2);
            x[bad] = NAN;
            real *o = out.data(), *p = x.data();
            for_rows("max", 0, 1, [=](Lanes g, int) {
                real m = g.max(
                         n, [](real x) { return x; }, p),
                     k = g.max_nan(
                         n, [](real x) { return x; }, p);
                if (g.first()) o[0] = m, o[1] = k;
            });
            REQUIRE(out[0] == (n == 1 ? -INFINITY : -3));
            REQUIRE(std::isnan(out[1]));
        }
}
TEST_CASE("stand-in: map, each and sum_down touch every element once, by its owner, and nothing else") {
    for (int n : {0, 1, 3, 4, 5, 31, 33, 127, 128, 129, 131, 132, 300})
        for (int at : {0, 1, 2, 4}) {
            const Acts a = normals<act>(310, 1);
            const Reals b = normals<real>(310, 2);
            INFO("n ", n, " offset ", at);
            check_both_machines("map", [&](Reals& all) {
                Acts y(310, act(5.0f)), z = a;
                Reals each(310), owner(310);
                act *q = y.data() + at, *in_place = z.data() + at;
                const act* x = a.data() + at;
                const real* w = b.data() + at;
                real *e = each.data(), *o = owner.data();
                for_rows("map", 0, 1, [=](Lanes g, int) {
                    g.map(
                        n, q, [](real x, real w) { return x * w; }, x, w);
                    g.map(
                        n, in_place, [](real x, real w) { return x - w; }, in_place, w);
                    g.each(n, [=](int i) { e[i] += 1 + i; });
                    for (int i = 0; i < n; i++)
                        if (g.owns(i)) q[i] = act((real)q[i] * 2), o[i] += 1; // no sync: it is the lane that stored it
                });
                append(all, y), append(all, z), append(all, each), append(all, owner);
            });
            for (int C : {1, 4, 7, 128}) {
                if (C > n) continue;
                check_both_machines("sum_down", [&](Reals& all) {
                    Reals out(C + 4, 9);
                    real* o = out.data();
                    const act* x = a.data() + at;
                    const real* w = b.data() + at;
                    int R = n / C;
                    auto term = [](int r, real x, real w) { return (r + 1) * x * w; };
                    for_rows("sum_down", 0, 1, [=](Lanes g, int) { g.sum_down(R, C, C, o, term, x, w); });
                    append(all, out);
                });
            }
        }
}
TEST_CASE("stand-in: lanes that part ways are an error, not a wrong number") {
    OnCard card;
    CHECK_THROWS_AS(for_rows("some", 0, 1,
                             [](Lanes g, int) {
                                 if (!g.owns(5)) g.sync();
                             }),
                    Error);
    CHECK_THROWS_AS(for_rows("mask", 0, 1, [](Lanes g, int) { shfl_xor(1.0f, g.first() ? 1 : 2); }), Error);
}
TEST_CASE("stand-in: a launch runs every row once, and the last block's spare warps return") {
    OnCard card;
    for (size_t N : {1, 7, 8, 9, 100}) {
        std::vector<int> visits(N);
        int* v = visits.data();
        standin.warps = 0;
        for_rows("visit", 0, N, [=](Lanes g, int n) {
            if (g.first()) v[n]++;
        });
        for (int n : visits) REQUIRE(n == 1);
        CHECK(standin.warps == (long)(N + 7) / 8 * 8);
    }
}

