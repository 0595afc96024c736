// bf16, exp_, log_, tanh_: what every other number rests on.
#include "close.h"
#include "ops/lanes.cuh"

static_assert(std::is_same_v<act, bf16>);

TEST_CASE("bf16: all 65,536 values come back from FP32 unchanged, NaNs as 0x7fff") {
    for (uint32_t u = 0; u < 65536; u++) {
        bf16 b;
        b.bits = (uint16_t)u;
        float f = b;
        REQUIRE(bits_as<uint32_t>(f) == u << 16);
        uint32_t back = (u & 0x7fff) > 0x7f80 ? 0x7fff : u;
        REQUIRE(bf16(f).bits == back);
        REQUIRE(bf16((double)f).bits == back);
    }
    for (uint32_t nan : {0x7f800001u, 0xff800001u, 0x7fffffffu, 0xffffffffu, 0x7fc00000u, 0xff80ffffu})
        REQUIRE(bf16(bits_as<float>(nan)).bits == 0x7fff);
}

TEST_CASE("bf16: between neighbours the nearer wins, and midpoints go to the even one") {
    for (uint32_t u = 0; u < 0x7f80; u++) // up to the midpoint between the largest finite value and infinity
        for (uint32_t sign : {0u, 0x8000u}) {
            uint32_t low = u | sign, high = low + 1, midpoint = low << 16 | 0x8000;
            REQUIRE(bf16(bits_as<float>(midpoint)).bits == (u % 2 ? high : low));
            REQUIRE(bf16(bits_as<float>(midpoint - 1)).bits == low);
            REQUIRE(bf16(bits_as<float>(midpoint + 1)).bits == high);
            REQUIRE(bf16(bits_as<float>(low << 16 | 1)).bits == low);
            REQUIRE(bf16(bits_as<float>(low << 16 | 0xffff)).bits == high);
        }
}

// |got - exact| in units of the last place of an FP32 near `exact` (2^-149 for subnormals)
static double ulps(float got, double exact) {
    if (std::isinf(got) && std::fabs(exact) >= 0x1.ffffffp127) return 0; // what rounds to infinity
    int e;
    frexp(exact, &e);
    return std::fabs(got - exact) / ldexp(1, std::max(e - 24, -149));
}
// `ours` at x and its neighbours, and at -x: the worst error
template <class F, class G> static double window(F ours, G exact, float x, int each_side) {
    double worst = 0;
    for (int i = -each_side; i <= each_side; i++)
        for (uint32_t sign : {0u, 0x80000000u}) {
            uint32_t u = bits_as<uint32_t>(x) + (uint32_t)i;
            if ((u & 0x7fffffff) > 0x7f800000) continue; // NaN has its own test
            float f = bits_as<float>(u ^ sign);
            double want = exact((double)f);
            if (std::isnan(want)) { // log of a negative number
                if (!std::isnan(ours(f))) return INFINITY;
            } else if (std::isinf(want)) {
                if (ours(f) != want) return INFINITY;
            } else worst = std::max(worst, ulps(ours(f), want));
        }
    return worst;
}
// Every 1009th FP32 (2^32 would take minutes), and windows around what is special. The oracle is libm's double, whose
// error of 2^-53 relative is 2^-29 of an FP32 ulp.
template <class F, class G> static double worst_error(F ours, G exact, std::vector<float> special) {
    double worst = 0;
    for (uint32_t u = 0; u <= 0x7f800000; u += 1009) worst = std::max(worst, window(ours, exact, bits_as<float>(u), 0));
    for (float x : {0.0f, 0x1p-149f, 0x1p-126f, 0x1p-24f, 0.5f, 1.0f, 2.0f, 0x1p127f, INFINITY}) special.push_back(x);
    for (float x : special) worst = std::max(worst, window(ours, exact, x, 1000));
    return worst;
}

TEST_CASE("exp_: within 2 ulp everywhere, subnormal results included; 0, infinity and NaN as they should be") {
    std::vector<float> special = {88.0f, 88.72283f, 89.0f, -87.33655f, -103.27893f, -103.97208f, -104.0f};
    for (int n = -150; n <= 128; n++) special.push_back((n + 0.5f) * 0.693147181f); // where n steps, |r| is largest
    auto ours = [](float x) { return exp_(x); };
    auto exact = [](double x) { return exp(x); };
    CHECK(worst_error(ours, exact, special) <= 2);
    CHECK(exp_(0.0f) == 1);
    CHECK(exp_(-0.0f) == 1);
    CHECK(bits_as<uint32_t>(exp_(-INFINITY)) == 0);
    CHECK(bits_as<uint32_t>(exp_(-200.0f)) == 0);
    CHECK(exp_(-103.9f) == 0x1p-149f);
    CHECK(exp_(INFINITY) == INFINITY);
    CHECK(exp_(88.8f) == INFINITY);
    CHECK(exp_(88.7f) < INFINITY);
    CHECK(std::isnan(exp_(NAN)));
    CHECK(std::isnan(exp_(-NAN)));
}
TEST_CASE("log_: within 2 ulp everywhere, subnormals included; 0, infinity, NaN and negatives as they should be") {
    auto ours = [](float x) { return log_(x); };
    auto exact = [](double x) { return log(x); };
    CHECK(worst_error(ours, exact, {0.70710678f, 1.41421356f, 0x1.fffffep127f, 0.9f, 1.1f}) <= 2);
    CHECK(bits_as<uint32_t>(log_(1.0f)) == 0);
    CHECK(log_(0.0f) == -INFINITY);
    CHECK(log_(-0.0f) == -INFINITY);
    CHECK(log_(INFINITY) == INFINITY);
    for (float x : {-1.0f, -0x1p-149f, -INFINITY, NAN, -NAN}) CHECK(std::isnan(log_(x)));
}
TEST_CASE("tanh_: within 2 ulp everywhere, odd to the bit, and never beyond 1") {
    auto ours = [](float x) { return tanh_(x); };
    auto exact = [](double x) { return tanh(x); };
    CHECK(worst_error(ours, exact, {0.6f, 9.0f, 9.01091f, 44.0f, 44.5f, 0x1p-12f, 0x1p-63f, 0x1p-75f}) <= 2);
    for (uint32_t u = 0; u <= 0x7f800000; u += 4099) {
        float x = bits_as<float>(u), y = tanh_(x);
        REQUIRE(y <= 1);
        REQUIRE(bits_as<uint32_t>(tanh_(-x)) == (bits_as<uint32_t>(y) ^ 0x80000000));
    }
    CHECK(tanh_(INFINITY) == 1);
    CHECK(tanh_(-INFINITY) == -1);
    CHECK(bits_as<uint32_t>(tanh_(-0.0f)) == 0x80000000);
    CHECK(std::isnan(tanh_(NAN)));
}
