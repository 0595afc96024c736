#include "report/compare.h"
#include "program.h"
#include "errors.h"
#include "run/error.h"
#include <algorithm>
#include <functional>

namespace { // test files share one program

// --- a run's directory, as ./train writes it ---------------------------------------------------------------------
static void write(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }
static void append(const std::string& path, const std::string& text) { write(path, slurp(path) + text); }
static void replace(const std::string& path, const std::string& from, const std::string& to) { // the first one
    std::string text = slurp(path);
    size_t at = text.find(from);
    REQUIRE(at != std::string::npos);
    write(path, text.replace(at, from.size(), to));
}
// 500 steps of 768 tokens; bf16 of seed s ends at 2 + s/10. The others differ by d[recipe][i] at the end, and by a
// share of it, p/100, after p % of the steps. A difference of NAN diverges at step 77.
struct Fake {
    std::vector<std::pair<std::string, std::vector<double>>> d;
    int seed = 1, price = 0;
    std::string more_options = "\"lr\":0.004", device = "CPU, 2 threads", noise = "";
    bool native = false;
    void to(const std::string& dir) const {
        std::filesystem::create_directories(dir);
        std::string arms, steps = "recipe,seed,step,tokens,loss,grad_norm,lr,ms\n";
        std::string evals = "recipe,seed,step,tokens,loss\n", ended = "recipe,seed,outcome,step,loss,fingerprint,ms\n";
        for (auto& [recipe, differences] : d) {
            bool emulated = !(native && recipe != "mxfp4");
            arms += format("%s{\"arm\":\"%s\",\"emulated\":%s,\"why\":\"because\",\"memory_bytes\":{\"master weights\":"
                           "3000000,\"codes\":1500000},\"stages\":[{\"row\":{\"w.scaling\":\"%s\"}}]}",
                           arms.empty() ? "" : ",", recipe.c_str(), emulated ? "true" : "false",
                           recipe.starts_with("bf16") ? "none" : "mx");
            for (int i = 0; i < (int)differences.size(); i++) {
                std::string arm = recipe + "," + std::to_string(seed + i) + ",";
                bool diverges = std::isnan(differences[i]);
                for (int percent : {0, 10, 25, 50, 75, 90, 100}) {
                    double loss = 2 + 0.1 * (seed + i) + 0.01 * (100 - percent) + differences[i] * percent / 100;
                    if (diverges && percent > 10) break;
                    if (diverges) loss = 5;
                    if (percent) steps += arm + format("%d,%d,3,1,0.004,10\n", percent * 5, percent * 5 * 768);
                    evals += arm + format("%d,%d,%.9g\n", percent * 5, percent * 5 * 768, loss);
                }
                if (diverges) ended += arm + "diverged,77,nan,0,12\n";
                else
                    ended += arm + format("done,500,%.9g,00ff,%d\n", 2 + 0.1 * (seed + i) + differences[i],
                                          8 + (4 * i + 4) % 6);
            }
        }
        write(dir + "/run.json",
              format("{\"version\":\"x\",\"device\":\"%s\",\"baseline\":\"bf16\",%s\"options\":{\"steps\":500,\"seed\":"
                     "%d,\"seeds\":%zu,\"price\":%d,%s},\"arms\":[%s]}",
                     device.c_str(), noise.empty() ? "" : ("\"noise_floor\":\"" + noise + "\",").c_str(), seed,
                     d[0].second.size(), price, more_options.c_str(), arms.c_str()));
        write(dir + "/steps.csv", steps), write(dir + "/evals.csv", evals), write(dir + "/arms.csv", ended);
        write(dir + "/tensors.csv",
              "recipe,seed,step,layer,operand,format,amax,scale,underflow,saturation,sqnr_db,bias\n");
    }
};
static std::string unwrapped(std::string text) {
    std::replace(text.begin(), text.end(), '\n', ' ');
    return text;
}
static const std::string GRADIENTS = "recipe,seed,layer,rel_error,cosine,mean_error\n";
static const std::vector<double> zero3 = {0, 0, 0}, zero5 = {0, 0, 0, 0, 0};

// --- statistics --------------------------------------------------------------------------------------------------
TEST_CASE("quantiles of t agree with the printed tables and with the closed forms for one and two degrees of freedom") {
    struct {
        double df, p95, p975, p995;
    } table[] = {{1, 6.314, 12.706, 63.657}, {2, 2.920, 4.303, 9.925},  {3, 2.353, 3.182, 5.841},
                 {4, 2.132, 2.776, 4.604},   {7, 1.895, 2.365, 3.499},  {9, 1.833, 2.262, 3.250},
                 {19, 1.729, 2.093, 2.861},  {30, 1.697, 2.042, 2.750}, {120, 1.658, 1.980, 2.617},
                 {1e6, 1.645, 1.960, 2.576}};
    for (auto& row : table) { // three decimals are printed: half a unit of the last one
        CHECK(std::fabs(t_quantile(0.95, row.df) - row.p95) <= 0.0005);
        CHECK(std::fabs(t_quantile(0.975, row.df) - row.p975) <= 0.0005);
        CHECK(std::fabs(t_quantile(0.995, row.df) - row.p995) <= 0.0005);
    }
    for (double p : {0.5, 0.501, 0.6, 0.8, 0.9, 0.95, 0.999}) {
        // Rounding of p and of the fraction, some 1e-16 times the slope dt/dp, which is below 1e6 here.
        CHECK(std::fabs(t_quantile(p, 1) - tan(M_PI * (p - 0.5))) <= 1e-10);
        CHECK(std::fabs(t_quantile(p, 2) - (2 * p - 1) / sqrt(2 * p * (1 - p))) <= 1e-10);
        CHECK(t_quantile(1 - p, 5) == doctest::Approx(-t_quantile(p, 5)).epsilon(1e-10));
    }
}
TEST_CASE("an interval is mean +- t(n - 1) sd / sqrt(n), and one value has none") {
    Interval i = t_interval({1, 2, 3, 4, 5}, 0.9);
    CHECK(i.n == 5);
    CHECK(i.mean == 3);
    CHECK(i.sd == doctest::Approx(sqrt(2.5)).epsilon(1e-15)); // sum of squares 10, over n - 1
    double half = 2.1318 * sqrt(2.5 / 5);                     // t(0.95, 4), four decimals
    CHECK(std::fabs(i.high - 3 - half) <= 0.00005 * sqrt(0.5));
    CHECK(i.low == doctest::Approx(6 - i.high).epsilon(1e-15));
    CHECK(t_interval({1, 2, 3, 4, 5}, 0.95).high > i.high);
    Interval one = t_interval({7}, 0.9), none = t_interval({}, 0.9);
    CHECK((one.n == 1 && one.mean == 7 && std::isnan(one.sd) && std::isnan(one.low) && std::isnan(one.high)));
    CHECK((none.n == 0 && std::isnan(none.mean)));
}
// P(T <= t) of the noncentral t: the integral of Phi(t s - delta) over the density of s = sqrt(chi^2(df) / df), by
// Simpson's rule on 4000 intervals.
static double noncentral_t(double t, double df, double delta) {
    const int N = 4000;
    double h = (1 + 14 / sqrt(df)) / N, sum = 0;
    double log_constant = log(2) + df / 2 * log(df / 2) - lgamma(df / 2);
    for (int k = 1; k <= N; k++) { // the density is 0 at 0 for df > 1
        double s = k * h, density = exp(log_constant + (df - 1) * log(s) - df * s * s / 2);
        sum += density * 0.5 * erfc((delta - t * s) / sqrt(2)) * (k == N ? 1 : k % 2 ? 4 : 2);
    }
    return sum * h / 3;
}
TEST_CASE("the detectable effect has the values in print, and close to the power it promises") {
    struct {
        int n;
        double effect, digit;
    } table[] = {{3, 3.1, 0.1}, {5, 1.66, 0.01}, {8, 1.15, 0.01}, {10, 1.0, 0.1}, {20, 0.66, 0.01}};
    for (auto& row : table) CHECK(std::fabs(detectable_effect(row.n) - row.effect) <= row.digit / 2);
    for (auto [n, power] : {std::pair(3, 0.77), {5, 0.79}, {8, 0.80}, {20, 0.80}}) {
        double t = t_quantile(0.975, n - 1), delta = detectable_effect(n) * sqrt(n);
        double found = 1 - noncentral_t(t, n - 1, delta) + noncentral_t(-t, n - 1, delta);
        CHECK(std::fabs(found - power) <= 0.005); // as compare.h prints it, two decimals
    }
    CHECK(detectable_effect(5, 0.9) > detectable_effect(5, 0.8));
    CHECK(detectable_effect(5, 0.8, 0.01) > detectable_effect(5, 0.8, 0.05));
}
TEST_CASE("a verdict asks for equivalence first, then for a difference, and is unresolved otherwise") {
    auto verdict = [](double low, double high) { return verdict_of({3, (low + high) / 2, 1, low, high}, 0.25); };
    CHECK(verdict(-0.1, 0.2) == "equivalent");
    CHECK(verdict(0.1, 0.2) == "equivalent"); // though it excludes 0
    CHECK(verdict(-0.25, 0.25) == "equivalent");
    CHECK(verdict(-0.1, 0.26) == "unresolved");
    CHECK(verdict(-0.26, 0.1) == "unresolved");
    CHECK(verdict(0.1, 0.3) == "worse");
    CHECK(verdict(-0.3, -0.1) == "better");
    CHECK(verdict_of({1, 0, NAN, NAN, NAN}, 0.25) == "one seed: no interval");
}

// --- what follows from a directory -------------------------------------------------------------------------------
TEST_CASE("differences are paired by seed: what seeds share cancels") {
    Scratch s;
    Fake{{{"bf16", zero3}, {"mxfp8", {0.0011, 0.0009, 0.001}}}}.to(s / "a"); // losses themselves lie 0.1 apart
    Comparison c = compare({s / "a"});
    const RecipeResult &bf16 = *c.find("bf16"), &r = *c.find("mxfp8");
    // Losses are written with nine digits: an error of 5e-10 each.
    CHECK(std::fabs(bf16.loss - 2.2) < 1e-9);
    CHECK(std::fabs(r.loss - 2.201) < 1e-9);
    CHECK(std::fabs(r.baseline_loss - 2.2) < 1e-9);
    CHECK(std::fabs(r.nats.mean - 0.001) < 1e-9);
    CHECK(std::fabs(r.nats.sd - 0.0001) < 1e-9);
    CHECK(std::fabs(r.nats.high - r.nats.mean - 2.920 * 0.0001 / sqrt(3)) < 3e-8 + 1e-9); // t to three decimals
    CHECK(std::fabs(r.relative.mean - 0.1 / 2.2) < 1e-7);                                 // percent of 2.2
    CHECK(std::fabs(r.relative.low - 100 * r.nats.low / 2.2) < 1e-7);
    CHECK(std::fabs(r.detectable - detectable_effect(3) * 0.0001) < 4e-9);
    CHECK(r.verdict == "equivalent");
    CHECK(r.inside_half);
    CHECK(r.done == 3);
    CHECK(std::fabs(r.seeds[1].difference - 0.0009) < 1e-9);
    CHECK((r.seeds[2].seed == 3 && r.seeds[2].outcome == "done" && r.seeds[2].fingerprint == "00ff"));
    CHECK(bf16.verdict == "baseline");
    CHECK((bf16.nats.n == 0 && std::isnan(bf16.seeds[0].difference)));
    CHECK((c.steps == 500 && c.seeds == 3 && c.baseline == "bf16" && c.noise_floor.empty() && std::isnan(c.noise)));
}
TEST_CASE("verdicts follow the 90 % interval in percent of the baseline's mean loss") {
    Scratch s;
    // Half-widths: 2.132 sd / sqrt(5), of differences +-x around their mean with sd x * sqrt(4 / 4) = x: 0.953 x. The
    // bounds are 0.25 % and 0.5 % of 2.3: 0.00575 and 0.0115.
    auto around = [](double mean, double x) { return std::vector{mean - x, mean - x, mean, mean + x, mean + x}; };
    Fake{{{"bf16", zero5},
          {"same", zero5},
          {"inside", around(0.002, 0.0039)},  // up to 0.00572
          {"outside", around(0.002, 0.0040)}, // up to 0.00581, and contains 0
          {"half", around(0.0077, 0.0030)},   // from 0.0048 to 0.0106
          {"gain", around(-0.020, 0.0100)}}}  // from -0.0295 to -0.0105
        .to(s / "a");
    Comparison c = compare({s / "a"});
    auto verdict = [&](const char* recipe) { return c.find(recipe)->verdict; };
    CHECK(verdict("same") == "equivalent");
    CHECK(verdict("inside") == "equivalent");
    CHECK(verdict("outside") == "unresolved");
    CHECK(verdict("half") == "worse");
    CHECK(verdict("gain") == "better");
    CHECK(c.find("outside")->inside_half);
    CHECK(c.find("half")->inside_half);
    CHECK(!c.find("gain")->inside_half);
    std::string text = comparison_text(c, 200);
    CHECK(has(text, "usually quoted: same inside outside half; not: gain"));
    CHECK(has(text, "5 seeds"));
    CHECK(has(text, "1.66"));
    // 1.66 * 0.0039 and so on; sd 0 of "same" is what least says
    CHECK(has(text, format("%.4f nats", c.find("gain")->detectable)));
    // "outside": the first n with (t(0.975) + t(0.8)) / sqrt(n) * 0.004 <= 0.00575, which is 6: 1.43 * 0.0040
    CHECK(has(text, "--seeds 6\n"));
    Fake{{{"bf16", zero5}, {"wild", around(0.02, 0.1)}}}.to(s / "b");
    CHECK(has(comparison_text(compare({s / "b"}), 200), "--seeds 100 or more"));
}
TEST_CASE("a seed that diverged counts, and makes worse what its baseline survived, whatever the others say") {
    Scratch s;
    Fake{{{"bf16", {0, 0, 0, 0, NAN}},
          {"once", {0, 0, NAN, 0, 0}},
          {"both", {0, 0, 0, 0, NAN}},
          {"all", {NAN, NAN, NAN, NAN, NAN}}}}
        .to(s / "a");
    Comparison c = compare({s / "a"});
    CHECK(c.find("bf16")->verdict == "baseline (1 of 5 diverged)");
    CHECK(c.find("once")->verdict == "worse (1 of 5 diverged)");
    CHECK(c.find("once")->nats.n == 3);
    CHECK(!c.find("once")->inside_half);
    CHECK(c.find("once")->diverged == 1);
    CHECK(c.find("once")->done == 4);
    CHECK(!c.find("once")->horizon[5].complete);
    CHECK(c.find("both")->verdict == "equivalent (1 of 5 diverged)"); // where the baseline diverged as well
    CHECK(c.find("all")->verdict == "worse (5 of 5 diverged)");
    CHECK(std::isnan(c.find("all")->loss));
    CHECK(c.find("all")->seeds[0].step == 77);
    CHECK(has(comparison_text(c, 80), "worse (1 of 5 diverged)"));
    CHECK(has(comparison_text(c, 80), "*: not of all seeds"));
    CHECK(has(comparison_text(c, 80), "+0.00*"));
    CHECK(!has(comparison_text(compare({(Fake{{{"bf16", zero3}, {"x", zero3}}}.to(s / "c"), s / "c")}), 80), "*"));
    // An end without a finite loss is no end either.
    Fake{{{"bf16", zero3}, {"x", zero3}}}.to(s / "b");
    replace(s / "b/arms.csv", "x,2,done,500,2.2", "x,2,done,500,nan");
    CHECK(compare({s / "b"}).find("x")->verdict == "worse (1 of 3 diverged)");
}
TEST_CASE("one seed: no interval, not a comparison, but an exact gradient error; divergence is worse all the same") {
    Scratch s;
    Fake{{{"bf16", {0}}, {"mxfp8", {0.1}}, {"mxfp4", {NAN}}}}.to(s / "a");
    write(s / "a/gradients.csv", GRADIENTS + "mxfp8,1,all,0.03,0.999,0.03\n");
    Comparison c = compare({s / "a"});
    CHECK(c.find("mxfp8")->verdict == "one seed: no interval");
    CHECK(std::isnan(c.find("mxfp8")->relative.low));
    CHECK(std::isnan(c.find("mxfp8")->detectable));
    CHECK(c.find("mxfp4")->verdict == "worse (1 of 1 diverged)");
    std::string text = comparison_text(c, 80);
    CHECK(has(text, "One seed: no interval: not a comparison."));
    CHECK(has(unwrapped(text), "gradient error is exact for this batch"));
    CHECK(has(text, "--seeds 5"));
    CHECK(has(text, "+0.1000 "));
    CHECK(!has(text, "+-"));
}
TEST_CASE("the horizon is the mean difference over the seeds after 10, 25, 50, 75, 90 and 100 % of the steps") {
    Scratch s;
    Fake{{{"bf16", zero3}, {"mxfp4", {0.02, 0.04, 0.06}}}}.to(s / "a");
    auto horizon = compare({s / "a"}).find("mxfp4")->horizon;
    const int percents[] = {10, 25, 50, 75, 90, 100};
    REQUIRE(horizon.size() == 6);
    for (int i = 0; i < 6; i++) {
        int p = percents[i];
        double base = 2.2 + 0.01 * (100 - p); // Fake's mean over seeds 1 to 3
        CHECK(horizon[i].percent == p);
        CHECK(horizon[i].step == 5 * p);
        CHECK(horizon[i].nats.n == 3);
        CHECK(horizon[i].complete);
        CHECK(std::fabs(horizon[i].nats.mean - 0.04 * p / 100) < 1e-8);
        CHECK(std::fabs(horizon[i].relative.mean - 4.0 * p / 100 / base) < 1e-6);
    }
    std::string text = comparison_text(compare({s / "a"}), 80);
    CHECK(has(text, "10 %    25 %    50 %    75 %    90 %   100 %"));
    CHECK(has(text, "+0.13   +0.34   +0.74   +1.22   +1.57   +1.82"));
}
TEST_CASE("the A/A arm is the noise floor: its largest difference, last in the table") {
    Scratch s;
    Fake fake{{{"mxfp8", {0, 0.001, 0}}, {"bf16:nudge=1", {0.001, -0.003, 0.002}}, {"bf16", zero3}, {"e4m3", zero3}}};
    fake.noise = "bf16:nudge=1", fake.to(s / "a");
    Comparison c = compare({s / "a"});
    CHECK(c.noise_floor == "bf16:nudge=1");
    CHECK(std::fabs(c.noise - 0.003) < 1e-9);
    std::vector<std::string> order;
    for (auto& r : c.recipes) order.push_back(r.recipe);
    CHECK(order == std::vector<std::string>{"bf16", "mxfp8", "e4m3", "bf16:nudge=1"});
    std::string text = comparison_text(c, 300);
    CHECK(has(text, "0.0030 nats (0.14 %) for bf16:nudge=1"));
    CHECK(has(text, "usually quoted: mxfp8 e4m3\n")); // it is not judged with the recipes
    CHECK(has(text, "0.0000 nats (0.00 %) for e4m3, 0.0018 nats (0.08 %) for mxfp8. "));
}
TEST_CASE("gradient errors are means over seeds; the worst layer is the one with the largest mean") {
    Scratch s;
    Fake{{{"bf16", {0, 0}}, {"mxfp8", {0, 0}}}}.to(s / "a");
    CHECK(std::isnan(compare({s / "a"}).find("mxfp8")->gradient_error)); // not written yet
    CHECK(!has(comparison_text(compare({s / "a"}), 140), "worst layer"));
    write(s / "a/gradients.csv",
          GRADIENTS +
              "mxfp8,1,all,0.02,0.99,0.01\nmxfp8,1,h.0.attn.c_attn,0.08,0.9,0.01\nmxfp8,1,h.0.mlp.c_fc,0.05,0.9,0\n"
              "mxfp8,2,all,0.04,0.97,0.03\nmxfp8,2,h.0.attn.c_attn,0.01,0.9,0.01\nmxfp8,2,h.0.mlp.c_fc,0.06,0.9,0\n");
    RecipeResult r = *compare({s / "a"}).find("mxfp8");
    CHECK(r.gradient_error == doctest::Approx(0.03));
    CHECK(r.cosine == doctest::Approx(0.98));
    CHECK(r.mean_error == doctest::Approx(0.02));
    CHECK(r.worst_gradient_layer == "h.0.mlp.c_fc");
    CHECK(r.worst_gradient_error == doctest::Approx(0.055));
    std::string text = comparison_text(compare({s / "a"}), 140);
    CHECK(has(text, "3.00 %   5.50 % h.0.mlp.c_fc"));
}
TEST_CASE("the worst underflow and saturation name layer, operand, step and seed; BF16 layers have neither") {
    Scratch s;
    Fake{{{"bf16", {0, 0}}, {"mxfp8", {0, 0}}}}.to(s / "a");
    append(s / "a/tensors.csv", "bf16,1,1,h.0.mlp.c_fc,x,bf16,,,,,,\n"
                                "mxfp8,1,1,h.0.mlp.c_fc,dy,e4m3,nan,,nan,nan,nan,0\n"
                                "mxfp8,1,1,h.0.mlp.c_fc,x,e4m3,1,,1.5,0,30,0\n"
                                "mxfp8,2,26,h.3.mlp.c_proj,dy,e5m2,1,,97.25,0.001,30,0\n"
                                "mxfp8,2,51,h.1.mlp.c_proj,w,e4m3,1,,3,nan,30,0\n"
                                "mxfp8,1,51,lm_head,x,bf16,,,,,,\n");
    Comparison c = compare({s / "a"});
    const RecipeResult& r = *c.find("mxfp8");
    CHECK(r.underflow.percent == 97.25);
    CHECK((r.underflow.layer == "h.3.mlp.c_proj" && r.underflow.operand == "dy"));
    CHECK((r.underflow.step == 26 && r.underflow.seed == 2));
    CHECK(r.saturation.percent == 0.001);
    CHECK((std::isnan(c.find("bf16")->underflow.percent) && c.find("bf16")->underflow.layer.empty()));
    std::string text = comparison_text(c, 140);
    CHECK(has(text, "97.2 % h.3.mlp.c_proj:dy@26"));
    CHECK(has(text, "<0.01 % h.3.mlp.c_proj:dy@26"));
}
TEST_CASE("only what runs natively has a speed, and a cost if an hour has a price") {
    Scratch s;
    Fake fake{{{"bf16", zero5}, {"hybrid", zero5}, {"mxfp4", zero5}}};
    fake.native = true, fake.price = 36, fake.to(s / "a");
    Comparison c = compare({s / "a"});
    // 768 tokens in the median of 12, 10, 8, 12 and 10 ms; 36 an hour is 0.01 a second
    CHECK(c.find("hybrid")->tokens_per_second == doctest::Approx(76800));
    CHECK(c.find("hybrid")->speedup == doctest::Approx(1)); // Fake has the same times for all
    CHECK(std::isnan(c.find("bf16")->speedup));
    fake.d.push_back({"bf16:nudge=1", zero5}), fake.noise = "bf16:nudge=1", fake.to(s / "noise");
    CHECK(std::isnan(compare({s / "noise"}).find("bf16:nudge=1")->speedup)); // bf16's own
    CHECK(c.find("hybrid")->cost == doctest::Approx(0.01 / 76800 * 1e6));
    CHECK(std::isnan(c.find("hybrid")->mfu)); // no peak is known
    std::filesystem::copy(s / "a", s / "card");
    replace(s / "card/run.json", "\"device\"",
            "\"peak_flops\":1e12,\"parameters\":1000000,\"config\":{\"layers\":4,"
            "\"channels\":128,\"seq_len\":64},\"device\"");
    Comparison card = compare({s / "card"}); // (6 * 10^6 + 6 * 4 * 128 * 64) * 76800 of 10^12
    CHECK(card.find("hybrid")->mfu == doctest::Approx(0.475899494));
    CHECK(std::isnan(card.find("mxfp4")->mfu));
    CHECK(has(comparison_text(card, 140), "47.6 %"));
    CHECK(compare({s / "a"}, 72).find("hybrid")->cost == doctest::Approx(0.02 / 76800 * 1e6)); // another price
    const RecipeResult& r = *c.find("mxfp4");
    CHECK((r.emulated && std::isnan(r.tokens_per_second) && std::isnan(r.speedup) && std::isnan(r.cost)));
    CHECK(r.why == "because");
    CHECK(r.memory.at("codes") == 1500000);
    std::string text = comparison_text(c, 140);
    CHECK(has(text, "native"));
    CHECK(has(text, "tokens/s"));
    CHECK(has(text, "76800"));
    CHECK(has(text, "0.1302"));
    for (auto& l : lines(text))
        if (has(l, "emulated")) CHECK((has(l, "mxfp4") && !has(l, "76800")));
    fake.native = false, fake.to(s / "b");
    CHECK(!has(comparison_text(compare({s / "b"}), 140), "tokens/s"));
}

// --- runs that have not ended ------------------------------------------------------------------------------------
TEST_CASE("what has not ended is shown as such, and has no verdict yet") {
    Scratch s;
    Fake{{{"bf16", zero3}, {"mxfp8", {0.1, 0.1, 0.1}}}}.to(s / "a");
    replace(s / "a/arms.csv", "mxfp8,3,done,500,2.4,00ff,8\n", "");
    std::string steps = slurp(s / "a/steps.csv"), evals = slurp(s / "a/evals.csv");
    steps.resize(steps.find("mxfp8,3,375")), evals.resize(evals.find("mxfp8,3,375"));
    write(s / "a/steps.csv", steps), write(s / "a/evals.csv", evals);
    Comparison c = compare({s / "a"});
    const RecipeResult& r = *c.find("mxfp8");
    CHECK(r.verdict == "not finished (91 %)"); // 500 + 500 + 250 and the 1500 of bf16, of 3000
    CHECK(!r.inside_half);
    CHECK(r.seeds[2].outcome == "not finished");
    CHECK(r.seeds[2].step == 250);
    CHECK(std::isnan(r.seeds[2].loss));
    CHECK(r.nats.n == 2);
    Fake{{{"bf16", zero3}, {"mxfp8", zero3}}}.to(s / "b");
    replace(s / "b/arms.csv", "mxfp8,3,done,500,2.3,00ff,8\n", ""); // all steps are done, but it has not ended
    CHECK(compare({s / "b"}).find("mxfp8")->verdict == "not finished (99 %)");
    CHECK(!compare({s / "b"}).find("mxfp8")->inside_half); // though what is there is
    CHECK((r.horizon[2].complete && !r.horizon[3].complete));
    CHECK(has(comparison_text(c, 80), "not finished (91 %)"));
    // Only the first arm has begun.
    write(s / "a/steps.csv", "recipe,seed,step,tokens,loss,grad_norm,lr,ms\nbf16,1,1,768,3,1,0.004,10\n");
    write(s / "a/evals.csv", "recipe,seed,step,tokens,loss\n");
    write(s / "a/arms.csv", "recipe,seed,outcome,step,loss,fingerprint,ms\n");
    c = compare({s / "a"});
    CHECK(c.find("bf16")->verdict == "not finished (0 %)");
    CHECK(c.find("mxfp8")->verdict == "not finished (0 %)");
    CHECK(has(comparison_text(c, 80), "mxfp8"));
}
TEST_CASE("a divergence already decides before the rest has ended, but not before its baseline has") {
    Scratch s;
    Fake{{{"bf16", zero3}, {"mxfp8", {NAN, 0, 0}}}}.to(s / "a");
    replace(s / "a/arms.csv", "mxfp8,3,done,500,2.3,00ff,8\n", "");
    CHECK(compare({s / "a"}).find("mxfp8")->verdict == "worse (1 of 3 diverged)");
    replace(s / "a/arms.csv", "bf16,1,done,500,2.1,00ff,12\n", "");
    replace(s / "a/steps.csv", "bf16,1,500", "bf16,1,450");
    CHECK(compare({s / "a"}).find("mxfp8")->verdict == "not finished (98 %) (1 of 3 diverged)");
}
TEST_CASE("a last line without its newline is not there yet, in every table") {
    Scratch s;
    Fake{{{"bf16", zero3}, {"mxfp8", zero3}}}.to(s / "a");
    write(s / "a/gradients.csv", GRADIENTS);
    std::string before = comparison_json(compare({s / "a"})).dump();
    for (const char* name : {"steps", "evals", "arms", "tensors", "gradients"})
        append(s / "a/" + name + ".csv", std::string("mxfp8,2,4") + (name[0] == 's' ? "99,1,2,3" : ""));
    CHECK(comparison_json(compare({s / "a"})).dump() == before);
}

// --- several directories -----------------------------------------------------------------------------------------
TEST_CASE("directories with other recipes or other seeds add up to one comparison") {
    Scratch s;
    Fake{{{"bf16", zero3}, {"mxfp8", {0.01, 0.02, 0.03}}}}.to(s / "a");
    Fake other{{{"mxfp4", {0.2, 0.2, 0.2}}}};
    other.more_options = "\"threads\":7,\"lr\":0.004", other.price = 3;
    replace((other.to(s / "b"), s / "b/run.json"), "\"threads\":7,", "");
    Fake more{{{"bf16", {0, 0}}, {"mxfp8", {0.04, 0.05}}}, 4};
    more.more_options = "\"lr\":0.004,\"threads\":7,\"out\":\"elsewhere\"", more.device = "CPU, 7 threads";
    more.to(s / "c");
    Comparison c = compare({s / "a", s / "b", s / "c"});
    CHECK(c.find("mxfp8")->nats.n == 5);
    CHECK(c.find("mxfp8")->nats.mean == doctest::Approx(0.03));
    CHECK(c.find("mxfp8")->seeds[4].dir == 2);
    CHECK(c.find("mxfp4")->nats.n == 3);
    CHECK(c.find("mxfp4")->baseline_loss == doctest::Approx(2.2)); // of its own three seeds
    CHECK(c.seeds == 5);
    replace(s / "b/run.json", "\"baseline\":\"bf16\"", "\"baseline\":\"mxfp4\""); // as without bf16 among its arms
    CHECK(compare({s / "a", s / "b"}).baseline == "bf16");                        // the first directory's counts
    CHECK(compare({s / "b", s / "a"}).baseline == "mxfp4");
    replace(s / "b/run.json", "\"baseline\":\"mxfp4\"", "\"baseline\":\"bf16\"");
    Comparison alone = compare({s / "b"});
    CHECK(alone.find("mxfp4")->verdict == "no baseline");
    CHECK(has(comparison_text(alone, 80), "no baseline"));
}
TEST_CASE("speeds of different devices are not compared") {
    Scratch s;
    Fake a{{{"bf16", zero3}}}, b{{{"hybrid", zero3}}};
    a.native = b.native = true, b.device = "another", a.to(s / "a"), b.to(s / "b");
    Comparison c = compare({s / "a", s / "b"});
    CHECK((c.find("hybrid")->nats.n == 3 && std::isnan(c.find("hybrid")->tokens_per_second)));
}
TEST_CASE("directories that do not belong together are refused, with the first option that differs") {
    Scratch s;
    Fake{{{"bf16", zero3}}}.to(s / "a");
    Fake other{{{"mxfp8", zero3}}};
    auto error = [&](const std::string& options) {
        other.more_options = options, other.to(s / "b");
        return error_of([&] { compare({s / "a", s / "b"}); });
    };
    CHECK(has(error("\"lr\":0.001"), "different experiments: lr is 0.004 and 0.001. hint: "));
    CHECK(has(error("\"lr\":0.004,\"data\":\"x\""), "data is absent and \"x\""));
    CHECK(has(error("\"other\":1"), "lr is 0.004 and absent"));
    CHECK(has(error("\"lr\":0.004"), "no error"));
    Fake{{{"mxfp8", zero3}, {"bf16", zero3}}, 3}.to(s / "b");
    std::string twice = error_of([&] { compare({s / "a", s / "b"}); });
    CHECK(has(twice, "recipe bf16 with seed 3 is in " + (s / "a") + " and in " + (s / "b")));
    CHECK(has(error_of([&] { compare({s / "a", s / "a"}); }), "recipe bf16 with seed 1 is in"));
    other.to(s / "b");
    append(s / "b/steps.csv", "bf16,1,500,1,1,1,1,1\n"); // of an arm that is the other directory's
    CHECK(has(error_of([&] { compare({s / "a", s / "b"}); }), "recipe bf16 with seed 1 is not in run.json"));
}

// --- malformed ---------------------------------------------------------------------------------------------------
TEST_CASE("tables are read strictly: an error names the file, the line, and what to do") {
    Scratch s;
    auto error = [&](const std::string& text) {
        write(s / "t.csv", text);
        return error_of([&] { read_table(s / "t.csv").number(0, "b"); });
    };
    const std::string t = s / "t.csv";
    CHECK(error("a,b\n1,2\n") == "no error");
    CHECK(error("a,b\n1,-1.5e-3\n3") == "no error");
    CHECK(error("a,b\n1,inf\n3,4,") == "no error");
    CHECK(has(error(""), t + ": line 1: there is no header"));
    CHECK(has(error("a,b"), t + ": line 1: there is no header"));
    CHECK(has(error("a,b\n1,2\n1\n"), t + ": line 3: 1 cells under 2 columns"));
    CHECK(has(error("a,b\n1,2,3\n"), t + ": line 2: 3 cells under 2 columns"));
    CHECK(has(error("a,b\n1,2\n\n"), t + ": line 3: 1 cells under 2 columns"));
    CHECK(has(error("a,b\r\n1,2\r\n"), t + ": line 1: \"\\u000d\" has no place in a table"));
    CHECK(has(error("a,b\n1,\"2\"\n"), t + ": line 2: \"\\\"\" has no place"));
    CHECK(has(error("a,c\n1,2\n"), t + ": line 1: there is no column b"));
    for (std::string cell : {"", "x", "1x", " 1", "0x", "1 2"})
        CHECK(has(error("a,b\n1," + cell + "\n"), t + ": line 2: " + quote(cell) + " under b, where a number belongs"));
    for (std::string bad : {"", "a,b\n1\n", "a,b\n1,x\n", "a\n1\n"}) {
        CHECK(has(error(bad), "hint: "));
        CHECK(!has(error(bad), "\n"));
    }
    CHECK(has(error_of([&] { read_table(s / "none.csv"); }), "none.csv: cannot open"));
    write(s / "t.csv", "b,a,more\n1,2,3\n4,5,6\n7,8,9\n7");
    Table table = read_table(s / "t.csv");
    CHECK(table.rows.size() == 3);
    CHECK(table.text(2, "a") == "8");
    CHECK(table.number(1, "b") == 4);
}
TEST_CASE("directories that no run wrote are refused in one line that names the file and what is wrong") {
    Scratch s;
    auto error = [&](const std::string& file, const std::string& from, const std::string& to) {
        Fake{{{"bf16", zero3}, {"mxfp8", zero3}}}.to(s / "a");
        write(s / "a/gradients.csv", GRADIENTS + "mxfp8,1,all,0.02,0.99,0.01\n");
        append(s / "a/tensors.csv", "mxfp8,1,1,h.0.mlp.c_fc,x,e4m3,1,,1.5,0,30,0\n");
        replace(s / "a/" + file, from, to);
        std::string message = error_of([&] { compare({s / "a"}); });
        CHECK(has(message, s / "a/" + file));
        CHECK(has(message, "hint: "));
        CHECK(!has(message, "\n"));
        return message;
    };
    CHECK(has(error_of([&] { compare({s / "nothing"}); }), "nothing/run.json: no such file. hint: "));
    CHECK(has(error("run.json", "\"steps\":500", "\"stops\":500"), "\"steps\" is missing"));
    CHECK(has(error("run.json", "\"steps\":500", "\"steps\":\"500\""), "\"steps\" is missing or not what"));
    CHECK(has(error("run.json", "\"baseline\":\"bf16\",", ""), "\"baseline\" is missing"));
    CHECK(has(error("run.json", "\"arms\":[", "\"arms\":[{},"), "\"arm\" is missing"));
    CHECK(has(error("run.json", "\"emulated\":true", "\"emulated\":1"), "\"emulated\" is missing or not what"));
    CHECK(has(error("run.json", "1500000", "1.5"), "\"codes\" is missing or not what"));
    CHECK(has(error("evals.csv", "mxfp8,3,0,", "mxfp6,3,0,"), "line 37: recipe mxfp6 with seed 3 is not in run.json"));
    CHECK(has(error("steps.csv", "bf16,1,50,", "bf16,9,50,"), "line 2: recipe bf16 with seed 9 is not in run.json"));
    CHECK(has(error("steps.csv", "bf16,1,50,", "bf16,1.5,50,"), "line 2: 1.5 under seed"));
    CHECK(has(error("steps.csv", "bf16,1,50,", "bf16,1,-5,"), "line 2: -5 under step"));
    CHECK(has(error("steps.csv", "bf16,1,50,", "bf16,1,nan,"), "line 2: nan under step"));
    CHECK(has(error("evals.csv", "step,tokens", "stop,tokens"), "line 1: there is no column step"));
    CHECK(has(error("evals.csv", "bf16,2,50,38400,3.1", "bf16,2,50,38400,?"), "line 10: \"?\" under loss"));
    CHECK(has(error("evals.csv", "bf16,2,50,", "bf16,2,0,"), "line 10: recipe bf16 with seed 2 has that already"));
    CHECK(has(error("arms.csv", "bf16,2,done", "bf16,1,done"), "line 3: recipe bf16 with seed 1 has that already"));
    CHECK(
        has(error("arms.csv", "done", "finished"), "line 2: recipe bf16 with seed 1 has that already, or an outcome"));
    CHECK(has(error("tensors.csv", "1.5,0,30", "1.5,-,30"), "line 2: \"-\" under saturation"));
    CHECK(has(error("gradients.csv", "0.99", "high"), "line 2: \"high\" under cosine"));
    Fake{{{"bf16", zero3}}}.to(s / "b");
    write(s / "b/run.json", "{\"version\":");
    CHECK(has(error_of([&] { compare({s / "b"}); }), "b/run.json: byte 11"));
    std::filesystem::remove(s / "a/arms.csv");
    CHECK(has(error_of([&] { compare({s / "a"}); }), "a/arms.csv: cannot open"));
}

// --- what is printed ---------------------------------------------------------------------------------------------
static Comparison sample(const Scratch& s) {
    Fake fake{{{"bf16", zero5},
               {"hybrid", {0.002, 0.004, -0.001, 0.003, 0.001}},
               {"mxfp8", {0.001, 0.0, 0.002, -0.001, 0.0005}},
               {"mxfp4", {0.040, 0.046, 0.031, 0.052, 0.043}},
               {"current", {0.01, -0.008, 0.009, 0.006, -0.004}},
               {"unit:dy.format=e4m3", {0.7, 0.75, NAN, 0.71, 0.69}},
               {"bf16:nudge=1", {0.001, -0.002, 0.003, 0.0, -0.001}}}};
    fake.noise = "bf16:nudge=1", fake.to(s / "sample");
    std::string tensors, gradients = GRADIENTS;
    double error = 0.2;
    for (const char* recipe : {"bf16", "hybrid", "mxfp8", "mxfp4", "current", "unit:dy.format=e4m3"}) {
        for (int seed = 1; seed <= 5 && error > 0.2; seed++)
            tensors +=
                format("%s,%d,476,h.3.mlp.c_proj,dy,e4m3,1,,%.9g,%.9g,30,0\n", recipe, seed, 2 * error, error / 90);
        gradients += format("%s,1,all,%.9g,0.99,0.01\n%s,1,h.3.attn.c_attn,%.9g,0.99,0.01\n", recipe, error / 100,
                            recipe, error / 60);
        error *= 3;
    }
    append(s / "sample/tensors.csv", tensors), write(s / "sample/gradients.csv", gradients);
    return compare({s / "sample"});
}
TEST_CASE("at every width all recipes and columns are there, and no line is wider") {
    Scratch s;
    Comparison c = sample(s);
    for (int width : {60, 72, 80, 100, 120, 140, 200}) {
        std::string text = comparison_text(c, width);
        CHECK(text.back() == '\n');
        auto all = lines(text);
        bool together =
            std::any_of(all.begin(), all.end(), [](auto& l) { return has(l, " loss ") && has(l, "verdict"); });
        CHECK((width < 80 || together));
        for (auto& line : lines(text)) {
            CHECK_MESSAGE((int)line.size() <= width, line);
            CHECK((line.empty() || line.back() != ' '));
        }
        for (const char* word : {"verdict", "d in %", "runs", "gradient", "worst layer", "worst underflow",
                                 "worst saturation", "MB", "10 %", "100 %", "worse (1 of 5 diverged)", "equivalent",
                                 "unit:dy.format=e4m3", "bf16:nudge=1", "h.3.mlp.c_proj:dy@476"})
            CHECK_MESSAGE(has(text, word), word);
    }
    if (getenv("ULP_SHOW"))
        for (int width : {80, 100, 120, 140})
            printf("%s\n%s\n", std::string(width, '=').c_str(), comparison_text(c, width).c_str());
}
TEST_CASE("JSON has everything under its name, and null where a number is not known") {
    Scratch s;
    Comparison c = sample(s);
    Json all = parse_json(comparison_json(c).dump(2), "comparison");
    auto number = [](const Json& j, const char* key) { return j.find(key)->number().value(); };
    CHECK(all.find("dirs")->items[0].text == s / "sample");
    CHECK(all.find("baseline")->text == "bf16");
    CHECK(all.find("noise_floor")->text == "bf16:nudge=1");
    CHECK(number(all, "steps") == 500);
    CHECK(number(all, "seeds") == 5);
    CHECK(number(all, "noise") == doctest::Approx(0.003));
    CHECK(number(all, "price") == 0);
    REQUIRE(all.find("recipes")->items.size() == c.recipes.size());
    const RecipeResult& r = *c.find("mxfp4");
    const Json& j = all.find("recipes")->items[3];
    CHECK(j.find("recipe")->text == "mxfp4");
    CHECK(j.find("verdict")->text == "worse");
    CHECK(j.find("emulated")->is_bool(true));
    CHECK(j.find("inside_half")->is_bool(false));
    CHECK(j.find("worst_gradient_layer")->text == "h.3.attn.c_attn");
    CHECK(number(*j.find("memory"), "codes") == 1500000);
    // %.9g: nine digits
    CHECK(number(j, "loss") == doctest::Approx(r.loss).epsilon(1e-8));
    CHECK(number(j, "detectable") == doctest::Approx(r.detectable).epsilon(1e-8));
    CHECK(number(*j.find("nats"), "high") == doctest::Approx(r.nats.high).epsilon(1e-8));
    CHECK(number(*j.find("relative"), "sd") == doctest::Approx(r.relative.sd).epsilon(1e-8));
    CHECK(number(j.find("horizon")->items[1], "step") == 125);
    CHECK(number(*j.find("horizon")->items[1].find("relative"), "mean") ==
          doctest::Approx(r.horizon[1].relative.mean).epsilon(1e-8));
    CHECK(number(*j.find("underflow"), "step") == 476);
    CHECK(j.find("underflow")->find("operand")->text == "dy");
    CHECK(number(j.find("seeds")->items[2], "difference") == doctest::Approx(0.031).epsilon(1e-7));
    CHECK(j.find("tokens_per_second")->kind == Json::Null);
    const Json& broken = all.find("recipes")->items[5];
    CHECK(broken.find("seeds")->items[2].find("outcome")->text == "diverged");
    CHECK(broken.find("seeds")->items[2].find("loss")->kind == Json::Null);
    CHECK(number(broken, "diverged") == 1);
}

} // namespace
