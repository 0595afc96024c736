#include "child.h"
#include "run/log.h"
#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstring>
#include <set>
#include <sys/resource.h>

namespace { // test files share one program

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
    {
        Log first(make_run_dir("twice"));
        RunLock here("twice");
        CHECK(has(error_of([] { RunLock("twice"); }), "another process is writing this run"));
    }
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
