#include "check.h"
#include "run/error.h"
#include "run/log.h"
#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fcntl.h>
#include <fstream>
#include <functional>
#include <set>
#include <sstream>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

namespace { // test files share one program

namespace fs = std::filesystem;

struct Scratch { // a fresh directory, current while it lives
    fs::path back = fs::current_path(), dir;
    Scratch() {
        char name[] = "/tmp/ulp-log-XXXXXX";
        REQUIRE(mkdtemp(name) != nullptr);
        fs::current_path(dir = name);
    }
    ~Scratch() {
        fs::current_path(back);
        fs::remove_all(dir);
    }
};
static std::string contents(const std::string& path) {
    std::ostringstream text;
    if (fs::is_regular_file(path)) text << std::ifstream(path).rdbuf(); // reading a terminal would wait for a key
    return text.str();
}
static std::string error_of(const std::function<void()>& f) {
    try {
        f();
    } catch (const Error& e) {
        CHECK(e.status == 1);
        return e.what();
    }
    return "no error";
}
static bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }
// What a child process that runs f wrote to stdout and stderr; its exit status, or minus the signal that ended it.
struct Outcome {
    std::string out, err;
    int status;
};
static Outcome in_child(const std::function<void()>& f, const char* out = "out", const char* err = "err") {
    fflush(nullptr);
    pid_t child = fork();
    if (child == 0) {
        dup2(open(out, O_CREAT | O_TRUNC | O_WRONLY | O_NOCTTY, 0666), 1);
        dup2(open(err, O_CREAT | O_TRUNC | O_WRONLY | O_NOCTTY, 0666), 2);
        f();
        fflush(nullptr);
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    return {contents(out), contents(err), WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status)};
}

TEST_CASE("a run gets a directory of its own, named after the time, parents created") {
    Scratch scratch;
    std::set<std::string> names;
    for (int i = 0; i < 4; i++) names.insert(make_run_dir("")); // at least three of them within one second
    CHECK(names.size() == 4);
    int suffixed = 0;
    for (std::string n : names) {
        CHECK(fs::is_directory(n));
        for (char& c : n) c = isdigit((unsigned char)c) ? 'd' : c;
        suffixed += n == "runs/dddddddd-dddddd-d";
        CHECK((n == "runs/dddddddd-dddddd" || n == "runs/dddddddd-dddddd-d"));
    }
    CHECK(suffixed >= 2);
    CHECK(make_run_dir("a/b/c") == "a/b/c");
    CHECK(fs::is_directory("a/b/c"));
    CHECK(make_run_dir("a/b/c") == "a/b/c"); // no run in it yet
}

TEST_CASE("a directory that holds a run, or cannot be one, is refused with a hint") {
    Scratch scratch;
    for (std::string file : {"run.json", "steps.csv", "evals.csv"}) {
        make_run_dir(file + ".d");
        std::ofstream(file + ".d/" + file) << "x";
        std::string message = error_of([&] { make_run_dir(file + ".d"); });
        CHECK(has(message, "a run is there already"));
        CHECK(has(message, "hint: choose another --out"));
    }
    std::ofstream("file") << "x";
    CHECK(has(error_of([] { make_run_dir("file"); }), "cannot create file"));
    CHECK(has(error_of([] { make_run_dir("file/below"); }), "cannot create file/below"));
    CHECK(has(error_of([] { make_run_dir("/proc/none/below"); }), "hint: choose another place with --out"));
    CHECK(has(error_of([] { Log("not/there"); }), "cannot write not/there/steps.csv: No such file"));
    Log first(make_run_dir("twice"));
    CHECK(has(error_of([] { Log("twice"); }), "File exists"));
}

