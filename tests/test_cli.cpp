// The program as its users meet it: ./train run as a process, its exit status, what it prints where, what it leaves.
// ULP_TRAIN names another binary (tests/run.sh does, for the sanitizers).
#include "program.h"
#include "run/checkpoint.h"
#include "run/json.h"
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace { // test files share one program

namespace fs = std::filesystem;
using std::string;

static const string SMALL = " --recipe bf16 --layers 2 --channels 24 --heads 3 --seq-len 20 --batch-size 3 --eval-batches 2 ";

TEST_CASE("a run leaves its tables, its configuration and a checkpoint that evaluates to the loss it printed") {
    Scratch s;
    std::ofstream(s / "text") << slurp("data/corpus.cpp");
    std::ofstream(s / "val") << slurp("data/corpus.cpp").substr(100, 3 * 2 * 20 + 1); // just the six windows it reads
    Result r = run(TRAIN, SMALL + "--steps 20 --data " + (s / "text") + " --val-data " + (s / "val") + " --out " +
                              (s / "run"));
    INFO(r.err);
    REQUIRE(r.status == 0);
    CHECK(r.out.find('\x1b') == string::npos); // a pipe stays clean
    CHECK(r.out.find('\r') == string::npos);
    CHECK(r.err.find('\x1b') == string::npos);
    auto out = lines(r.out);
    CHECK(out.front().rfind("step 1/20 recipe=bf16 seed=1 loss=", 0) == 0);
    CHECK(out.back().rfind("done recipe=bf16 seed=1 step=20 loss=", 0) == 0);

    auto steps = lines(slurp(s / "run/steps.csv")), evals = lines(slurp(s / "run/evals.csv"));
    REQUIRE(steps.size() == 21);
    CHECK(steps[0] == "recipe,seed,step,tokens,loss,grad_norm,lr,ms");
    CHECK(steps[1].rfind("bf16,1,1,60,", 0) == 0);
    CHECK(steps[20].rfind("bf16,1,20,1200,", 0) == 0);
    CHECK(evals[0] == "recipe,seed,step,tokens,loss");
    REQUIRE(evals.size() == 8);
    const int at[] = {0, 2, 5, 10, 15, 18, 20}; // 0, 10, 25, 50, 75, 90, 100 %
    for (int i = 0; i < 7; i++)
        CHECK(evals[i + 1].rfind("bf16,1," + std::to_string(at[i]) + "," + std::to_string(60 * at[i]) + ",", 0) == 0);
    CHECK(evals[7].substr(evals[7].rfind(',') + 1) == field(out.back(), "loss"));

    Json config = parse_json(slurp(s / "run/run.json"), "run.json");
    CHECK(config.find("options")->find("steps")->integer() == 20);
    CHECK(config.find("options")->find("warmup")->integer() == 1);

    string checkpoint = field(out.back(), "checkpoint");
    CHECK(checkpoint == s / "run/bf16-s1/step-000020");
    Result e = run(TRAIN, "eval " + checkpoint + " --batch-size 3 --data " + (s / "val"));
    CHECK(e.status == 0);
    CHECK(e.out == "eval recipe=bf16 loss=" + field(out.back(), "loss") + " tokens=120\n");
    Result j = run(TRAIN, "eval " + checkpoint + " --json --data " + (s / "val"));
    CHECK(parse_json(j.out, "stdout").find("tokens")->integer() == 120);

    Result inspect = run(TRAIN, "inspect " + checkpoint);
    CHECK(inspect.status == 0);
    CHECK(inspect.out.find("h.1.mlp.c_proj.weight") != string::npos);

    Result again = run(TRAIN, SMALL + "--out " + (s / "run"));
    CHECK(again.status == 1);
    CHECK(again.err.find("hint:") != string::npos);
    CHECK(lines(slurp(s / "run/steps.csv")) == steps); // and nothing was touched
}

TEST_CASE("the same command gives the same bits, for any number of threads, in definition and portable kernels alike") {
    Scratch s;
    auto fingerprint = [&](const string& program, const string& args) {
        static int n = 0;
        Result r =
            run(program, SMALL + "--steps 6 --seq-len 70 " + args + " --quiet --out " + (s / std::to_string(n++)));
        INFO(r.err);
        REQUIRE(r.status == 0);
        CHECK(r.err == "");
        REQUIRE(field(r.out, "fingerprint").size() == 16);
        return field(r.out, "fingerprint");
    };
    string one = fingerprint(TRAIN, "--threads 1");
    CHECK(fingerprint(TRAIN, "--threads 2") == one);
    CHECK(fingerprint(TRAIN, "--threads 3") == one);
    CHECK(fingerprint(TRAIN, "") == one);
    CHECK(fingerprint(TRAIN, "--seed 2") != one);
    string portable = fingerprint(TRAIN, "--kernels portable --grad-accum 2");
    CHECK(fingerprint(TRAIN, "--kernels reference --grad-accum 2") == portable);
    CHECK(fingerprint(TRAIN, "--kernels portable --grad-accum 2 --threads 1") == portable);
    CHECK(fingerprint(TRAIN_F32, "--kernels reference") == fingerprint(TRAIN_F32, "--kernels portable"));
}

// Microbatches change nothing but the order of FP32 sums (and bf16 roundings of gradients, absent in train-f32).
TEST_CASE("gradient accumulation trains like one large batch") {
    Scratch s;
    auto loss = [&](const string& name, const string& args) {
        Result r = run(TRAIN_F32, SMALL + "--order sequential --data data/corpus.cpp --steps 10 --eval-batches 4 " +
                                      args + " --out " + (s / name));
        INFO(r.err);
        REQUIRE(r.status == 0);
        auto rows = lines(slurp(s / (name + "/steps.csv")));
        REQUIRE(rows.size() == 11);
        std::vector<double> losses;
        for (size_t i = 1; i < rows.size(); i++) {
            std::istringstream in(rows[i]);
            string cell;
            for (int c = 0; c < 5; c++) std::getline(in, cell, ',');
            losses.push_back(atof(cell.c_str()));
        }
        return losses;
    };
    auto one = loss("one", "--batch-size=6"), two = loss("two", "--batch-size=2 --grad-accum=3");
    // Gradients agree to about 1e-6 relative; AdamW's first steps, m / sqrt(v) = +-1, can turn that into a flipped sign
    // only where a gradient is itself at rounding level, which moves the loss by far less than 1e-5.
    for (size_t i = 0; i < one.size(); i++) CHECK(one[i] == doctest::Approx(two[i]).epsilon(1e-5));
}

TEST_CASE("a run that is not finite stops with the step and the first bad tensor") {
    Scratch s;
    Result r =
        run(TRAIN, SMALL + "--steps 30 --warmup 0 --schedule constant --lr 1000 --grad-clip 0 --out " + (s / "run"));
    INFO(r.err);
    CHECK(r.status == 1);
    CHECK(r.err.find("First bad tensor: ") != string::npos);
    CHECK(r.err.find("step ") != string::npos);
    CHECK(lines(slurp(s / "run/steps.csv")).size() >= 2); // its rows stay
    CHECK(r.out.find("done ") == string::npos);
}

TEST_CASE("Ctrl-C and SIGTERM finish the step, write a checkpoint and exit with 130 and 143") {
    for (int sig : {SIGINT, SIGTERM}) {
        Scratch s;
        string dir = s / "run", out = s / "out";
        pid_t child = fork();
        if (child == 0) {
            int fd = open(out.c_str(), O_CREAT | O_WRONLY, 0666);
            dup2(fd, 1), dup2(fd, 2);
            execl(TRAIN.c_str(), TRAIN.c_str(), "--recipe", "bf16", "--channels", "24", "--heads", "3", "--steps", "1000000", "--out",
                  dir.c_str(), (char*)nullptr);
            _exit(127);
        }
        for (int i = 0; i < 3000 && slurp(out).find("step 1/1000000") == string::npos; i++) usleep(10000);
        kill(child, sig);
        int status = 0;
        REQUIRE(waitpid(child, &status, 0) == child);
        INFO(slurp(out));
        REQUIRE(WIFEXITED(status));
        CHECK(WEXITSTATUS(status) == 128 + sig);
        auto rows = lines(slurp(dir + "/steps.csv"));
        string last = rows.back().substr(strlen("bf16,1,"));
        last = last.substr(0, last.find(','));
        char name[32];
        snprintf(name, sizeof name, "/bf16-s1/step-%06d", atoi(last.c_str()));
        Config c = read_config(dir + name); // of the very last step that was made
        CHECK(c.channels == 24);
        CHECK(slurp(out).find(dir + name) != string::npos); // and it says where
    }
}

TEST_CASE("wrong usage costs one or two lines and exit status 2, and names the nearest right thing") {
    struct {
        const char *args, *says;
    } wrong[] = {
        {"--recipy bf16", "--recipe"},
        {"--recipe bf17", "bf16"},
        {"evol x", "eval"},
        {"--steps ten", "number"},
        {"--heads 3 --channels 32", "multiple"},
        {"--skip h.9.attn.c_attn", "h.0.attn.c_attn"},
        {"--model tiney", "tiny"},
        {"--recipe bf16:margin=1", "margin"},
        {"--schedule linear", "cosine"},
        {"eval", "CKPT"},
    };
    for (auto& w : wrong) {
        Scratch s;
        Result r = run(TRAIN, w.args);
        INFO(w.args << ": " << r.err);
        CHECK(r.status == 2);
        CHECK(r.out == "");
        CHECK(lines(r.err).size() <= 2);
        CHECK(r.err.rfind("error: ", 0) == 0);
        CHECK(r.err.find(w.says) != string::npos);
    }
}

TEST_CASE("what the world has wrong costs one or two lines and exit status 1, before training starts") {
    Scratch s;
    std::ofstream(s / "short") << "ten bytes.";
    struct {
        string args;
        const char* says;
    } wrong[] = {
        {"--data " + (s / "nothing"), "nothing"},
        {"--data " + (s / "short"), "short"},
        {"--out /proc/ulp", "/proc/ulp"},
        {"eval " + (s / "no-checkpoint"), "no-checkpoint"},
        {"--init " + (s / "short"), "short"},
        {"--device cuda", "hint:"},
        {"--vocab 100", "256"},
        {"--channels 8192 --layers 500 --batch-size 100000 --out " + (s / "big"), "memory"},
    };
    for (auto& w : wrong) {
        Result r = run(
            TRAIN, w.args + (w.args.find("--out") == string::npos && w.args.find("eval") ? " --out " + (s / "o") : ""));
        INFO(w.args << ": " << r.err);
        CHECK(r.status == 1);
        auto err = lines(r.err);
        REQUIRE(!err.empty());
        CHECK(err.back().find("error: ") == 0);
        CHECK(r.err.find(w.says) != string::npos);
        CHECK(r.out == "");
    }
}

TEST_CASE("sampling is a function of checkpoint, prompt and seed, and training from a checkpoint starts at its loss") {
    Scratch s;
    Result r = run(TRAIN_F32, SMALL + "--steps 30 --seed 3 --out " + (s / "a"));
    REQUIRE(r.status == 0);
    string checkpoint = field(r.out, "checkpoint");
    Result x = run(TRAIN, "sample " + checkpoint + " --prompt otter --tokens 50 --seed 5");
    CHECK(x.status == 0);
    CHECK(x.out.rfind("otter", 0) == 0);
    CHECK(run(TRAIN, "sample " + checkpoint + " --prompt otter --tokens 50 --seed 5").out == x.out);
    CHECK(run(TRAIN, "sample " + checkpoint + " --prompt otter --tokens 50 --seed 6").out != x.out);
    CHECK(run(TRAIN, "sample " + checkpoint + " --prompt otter --tokens 50 --temperature 0 --seed 5").out ==
          run(TRAIN, "sample " + checkpoint + " --prompt otter --tokens 50 --temperature 0 --seed 6").out);
    Result b = run(TRAIN_F32,
                   "--init " + checkpoint + " --batch-size 3 --eval-batches 2 --steps 2 --seed 3 --out " + (s / "b"));
    INFO(b.err);
    REQUIRE(b.status == 0);
    string first = lines(slurp(s / "b/evals.csv"))[1];
    CHECK(first.substr(first.rfind(',') + 1) == field(r.out, "loss"));
}

TEST_CASE("sampling tells its speed and its cache, the cache changes no text, and eval says what a format costs") {
    Scratch s;
    Result r = run(TRAIN, SMALL + "--steps 30 --out " + (s / "a"));
    REQUIRE(r.status == 0);
    string checkpoint = field(r.out, "checkpoint"), ask = "sample " + checkpoint + " --prompt otter --tokens 70 --top-p 0.9 ";
    Result plain = run(TRAIN, ask), e4m3 = run(TRAIN, ask + "--kv-cache e4m3");
    CHECK(plain.err.find("70 tokens, ") != string::npos);
    CHECK(plain.err.find(" tokens/s, cache 3.75 KiB (bf16)") != string::npos); // 2 * 2 layers * 20 tokens * 24 * 2 bytes
    CHECK(e4m3.err.find("cache 1.88 KiB (e4m3)") != string::npos);
    Result recomputed = run(TRAIN, ask + "--recompute");
    CHECK(recomputed.out == plain.out);
    CHECK(recomputed.err.find("no cache (bf16)") != string::npos);
    CHECK(run(TRAIN, ask + "--kv-cache bf16").out == plain.out);
    CHECK(run(TRAIN, ask + "--kv-cache e4m3 --recompute").out == e4m3.out);
    CHECK(run(TRAIN, ask + "--top-p 1").out != plain.out);
    CHECK(run(TRAIN, ask + "--profile").err.find("attention") != string::npos);
    CHECK(run(TRAIN_F32, ask).err.find("cache 7.50 KiB (fp32)") != string::npos);
    CHECK(run(TRAIN_F32, ask + "--kv-cache e5m2").out == run(TRAIN_F32, ask + "--kv-cache e5m2 --recompute").out);

    std::ofstream(s / "text") << slurp("data/corpus.cpp");
    string eval = "eval " + checkpoint + " --data " + (s / "text"), loss = run(TRAIN, eval).out;
    CHECK(loss.find("kv=") == string::npos);
    CHECK(run(TRAIN, eval + " --kv-cache bf16").out == loss.substr(0, loss.size() - 1) + " kv=bf16\n");
    Result rounded = run(TRAIN, eval + " --kv-cache e5m2"), json = run(TRAIN, eval + " --kv-cache e5m2 --json");
    CHECK(rounded.out.find(" kv=e5m2\n") != string::npos);
    CHECK(std::stod(field(rounded.out, "loss")) != std::stod(field(loss, "loss")));
    CHECK(parse_json(json.out, "stdout").find("kv")->text == "e5m2");
    for (const char* wrong : {"--kv-cache fp8", "--top-p 1.5", "--top-p -0.1", "--recompute=1"}) {
        Result w = run(TRAIN, ask + wrong);
        INFO(w.err);
        CHECK(w.status == 2);
        CHECK(w.err.find(string(wrong).substr(0, 7)) != string::npos);
    }
}

TEST_CASE("--help lists the options of every command and --version says what was built") {
    for (const char* command : {"", "eval ", "sample ", "inspect ", "bench ", "recipes "}) {
        Result r = run(TRAIN, string(command) + "--help");
        CHECK(r.status == 0);
        CHECK(r.out.find("Usage") == 0);
    }
    CHECK(run(TRAIN, "--version").out.rfind("ulp ", 0) == 0);
}

} // namespace
