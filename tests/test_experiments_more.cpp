// Short versions of docs/experiments 6 to 11: each name says what was found there, each test checks in which direction,
// on a model that trains in a second. No bound here is tuned: it is a factor that the effect exceeds by far.
#include "experiments.h"
#include "run/json.h"
#include <map>

namespace { // test files share one program

using std::string;

const string TWO = SECONDS + "--layers 2 --channels 64 --heads 2 --seq-len 32 --batch-size 8 --lr 0.001 ";

TEST_CASE("experiment 6: blocks halve what FP4 costs, and stochastic rounding is worse once and better on average") {
    Scratch s;
    string nearest = "nvfp4:rht=0:dy.round=rne:w.block=1x16:fprop=0", drawn = "nvfp4:rht=0:w.block=1x16:fprop=0";
    train(TWO + "--steps 10 --recipe bf16,mxfp4:scaling=current,mxfp4,nvfp4,nvfp4:skip=last1," + nearest + "," + drawn +
          " --out " + (s / "run"));
    auto error = [&](auto... what) { return gradient_error(s / "run", what...); };
    CHECK(error("mxfp4:scaling=current") > error("mxfp4"));
    CHECK(error("mxfp4") > error("nvfp4"));
    CHECK(error("nvfp4") > error("nvfp4:skip=last1"));
    CHECK(error(drawn) > error(nearest));
    CHECK(error(drawn, "mean_error") < error(nearest, "mean_error") / 1.5);
    CHECK(error(nearest, "mean_error") == error(nearest)); // it draws nothing
}

TEST_CASE("experiment 7: a sum of 14 bits loses more the longer it is, and promotion every 128 products cures it") {
    Scratch s;
    double narrow[2], promoted[2];
    for (int i : {0, 1}) {
        string dir = s / std::to_string(i);
        train(SECONDS + "--kernels reference --layers 1 --heads 1 --channels 16 --seq-len 16 --steps 1 --batch-size " +
              std::to_string(i ? 64 : 8) + " --recipe bf16,bf16:accum=14/100000000,bf16:accum=14/128 --out " + dir);
        double exact2 = pow(gradient_error(dir, "bf16"), 2); // that of BF16 itself
        narrow[i] = sqrt(pow(gradient_error(dir, "bf16:accum=14/100000000"), 2) - exact2);
        promoted[i] = sqrt(fmax(0, pow(gradient_error(dir, "bf16:accum=14/128"), 2) - exact2));
    }
    CHECK(narrow[1] > 2 * narrow[0]); // 8 times the tokens
    CHECK(promoted[1] < narrow[1] / 3);
}

TEST_CASE("experiment 8: a linear that the scan ranks first is worth more in BF16 than the one that it ranks last") {
    Scratch s;
    train(TWO + "--steps 10 --recipe bf16 --out " + (s / "base"));
    string base = s / "base/bf16-s1/step-000010", first, last;
    std::map<string, double> skipped_so_far;
    for (auto& line : lines(train("scan " + base + " --recipe mxfp4 --batch-size 8 --threads 1 --quiet --json"))) {
        Json row = parse_json(line, "scan");
        last = row.find("layer")->text;
        if (first.empty()) first = last;
        skipped_so_far[last] = atof(row.find("so_far_percent")->text.c_str());
    }
    REQUIRE(skipped_so_far.size() == 9);
    CHECK(skipped_so_far[last] < skipped_so_far[first] / 2); // nothing is quantized any more
    string arms[] = {"mxfp4", "mxfp4:skip=" + first, "mxfp4:skip=" + last};
    train(SECONDS + "--init " + base + " --batch-size 8 --skip none --steps 1 --lr 1e-9 --recipe bf16," + arms[0] +
          "," + arms[1] + "," + arms[2] + " --out " + (s / "run"));
    double error[3] = {}; // of the linears that all three quantize
    for (auto& [layer, percent] : skipped_so_far)
        for (int i = 0; i < 3 && layer != first && layer != last; i++)
            error[i] += cell(s / "run", "gradients", "layer=" + layer + " recipe=" + arms[i], "rel_error");
    CHECK(error[1] < error[0]);
    CHECK(error[1] < error[2]);
}

TEST_CASE("experiment 9: with E5M2 forwards and E4M3 backwards x loses a bit, dy gains one and more of it underflows") {
    Scratch s;
    const string swapped = "current:x.format=e5m2:dy.format=e4m3";
    train(TWO + "--steps 10 --stats-every 9 --recipe bf16,current," + swapped + " --out " + (s / "run"));
    auto at = [&](const string& recipe, const string& operand, const string& column) {
        return cell(s / "run", "tensors", "step=10 layer=h.0.attn.c_attn recipe=" + recipe + " operand=" + operand,
                    column);
    };
    const double bit = 20 * log10(2); // of mantissa, in dB
    CHECK(fabs(at("current", "x", "sqnr_db") - at(swapped, "x", "sqnr_db") - bit) < bit / 4);
    CHECK(fabs(at(swapped, "dy", "sqnr_db") - at("current", "dy", "sqnr_db") - bit) < bit / 4);
    CHECK(at(swapped, "dy", "underflow") > at("current", "dy", "underflow"));
    CHECK(gradient_error(s / "run", swapped) > gradient_error(s / "run", "current"));
    // what is lost is lost forwards
    train(TWO + "--steps 10 --recipe bf16,current:fprop=0," + swapped + ":fprop=0 --out " + (s / "backward"));
    CHECK(gradient_error(s / "backward", swapped + ":fprop=0") <
          1.1 * gradient_error(s / "backward", "current:fprop=0"));
}

TEST_CASE("experiment 10: one bit of one weight grows until it is as far as FP8 is") {
    Scratch s;
    train(SECONDS +
          "--layers 2 --channels 64 --heads 2 --seq-len 32 --batch-size 8 --lr 0.004 --steps 60 --noise-floor "
          "--recipe bf16,mxfp8 --out " +
          (s / "run"));
    auto distance = [&](const string& recipe, int from, int to) {
        double sum = 0;
        for (int step = from; step <= to; step++) {
            string where = "step=" + std::to_string(step) + " recipe=";
            sum += fabs(cell(s / "run", "steps", where + recipe, "loss") -
                        cell(s / "run", "steps", where + "bf16", "loss"));
        }
        return sum / (to - from + 1);
    };
    CHECK(distance("bf16:nudge=1", 1, 3) < distance("mxfp8", 1, 3) / 10);
    CHECK(distance("bf16:nudge=1", 51, 60) > 30 * distance("bf16:nudge=1", 1, 3));
    CHECK(distance("bf16:nudge=1", 51, 60) > distance("mxfp8", 51, 60) / 10);
}

TEST_CASE(
    "experiment 11: without its scales a delayed recipe loses the gradients of one step, and of that step alone") {
    Scratch s;
    train(TWO + "--steps 9 --stats-every 1 --recipe hybrid,hybrid:forget=6 --out " + (s / "run"));
    auto at = [&](const string& recipe, int step, const string& operand, const string& column) {
        return cell(s / "run", "tensors",
                    "step=" + std::to_string(step) + " layer=h.1.attn.c_attn recipe=" + recipe + " operand=" + operand,
                    column);
    };
    const string forgets = "hybrid:forget=6";
    CHECK(at(forgets, 5, "dy", "scale") == at("hybrid", 5, "dy", "scale"));
    CHECK(at(forgets, 6, "dy", "scale") == 1);
    CHECK(at(forgets, 6, "x", "scale") == 1);
    CHECK(at("hybrid", 6, "dy", "scale") > 1000);
    CHECK(at(forgets, 6, "dy", "underflow") > 10 * at("hybrid", 6, "dy", "underflow"));
    CHECK(at(forgets, 6, "dy", "underflow") > 10);
    CHECK(at(forgets, 7, "dy", "scale") > 1000); // from the amax of step 6
    CHECK(at(forgets, 7, "dy", "underflow") < 5);
    CHECK(fabs(at(forgets, 6, "x", "sqnr_db") - at("hybrid", 6, "x", "sqnr_db")) < 3); // activations are near 1 anyway
}

} // namespace