TEST_CASE("arms have file names that are safe and different, and the plain ones read as given") {
    CHECK(safe_name("bf16") == "bf16");
    CHECK(safe_name("hybrid:amax_history_len=16:dy.format=e4m3") == "hybrid-amax_history_len=16-dy.format=e4m3");
    CHECK(checkpoint_dir("runs/x", "hybrid", 1, 500) == "runs/x/hybrid-s1/step-000500");
    CHECK(checkpoint_dir("d", "a:k=1", 12, 12345678) == "d/a-k=1-s12/step-12345678");
    std::set<std::string> names;
    std::vector<std::string> arms = {"a",
                                     "a:b",
                                     "a/b",
                                     "a+b",
                                     "a-b",
                                     "a@b",
                                     "a--b",
                                     "a:/b",
                                     "../../x",
                                     "a b",
                                     "a\nb",
                                     std::string(500, 'x'),
                                     std::string(501, 'x'),
                                     std::string(100, 'x')};
    for (auto& arm : arms) {
        std::string name = safe_name(arm);
        CHECK(name.size() < 120);
        CHECK(name.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._=-") ==
              std::string::npos);
        names.insert(name);
    }
    CHECK(names.size() == arms.size());
}

TEST_CASE("tables hold exactly the columns, numbers and line ends that were promised") {
    Scratch scratch;
    Log log(make_run_dir("run"));
    Outcome child = in_child([&] {
        log.step({"hybrid:margin=1", 1, 1, 2, 768, 5.54517744f, 1.25, 1e-3, 12.5});
        log.step({"hybrid:margin=1", 1, 2, 2, 1536, std::nan(""), -std::nan(""), 5e-05, INFINITY});
    });
    CHECK(child.status == 0);
    log.eval("bf16", 7, 0, 0, 1.0f / 3);
    log.eval("bf16", 4294967295, 1, int64_t(1) << 40, 1e-30);
    CHECK(contents("run/steps.csv") == "recipe,seed,step,tokens,loss,grad_norm,lr,ms\n"
                                       "hybrid:margin=1,1,1,768,5.54517746,1.25,0.001,12.5\n"
                                       "hybrid:margin=1,1,2,1536,nan,nan,5e-05,inf\n");
    CHECK(contents("run/evals.csv") == "recipe,seed,step,tokens,loss\n"
                                       "bf16,7,0,0,0.333333343\n"
                                       "bf16,4294967295,1,1099511627776,1e-30\n");
    Csv table("t.csv", "a,b,c");
    table.row({"", "x", ""});
    CHECK(contents("t.csv") == "a,b,c\n"); // until flush
    table.row({"1", "", "2"});
    table.flush();
    table.flush();
    CHECK(contents("t.csv") == "a,b,c\n,x,\n1,,2\n");
    CHECK(has(error_of([&] { table.row({"1", "2"}); }), "2 cells for 3 columns"));
    Csv one("one.csv", "a");
    for (std::string bad : {"a,b", "\"", "a\nb", "\r"})
        CHECK(has(error_of([&] { one.row({bad}); }), "would need quotes"));
    log.describe(Json(Json::Object).set("version", "x"));
    CHECK(contents("run/run.json") == "{\n  \"version\": \"x\"\n}\n");
}

TEST_CASE("a table that cannot grow keeps whole lines, and the error names it") {
    Scratch scratch;
    Outcome child = in_child([] {
        signal(SIGXFSZ, SIG_IGN);
        Csv table("t.csv", "a,b");
        rlimit limit = {100, 100}; // bytes that a file may have: what a full disk does, at a place we know
        setrlimit(RLIMIT_FSIZE, &limit);
        for (int i = 0;; i++) {
            try {
                for (int k = 0; k < 3; k++) table.row({std::to_string(i), "12345678"});
                table.flush();
            } catch (const Error& e) {
                _exit(has(e.what(), "cannot write t.csv: File too large. hint: make room") && i == 2 ? 7 : 8);
            }
        }
    });
    CHECK(child.status == 7);
    std::string row0 = "0,12345678\n", row1 = "1,12345678\n";
    CHECK(contents("t.csv") == "a,b\n" + row0 + row0 + row0 + row1 + row1 + row1);
}

