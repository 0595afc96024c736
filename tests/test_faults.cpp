// What the machine does to a run: a full disk, a file that may not grow, data that shrinks, memory that is not there.
#include "errors.h"
#include "program.h"
#include "run/checkpoint.h"
#include "run/error.h"
#include "run/random.h"
#include <csignal>
#include <fcntl.h>
#include <unistd.h>

namespace { // test files share one program

using std::string;
namespace fs = std::filesystem;

const string SMALL = " --recipe bf16 --layers 1 --channels 32 --heads 2 --seq-len 16 --batch-size 4 --eval-batches 2 "
                     "--threads 1 --quiet ";

string random_text(size_t n) {
    string text;
    for (size_t i = 0; i < n; i++) text += (char)('a' + random_bits(3, i) % 26);
    return text;
}
bool one_error(const Result& r) { // an error of one line, or two
    size_t at = r.err.rfind("error: ");
    return r.status == 1 && at < r.err.size() && lines(r.err.substr(at)).size() <= 2;
}

TEST_CASE("a full disk ends a run with what it needs, keeps the last good checkpoint, and with room the run goes on") {
    Scratch s;
    string disk = s / "disk", args = SMALL + "--steps 40 --checkpoint-every 4 --stats-every 1 --keep 9 --out ";
    fs::create_directory(disk);
    // 21 thousand parameters, a quarter of a megabyte a checkpoint; tables take some 100 kB
    if (system(("mount -t tmpfs -o size=1m none " + disk + " 2>/dev/null").c_str()) != 0) {
        SKIP("mounting a small tmpfs takes root");
        return;
    }
    Result r = run(TRAIN, args + disk + "/run"), whole = run(TRAIN, args + (s / "whole"));
    INFO(r.err);
    CHECK(one_error(r));
    CHECK(has(r.err, "No space left on device"));
    NewestCheckpoint last = newest_checkpoint(disk + "/run/bf16-s1", "bf16", 1, {1, 2, 32, 16, 256});
    CHECK(last.step >= 4);
    CHECK(last.passed_over == "");
    CHECK(has(r.err, last.dir + " is kept; to go on: ./train --resume " + disk + "/run"));
    if (has(r.err, "no checkpoint written")) {
        CHECK(has(r.err, " kB are free"));
        CHECK_FALSE(fs::exists(disk + format("/run/bf16-s1/step-%06d.tmp", (int)last.step + 4)));
    }
    r = run(TRAIN, "--resume " + disk + "/run"); // still no room
    CHECK(one_error(r));
    CHECK(newest_checkpoint(disk + "/run/bf16-s1", "bf16", 1, {1, 2, 32, 16, 256}).step >= last.step);
    CHECK(system(("mount -o remount,size=32m " + disk).c_str()) == 0);
    r = run(TRAIN, "--resume " + disk + "/run");
    CHECK_MESSAGE(r.status == 0, r.err);
    CHECK(field(r.out, "fingerprint") == field(whole.out, "fingerprint"));
    CHECK(system(("umount " + disk).c_str()) == 0);
}
TEST_CASE("a file that may not grow is one clear error, for tables, checkpoints and exports") {
    Scratch s;
    auto limited = [&](int blocks, const string& args) { // of 512 bytes
        return run("ulimit -f " + std::to_string(blocks) + "; " + TRAIN, args);
    };
    string args = SMALL + "--steps 30 --stats-every 1 --out ";
    for (int blocks : {1, 8, 40, 100}) {
        Result r = limited(blocks, args + (s / ("run" + std::to_string(blocks))));
        INFO(blocks << ": " << r.err);
        CHECK(one_error(r));
        CHECK(has(r.err, "File too large"));
    }
    REQUIRE(run(TRAIN, args + (s / "run")).status == 0);
    Result r = limited(20, "export " + (s / "run/bf16-s1/step-000030") + " " + (s / "out") + " --format mxfp8");
    CHECK(one_error(r));
    CHECK_FALSE(fs::exists(s / "out"));
    CHECK_FALSE(fs::exists(s / "out.tmp"));
}
TEST_CASE("data that shrinks while a run reads it ends the run with its name; with the data back it goes on") {
    Scratch s;
    string text = random_text(200'000), dir = s / "run";
    string args = SMALL + "--steps 400 --checkpoint-every 5 --batch-size 64 --data " + (s / "text") + " --out ";
    std::ofstream(s / "text") << text;
    Result whole = run(TRAIN, args + (s / "whole"));
    int err = open((s / "err").c_str(), O_CREAT | O_WRONLY, 0666), null = open("/dev/null", O_RDWR);
    pid_t child = fork();
    if (child == 0) {
        dup2(null, 1), dup2(err, 2);
        execl("/bin/sh", "sh", "-c", ("exec " + TRAIN + args + dir).c_str(), (char*)nullptr);
        _exit(127);
    }
    for (int n = 0; n < 40000 && !fs::exists(dir + "/bf16-s1/step-000005"); n++) usleep(500);
    REQUIRE(truncate((s / "text").c_str(), 100) == 0);
    int status = 0;
    waitpid(child, &status, 0);
    close(err), close(null);
    string said = slurp(s / "err");
    INFO(said);
    REQUIRE(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 1);
    CHECK(has(said, "/text: cannot read"));
    CHECK(has(said, "the file ends there"));
    CHECK(has(said, "is kept; to go on: ./train --resume"));
    Result r = run(TRAIN, "--resume " + dir);
    CHECK(one_error(r)); // the data is still not what it was
    std::ofstream(s / "text") << text;
    r = run(TRAIN, "--resume " + dir);
    CHECK_MESSAGE(r.status == 0, r.err);
    CHECK(field(r.out, "fingerprint") == field(whole.out, "fingerprint"));
}
TEST_CASE("memory that is not there is one line that says how much is needed") {
    Scratch s;
    if (has(TRAIN, "-san/")) {
        SKIP("the address sanitizer needs more memory than these limits leave");
        return;
    }
    Result r = run("ulimit -v 4000000; " + TRAIN, SMALL + "--channels 4096 --layers 40 --out " + (s / "run"));
    CHECK_MESSAGE(one_error(r), r.err);
    CHECK(has(r.err, "out of memory: the model needs"));
    r = run("ulimit -v 400000; " + TRAIN, "--layers 1000 --channels 64 --heads 1 --recipe bf16 --out " + (s / "run2"));
    CHECK_MESSAGE(one_error(r), r.err);
    CHECK(has(r.err, "memory"));
}

} // namespace
