// Whole runs of ./train on a GPU: what its loop makes of graphs, stages, evaluations and resumed runs.
#include "ops/matmul_gpu.cuh"
#include "program.h"
#include "standin.h"
#define main train_main
#include "train.cu"
#undef main
int cast_command(const Options&) { return 1; } // they have no card in them, and are linked to programs alone
int formats_command(const Options&) { return 1; }

namespace { // test files share one program

// What ./train with these words does on a card; stdout and stderr go to a file.
struct Ran {
    int status;
    std::string said;
    long graphs, instantiations;
};
Ran train_on_card(const std::string& args, int cc = 90, bool debug = false, const char* name = "stand-in") {
    Scratch scratch;
    std::vector<std::string> words = split("train " + args, ' ');
    std::vector<char*> argv;
    for (auto& w : words) argv.push_back(w.data());
    fflush(stdout), fflush(stderr);
    int out = dup(1), err = dup(2), file = open((scratch / "said").c_str(), O_CREAT | O_RDWR, 0600);
    dup2(file, 1), dup2(file, 2);
    standin = {}, standin.cc = cc, standin.name = name, standin_lt = {};
    lt.plans.clear();
    setenv("DEBUG", debug ? "1" : "0", 1);
    Ran r = {train_main((int)argv.size(), argv.data()), "", standin.graphs, standin.instantiations};
    fflush(stdout), fflush(stderr);
    dup2(out, 1), dup2(err, 2), close(out), close(err), close(file);
    r.said = slurp(scratch / "said");
    unsetenv("DEBUG");
    machine.gpu = machine.debug = machine.profile = false, machine.cc = 0, machine.layout = {};
    return r;
}
// The columns of a table that two equal runs share.
std::string curves(const std::string& dir) {
    std::string all;
    for (auto& line : lines(slurp(dir + "/steps.csv"))) all += line.substr(0, line.rfind(',')) + "\n"; // but ms
    for (auto& line : lines(slurp(dir + "/arms.csv"))) {
        auto cells = split(line, ',');
        cells.pop_back(); // ms
        for (auto& c : cells) all += c + ",";
        all += "\n";
    }
    return all + slurp(dir + "/evals.csv") + slurp(dir + "/tensors.csv");
}
const std::string tiny = " --device cuda --layers 1 --heads 1 --channels 16 --seq-len 8 --vocab 32 --batch-size 1 "
                         "--grad-accum 2 --threads 1 --quiet";
std::string train_tiny(const Scratch& s) { // on 400 tokens below 32
    std::vector<uint16_t> shard(512 + 400);
    int32_t header[] = {20240520, 1, 400};
    memcpy(shard.data(), header, sizeof header);
    for (int i = 0; i < 400; i++) shard[512 + i] = (uint16_t)(random_bits(1, i) % 32);
    std::ofstream(s / "shard.bin", std::ios::binary).write((char*)shard.data(), 2 * (512 + 400));
    return tiny + " --eval-batches 1 --schedule constant --warmup 0 --data " + s / "shard.bin" + " ";
}

KERNEL void add_kernel(int* x, const int* by) {
    if (thread_index() == 0) x[0] = 10 * x[0] + by[0];
}
} // namespace