TEST_CASE("lines for scripts look as documented") {
    Step s = {"hybrid", 1, 10, 500, 7680, 3.1234, 1.23, 0.001, 62};
    CHECK(step_line(s, 12345.4) == "step 10/500 recipe=hybrid seed=1 loss=3.1234 norm=1.23 lr=0.001 tok/s=12345");
    CHECK(eval_line("bf16", 3.21765423, 10240) == "eval recipe=bf16 loss=3.21765423 tokens=10240");
    CHECK(done_line("hybrid", 1, 500, 1.23456789, "runs/x/hybrid-s1/step-000500", 0x0123456789abcdef) ==
          "done recipe=hybrid seed=1 step=500 loss=1.23456789 checkpoint=runs/x/hybrid-s1/step-000500 "
          "fingerprint=0123456789abcdef");
    CHECK(number(-std::nan("")) == "nan");
    CHECK(number(-INFINITY) == "-inf");
    for (float v : {0.1f, 1e-45f, 3.4028235e38f, 16777217.0f, 1.0f / 3}) CHECK(strtof(number(v).c_str(), nullptr) == v);
}

TEST_CASE("the live line fits any width and gives up what matters least first") {
    Step s = {"hybrid:amax_history_len=16:margin=1", 3, 123, 500, 123 * 768, 3.14159, 1, 1e-3, 62};
    CHECK(live_line(s, 3.25, 64, 200) ==
          "hybrid:amax_history_len= seed 3  step 123/500  loss 3.1416  smooth 3.2500  12000 tok/s  0:24 left");
    s.recipe = "hybrid";
    const std::string full = "hybrid seed 3  step 123/500  loss 3.1416  smooth 3.2500  12000 tok/s  0:24 left";
    CHECK(live_line(s, 3.25, 64, 80) == full);
    CHECK(live_line(s, 3.25, 64, (int)full.size()) == full);
    CHECK(live_line(s, 3.25, 64, (int)full.size() - 1) ==
          "hybrid seed 3  step 123/500  loss 3.1416  smooth 3.2500  0:24 left");
    CHECK(live_line(s, 3.25, 64, 60) == "step 123/500  loss 3.1416  smooth 3.2500  0:24 left");
    CHECK(live_line(s, 3.25, 64, 40) == "step 123/500  loss 3.1416  0:24 left");
    CHECK(live_line(s, 3.25, 64, 30) == "step 123/500  loss 3.1416");
    CHECK(live_line(s, 3.25, 64, 12) == "step 123/500");
    for (int width = -1; width < 120; width++) CHECK((int)live_line(s, 3.25, 64, width).size() <= std::max(width, 0));
    auto left = [&](double ms) {
        std::string line = live_line(s, 3.25, ms, 200);
        return line.substr(line.rfind("  ") + 2);
    };
    CHECK(left(10e3) == "1:02:50 left");
    CHECK(left(1e3) == "6:17 left");
    CHECK(left(1e6) == "4d 08h left");
    CHECK(left(0) == "0:00 left");
    for (double odd : {(double)NAN, (double)INFINITY, 1e300, -1.0})
        CHECK(has(live_line(s, NAN, odd, 200), "loss 3.1416  smooth nan")); // no matter what
}

TEST_CASE("the average starts at the first value instead of being pulled towards zero") {
    Average a;
    CHECK(a.add(5) == doctest::Approx(5).epsilon(1e-15));
    double expected = (5 * 0.95 + 7) / (0.95 + 1); // weights 0.95 and 1
    CHECK(a.add(7) == doctest::Approx(expected).epsilon(1e-14));
    for (int i = 0; i < 1000; i++) a.add(2);
    CHECK(a.add(2) == doctest::Approx(2).epsilon(1e-14));
}

