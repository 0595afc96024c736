// A run that was interrupted, and what may have happened to it since.
#include "errors.h"
#include "program.h"
#include "run/checkpoint.h"
#include "run/error.h"
#include "run/files.h"
#include "run/log.h"
#include "run/random.h"
#include "run/resume.h"
#include "run/safetensors.h"
#include "run/table.h"
#include <csignal>
#include <fcntl.h>
#include <map>
#include <unistd.h>

namespace { // test files share one program

using std::string;
namespace fs = std::filesystem;

const string SMALL = " --layers 1 --channels 32 --heads 2 --seq-len 16 --batch-size 4 --eval-batches 2 --stats-every 7 "
                     "--steps 40 --checkpoint-every 10 --keep 3 --threads 1 --recipe hybrid:amax_history_len=16 ";
const string ARM = "hybrid-amax_history_len=16-s1";

std::map<string, string> tables(const string& dir) { // without their `ms` columns
    std::map<string, string> all;
    for (auto name : {"steps.csv", "evals.csv", "tensors.csv", "arms.csv"}) {
        Table t = read_table(dir + "/" + name);
        for (auto& row : t.rows) {
            for (size_t c = 0; c < t.columns.size(); c++)
                if (t.columns[c] != "ms") all[name] += row[c] + ",";
            all[name] += "\n";
        }
    }
    return all;
}
// A run as it is when something has killed it after step 25: begun with `args`, and its checkpoints 10 and 20.
struct Interrupted {
    Scratch s;
    string dir = s / "run";
    std::map<string, string> want; // of the run that nothing disturbs
    explicit Interrupted(const string& args = SMALL) {
        Result whole = run(TRAIN, args + "--keep 9 --out " + (s / "whole"));
        REQUIRE_MESSAGE(whole.status == 0, whole.err);
        want = tables(s / "whole");
        fs::copy(s / "whole", dir, fs::copy_options::recursive);
        for (auto& arm : fs::directory_iterator(dir))
            for (auto step : {"/step-000030", "/step-000040"})
                if (arm.is_directory()) fs::remove_all(arm.path().string() + step);
        fs::remove(dir + "/arms.csv");
        auto cut = [&](const string& name, size_t rows) {
            string text;
            for (auto& line : lines(slurp(dir + "/" + name)))
                if (rows-- > 0) text += line + "\n";
                else { // in the middle of a line
                    text += line.substr(0, line.size() / 2);
                    break;
                }
            std::ofstream(dir + "/" + name) << text;
        };
        cut("steps.csv", 26), cut("tensors.csv", 52), cut("evals.csv", 4); // step 22 is half there
    }
    string step(int n) const { return dir + "/" + ARM + format("/step-%06d", n); }
    Result resume(const string& more = "") const { return run(TRAIN, "--resume " + dir + " " + more); }
    void is_whole(const Result& r) const {
        INFO(r.err);
        REQUIRE(r.status == 0);
        CHECK(tables(dir) == want);
        CHECK(slurp(step(40) + "/model.safetensors") == slurp(s / ("whole/" + ARM + "/step-000040/model.safetensors")));
        CHECK(slurp(step(40) + "/state.safetensors") == slurp(s / ("whole/" + ARM + "/step-000040/state.safetensors")));
    }
};
void flip(const string& path, size_t bit) {
    std::fstream f(path, std::ios::in | std::ios::out | std::ios::binary);
    REQUIRE(f.is_open());
    f.seekg((std::streamoff)(bit / 8));
    int c = f.get() ^ 1 << bit % 8;
    f.seekp((std::streamoff)(bit / 8));
    f.put((char)c);
}

TEST_CASE("resume: from inside an arm a run ends in the files of an undisturbed one, state included") {
    Interrupted i;
    Result r = i.resume();
    CHECK(has(r.err, "goes on from " + i.step(20)));
    i.is_whole(r);
    CHECK(fs::exists(i.step(30)));
}
TEST_CASE("resume: across the step at which another recipe takes over, and with gradient accumulation") {
    for (string arm : {"hybrid:margin=1+bf16@15+e4m3:amax_history_len=3@22", "bf16+nvfp4@30"}) {
        Interrupted i(SMALL + "--grad-accum 2 --recipe " + arm + " ");
        Result r = i.resume();
        INFO(r.err);
        REQUIRE(r.status == 0);
        CHECK(has(r.err, "step-000020"));
        CHECK(tables(i.dir) == i.want);
    }
}
TEST_CASE("resume: a damaged checkpoint is passed over, by name, for the one before; without any it starts over") {
    const std::pair<const char*, std::function<void(const string&)>> damages[] = {
        {"model.safetensors: damaged: its checksum", [](auto& d) { flip(d + "/model.safetensors", 99'999); }},
        {"state.safetensors: damaged: it has 5000 bytes", [](auto& d) { fs::resize_file(d + "/state.safetensors", 5000); }},
        {"state.json: cannot read", [](auto& d) { fs::remove(d + "/state.json"); }},
        {"checksums: damaged", [](auto& d) { flip(d + "/checksums", 300); }},
        {"checksums: cannot open", [](auto& d) { fs::remove(d + "/checksums"); }},
    };
    for (auto& [what, damage] : damages) {
        Interrupted i;
        damage(i.step(20));
        Result r = i.resume();
        CHECK_MESSAGE(has(r.err, "passed over: " + i.step(20) + "/" + what), r.err);
        CHECK(has(r.err, "goes on from " + i.step(10)));
        i.is_whole(r);
    }
    Interrupted i;
    flip(i.step(20) + "/config.json", 8), fs::remove(i.step(10) + "/model.safetensors");
    fs::create_directories(i.step(25) + ".tmp"); // a save that was interrupted
    Result r = i.resume();
    CHECK(has(r.err, "starts over"));
    i.is_whole(r);
    CHECK_FALSE(fs::exists(i.step(25) + ".tmp"));
}
TEST_CASE("resume: what is newer and of no use neither stops a run nor costs it the checkpoints that it makes") {
    Interrupted i, other(SMALL + "--channels 64 ");
    fs::create_directories(i.step(99)); // somebody's
    fs::copy(other.step(20), i.step(30), fs::copy_options::recursive); // another model's
    fs::copy(other.step(20), i.step(35), fs::copy_options::recursive);
    fs::copy_file(i.step(20) + "/state.json", i.step(35) + "/state.json", fs::copy_options::overwrite_existing);
    fs::copy(i.step(20), i.step(37), fs::copy_options::recursive); // says that it is step 20
    flip(i.step(20) + "/model.safetensors", 1000);
    Result r = i.resume("--keep 1");
    for (int step : {99, 37, 35, 30, 20}) CHECK_MESSAGE(has(r.err, i.step(step)), r.err);
    CHECK(has(r.err, "step is not 37"));
    CHECK(has(r.err, "goes on from " + i.step(10)));
    i.is_whole(r);
    CHECK_FALSE(fs::exists(i.step(10)));
    CHECK(run(TRAIN, "eval " + field(r.out, "checkpoint")).status == 0);
}
TEST_CASE("resume: a run that is being written is left alone, its run.json too") {
    Interrupted i;
    string before = slurp(i.dir + "/run.json"), steps = slurp(i.dir + "/steps.csv");
    {
        RunLock lock(i.dir);
        for (string more : {"", "--override --steps 50"}) {
            Result r = i.resume(more);
            CHECK(r.status == 1);
            CHECK_MESSAGE(has(r.err, "another process"), r.err);
        }
        fs::create_directory(i.s / "new");
        RunLock fresh(i.s / "new");
        CHECK(has(run(TRAIN, SMALL + "--out " + (i.s / "new")).err, "another process"));
        CHECK_FALSE(fs::exists(i.s / "new/run.json"));
    }
    CHECK(slurp(i.dir + "/run.json") == before);
    CHECK(slurp(i.dir + "/steps.csv") == steps);
    i.is_whole(i.resume());
    // Longer, and killed when run.json said so and nothing else did.
    string arms = slurp(i.dir + "/arms.csv");
    REQUIRE(i.resume("--override --steps 50").status == 0);
    fs::remove_all(i.step(50)), fs::remove_all(i.step(45));
    std::ofstream(i.dir + "/arms.csv") << arms;
    Result r = i.resume();
    INFO(r.err);
    CHECK(has(r.out, "step=50"));
}
TEST_CASE("resume: tables that have lost rows, and a run.json that is none, are errors of one line") {
    Interrupted i;
    string steps = slurp(i.dir + "/steps.csv"), run_json = slurp(i.dir + "/run.json");
    for (string text : {string(), steps.substr(0, steps.find('\n') + 1), steps.substr(0, 600)}) {
        std::ofstream(i.dir + "/steps.csv") << text;
        Result r = i.resume();
        CHECK(r.status == 1);
        CHECK_MESSAGE(has(r.err, "steps.csv: "), r.err);
    }
    for (string text : {string(), string("{}"), string("[1]"), run_json.substr(0, 300), string("{\"command\":[\"--help\"]}"),
                        string("{\"command\":[\"eval\",\"x\"]}"), string("{\"command\":[\"--stepz\",\"x\"]}")}) {
        std::ofstream(i.dir + "/run.json") << text;
        Result r = i.resume();
        CHECK(r.status == 1);
        CHECK_MESSAGE((has(r.err, "run.json: ") && lines(r.err).size() <= 2), r.err);
    }
}
TEST_CASE("resume: more seeds may be asked for at any time") {
    Scratch s;
    REQUIRE(run(TRAIN, SMALL + "--seeds 3 --out " + (s / "three")).status == 0);
    REQUIRE(run(TRAIN, SMALL + "--seeds 2 --out " + (s / "run")).status == 0);
    CHECK(run(TRAIN, "--seeds 1 --resume " + (s / "run")).status == 2);
    Result r = run(TRAIN, "--seeds 3 --resume " + (s / "run"));
    CHECK_MESSAGE(r.status == 0, r.err);
    CHECK(tables(s / "run") == tables(s / "three"));
    CHECK(lines(run(TRAIN, "--quiet --resume " + (s / "run")).out)[2].starts_with("done "));
}
TEST_CASE("resume: SIGTERM and SIGINT finish the step, write a checkpoint and say how to go on") {
    for (int signal : {SIGTERM, SIGINT}) {
        Interrupted i;
        string dir = i.s / "stopped";
        int err = open((i.s / "err").c_str(), O_CREAT | O_WRONLY, 0666), null = open("/dev/null", O_RDWR);
        pid_t child = fork();
        if (child == 0) {
            dup2(null, 1), dup2(err, 2);
            execl("/bin/sh", "sh", "-c", ("exec " + TRAIN + SMALL + "--checkpoint-every 0 --out " + dir).c_str(), (char*)nullptr);
            _exit(127);
        }
        for (int n = 0; n < 20000 && lines(slurp(dir + "/steps.csv")).size() < 6; n++) usleep(500);
        kill(child, signal);
        int status = 0;
        waitpid(child, &status, 0);
        close(err), close(null);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0) continue; // it was done before the signal came
        CHECK(WEXITSTATUS(status) == 128 + signal);
        CHECK(has(slurp(i.s / "err"), "./train --resume " + dir));
        NewestCheckpoint at = newest_checkpoint(dir + "/" + ARM, "hybrid:amax_history_len=16", 1, {1, 2, 32, 16, 256});
        CHECK(at.step == (int64_t)lines(slurp(dir + "/steps.csv")).size() - 1); // the step that was finished
        Result r = run(TRAIN, "--resume " + dir);
        CHECK(has(r.err, "goes on from " + at.dir));
        CHECK(tables(dir) == i.want);
    }
}
TEST_CASE("resume: without its scales a recipe that needs them is refused, unless --drop-scales says so") {
    Interrupted i(SMALL + "--stats-every 10 ");
    string path = i.step(20) + "/state.safetensors";
    { // state.safetensors without them, and checksums that agree
        Safetensors file(path);
        std::vector<std::vector<float>> data;
        std::vector<TensorOut> kept;
        data.reserve(file.header.tensors.size());
        for (auto& t : file.header.tensors) {
            if (t.name.starts_with("scale.") || t.name.starts_with("amax_history.")) continue;
            file.read(data.emplace_back(t.count()).data(), t, 0, t.count());
            kept.push_back({t.name, "F32", t.shape, data.back().data()});
        }
        CHECK(kept.size() + 2 * 4 * 3 == file.header.tensors.size()); // of four linears x, w and dy
        write_safetensors(path, kept, {});
    }
    string sums, all = slurp(i.step(20) + "/checksums");
    for (auto& line : lines(all)) {
        if (has(line, "lines above")) continue;
        sums += !has(line, "state.safetensors")
                    ? line + "\n"
                    : format("%016llx %zu state.safetensors\n", (unsigned long long)fingerprint_of_file(path),
                             (size_t)fs::file_size(path));
    }
    Fingerprint f;
    f.add(sums.data(), sums.size());
    std::ofstream(i.step(20) + "/checksums") << sums << format("%016llx of the lines above\n", (unsigned long long)f.value());
    Result r = i.resume();
    CHECK(r.status == 1);
    CHECK(has(r.err, "scale.h.0.attn.c_attn.x"));
    CHECK(has(r.err, "--drop-scales"));
    r = i.resume("--drop-scales");
    CHECK_MESSAGE(r.status == 0, r.err);
    auto got = tables(i.dir);
    CHECK(lines(got["steps.csv"]).size() == 40);
    CHECK(got["steps.csv"] != i.want["steps.csv"]); // it makes a difference
    int casts = 0, ones = 0; // in step 21, the first
    for (auto& line : lines(got["tensors.csv"])) {
        auto cells = split(line, ',');
        if (cells[2] == "21" && cells[5] != "bf16") casts++, ones += cells[7] == "1";
    }
    CHECK(casts == 12);
    CHECK(ones == 12);
    CHECK(run(TRAIN, "--drop-scales").status == 2);
}
TEST_CASE("resume: what would change the curve is refused; with --override it is done and run.json says so") {
    Interrupted i;
    for (string option : {"--lr 0.1", "--steps 50", "--batch-size 2", "--schedule constant", "--eval-every 3"}) {
        Result r = i.resume(option);
        CHECK(r.status == 2);
        CHECK_MESSAGE(has(r.err, "--override"), r.err);
    }
    for (string option : {"--recipe bf16", "--layers 2", "--seed 2", "--model char", "--out x"}) {
        Result r = i.resume(option + " --override");
        CHECK(r.status == 2);
        CHECK_MESSAGE(has(r.err, "another run"), r.err);
    }
    CHECK(has(i.resume("--override --steps 15").err, "has made 20"));
    Result r = i.resume("--override --lr 0.1 --steps 50 --keep 2");
    REQUIRE_MESSAGE(r.status == 0, r.err);
    auto got = tables(i.dir);
    CHECK(lines(got["steps.csv"]).size() == 50);
    CHECK(got["steps.csv"].starts_with(i.want["steps.csv"].substr(0, 500)));
    Json run_json = parse_json(slurp(i.dir + "/run.json"), "run.json");
    CHECK(run_json.find("changes")->dump() == R"([{"words":["--lr=0.1","--steps=50"]}])");
    CHECK(run_json.find("options")->find("steps")->text == "50");
    string page = slurp(i.dir + "/report.html");
    CHECK(has(page, R"("changes":"--lr=0.1 --steps=50")"));
    // It has ended, and once more it is only told; longer again, it goes on.
    CHECK(has(i.resume().out, "step=50"));
    CHECK(i.resume("--lr 0.2").status == 2);
    r = i.resume("--lr 0.2 --override");
    CHECK(r.status == 1);
    CHECK_MESSAGE(has(r.err, "has ended"), r.err);
    r = i.resume("--override --steps 60");
    CHECK_MESSAGE(r.status == 0, r.err);
    CHECK(has(r.err, "goes on from " + i.step(50)));
    CHECK(lines(tables(i.dir)["steps.csv"]).size() == 60);
    CHECK(run(TRAIN, "--override").status == 2);
}
TEST_CASE("resume: other data under the same name is noticed; a run is resumed from anywhere") {
    Scratch s;
    string text;
    for (int n = 0; n < 9000; n++) text += (char)('a' + random_bits(1, n) % 26);
    std::ofstream(s / "text") << text;
    string cd = "cd " + s.dir + " && ";
    string args = SMALL + "--steps 20 --checkpoint-every 5 --data text ";
    REQUIRE(run(cd + TRAIN, args + "--out whole").status == 0);
    REQUIRE(run(cd + TRAIN, args + "--out run").status == 0);
    fs::remove_all(s / ("run/" + ARM + "/step-000020")), fs::remove(s / "run/arms.csv");
    Result r = run("cd / && " + TRAIN, "--resume " + (s / "run"));
    CHECK_MESSAGE(r.status == 0, r.err);
    CHECK(tables(s / "run") == tables(s / "whole"));
    fs::rename(s / "text", s / "moved"); // its bytes decide, not its name
    fs::remove(s / "run/arms.csv"), fs::remove_all(s / ("run/" + ARM + "/step-000020"));
    CHECK(run(cd + TRAIN, "--resume run").status == 1);
    CHECK(run(cd + TRAIN, "--resume run --data moved").status == 0);
    CHECK(tables(s / "run") == tables(s / "whole"));
    text[4000] ^= 1;
    std::ofstream(s / "text") << text;
    r = run(cd + TRAIN, "--resume run");
    CHECK(r.status == 1);
    CHECK_MESSAGE(has(r.err, "is not what it was"), r.err);
    CHECK(run(cd + TRAIN, "--resume run --override").status == 0);
}

TEST_CASE("eval under a run's own recipe takes the scales of its checkpoint, and finds the run's last validation loss") {
    Scratch s;
    string text;
    for (int n = 0; n < 3000; n++) text += (char)('a' + random_bits(1, n) % 26);
    std::ofstream(s / "text") << text;
    Result r = run(TRAIN, SMALL + "--recipe bf16,hybrid:amax_history_len=16:margin=1,nvfp4 --eval-batches 99 --data " +
                              (s / "text") + " --val-data " + (s / "text") + " --out " + (s / "run"));
    REQUIRE_MESSAGE(r.status == 0, r.err);
    int done = 0;
    for (auto& line : lines(r.out)) {
        if (!line.starts_with("done ")) continue; // batches as in the run: nvfp4's scale of x is one for a batch
        r = run(TRAIN, "eval " + field(line, "checkpoint") + " --data " + (s / "text") + " --batch-size 4 --recipe " +
                           field(line, "recipe"));
        INFO(r.err);
        CHECK(field(r.out, "loss") == field(line, "loss"));
        CHECK(field(r.out, "scales") == (has(line, "hybrid") ? "file" : ""));
        done++;
        if (!has(line, "hybrid")) continue;
        string calibrated = run(TRAIN, "eval " + field(line, "checkpoint") + " --data " + (s / "text") +
                                           " --calibrate 3 --recipe hybrid").out;
        CHECK(field(calibrated, "calibrated") == "3");
        string scales = run(TRAIN, "inspect " + field(line, "checkpoint")).out;
        CHECK(has(scales, "\nh.0.mlp.c_fc.dy "));
        CHECK(has(scales, "\nrecipe: hybrid:amax_history_len=16:margin=1\n"));
    }
    CHECK(done == 3);
}

// --- checksums ---------------------------------------------------------------------------------------------------
TEST_CASE("checkpoint: a bit flipped anywhere is noticed, 1,000 of 1,000, and named") {
    Interrupted i;
    std::vector<string> files;
    for (auto& entry : fs::directory_iterator(i.step(20))) files.push_back(entry.path().filename());
    CHECK(files.size() == 5);
    CHECK_NOTHROW(verify_checkpoint(i.step(20)));
    int noticed = 0, named = 0;
    for (int n = 0; n < 1000; n++) { // each file as often, so that the small ones have their turn
        string file = files[n % 5], path = i.step(20) + "/" + file;
        size_t bit = random_bits(7, n) % (8 * fs::file_size(path));
        flip(path, bit);
        string error = error_of([&] { verify_checkpoint(i.step(20)); });
        noticed += !error.empty(), named += has(error, "/" + file);
        flip(path, bit);
    }
    CHECK(noticed == 1000);
    CHECK(named == 1000);
    CHECK_NOTHROW(verify_checkpoint(i.step(20)));
    flip(i.step(20) + "/model.safetensors", 50'000);
    for (string command : {"eval ", "sample ", "train --init "}) {
        Result r = run(TRAIN, command + i.step(20) + (command == "train --init " ? " --out " + (i.s / "x") : ""));
        CHECK(r.status == 1);
        CHECK_MESSAGE(has(r.err, "model.safetensors: damaged"), r.err);
    }
}

} // namespace