TEST_CASE(
    "a run as graphs returns the bits of one without, of every recipe, across stages, evaluations and statistics") {
    Scratch s;
    std::string all;
    for (const Recipe& r : recipes) all += r.name + ",";
    all += "hybrid:round=sr,bf16+mxfp8@4,hybrid:jump=8/4/2";
    struct Row { // of the 6 steps of an arm, 1 is its first and 6 is watched; 4 is the first of a stage, and of a jump
        int cc;
        std::string arms;
        long graphs, instantiations;
    };
    for (auto& [cc, arms, graphs, instantiations] : {Row{90, all, 13 * 4 - 2, 13 + 2}, {100, "nvfp4,hybrid", 8, 2}}) {
        std::string args = train_tiny(s) + "--steps 6 --stats-every 5 --eval-every 3 --recipe " + arms,
                    out = s / format("sm_%d", cc);
        Ran plain = train_on_card("--out " + out + "-plain" + args, cc, true),
            run = train_on_card("--out " + out + args, cc);
        CHECK_MESSAGE(plain.status == 0, plain.said);
        CHECK_MESSAGE(run.status == 0, run.said);
        CHECK(plain.graphs == 0);
        CHECK(run.graphs == graphs);
        CHECK(run.instantiations == instantiations);
        CHECK(curves(out) == curves(out + "-plain"));
    }
}
TEST_CASE("a run as graphs that is resumed ends with the bits of one that was not") {
    Scratch s;
    std::string args = train_tiny(s) + "--stats-every 0 --recipe hybrid:round=sr,nvfp4";
    REQUIRE(train_on_card("--steps 6 --eval-every 3 --out " + s / "once" + args).status == 0);
    REQUIRE(train_on_card("--steps 3 --eval-every 3 --out " + s / "twice" + args).status == 0);
    Ran r = train_on_card("--override --steps 6 --resume " + s / "twice");
    CHECK_MESSAGE(r.status == 0, r.said);
    CHECK(r.graphs == 4);
    auto ends = [](const std::string& dir) {
        std::string text = curves(dir);
        return text.substr(text.find("recipe,seed,outcome"),
                           text.find("recipe,seed,step,tokens,loss\n") - text.find("recipe,seed,outcome"));
    };
    CHECK(ends(s / "once") == ends(s / "twice"));
    CHECK(ends(s / "once").find("done,6") != std::string::npos);
}
TEST_CASE("--profile compares operations with the peaks of the card's memory and, where they are known, its tensor cores") {
    std::string args = "bench --profile --steps 1 --recipe hybrid" + tiny;
    auto cells = [](const Ran& r, const std::string& op) { // of its row
        size_t n = 0;
        for (auto& line : lines(r.said))
            if (line.starts_with(op + " "))
                for (auto& cell : split(line, ' ')) n += !cell.empty();
        return n;
    };
    Ran known = train_on_card(args, 90, false, "NVIDIA H100 80GB HBM3");
    CHECK(known.said.find("GB/s  % peak   GFLOP/s  % peak\n") != std::string::npos);
    CHECK(cells(known, "fprop") == 8);
    CHECK(machine.costs["fprop"].at_peak > machine.costs["fprop"].flops / 2 / 989.4e12); // FP8, and the head
    CHECK(machine.costs["fprop"].at_peak < machine.costs["fprop"].flops / 989.4e12);
    Ran other = train_on_card(args);
    CHECK(other.said.find("GB/s  % peak   GFLOP/s\n") != std::string::npos);
    CHECK(cells(other, "fprop") == 7);
    CHECK(peak_flops("NVIDIA H100 PCIe") == 756e12);
    CHECK(peak_flops("NVIDIA GH200 480GB") == 989.4e12);
    CHECK(peak_flops("CPU, 2 threads") == 0);
    machine.costs.clear();
}
TEST_CASE("./train bench says whether steps were graphs, and what they take without") {
    Ran r = train_on_card("bench --json --steps 1 --recipe bf16,nvfp4" + tiny);
    CHECK_MESSAGE(r.status == 0, r.said);
    CHECK(r.graphs == 2 * 4 * 2);
    CHECK(r.said.find("\"graphs\":true") != std::string::npos);
    r = train_on_card("bench --steps 1 --recipe bf16" + tiny);
    CHECK(r.said.find(" graphs=yes host_ms=") != std::string::npos);
    for (bool profile : {false, true}) {
        r = train_on_card((profile ? "bench --profile" : "bench") + (" --steps 1 --recipe bf16" + tiny), 90, !profile);
        CHECK(r.said.find(" graphs=no host_ms=") != std::string::npos);
        CHECK(r.said.find("without_ms") == std::string::npos);
        CHECK(r.graphs == 0);
    }
}
TEST_CASE(
    "a graph takes over arguments and uploads, is made anew for other launches, and leaves errors to whoever runs it") {
    OnCard card;
    Graph graph;
    int* x = (int*)allocate_zeroed(256);
    int* by = x + 1;
    auto add = [&](int value) { upload(by, &value, 4), launch("add", add_kernel, 1, 32, 0, x, by); };
    graph.run(true, [&] { add(1); });
    CHECK(!graph.used);
    for (int value : {2, 3}) graph.run(false, [&] { add(value); });
    CHECK(graph.used);
    graph.run(false, [&] { add(4), add(5); }); // both uploads go to one place, one after the other
    graph.run(false, [&] { add(6), add(7); });
    CHECK(x[0] == 1234567);
    CHECK(standin.graphs == 4);
    CHECK(standin.instantiations == 2);
    CHECK_THROWS_WITH_AS(graph.run(false, [&] { add(8), fail("the data ended"); }), "the data ended", Error);
    CHECK(x[0] == 12345678);    // once, and the graph that was recorded before is not launched
    for (int how : {0, 1, 2}) { // what cannot be recorded is run, and not tried again
        Graph other;
        std::vector<char> much(STAGING / 2 + 1);
        char* room = how == 2 ? allocate_zeroed(much.size()) : nullptr;
        long tried = 0, runs = 0;
        for (int i = 0; i < 3; i++)
            other.run(false, [&] {
                (machine.recording ? tried : runs)++;
                if (how == 0) synchronize("looking");
                if (how == 1) release_memory(allocate_zeroed(16), 16);
                for (int k = 0; k < 2 && how == 2; k++) upload(room, much.data(), much.size());
            });
        CHECK(tried == 1);
        CHECK(runs == 3);
        CHECK(!other.refused.empty());
        if (room) release_memory(room, much.size());
    }
    std::vector<int> large(STAGING / 12); // uploads of more steps than there is room for, each read by its own step
    int* there = (int*)allocate_zeroed(large.size() * 4);
    x[0] = 0, graph.refused = "";
    for (int i = 1; i <= 8; i++) {
        large[0] = i;
        graph.run(false, [&] {
            for (int k = 0; k < 2; k++) upload(there, large.data(), large.size() * 4);
            launch("add", add_kernel, 1, 32, 0, x, there);
        });
        large[0] = 9; // `from` may change
        CHECK(graph.used);
        CHECK(x[0] % 10 == i);
    }
    release_memory((char*)there, large.size() * 4);
    machine.debug = true, graph.refused = "", graph.run(false, [&] { add(9); }), machine.debug = false;
    CHECK(!graph.used);
    release_memory((char*)x, 256);
}