static void run_of(int64_t steps) {
    for (int64_t i = 1; i <= steps; i++) show_progress({"bf16", 1, i, steps, i * 100, 2.5, 1, 0.001, 10});
}

TEST_CASE("in a pipe there are about fifty step lines, the first and the last among them, and no live line") {
    Scratch scratch;
    for (int64_t steps : {1, 2, 3, 49, 50, 51, 99, 100, 149, 500, 1234}) {
        Outcome child = in_child([&] { run_of(steps); });
        CAPTURE(steps);
        CHECK(child.err == "");
        int lines = (int)std::count(child.out.begin(), child.out.end(), '\n');
        CHECK(lines <= 101);
        CHECK(lines >= std::min<int64_t>(steps, 50));
        CHECK(child.out.starts_with(
            format("step 1/%d recipe=bf16 seed=1 loss=2.5 norm=1 lr=0.001 tok/s=10000\n", (int)steps)));
        CHECK(has(child.out, format("step %d/%d ", (int)steps, (int)steps)));
    }
    Outcome child = in_child([] { be_quiet(), run_of(500), note("x"), result("y"); });
    CHECK(child.out == "y\n");
    CHECK(child.err == "");
}

// Runs f with stderr, and stdout if asked, on a terminal of 80 columns; returns what appeared there.
static std::string on_terminal(const char* term, bool out_too, const std::function<void()>& f) {
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) != 0 || unlockpt(master) != 0) return "no terminal";
    std::string slave = ptsname(master), text;
    setenv("TERM", term, 1);
    int keep = open(slave.c_str(), O_RDWR | O_NOCTTY); // so that what the child wrote outlives it
    in_child(f, out_too ? slave.c_str() : "out", slave.c_str());
    char buffer[4096];
    fcntl(master, F_SETFL, O_NONBLOCK);
    for (ssize_t n; (n = read(master, buffer, sizeof buffer)) > 0;) text.append(buffer, (size_t)n);
    close(keep), close(master);
    return text;
}

TEST_CASE("on a terminal one line is redrawn, at most ten times a second, and gone before anything else is printed") {
    Scratch scratch;
    std::string text = on_terminal("xterm", true, [] { run_of(300), note("note"), run_of(1), result("result"); });
    if (text == "no terminal") SKIP("no pseudo-terminals here");
    const std::string erase = "\r\x1b[K";
    REQUIRE(text.starts_with(erase + "bf16 seed 1  step 1/300  loss 2.5000  smooth 2.5000  10000 tok/s  0:03 left"));
    const std::string end = "loss 2.5000  smooth 2.5000  10000 tok/s  0:00 left" + erase;
    CHECK(text.ends_with("step 300/300  " + end + "note\r\n" + erase + "bf16 seed 1  step 1/1  " + end + "result\r\n"));
    size_t draws = 0;
    for (size_t at = 0; (at = text.find("seed 1", at)) != std::string::npos; at++) draws++;
    CHECK(draws < 60); // 300 steps within moments; the bound is for a machine that takes six seconds over them
    CHECK(!has(text, "recipe="));

    text = on_terminal("xterm", false, [] { run_of(1); }); // stdout in a file: lines there, the live line here
    CHECK(text.starts_with(erase + "bf16 seed 1"));
    CHECK(contents("out").starts_with("step 1/1 recipe=bf16"));
    text = on_terminal("xterm", true, [] { // the loss is smoothed within an arm, and afresh in the next one
        show_progress({"a", 1, 1, 2, 100, 5, 1, 1, 10}), show_progress({"a", 1, 2, 2, 200, 7, 1, 1, 10});
        show_progress({"b", 1, 1, 1, 100, 1, 1, 1, 10});
    });
    CHECK(has(text, "a seed 1  step 2/2  loss 7.0000  smooth 6.0256  ")); // (0.95 * 5 + 7) / 1.95
    CHECK(has(text, "b seed 1  step 1/1  loss 1.0000  smooth 1.0000  "));
    text = on_terminal("dumb", true, [] { run_of(1); });
    CHECK(text.starts_with("step 1/1 recipe=bf16"));
    CHECK(!has(text, erase));
    CHECK(on_terminal("xterm", true, [] { be_quiet(), run_of(1); }) == "");
}

