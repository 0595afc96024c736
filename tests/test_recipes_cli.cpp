// Recipes as users meet them: ./train run as a process, the tables it leaves, stages, skip lists, --dump, eval. ULP_TRAIN
// names another binary (tests/run.sh does, for the sanitizers).
#include "fp8.cuh"
#include "program.h"
#include "run/json.h"
#include "run/safetensors.h"
#include <algorithm>
#include <map>
#include <set>

namespace { // test files share one program

namespace fs = std::filesystem;
using std::string, std::vector;

Result run(const string& args) { return ::run(TRAIN, args); }
// one thread: the machine may be busy; a vocabulary above that of bytes: the sample at the end is short
const string SMALL =
    " --layers 1 --channels 32 --heads 2 --seq-len 16 --vocab 257 --batch-size 4 --eval-batches 2 --threads 1 ";
Result train(const string& args) {
    Result r = run(SMALL + args);
    INFO(args, "\n", r.err);
    REQUIRE(r.status == 0);
    return r;
}
const char *const LAYERS[] = {"h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "h.0.mlp.c_proj", "lm_head"},
                  *const OPERANDS[] = {"x", "w", "dy"};

struct Row { // of tensors.csv; numbers are NaN where the cell is empty
    string recipe, layer, operand, format;
    int seed, step;
    double amax, scale, underflow, saturation, sqnr_db, bias;
};
vector<Row> tensors(const string& dir) {
    auto lines = split(slurp(dir + "/tensors.csv"), '\n');
    REQUIRE(!lines.empty());
    CHECK(lines[0] == "recipe,seed,step,layer,operand,format,amax,scale,underflow,saturation,sqnr_db,bias");
    vector<Row> rows;
    for (size_t i = 1; i < lines.size(); i++) {
        auto c = split(lines[i], ',');
        REQUIRE(c.size() == 12);
        auto number = [&](int k) { return c[k].empty() ? NAN : atof(c[k].c_str()); };
        rows.push_back({c[0], c[3], c[4], c[5], atoi(c[1].c_str()), atoi(c[2].c_str()), number(6), number(7), number(8),
                        number(9), number(10), number(11)});
    }
    return rows;
}
double max_of(const string& format) { return format == "e5m2" ? 57344 : format == "e4m3" ? 448 : NAN; }

// --- tensors.csv -------------------------------------------------------------------------------------------------
TEST_CASE(
    "tensors.csv has a row for every operand of every linear at steps 1, N + 1, 2N + 1, .., in order; none with 0") {
    Scratch s;
    train("--recipe hybrid,mxfp4 --seed 3 --steps 7 --stats-every 3 --grad-accum 2 --out " + (s / "run"));
    auto rows = tensors(s / "run");
    size_t i = 0;
    REQUIRE(rows.size() == 2 * 3 * 15);
    for (const char* arm : {"hybrid", "mxfp4"})
        for (int step : {1, 4, 7})
            for (string layer : LAYERS)
                for (string operand : OPERANDS) {
                    const Row& r = rows[i++];
                    INFO(string(arm), " ", step, " ", layer, " ", operand);
                    CHECK(r.recipe == arm);
                    CHECK(r.seed == 3);
                    CHECK(r.step == step);
                    CHECK(r.layer == layer);
                    CHECK(r.operand == operand);
                    bool bf16 = layer == "lm_head", hybrid = string(arm) == "hybrid";
                    CHECK(r.format == (bf16 ? "bf16" : !hybrid ? "e2m1" : operand == "dy" ? "e5m2" : "e4m3"));
                    CHECK(std::isnan(r.scale) == (bf16 || !hybrid));
                    for (double v : {r.amax, r.underflow, r.saturation, r.sqnr_db, r.bias})
                        CHECK(std::isnan(v) == bf16);
                    if (bf16) continue;
                    CHECK(r.amax > 0);
                    CHECK(r.underflow >= 0);
                    CHECK(r.underflow <= 100);
                    // Half a step of 2^-(mbits + 1) relative: 6 dB a bit and a few more on average; underflow aside.
                    if (hybrid && step > 1 && operand != "dy") CHECK(r.sqnr_db > 25);
                    if (!hybrid) CHECK(r.sqnr_db > 8);
                }
    train("--steps 2 --recipe hybrid --stats-every 0 --out " + (s / "none"));
    CHECK(tensors(s / "none").empty());
    train("--steps 27 --recipe current --eval-batches 1 --out " + (s / "usual"));
    CHECK(tensors(s / "usual").size() == 2 * 15); // steps 1 and 26
}
TEST_CASE("tensors.csv of a delayed run reproduces its own scales, from the first step of any stage on") {
    struct {
        const char *arm, *options;
        int window, margin, steps; // steps: that can be compared
    } runs[] = {{"hybrid", "", 1024, 0, 9},
                {"e4m3:amax_compute_algo=most_recent:margin=1", "", 1, 1, 9},
                {"hybrid:amax_history_len=2:margin=-2", "", 2, -2, 9},
                {"hybrid:amax_history_len=3", "--skip none --seed 2", 3, 0, 9},
                {"mxfp8+hybrid:amax_history_len=2:margin=1@5", "", 2, 1, 5},
                {"hybrid:margin=2:amax_history_len=1+e4m3:amax_history_len=3@5", "", 3, 0, 9},
                {"hybrid+bf16@4+hybrid@7", "", 1024, 0, 3}};
    for (auto& run : runs) {
        Scratch s;
        string arm = run.arm;
        INFO(arm);
        train("--steps 9 --lr 0.02 --warmup 0 --stats-every 1 --recipe " + arm + " " + run.options + " --out " +
              (s / "run"));
        // While a stage leaves operands in BF16 the table is silent about what it records; the next test has its say.
        std::map<string, vector<double>> amaxes;
        int compared = 0;
        for (const Row& r : tensors(s / "run")) {
            vector<double>& past = amaxes[r.layer + r.operand];
            bool known = (int)past.size() == r.step - 1;
            if (r.format != "bf16" && !std::isnan(r.scale) && known) {
                bool first = arm.find("+e4m3") != string::npos && r.step < 5;
                size_t window = std::min(past.size(), (size_t)(first ? 1 : run.window));
                double amax = window ? *std::max_element(past.end() - window, past.end()) : 0;
                double want = amax ? max_of(r.format) * exp2(-(first ? 2 : run.margin)) / amax : 1;
                INFO(r.layer, " ", r.operand, " step ", r.step);
                CHECK(r.scale == doctest::Approx(want).epsilon(1e-6));
                compared++;
            }
            if (!std::isnan(r.amax)) past.push_back(r.amax);
        }
        CHECK(compared >= run.steps * 12);
    }
}
TEST_CASE(
    "bf16+hybrid@5 records amaxes while it is bf16: at step 5 its scales are those of the amaxes of steps 1 to 4") {
    // With --lr 0 weights stay, and a recipe changes nothing of what the first linear reads: its x and w have the amaxes
    // that mxfp8's table shows.
    Scratch s;
    string same = "--steps 6 --lr 0 --stats-every 1 --out ";
    train("--recipe bf16+hybrid@5 " + same + (s / "run"));
    train("--recipe mxfp8 " + same + (s / "amaxes"));
    std::map<string, double> most;
    for (const Row& r : tensors(s / "amaxes"))
        if (r.step <= 4) most[r.layer + r.operand] = std::max(most[r.layer + r.operand], r.amax);
    int compared = 0;
    for (const Row& r : tensors(s / "run")) {
        CHECK((r.format == "bf16") == (r.step < 5 || r.layer == "lm_head"));
        if (r.step != 5 || r.layer == "lm_head") continue;
        INFO(r.layer, " ", r.operand);
        double want = max_of(r.format) / most[r.layer + r.operand];
        bool exact = r.operand == "w" || (r.layer == "h.0.attn.c_attn" && r.operand == "x");
        // Elsewhere the mxfp8 run differs by what its casts round: a few percent of a gradient.
        CHECK(r.scale == doctest::Approx(want).epsilon(exact ? 1e-6 : 0.2));
        compared += exact;
    }
    CHECK(compared == 5);
}
TEST_CASE(
    "stages: back to bf16, and through three recipes; formats follow, run.json and the notes say which rows ruled") {
    Scratch s;
    train("--recipe hybrid+bf16@5 --steps 6 --stats-every 1 --out " + (s / "back"));
    for (const Row& r : tensors(s / "back")) CHECK((r.format == "bf16") == (r.step >= 5 || r.layer == "lm_head"));
    string arm = "hybrid+mxfp8@3+nvfp4:rht=0@6";
    Result t = train("--recipe " + arm + " --steps 7 --stats-every 1 --out " + (s / "three"));
    for (const Row& r : tensors(s / "three"))
        if (r.layer != "lm_head") {
            CHECK(r.format == (r.step >= 6 ? "e2m1" : r.step >= 3 || r.operand != "dy" ? "e4m3" : "e5m2"));
            CHECK(std::isnan(r.scale) == (r.step >= 3));
        }
    Json config = parse_json(slurp(s / "three/run.json"), "run.json");
    const Json& a = config.find("arms")->items.at(0);
    CHECK(a.find("arm")->text == arm);
    const vector<Json>& stages = a.find("stages")->items;
    REQUIRE(stages.size() == 3);
    const int from[] = {0, 3, 6};
    const char* names[] = {"hybrid", "mxfp8", "nvfp4"};
    for (int i = 0; i < 3; i++) {
        CHECK(stages[i].find("from")->integer() == from[i]);
        CHECK(stages[i].find("row")->find("recipe")->text == names[i]);
        CHECK(stages[i].find("skipped")->items.size() == 1);
        CHECK(t.err.find((i ? "from step " + std::to_string(from[i]) + " on " : string()) + names[i] +
                         ": 4 of 5 linears") != string::npos);
    }
    CHECK(stages[0].find("row")->find("amax_history_len")->text == "1024");
    CHECK(stages[0].find("row")->find("dy.format")->text == "e5m2");
    CHECK(stages[1].find("row")->find("w.block")->text == "1x32");
    CHECK(!stages[1].find("row")->find("margin"));
    CHECK(stages[2].find("row")->find("x.rht")->text == "0");
    CHECK(stages[2].find("row")->find("dy.round")->text == "sr");
}
TEST_CASE("run.json lists memory by category, as planned for each arm") {
    Scratch s;
    train("--recipe bf16,hybrid --steps 1 --out " + (s / "run"));
    Json config = parse_json(slurp(s / "run/run.json"), "run.json");
    double inputs[2];
    for (int i = 0; i < 2; i++) {
        const Json* memory = config.find("arms")->items.at(i).find("memory_bytes");
        inputs[i] = *memory->find("saved inputs of linears")->number();
        CHECK(*memory->find("master weights")->number() >= 4 * *config.find("parameters")->number());
        CHECK((memory->find("weight codes") && *memory->find("weight codes")->number() > 0) == (i == 1));
    }
    CHECK(inputs[0] == 7 * 32.0 * 4 * 16 * 2); // three inputs of C and one of 4C, in BF16
    CHECK(inputs[1] <= 0.52 * inputs[0]);
}
TEST_CASE("every recipe trains to the same bits with 1 thread and 3, nvfp4's random draws included") {
    Scratch s;
    for (string arm : {"hybrid", "current", "blockwise", "mxfp8", "mxfp6", "mxfp4", "nvfp4", "unit", "bf16+nvfp4@3"}) {
        string prints[3];
        for (int threads : {1, 3, 0}) {
            string seed = threads ? "" : " --seed 2"; // and another seed gives others
            Result r = train("--recipe " + arm + " --steps 4 --threads " + std::to_string(threads ? threads : 1) +
                             seed + " --out " + (s / (arm + std::to_string(threads))));
            prints[threads ? threads / 2 : 2] = field(r.out, "fingerprint");
        }
        INFO(arm);
        CHECK(prints[0].size() == 16);
        CHECK(prints[0] == prints[1]);
        CHECK(prints[0] != prints[2]);
        if (arm == "nvfp4") // rounding to nearest is another run
            CHECK(field(train("--recipe nvfp4:dy.round=rne --steps 4 --out " + (s / "rne")).out, "fingerprint") !=
                  prints[0]);
    }
}

// --- what the command line says ----------------------------------------------------------------------------------
TEST_CASE("--skip and skip= keep layers in BF16, add up, and the tables and notes show it") {
    Scratch s;
    const std::set<string> all(std::begin(LAYERS), std::end(LAYERS)), block(std::begin(LAYERS), std::end(LAYERS) - 1);
    struct {
        string options;
        std::set<string> bf16;
    } cases[] = {
        {"--recipe mxfp8", {"lm_head"}},
        {"--recipe mxfp8 --skip none", {}},
        {"--recipe mxfp8:skip=none", {}},
        {"--recipe mxfp8:skip=first1", {LAYERS, LAYERS + 5}},
        {"--recipe mxfp8 --skip none,last1", {LAYERS, LAYERS + 4}},
        {"--recipe mxfp8:skip=h.?.mlp.* --skip none,*c_attn", {LAYERS[0], LAYERS[2], LAYERS[3]}},
        {"--recipe hybrid:skip=none/h.0.*c_proj", {LAYERS[1], LAYERS[3]}},
    };
    int n = 0;
    for (auto& c : cases) {
        INFO(c.options);
        string dir = s / std::to_string(n++);
        Result r = train(c.options + " --steps 1 --out " + dir);
        for (const Row& row : tensors(dir)) CHECK((row.format == "bf16") == (c.bf16.count(row.layer) > 0));
        CHECK(r.err.find(std::to_string(5 - c.bf16.size()) + " of 5 linears") != string::npos);
        for (string layer : c.bf16) CHECK(r.err.find(layer) != string::npos);
        Json config = parse_json(slurp(dir + "/run.json"), "run.json");
        auto& skipped = config.find("arms")->items.at(0).find("stages")->items.at(0).find("skipped")->items;
        std::set<string> listed;
        for (auto& j : skipped) listed.insert(j.text);
        CHECK(listed == c.bf16);
    }
    // of two stages, each has its own
    train("--recipe mxfp8:skip=first1+mxfp8@2 --steps 2 --stats-every 1 --out " + (s / "two"));
    for (const Row& row : tensors(s / "two"))
        CHECK((row.format == "bf16") == (row.step == 1 || row.layer == "lm_head"));
}
TEST_CASE("recipes, keys, skip patterns and dumps that are none cost two lines, status 2 and no run") {
    struct {
        const char *args, *says;
    } wrong[] = {
        {"--recipe hybird", "the nearest is hybrid"},
        {"--recipe mxfp8:scale_rul=floor", "the nearest is scale_rule"},
        {"--recipe mxfp8:scale_rule=up", "rceil, floor, ceil, even"},
        {"--recipe bf16,mxfp8:margin=1", "mxfp8 has no use for margin"},
        {"--recipe hybrid:w.format=e5m2", "E5M2 on both sides of dgrad"},
        {"--recipe nvfp4:x.rht=0", "rht of x but not of dy"},
        {"--recipe nvfp4:w.rht=1", "w.rht"},
        {"--recipe mxfp8:skip=h.7.*", "h.0.mlp.c_fc"},
        {"--recipe bf16+hybird@5", "the nearest is hybrid"},
        {"--recipe unit:accum=14/128", "--kernels reference"},
        {"recipes hybird", "the nearest is hybrid"},
        {"--dump h.0.mlp.c_fc:dy", "LAYER:OPERAND@STEP"},
        {"--dump h.0.mlp.c_fc@1", "LAYER:OPERAND@STEP"},
        {"--dump h.9.mlp.c_fc:dy@1", "h.0.attn.c_attn"},
        {"--dump h.0.mlp.c_fc:dz@1", "x, w, dy"},
        {"--dump h.0.mlp.c_fc:dy@0", "--steps 3"},
        {"--dump h.0.mlp.c_fc:dy@4", "--steps 3"},
        {"--dump h.0.mlp.c_fc:dy@2x", "LAYER:OPERAND@STEP"},
    };
    for (auto& w : wrong) {
        Scratch s;
        string args = w.args;
        bool trains = args[0] == '-';
        Result r = run((trains ? SMALL + "--steps 3 --out " + (s / "run") + " " : "") + args);
        INFO(args, ": ", r.err);
        CHECK(r.status == 2);
        CHECK(r.out == "");
        CHECK(split(r.err, '\n').size() <= 2);
        CHECK(r.err.rfind("error: ", 0) == 0);
        CHECK(r.err.find(w.says) != string::npos);
        CHECK(!fs::exists(s / "run/steps.csv"));
    }
}
TEST_CASE("./train recipes prints the table, or arms as they resolve; --json has every key that a row has a use for") {
    Result table = run("recipes"), json = run("recipes --json");
    CHECK(table.status == 0);
    vector<string> names;
    for (auto& line : split(json.out, '\n')) {
        Json j = parse_json(line, "stdout");
        names.push_back(j.find("recipe")->text);
        CHECK(("\n" + table.out).find("\n" + names.back() + " ") != string::npos);
        CHECK(!j.find("about")->text.empty());
        for (string o : {"x", "w", "dy"}) CHECK(j.find(o + ".scaling"));
    }
    CHECK(names ==
          vector<string>{"bf16", "hybrid", "e4m3", "current", "blockwise", "mxfp8", "mxfp6", "mxfp4", "nvfp4", "unit"});
    Json one = parse_json(run("recipes --json hybrid:dy.scaling=current:dy.format=e4m3:margin=3").out, "stdout");
    CHECK(one.find("dy.scaling")->text == "current");
    CHECK(one.find("dy.format")->text == "e4m3");
    CHECK(one.find("margin")->text == "3");
    CHECK(!one.find("dy.scale_rule"));
    CHECK(split(run("recipes --json bf16+hybrid@5,mxfp8").out, '\n').size() == 3);
}
TEST_CASE("loss_scale changes no bit where scales are powers of two or there are none; lr= is --lr") {
    Scratch s;
    auto trained = [&](const string& name, const string& args) {
        return field(train("--steps 5 " + args + " --out " + (s / name)).out, "fingerprint");
    };
    string bf16 = trained("a", "--recipe bf16");
    CHECK(trained("b", "--recipe bf16:loss_scale=4096") == bf16);
    // clipping included, and the norms that are shown
    auto norms = [&](const string& name) {
        vector<string> all;
        for (auto& line : split(slurp(s / (name + "/steps.csv")), '\n')) all.push_back(split(line, ',').at(5));
        return all;
    };
    CHECK(norms("b") == norms("a"));
    CHECK(trained("c", "--recipe unit:loss_scale=1024") != trained("d", "--recipe unit")); // gradients underflow less
    CHECK(trained("e", "--recipe bf16:lr=0.002") == trained("f", "--recipe bf16 --lr 0.002"));
    CHECK(trained("g", "--recipe bf16:lr=0.002") != bf16);
    CHECK(trained("h", "--recipe bf16:lr=0.002+bf16@3 --schedule constant --warmup 0 --lr 0.001") !=
          trained("i", "--schedule constant --warmup 0 --lr 0.001"));
    for (auto& line : split(slurp(s / "h/steps.csv"), '\n'))
        if (auto c = split(line, ','); c[2] != "step")
            CHECK(atof(c[6].c_str()) == doctest::Approx(atoi(c[2].c_str()) < 3 ? 0.002 : 0.001));
}

// --- --dump ------------------------------------------------------------------------------------------------------
// The copy that ends in `end` as numbers; factor: of the whole tensor.
vector<float> decoded_dump(const Safetensors& file, const string& end, Format f, const string& scaling, size_t& K) {
    auto bytes = [&](const string& name) {
        const TensorInfo* t = file.find(name + end);
        REQUIRE(t);
        string all = slurp(file.file.path).substr(file.header.data + t->begin, t->end - t->begin);
        return std::pair(vector<uint8_t>(all.begin(), all.end()), t->shape);
    };
    auto number = [&](const string& name) {
        float v;
        file.read(&v, *file.find(name + end), 0, 1);
        return v;
    };
    auto [codes, shape] = bytes("codes");
    size_t O = shape[0], row = shape[1], N = scaling == "mx" ? 32 : scaling == "nvfp4" ? 16 : 128;
    K = f.bits() == 4 ? 2 * row : row;
    vector<float> values;
    for (size_t o = 0; o < O; o++)
        for (size_t k = 0; k < K; k++) {
            uint8_t byte = codes[o * row + (f.bits() == 4 ? k / 2 : k)];
            values.push_back(decode(f, f.bits() == 4 ? k % 2 ? byte >> 4 : byte & 15 : byte));
        }
    if (file.find("scale_inv" + end)) {
        for (float& v : values) v *= number("scale_inv");
        return values;
    }
    auto [scales, scale_shape] = bytes("scales");
    size_t KB = scale_shape[1], rows = scaling == "blockwise" && (size_t)scale_shape[0] < O ? 128 : 1;
    CHECK(KB == (K + N - 1) / N);
    for (size_t o = 0; o < O; o++)
        for (size_t k = 0; k < K; k++) {
            size_t at = o / rows * KB + k / N;
            float s;
            if (scaling == "blockwise") memcpy(&s, &scales[4 * at], 4);
            else
                s = scaling == "mx" ? decode(E8M0, scales[at])
                                    : decode(E4M3, scales[at]) * number("amax") * (1 / 2688.0f);
            values[o * K + k] *= s;
        }
    return values;
}
TEST_CASE("--dump writes the operand, and codes and scales that decode to it as far as its format can") {
    Scratch s;
    const std::map<string, Format> formats = {
        {"e4m3", E4M3}, {"e5m2", E5M2}, {"e2m3", E2M3}, {"e3m2", E3M2}, {"e2m1", E2M1}};
    for (string arm :
         {"hybrid", "e4m3", "current", "blockwise", "mxfp8", "mxfp6", "mxfp4", "nvfp4:rht=0", "nvfp4", "mxfp8:fprop=0",
          "mxfp4:scaling=current"})
        for (string operand : OPERANDS) {
            string dir = s / (arm + operand);
            train("--recipe " + arm + " --steps 3 --stats-every 1 --quiet --dump h.0.mlp.c_fc:" + operand +
                  "@3 --out " + dir);
            vector<string> files;
            for (auto& e : fs::directory_iterator(dir))
                if (e.path().extension() == ".safetensors") files.push_back(e.path());
            REQUIRE(files.size() == 1);
            INFO(files[0]);
            Safetensors file(files[0]);
            string format, scaling;
            for (auto& [key, value] : file.header.metadata)
                (key == "format" ? format : key == "scaling" ? scaling : *new string) = value;
            Format f = formats.at(format);
            const TensorInfo* t = file.find("source");
            REQUIRE(t);
            const size_t R = t->shape[0], C = t->shape[1];
            CHECK(std::pair(R, C) == (operand == "w"   ? std::pair<size_t, size_t>(128, 32)
                                      : operand == "x" ? std::pair<size_t, size_t>(64, 32)
                                                       : std::pair<size_t, size_t>(64, 128)));
            vector<float> source(R * C);
            file.read(source.data(), *t, 0, R * C);
            double amax = 0;
            for (float v : source) amax = std::max(amax, std::fabs((double)v));
            int copies = 0;
            for (string end : {"", "_along_rows"}) {
                if (!file.find("codes" + end)) continue;
                copies++;
                size_t K;
                vector<float> values = decoded_dump(file, end, f, scaling, K);
                double off = 0, size = 0;
                for (size_t r = 0; r < R; r++)
                    for (size_t c = 0; c < C; c++) {
                        double x = source[r * C + c], q = end.empty() ? values[r * K + c] : values[c * K + r];
                        off += (x - q) * (x - q), size += x * x;
                    }
                double sqnr = 10 * log10(size / off);
                const bool transformed = end != "" && arm == "nvfp4" && operand != "w";
                // a gate for each format, 6 dB a mantissa bit; stochastic rounding costs another 3
                if (transformed) CHECK(sqnr < 1); // those codes are of another basis: no part of this one
                else CHECK(sqnr > (f == E2M1 ? 8 : f.mbits == 2 ? 17 : 25));
                if (end != "") continue;
                for (const Row& row : tensors(dir)) // the table saw the same cast
                    if (row.step == 3 && row.layer == "h.0.mlp.c_fc" && row.operand == operand) {
                        CHECK(row.format == format);
                        CHECK(row.amax == doctest::Approx(amax).epsilon(1e-8));
                        CHECK(row.sqnr_db == doctest::Approx(sqnr).epsilon(1e-4));
                    }
            }
            bool one_copy = (scaling == "delayed" || scaling == "current") && f.bits() > 4;
            CHECK(copies == (one_copy || (arm == "mxfp8:fprop=0" && operand != "dy") ? 1 : 2));
        }
    train("--steps 1 --quiet --dump lm_head:x@1 --out " + (s / "bf16")); // nothing is cast: the operand alone
    Safetensors file(s / "bf16/bf16-s1-lm_head.x-000001.safetensors");
    CHECK(file.header.tensors.size() == 1);
}

// --- eval --------------------------------------------------------------------------------------------------------
TEST_CASE("eval under a recipe gives the loss that training under it starts from; delayed ones are calibrated") {
    Scratch s;
    string trained = field(train("--steps 30 --lr 0.01 --out " + (s / "start")).out, "checkpoint"),
           text = slurp("data/corpus.cpp");
    std::ofstream(s / "val") << text.substr(100, 4 * 2 * 16 + 1); // two batches of four windows
    std::ofstream(s / "one") << text.substr(100, 4 * 16 + 1);     // one
    std::ofstream(s / "long") << text.substr(100, 60 * 16 + 1);   // fifteen
    string same = "--threads 1 --batch-size 4 --data ";
    auto evaluated = [&](const string& arms, const string& data) {
        Result r = run("eval " + trained + " --recipe " + arms + " " + same + (s / data));
        INFO(r.err);
        REQUIRE(r.status == 0);
        return split(r.out, '\n');
    };
    for (string arm : {"bf16", "current", "blockwise", "mxfp8", "mxfp6", "mxfp4", "nvfp4", "unit", "mxfp8:skip=none"}) {
        string line = evaluated(arm, "val").at(0);
        INFO(line);
        CHECK(field(line, "recipe") == arm);
        CHECK(field(line, "tokens") == "128");
        CHECK(field(line, "calibrated") == "");
        Result r = run("--init " + trained + " --steps 1 --recipe " + arm + " --eval-batches 2 " + same + (s / "long") +
                       " --val-data " + (s / "val") + " --out " + (s / ("eval-" + arm)));
        REQUIRE(r.status == 0);
        auto rows = split(slurp(s / (("eval-" + arm) + "/evals.csv")), '\n');
        CHECK(split(rows.at(1), ',').at(4) == field(line, "loss")); // the same sums
    }
    // Delayed: a run that sees the batch in BF16 first and stands still (--lr 0) has the same scales in step 2.
    for (string arm :
         {"hybrid", "e4m3", "hybrid:margin=3", "hybrid:amax_history_len=1", "e4m3:amax_compute_algo=most_recent"}) {
        string line = evaluated(arm, "one").at(0), dir = s / ("delayed-" + std::to_string(arm.size()));
        INFO(line);
        CHECK(field(line, "calibrated") == "1"); // there is one batch only
        Result r = run("--init " + trained + " --steps 2 --lr 0 --order sequential --recipe bf16+" + arm +
                       "@2 --eval-batches 2 " + same + (s / "one") + " --val-data " + (s / "val") + " --out " + dir);
        REQUIRE(r.status == 0);
        auto rows = split(slurp(dir + "/steps.csv"), '\n');
        CHECK(split(rows.at(2), ',').at(4) == field(line, "loss"));
        CHECK(split(rows.at(1), ',').at(4) != field(line, "loss"));
    }
    // 8 batches, and one update of the scales: neither window nor algorithm tells anything.
    auto lines = evaluated(
        "hybrid,mxfp8,hybrid:amax_compute_algo=most_recent,hybrid:amax_history_len=2,bf16+hybrid@9,bf16", "long");
    CHECK(lines.size() == 6);
    for (int i : {0, 2, 3, 4}) {
        CHECK(field(lines[i], "calibrated") == "8");
        CHECK(field(lines[i], "loss") == field(lines[0], "loss"));
    }
    CHECK(field(lines[1], "calibrated") == "");
    // The largest amax of all 8 counts, in whatever order the batches stand (each ends where a line begins).
    string forth, back;
    for (int i = 0; i < 8; i++) {
        string batch = "\n" + text.substr(100 + 500 * i, 63);
        forth = forth + batch, back = batch + back;
    }
    std::ofstream(s / "forth") << forth << "\n";
    std::ofstream(s / "back") << back << "\n";
    string to = evaluated("hybrid", "forth").at(0), fro = evaluated("hybrid", "back").at(0);
    CHECK(field(to, "calibrated") == "8");
    CHECK(atof(field(to, "loss").c_str()) ==
          doctest::Approx(atof(field(fro, "loss").c_str())).epsilon(1e-8)); // 9 digits
    Result json = run("eval " + trained + " --json --recipe hybrid " + same + (s / "long"));
    CHECK(parse_json(json.out, "stdout").find("calibrated")->integer() == 8);
}

} // namespace
