// Short versions of docs/experiments 1 to 5: each name says what was found there, each test checks in which direction,
// on a model that trains in a second. No bound here is tuned: it is a factor that the effect exceeds by far, or follows
// from the format.
#include "experiments.h"

namespace { // test files share one program

using std::string;

const string MODEL = SECONDS + "--layers 2 --channels 64 --heads 2 --seq-len 32 --batch-size 16 ";
double most(const std::vector<double>& v) { return *std::max_element(v.begin(), v.end()); }
double least(const std::vector<double>& v) { return *std::min_element(v.begin(), v.end()); }

TEST_CASE(
    "experiment 1: without a scale nothing of a gradient arrives in E4M3, a part in E5M2; loss scales bring it back") {
    Scratch s;
    const string e4m3 = "unit:dy.format=e4m3"; // by what becomes 0: below 2^-10, 2^-16, 2^-17 and 2^-22
    const string arms[] = {e4m3, e4m3 + ":loss_scale=64", "unit", e4m3 + ":loss_scale=4096"};
    train(MODEL + "--steps 20 --stats-every 19 --weight-decay 0 --out " + (s / "run") + " --recipe bf16," + arms[0] +
          "," + arms[1] + "," + arms[2] + "," + arms[3]);
    auto underflow = [&](const string& arm) {
        return cell(s / "run", "tensors", "step=1 layer=h.1.mlp.c_proj operand=dy recipe=" + arm, "underflow");
    };
    for (int i = 0; i < 3; i++) CHECK(underflow(arms[i]) > underflow(arms[i + 1]));
    CHECK(gradient_error(s / "run", arms[0]) > 0.9); // of the gradient that there is
    CHECK(gradient_error(s / "run", arms[3]) < gradient_error(s / "run", arms[0]) / 2);
    // A gradient of zero moves no weight: without a scale the blocks freeze.
    auto amax = [&](const string& arm, int step) {
        return cell(s / "run", "tensors",
                    "layer=h.0.mlp.c_fc operand=w recipe=" + arm + " step=" + std::to_string(step), "amax");
    };
    CHECK(amax(arms[0], 20) < 1.2 * amax(arms[0], 1));
    CHECK(amax(arms[3], 20) > 1.2 * amax(arms[3], 1));
}

TEST_CASE(
    "experiment 2: what a LayerNorm puts out needs no scale; small weights do, as many as lie below 2^-10 become 0") {
    Scratch s;
    const string scales[] = {"0.1", "1", "10"};
    train(MODEL + "--steps 1 --stats-every 1 --out " + (s / "run") +
          " --recipe bf16,current:init_scale=0.1,"
          "unit:init_scale=0.1,unit:init_scale=1,unit:init_scale=10");
    double before = 0;
    for (auto& scale : scales) {
        string row = "recipe=unit:init_scale=" + scale;
        double sigma = 0.02 * atof(scale.c_str()) / sqrt(2 * 2); // of c_proj with 2 layers
        double flushed = 100 * erf(0x1p-10 / sigma / sqrt(2));
        for (auto layer : {" layer=h.0.mlp.c_proj", " layer=h.1.mlp.c_proj"}) // 16384 weights: 5 sigma are 2 %
            CHECK(fabs(cell(s / "run", "tensors", row + layer + " operand=w", "underflow") - flushed) < 2);
        double sqnr = cell(s / "run", "tensors", row + " layer=h.0.mlp.c_proj operand=w", "sqnr_db");
        CHECK(sqnr > before);
        before = sqnr;
        for (auto layer : {" layer=h.0.attn.c_attn", " layer=h.1.mlp.c_fc"})
            CHECK(cell(s / "run", "tensors", row + layer + " operand=x", "sqnr_db") > 31); // E4M3's, undisturbed: 31.5
    }
    CHECK(least(cells(s / "run", "tensors", "recipe=current:init_scale=0.1 operand=w", "sqnr_db")) > 31);
}

TEST_CASE(
    "experiment 3: an amax that jumps costs a delayed scale one step, and its window what the range cannot bear") {
    Scratch s;
    const string far = "jump=16384/5/1", near = "hybrid:jump=128/5/1", current = "current:" + far,
                 long_window = "hybrid:" + far, window = long_window + ":amax_history_len=3",
                 one = long_window + ":amax_history_len=1", recent = long_window + ":amax_compute_algo=most_recent";
    string out = train(MODEL + "--steps 10 --stats-every 1 --out " + (s / "run") + " --recipe bf16," + current + "," +
                       near + "," + long_window + "," + window + "," + one + "," + recent);
    auto at = [&](const string& arm, int step, const string& column) {
        return cell(s / "run", "tensors",
                    "layer=h.1.mlp.c_fc operand=x recipe=" + arm + " step=" + std::to_string(step), column);
    };
    for (auto& arm : {near, long_window, window, one}) {
        CHECK(at(arm, 4, "saturation") < 1);
        CHECK(at(arm, 5, "saturation") > 90);
        CHECK(at(arm, 5, "sqnr_db") < 1);
    }
    const double whole = 30, lost = 27; // dB: E4M3 keeps 31.5 where nothing underflows
    for (int step = 4; step <= 10; step++) CHECK(at(current, step, "sqnr_db") > whole);
    for (int step = 6; step <= 10; step++) {
        CHECK(at(near, step, "sqnr_db") > whole); // seven powers of two are no matter
        CHECK(at(long_window, step, "sqnr_db") < lost);
        CHECK((at(window, step, "sqnr_db") < lost) == (step <= 8)); // the jump has left it before step 9
        CHECK((at(one, step, "sqnr_db") < lost) == (step <= 6));
    }
    CHECK(cells(s / "run", "steps", "recipe=" + one, "loss") == cells(s / "run", "steps", "recipe=" + recent, "loss"));
}

TEST_CASE(
    "experiment 4: an outlier channel costs E4M3 nothing and E2M1 its block, or everything with a scale per tensor") {
    Scratch s;
    const string recipes[] = {"current", "mxfp8", "nvfp4", "mxfp4", "mxfp4:scaling=current"}; // by what they lose
    string arms = "bf16,bf16:outlier=128";
    for (auto& r : recipes) arms += "," + r + "," + r + ":outlier=128";
    train(MODEL + "--steps 1 --lr 0 --stats-every 1 --out " + (s / "run") + " --recipe " + arms);
    auto underflow = [&](const string& arm) {
        return cell(s / "run", "tensors", "layer=h.0.attn.c_attn operand=x recipe=" + arm, "underflow");
    };
    auto more = [&](const string& r) { return underflow(r + ":outlier=128") - underflow(r); };
    CHECK(more("current") < 1);
    CHECK(more("mxfp8") < 1);
    CHECK(more("nvfp4") > 5);                                   // of 64 channels 15, of which some were 0 before
    CHECK(more("mxfp4") > 1.5 * more("nvfp4"));                 // 31
    CHECK(underflow("mxfp4:scaling=current:outlier=128") > 95); // 63
    CHECK(cells(s / "run", "evals", "recipe=bf16", "loss") ==
          cells(s / "run", "evals", "recipe=bf16:outlier=128", "loss"));
}

TEST_CASE("experiment 5: floor clips most block maxima, even some, rceil and ceil none, and ceil wastes E2M1's codes") {
    Scratch s;
    string arms = "bf16";
    const string rules[] = {"floor", "even", "rceil", "ceil"};
    for (auto format : {"mxfp8", "mxfp4"})
        for (auto& rule : rules) arms += string(",") + format + ":scale_rule=" + rule;
    train(MODEL + "--steps 10 --stats-every 9 --lr 0.001 --out " + (s / "run") + " --recipe " + arms);
    auto of = [&](const string& recipe, const string& rule, const string& column) {
        return cells(s / "run", "tensors", "step=10 operand=w recipe=" + recipe + ":scale_rule=" + rule, column);
    };
    for (string recipe : {"mxfp8", "mxfp4"}) {
        std::vector<double> floors = of(recipe, "floor", "saturation"), evens = of(recipe, "even", "saturation");
        for (size_t layer = 0; layer < floors.size(); layer++) CHECK(floors[layer] > evens[layer]);
        CHECK(least(evens) > 0);
        for (auto rule : {"rceil", "ceil"}) CHECK(most(of(recipe, rule, "saturation")) == 0);
    }
    auto error = [&](const string& rule) { return gradient_error(s / "run", "mxfp8:scale_rule=" + rule); };
    CHECK(error("floor") > error("even"));
    CHECK(error("even") > error("rceil"));
    CHECK(least(of("mxfp8", "rceil", "sqnr_db")) > most(of("mxfp8", "floor", "sqnr_db")));
    CHECK(most(of("mxfp4", "ceil", "sqnr_db")) < least(of("mxfp4", "floor", "sqnr_db"))); // clips nothing, and is worse
}

} // namespace