TEST_CASE("a result that cannot be written is an error") {
    Scratch scratch;
    if (!fs::exists("/dev/full")) SKIP("no /dev/full here");
    Outcome child = in_child(
        [] { _exit(has(error_of([] { result("x"); }), "cannot write to standard output") ? 5 : 6); }, "/dev/full");
    CHECK(child.status == 5);
}

TEST_CASE("the first signal sets a flag, the second one ends the program") {
    Scratch scratch;
    for (int sig : {SIGINT, SIGTERM}) {
        Outcome once = in_child([&] {
            catch_signals();
            if (stop_signal() != 0) _exit(1);
            raise(sig);
            _exit(stop_signal() == sig ? 3 : 2);
        });
        CHECK(once.status == 3);
        Outcome twice =
            in_child([&] { catch_signals(), raise(sig), raise(sig == SIGINT ? SIGTERM : SIGINT), _exit(4); });
        CHECK(twice.status == (sig == SIGINT ? -SIGTERM : -SIGINT));
    }
    std::string text = on_terminal("xterm", true, [] { catch_signals(), run_of(1), raise(SIGTERM), raise(SIGTERM); });
    if (text != "no terminal") CHECK(text.ends_with("left\r\x1b[K")); // nothing half drawn is left behind
}

static uint64_t fingerprint(const std::vector<unsigned char>& bytes, const std::vector<size_t>& cuts = {}) {
    Fingerprint f;
    size_t at = 0;
    for (size_t cut : cuts) f.add(bytes.data() + at, cut - at), at = cut;
    f.add(bytes.data() + at, bytes.size() - at);
    return f.value();
}

TEST_CASE("a fingerprint changes with any bit, any swap and any length, and not with how the stream is cut") {
    std::vector<unsigned char> bytes(200);
    for (size_t i = 0; i < bytes.size(); i++) bytes[i] = (unsigned char)(i * 37 + 11);
    const uint64_t whole = fingerprint(bytes);
    std::set<uint64_t> seen = {whole};
    for (size_t bit = 0; bit < 8 * bytes.size(); bit++) {
        bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
        seen.insert(fingerprint(bytes));
        bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
    CHECK(seen.size() == 1 + 8 * bytes.size());
    size_t swaps = 0;
    for (size_t i = 0; i < 25; i++)
        for (size_t j = 0; j < i; j++, swaps++) { // two 8-byte words change places
            auto swapped = bytes;
            std::swap_ranges(&swapped[8 * i], &swapped[8 * i] + 8, &swapped[8 * j]);
            seen.insert(fingerprint(swapped));
        }
    CHECK(seen.size() == 1 + 8 * bytes.size() + swaps);
    for (size_t n = 0; n < bytes.size(); n++) seen.insert(fingerprint({bytes.begin(), bytes.begin() + (long)n}));
    for (size_t n = 1; n < 100; n++) seen.insert(fingerprint(std::vector<unsigned char>(n))); // zeros count
    CHECK(seen.size() == 1 + 8 * bytes.size() + swaps + bytes.size() + 99);
    for (size_t i = 0; i <= 70; i++)
        for (size_t j = i; j <= bytes.size(); j += 3) CHECK(fingerprint(bytes, {i, j}) == whole);
    // The value itself is part of run logs: it stays what it is from one version to the next.
    const float weights[5] = {1, -2, 0.5f, 3.25f, 1e-20f};
    Fingerprint f;
    f.add(weights, sizeof weights);
    CHECK(f.value() == 0xfc86e3efc59fc944u);
}

} // namespace
