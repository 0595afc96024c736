// Comparisons as their users meet them: recipes times seeds, interrupted and resumed, scanned and disturbed.
#include "program.h"
#include "report/compare.h"
#include "run/json.h"
#include <cmath>
#include <csignal>
#include <fcntl.h>
#include <map>
#include <set>
#include <unistd.h>

namespace { // test files share one program

using std::string;

const string SMALL = " --layers 2 --channels 32 --heads 2 --seq-len 16 --batch-size 4 --eval-batches 2 --quiet ";

// The tables of a run without their `ms` columns, by file name.
std::map<string, string> tables(const string& dir) {
    std::map<string, string> all;
    for (auto name : {"steps.csv", "evals.csv", "tensors.csv", "arms.csv", "gradients.csv"}) {
        Table t = read_table(dir + "/" + name);
        string text;
        for (size_t r = 0; r < t.rows.size(); r++)
            for (size_t c = 0; c < t.columns.size(); c++)
                if (t.columns[c] != "ms") text += t.rows[r][c] + (c + 1 < t.columns.size() ? "," : "\n");
        all[name] = text;
    }
    return all;
}
std::vector<string> done_lines(const string& out) {
    std::vector<string> all;
    for (auto& line : lines(out))
        if (line.starts_with("done ")) all.push_back(line.substr(0, line.find(" checkpoint")) + field(line, "fingerprint"));
    return all;
}
// Starts ./train and kills it with SIGKILL as soon as `file` has `rows` lines.
void run_and_kill(const string& args, const string& file, size_t rows) {
    pid_t child = fork();
    if (child == 0) {
        int null = open("/dev/null", O_WRONLY);
        dup2(null, 1), dup2(null, 2), setpgid(0, 0);
        execl("/bin/sh", "sh", "-c", ("exec " + TRAIN + args).c_str(), (char*)nullptr);
        _exit(127);
    }
    bool there = false;
    for (int i = 0; i < 60000 && !there && waitpid(child, nullptr, WNOHANG) == 0; i++) {
        there = lines(slurp(file)).size() >= rows;
        if (!there) usleep(1000);
    }
    there |= lines(slurp(file)).size() >= rows; // it may have ended in between
    REQUIRE_MESSAGE(there, file);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
}

TEST_CASE("a comparison killed at any stage and resumed leaves the tables of an undisturbed one, byte for byte") {
    Scratch s;
    const string args = SMALL + "--recipe bf16,hybrid:amax_history_len=4,nvfp4 --seeds 2 --steps 40 --stats-every 10 ";
    Result whole = run(TRAIN, args + "--out " + (s / "whole"));
    INFO(whole.err);
    REQUIRE(whole.status == 0);
    auto want = tables(s / "whole");
    REQUIRE(done_lines(whole.out).size() == 6);
    const struct { const char *file; size_t rows; } stages[] = {
        {"run.json", 1}, {"steps.csv", 1}, {"steps.csv", 15}, {"arms.csv", 2}, {"steps.csv", 60}, {"tensors.csv", 300},
        {"arms.csv", 4}, {"evals.csv", 30}, {"arms.csv", 7}, {"gradients.csv", 2}};
    int n = 0;
    for (auto& stage : stages) {
        string dir = s / std::to_string(n++);
        run_and_kill(args + "--out " + dir, dir + "/" + stage.file, stage.rows);
        size_t kept = lines(slurp(dir + "/arms.csv")).size();
        Result r = run(TRAIN, "--resume " + dir);
        INFO(stage.file << " " << stage.rows << ": " << r.err);
        REQUIRE(r.status == 0);
        CHECK(done_lines(r.out) == done_lines(whole.out));
        CHECK(tables(dir) == want);
        bool over = r.err.find("starts over") != string::npos, on = r.err.find(" goes on from ") != string::npos;
        CHECK((kept < 7 || !(over || on))); // when all have ended, nothing does
        CHECK(slurp(dir + "/report.html").size() > 1000);
    }
    // Once more, when all is done: the same lines, and nothing is trained again.
    string before = slurp(s / "0/steps.csv");
    Result r = run(TRAIN, "--resume " + (s / "0"));
    CHECK(done_lines(r.out) == done_lines(whole.out));
    CHECK(slurp(s / "0/steps.csv") == before);
}

TEST_CASE("resuming refuses what is no run, and options that would make it another one") {
    Scratch s;
    Result r = run(TRAIN, "--resume " + (s / "nothing"));
    CHECK(r.status == 1);
    CHECK(r.err.find("no run is there") != string::npos);
    REQUIRE(run(TRAIN, SMALL + "--recipe bf16 --steps 2 --out " + (s / "run")).status == 0);
    r = run(TRAIN, "--lr 1 --resume " + (s / "run"));
    CHECK(r.status == 2);
    CHECK(r.err.find("--lr") != string::npos);
    CHECK(run(TRAIN, "--threads 1 --lr 0.004 --checkpoint-every 1 --resume " + (s / "run")).status == 0); // as it was
    std::ofstream(s / "run/arms.csv", std::ios::app) << "bf16,1,do"; // cut off by a crash: does not count
    CHECK(run(TRAIN, "--resume " + (s / "run")).status == 0);
    std::ofstream(s / "run/steps.csv", std::ios::app) << "bf16,1\n"; // no crash leaves that
    r = run(TRAIN, "--resume " + (s / "run"));
    CHECK(r.status == 1);
    CHECK(r.err.find("steps.csv") != string::npos);
}

TEST_CASE("arms are paired: with the same seed they start from the same weights and see the same batches") {
    Scratch s;
    Result r = run(TRAIN, SMALL + "--recipe bf16,mxfp8,bf16:margin=0 --steps 2 --out " + (s / "x"));
    CHECK(r.status == 2); // bf16 has no use for a margin
    r = run(TRAIN, SMALL + "--recipe bf16,bf16:nudge=0,mxfp4 --seeds 3 --steps 3 --seed 7 --out " + (s / "run"));
    INFO(r.err);
    REQUIRE(r.status == 0);
    Table evals = read_table(s / "run/evals.csv");
    std::map<string, std::map<string, string>> loss; // by seed and step, then recipe
    for (size_t i = 0; i < evals.rows.size(); i++)
        loss[evals.text(i, "seed") + " " + evals.text(i, "step")][evals.text(i, "recipe")] = evals.text(i, "loss");
    CHECK(loss.size() == 3 * 4); // seeds 7, 8, 9; steps 0 to 3
    std::set<string> starts;
    for (auto& [at, of] : loss) {
        CHECK(of["bf16"] == of["bf16:nudge=0"]); // the same arm twice is the same curve twice
        bool start = at.ends_with(" 0");
        if (start) starts.insert(of["bf16"]);
        if (!start) CHECK(of["bf16"] != of["mxfp4"]);
    }
    CHECK(starts.size() == 3); // seeds differ
}

TEST_CASE("an arm that diverges is counted and shown, its rows stay, the others go on") {
    Scratch s;
    Result r = run(TRAIN, SMALL + "--recipe bf16,bf16:lr=1000,mxfp8 --grad-clip 0 --warmup 0 --schedule constant --steps 30 --seeds 2 --out " +
                              (s / "run"));
    INFO(r.out << r.err);
    CHECK(r.status == 0);
    Table arms = read_table(s / "run/arms.csv"), steps = read_table(s / "run/steps.csv");
    int diverged = 0, rows = 0;
    for (size_t i = 0; i < arms.rows.size(); i++) diverged += arms.text(i, "outcome") == "diverged";
    for (size_t i = 0; i < steps.rows.size(); i++) rows += arms.text(1, "recipe") == steps.text(i, "recipe");
    CHECK(diverged == 2);
    CHECK(rows >= 2);
    CHECK(arms.rows.size() == 6);
    CHECK(r.out.find("diverged recipe=bf16:lr=1000 seed=2 step=") != string::npos);
    CHECK(r.out.find("2 of 2 diverged") != string::npos);
    Comparison c = compare({s / "run"});
    CHECK(c.find("bf16:lr=1000")->verdict.starts_with("worse"));
    CHECK(c.find("bf16:lr=1000")->diverged == 2);
}

TEST_CASE("E4M3 gradients without a scale get the verdict worse; bf16 against itself does not") {
    Scratch s;
    Result r = run(TRAIN, SMALL + "--channels 64 --batch-size 8 --recipe bf16,unit:dy.format=e4m3 --noise-floor --seeds 3 "
                              "--steps 120 --out " + (s / "run"));
    INFO(r.out << r.err);
    REQUIRE(r.status == 0);
    Comparison c = compare({s / "run"});
    CHECK(c.find("unit:dy.format=e4m3")->verdict == "worse");
    CHECK(c.noise_floor == "bf16:nudge=1");
    CHECK(c.find("bf16:nudge=1")->verdict != "worse");
    CHECK(r.out.find("worse") != string::npos);
    CHECK(run(TRAIN, SMALL + "--recipe mxfp8 --noise-floor --out " + (s / "none")).status == 2); // nothing to disturb
}

TEST_CASE("the gradient error orders formats by their bits, and is nothing where nothing is rounded") {
    Scratch s;
    const string args = SMALL + "--recipe bf16,mxfp8,mxfp6,mxfp4,nvfp4 --steps 30 --out ";
    for (auto& [program, name] : {std::pair(TRAIN, "bf16"), {TRAIN_F32, "f32"}}) {
        Result r = run(program, args + (s / name));
        INFO(r.err);
        REQUIRE(r.status == 0);
    }
    auto of = [&](const string& run_name) {
        std::map<string, double> error;
        Table t = read_table(s / (run_name + "/gradients.csv"));
        for (size_t i = 0; i < t.rows.size(); i++) {
            if (t.text(i, "layer") != "all") continue;
            error[t.text(i, "recipe")] = t.number(i, "rel_error");
            // |d|^2 = |v|^2 + |w|^2 - 2 v.w >= |w|^2 sin^2: no vector at that angle is nearer
            CHECK(t.number(i, "rel_error") >= sqrt(1 - pow(t.number(i, "cosine"), 2)) * (1 - 1e-6));
            bool draws = t.text(i, "recipe") == "nvfp4";
            CHECK((t.number(i, "mean_error") < 0.99 * t.number(i, "rel_error")) == draws); // SR averages out
        }
        return error;
    };
    auto e = of("bf16");
    CHECK(e["bf16"] > 1e-4);
    CHECK(e["bf16"] < e["mxfp8"]);
    CHECK(e["mxfp8"] < e["mxfp6"] * 1.5); // as many bits in x and w, one fewer in dy
    CHECK(e["mxfp6"] < e["mxfp4"]);
    CHECK(e["mxfp8"] < 0.5 * e["mxfp4"]); // E2M1 has two mantissa bits less: four times the error of one cast
    // ./train-f32 computes what the reference does: the same source, the same kernels.
    CHECK(of("f32")["bf16"] == 0);
}

TEST_CASE("scan ranks every linear and ends with skip lists that can be pasted") {
    Scratch s;
    Result r = run(TRAIN, "scan" + SMALL + "--steps 20 --recipe mxfp4 --out " + (s / "run"));
    INFO(r.out << r.err);
    REQUIRE(r.status == 0);
    string checkpoint = s / "run/bf16-s1/step-000020";
    Result json = run(TRAIN, "scan " + checkpoint + " --batch-size 4 --recipe mxfp4 --json");
    auto rows = lines(json.out);
    REQUIRE(rows.size() == 9); // 2 blocks of 4, and the head
    double flops = 0;
    std::set<string> layers;
    Json last;
    for (auto& row : rows) {
        last = parse_json(row, "row");
        auto number = [&](const char* name) { return *last.find(name)->number(); };
        flops += number("flops_percent");
        layers.insert(last.find("layer")->text);
        // One GEMM quantized is not worse than all three by more than chance: errors of GEMMs add up in squares.
        for (auto gemm : {"fprop_percent", "dgrad_percent", "wgrad_percent"})
            CHECK(number(gemm) <= 1.3 * number("only_percent"));
    }
    CHECK(layers.size() == 9);
    CHECK(flops == doctest::Approx(100));
    CHECK(*last.find("so_far_flops_percent")->number() == doctest::Approx(100));
    // With everything in BF16 the error is BF16's, whatever the recipe.
    Result other = run(TRAIN, "scan " + checkpoint + " --batch-size 4 --recipe mxfp8 --json");
    CHECK(*parse_json(lines(other.out).back(), "row").find("so_far_percent")->number() ==
          *last.find("so_far_percent")->number());
    string skip = lines(r.out).back();
    REQUIRE(skip.starts_with("--skip "));
    skip = skip.substr(0, skip.find(" #"));
    CHECK(run(TRAIN, SMALL + "--recipe mxfp4 --steps 1 " + skip + " --out " + (s / "pasted")).status == 0);
    // What scan cannot take it refuses before it trains.
    for (auto arm : {"bf16", "mxfp5", "bf16+hybrid@5", "mxfp4:skip=first1"}) {
        CHECK(run(TRAIN, "scan" + SMALL + "--recipe " + arm + " --out " + (s / "refused")).status == 2);
        CHECK(!std::filesystem::exists(s / "refused"));
    }
}

TEST_CASE("the gradient error of delayed scales does not depend on the loss scale, for they are calibrated with it") {
    Scratch s;
    Result r = run(TRAIN, SMALL + "--recipe bf16,hybrid,hybrid:loss_scale=4096,current,current:loss_scale=4096 --steps 20 "
                              "--lr 0.001 --out " + (s / "run"));
    INFO(r.err);
    REQUIRE(r.status == 0);
    Comparison c = compare({s / "run"});
    // A power of two: amaxes, scales and codes are the same but for it.
    CHECK(c.find("hybrid")->gradient_error == c.find("hybrid:loss_scale=4096")->gradient_error);
    CHECK(c.find("current")->gradient_error == c.find("current:loss_scale=4096")->gradient_error);
    CHECK(c.find("hybrid")->gradient_error < 0.5);
    // Nor is an outlier put into weights that were trained with it: without learning, both runs measure the same weights.
    const string still = SMALL + "--lr 0 --weight-decay 0 --steps 1 --recipe ";
    REQUIRE(run(TRAIN, still + "bf16,mxfp4:outlier=128 --out " + (s / "plain")).status == 0);
    REQUIRE(run(TRAIN, still + "bf16:outlier=128,mxfp4:outlier=128 --out " + (s / "outlier")).status == 0);
    CHECK(compare({s / "plain"}).find("mxfp4:outlier=128")->gradient_error ==
          compare({s / "outlier"}).find("mxfp4:outlier=128")->gradient_error);
}

TEST_CASE("a closed standard output takes nothing from the tables, and what no JSON holds fails before step 1") {
    Scratch s;
    string args = TRAIN + SMALL + "--recipe bf16,mxfp8 --steps 4 --out ";
    CHECK(system((args + (s / "open") + " >/dev/null 2>&1").c_str()) == 0);
    CHECK(system((args + (s / "closed") + " >&- 2>&-").c_str()) == 0);
    CHECK(tables(s / "closed") == tables(s / "open"));
    Result r = run(TRAIN, SMALL + "--recipe bf16 --steps 4 --prompt \"$(printf 'b\\377ad')\" --out " + (s / "bytes"));
    INFO(r.err);
    CHECK(r.status == 1);
    CHECK(r.err.find("UTF-8") != string::npos);
    CHECK(!std::filesystem::exists(s / "bytes/steps.csv"));
}

TEST_CASE("runs of programs that store activations differently are not compared") {
    Scratch s;
    REQUIRE(run(TRAIN, SMALL + "--recipe bf16 --steps 2 --out " + (s / "bf16")).status == 0);
    REQUIRE(run(TRAIN_F32, SMALL + "--recipe mxfp8 --steps 2 --out " + (s / "f32")).status == 0);
    Result r = run(TRAIN, "report " + (s / "bf16") + " " + (s / "f32") + " --out " + (s / "both"));
    CHECK(r.status == 1);
    CHECK(r.err.find("activations") != string::npos);
    REQUIRE(run(TRAIN, SMALL + "--recipe mxfp8 --steps 2 --out " + (s / "mxfp8")).status == 0);
    r = run(TRAIN, "report " + (s / "bf16") + " " + (s / "mxfp8") + " --out " + (s / "both"));
    CHECK(r.status == 0);
    CHECK(r.out.find("mxfp8") != string::npos);
    CHECK(slurp(s / "both/report.html").size() > 1000);
}

TEST_CASE("a jump of activations and an outlier channel change no bit of bf16, nor a jump of current scaling") {
    Scratch s;
    auto fingerprints = [&](const string& arms, const string& more) {
        static int n = 0;
        Result r = run(TRAIN, SMALL + "--steps 8 --recipe " + arms + " " + more + " --out " + (s / std::to_string(n++)));
        INFO(r.err);
        REQUIRE(r.status == 0);
        std::map<string, string> all;
        for (auto& line : lines(r.out))
            if (line.starts_with("done ")) all[field(line, "recipe")] = field(line, "fingerprint");
        return all;
    };
    auto f = fingerprints("bf16,bf16:jump=128/3/1,current,current:jump=128/3/1,mxfp8,mxfp8:jump=128/3/2,nvfp4:dy.round=rne,"
                          "nvfp4:dy.round=rne:jump=128/3/1,hybrid,hybrid:jump=128/3/1,hybrid:jump=128/9/1", "");
    CHECK(f["bf16"] == f["bf16:jump=128/3/1"]);
    CHECK(f["current"] == f["current:jump=128/3/1"]);
    CHECK(f["mxfp8"] == f["mxfp8:jump=128/3/2"]);
    CHECK(f["nvfp4:dy.round=rne"] == f["nvfp4:dy.round=rne:jump=128/3/1"]);
    CHECK(f["hybrid"] != f["hybrid:jump=128/3/1"]); // stale scales saturate
    CHECK(f["hybrid"] == f["hybrid:jump=128/9/1"]); // after the last step
    string checkpoint = s / "0/bf16-s1/step-000008";
    Result r = run(TRAIN, "eval " + checkpoint + " --data Makefile --recipe bf16,bf16:outlier=128,nvfp4,nvfp4:outlier=128");
    std::map<string, string> loss;
    for (auto& line : lines(r.out)) loss[field(line, "recipe")] = field(line, "loss");
    CHECK(loss["bf16"] == loss["bf16:outlier=128"]);
    CHECK(loss["nvfp4"] != loss["nvfp4:outlier=128"]);
    CHECK(run(TRAIN, "eval " + checkpoint + " --data Makefile --recipe bf16:outlier=100").status == 2); // no power of two
}

TEST_CASE("--native refuses what would be emulated, before anything is written") {
    Scratch s;
    Result r = run(TRAIN, SMALL + "--native --recipe bf16,mxfp8 --out " + (s / "run"));
    CHECK(r.status == 1);
    CHECK(r.err.find("mxfp8") != string::npos);
    CHECK(!std::filesystem::exists(s / "run"));
    CHECK(run(TRAIN, SMALL + "--native --recipe bf16 --steps 1 --out " + (s / "run")).status == 0);
    const string eval = "eval " + (s / "run/bf16-s1/step-000001") + " --data Makefile --native --recipe ";
    const string bench = "bench --layers 1 --channels 32 --heads 2 --seq-len 16 --batch-size 4 --steps 1 --native --recipe ";
    for (auto& command : {eval, bench}) {
        CHECK(run(TRAIN, command + "bf16").status == 0);
        r = run(TRAIN, command + "bf16,mxfp8");
        CHECK(r.status == 1);
        CHECK(r.err.find("--native: mxfp8") != string::npos);
    }
}

} // namespace
