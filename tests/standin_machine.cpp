// The machine that kernels are tested on is tested itself: what goes wrong on a GPU has to go wrong here.
#include "close.h"
#include "ops/lanes.cuh"
#include "standin.h"

namespace { // test files share one program

std::string error_of(const std::function<void()>& work) {
    try {
        work();
    } catch (const Error& e) { return e.what(); }
    return "";
}
bool contains(const std::string& text, const std::string& part) {
    INFO(text);
    CHECK(text.find(part) != std::string::npos);
    return text.find(part) != std::string::npos;
}
// In how many of the orders work() finds what it should.
template <class Work> int orders_that_find(Work work) {
    int right = 0;
    in_every_order([&](Order) { right += work(); });
    return right;
}

// --- barriers ------------------------------------------------------------------------------------------------------
struct Line {
    int x[128];
};
KERNEL void reverse_kernel(int* out, bool barrier) { // out[i] = what thread 127 - i stored
    Line& s = shared_memory<Line>();
    s.x[thread_index()] = thread_index();
    if (barrier) sync_threads();
    out[thread_index()] = s.x[127 - thread_index()];
}
// Each thread adds up a tile that all of them stored, then all of them store the next one.
KERNEL void tiles_kernel(int* out, bool second_barrier) {
    Line& s = shared_memory<Line>();
    int sum = 0;
    for (int tile = 0; tile < 3; tile++) {
        s.x[thread_index()] = tile + 1;
        sync_threads();
        for (int i = 0; i < 128; i++) sum += s.x[i];
        if (second_barrier) sync_threads();
    }
    out[thread_index()] = sum;
}
KERNEL void lanes_kernel(int* out, bool sync) { // between the lanes of one warp
    Line& s = shared_memory<Line>();
    s.x[thread_index()] = thread_index();
    if (sync) sync_lanes();
    out[thread_index()] = s.x[thread_index() ^ 5];
}
TEST_CASE("stand-in: a missing barrier shows in one of the orders, and a kernel that has it is right in all") {
    OnCard card;
    std::vector<int> out(128), reversed(128), swapped(128), sums(128, 6 * 128);
    for (int i = 0; i < 128; i++) reversed[i] = 127 - i, swapped[i] = i ^ 5;
    auto run = [&](auto kernel, bool has_it, const std::vector<int>& want) {
        return orders_that_find([&] {
            launch("test", kernel, 1, 128, sizeof(Line), out.data(), has_it);
            return out == want;
        });
    };
    CHECK(run(reverse_kernel, true, reversed) == 3);
    CHECK(run(reverse_kernel, false, reversed) < 3);
    CHECK(run(tiles_kernel, true, sums) == 3);
    CHECK(run(tiles_kernel, false, sums) < 3);
    CHECK(run(lanes_kernel, true, swapped) == 3);
    CHECK(run(lanes_kernel, false, swapped) < 3);
}
KERNEL void some_wait_kernel(int who) {
    if (who == 0 && thread_index() >= 64) return;           // two warps return
    if (who == 1 && thread_index() == 77) return;           // one lane does
    if (who == 2 && thread_index() / 32 == 1) sync_lanes(); // a warp operation before the barrier is no matter
    if (who == 3 && thread_index() < 32) sync_threads();    // another barrier
    else sync_threads();
}
TEST_CASE("stand-in: a barrier that part of a block never reaches is an error that names kernel, block and threads") {
    OnCard card;
    in_every_order([&](Order) {
        auto run = [](int who) { return error_of([=] { launch("waiting", some_wait_kernel, 2, 128, 0, who); }); };
        contains(run(0), "waiting: CUDA says cudaErrorLaunchFailure (threads of block");
        contains(run(0), "thread 64 has returned");
        contains(run(1), "lanes of warp 2 of block"), contains(run(1), "thread 77 has returned");
        CHECK(run(2) == "");
        contains(run(3), "part ways: thread 0 is at sync_threads (standin_machine.cpp:");
        CHECK(run(4) == "");
    });
}

// --- warps ---------------------------------------------------------------------------------------------------------
KERNEL void shuffles_kernel(double* out) {
    int t = thread_index();
    out[t] = shfl_xor((float)t, 3) + 100 * shfl(t * 1.5, (lane_index() + 1) % 32) + 1e6 * shfl((uint32_t)t, 7) +
             1e9 * (vote(t % 3 == 0) >> lane_index() & 1);
}
TEST_CASE("stand-in: shuffles and votes give every lane what CUDA's do, within its warp") {
    OnCard card;
    std::vector<double> want(64);
    for (int t = 0; t < 64; t++)
        want[t] = (t ^ 3) + 100 * 1.5 * (t / 32 * 32 + (t + 1) % 32) + 1e6 * (t / 32 * 32 + 7) + 1e9 * (t % 3 == 0);
    auto got = same_in_every_order<double>(
        "shuffles", 64, [](std::vector<double>& out) { launch("shuffles", shuffles_kernel, 1, 64, 0, out.data()); });
    CHECK(got == want);
}
KERNEL void parted_kernel(int how) {
    int l = lane_index();
    if (how == 0 && l == 9) return;
    if (how == 1 && l >= 16) sync_lanes();
    else if (how == 2 && l >= 16) vote(true);
    else if (how == 3) shfl_xor(l, l < 16 ? 1 : 2);
    else if (how == 4 && l < 5) sync_threads();
    else shfl_xor(l, 1);
}
TEST_CASE(
    "stand-in: lanes of a warp that return, wait elsewhere or shuffle otherwise are an error that names the warp") {
    OnCard card;
    in_every_order([&](Order) {
        for (int how : {0, 1, 2, 3, 4}) {
            std::string e = error_of([=] { launch("parted", parted_kernel, 1, 64, 0, how); });
            contains(e, "parted: CUDA says cudaErrorLaunchFailure (lanes of warp "), contains(e, "part ways");
        }
        CHECK(error_of([] { launch("parted", parted_kernel, 1, 64, 0, 5); }) == "");
    });
}
TEST_CASE("stand-in: blocks and threads take turns as the order says, every one of them once") {
    OnCard card;
    std::vector<int> turns;
    static std::vector<int>* log;
    log = &turns;
    auto run = [&] {
        turns.clear();
        launch(
            "turns", +[] { log->push_back(block_index() * block_size() + thread_index()); }, 3, 64, 0);
        return turns;
    };
    std::vector<int> up(192), down(192);
    for (int i = 0; i < 192; i++) up[i] = i, down[i] = 191 - i;
    CHECK(run() == up);
    standin.order = Order::descending;
    CHECK(run() == down);
    standin.order = Order::shuffled;
    auto one = run(), other = run();
    CHECK(one != up);
    CHECK(one != other);
    std::sort(one.begin(), one.end());
    CHECK(one == up);
}

// --- tensor cores and copies ---------------------------------------------------------------------------------------
struct Tile {
    alignas(16) bf16 x[32][8];
};
struct Loaded {
    uint32_t r[4];
};
KERNEL void ldmatrix_kernel(Loaded* out, const bf16* in, bool transposed, int shift, int beyond) {
    Tile& s = shared_memory<Tile>();
    for (int i = thread_index(); i < 256; i += 32) s.x[i / 8][i % 8] = in[i];
    sync_lanes();
    const bf16* row = &s.x[lane_index()][shift] + beyond;
    if (transposed) ldmatrix_transposed(out[thread_index()].r, row);
    else ldmatrix(out[thread_index()].r, row);
}
TEST_CASE("stand-in: ldmatrix hands out fragments as the PTX ISA lays them out, and refuses what the chip does") {
    OnCard card;
    auto in = normals<bf16>(256, 1);
    for (bool transposed : {false, true}) {
        std::vector<Loaded> out(32);
        launch("ldmatrix", ldmatrix_kernel, 1, 32, sizeof(Tile), out.data(), in.data(), transposed, 0, 0);
        for (int l = 0; l < 32; l++)
            for (int m = 0; m < 4; m++)
                for (int half = 0; half < 2; half++) {
                    int row = l / 4, col = l % 4 * 2 + half;
                    uint16_t want = in[m * 64 + (transposed ? col * 8 + row : row * 8 + col)].bits;
                    REQUIRE((uint16_t)(out[l].r[m] >> 16 * half) == want);
                }
    }
    std::vector<Loaded> out(32);
    auto run = [&](int shift, int beyond) {
        return error_of([&] {
            launch("ldmatrix", ldmatrix_kernel, 1, 32, sizeof(Tile), out.data(), in.data(), false, shift, beyond);
        });
    };
    contains(run(1, 0), "not aligned to 16 bytes"), contains(run(0, 8), "not in the block's 512 bytes");
}
KERNEL void mma_kernel(float* d, const bf16* a, const bf16* b) { // d (16, 8) += a (16, 16) b (16, 8)
    int g = lane_index() / 4, t = lane_index() % 4 * 2;
    auto pair = [](bf16 low, bf16 high) { return (uint32_t)low.bits | (uint32_t)high.bits << 16; };
    uint32_t fa[4], fb[2];
    for (int i = 0; i < 4; i++) {
        const bf16* at = a + (g + i % 2 * 8) * 16 + t + i / 2 * 8;
        fa[i] = pair(at[0], at[1]);
    }
    for (int i = 0; i < 2; i++) fb[i] = pair(b[(t + i * 8) * 8 + g], b[(t + i * 8 + 1) * 8 + g]);
    float fd[4];
    for (int i = 0; i < 4; i++) fd[i] = d[(g + i / 2 * 8) * 8 + t + i % 2];
    mma_m16n8k16_bf16(fd, fa, fb[0], fb[1]);
    for (int i = 0; i < 4; i++) d[(g + i / 2 * 8) * 8 + t + i % 2] = fd[i];
}
TEST_CASE("stand-in: mma multiplies fragments as the PTX ISA lays them out") {
    OnCard card;
    std::vector<bf16> a(256), b(128); // integers, so that every sum is exact
    std::vector<float> d(128), want(128);
    for (int i = 0; i < 256; i++) a[i] = bf16((float)(i * 37 % 19 - 9));
    for (int i = 0; i < 128; i++) b[i] = bf16((float)(i * 29 % 23 - 11)), d[i] = want[i] = (float)i;
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 8; n++)
            for (int k = 0; k < 16; k++) want[m * 8 + n] += (float)a[m * 16 + k] * (float)b[k * 8 + n];
    launch("mma", mma_kernel, 1, 32, 0, d.data(), a.data(), b.data());
    CHECK(d == want);
}
struct Copies {
    alignas(16) int x[2][32][4];
};
KERNEL void copy_kernel(int* out, const int* in, int waits, int bytes) {
    Copies& s = shared_memory<Copies>();
    int l = lane_index();
    for (int stage = 0; stage < 2; stage++) {
        cp_async(s.x[stage][l], in + (stage * 32 + l) * 4, bytes);
        cp_async_commit();
    }
    if (waits == 1) cp_async_wait<1>(); // the first group only
    if (waits == 2) cp_async_wait<0>();
    for (int i = 0; i < 8; i++) out[l * 8 + i] = s.x[i / 4][l][i % 4];
}
TEST_CASE("stand-in: a copy to shared memory is there after the wait that covers it and not before") {
    OnCard card;
    alignas(16) static int in[260];
    for (int i = 0; i < 260; i++) in[i] = i + 1;
    std::vector<int> out(256);
    auto run = [&](int waits, int bytes, int shift = 0) {
        return error_of(
            [&] { launch("copy", copy_kernel, 1, 32, sizeof(Copies), out.data(), in + shift, waits, bytes); });
    };
    for (int waits : {0, 1, 2})
        for (int bytes : {16, 8, 0}) {
            REQUIRE(run(waits, bytes) == "");
            for (int i = 0; i < 256; i++) {
                int stage = i % 8 / 4, there = stage < waits;
                REQUIRE(out[i] == (!there ? -1 : i % 4 * 4 < bytes ? (stage * 32 + i / 8) * 4 + i % 4 + 1 : 0));
            }
        }
    contains(run(2, 16, 1), "source is not aligned"), contains(run(2, 20), "20 bytes of 16");
}

// --- launches ------------------------------------------------------------------------------------------------------
struct Big {
    char bytes[60 * 1024];
};
KERNEL void big_kernel(int* out) { out[0] = shared_memory<Big>().bytes[sizeof(Big) - 1]; }
TEST_CASE("stand-in: shared memory is what the launch asked for, poisoned, and more than 48 KB only where asked for") {
    OnCard card(80);
    int out = 0;
    cudaLaunchConfig_t c = {dim3(1), dim3(32), sizeof(Big), (cudaStream_t)machine.stream};
    CHECK(cudaLaunchKernelEx(&c, big_kernel, &out) == cudaErrorInvalidValue);
    contains(cudaGetErrorString(cudaGetLastError()), "61440 bytes of shared memory, but only 49152 were asked for");
    CHECK(cudaGetLastError() == cudaSuccess);
    launch("big", big_kernel, 1, 32, sizeof(Big), &out); // launch() asks
    CHECK(out == -1);
    CHECK(cudaLaunchKernelEx(&c, big_kernel, &out) == cudaSuccess);
    contains(error_of([&] { launch("big", big_kernel, 1, 32, 1000, &out); }), "61440 bytes of shared memory, but the");
    contains(error_of([&] { launch("big", big_kernel, 1, 32, 164 * 1024, &out); }), "a block of this card has 166912");
    contains(error_of([&] { launch("big", big_kernel, 0, 32, 0, &out); }), "cudaErrorInvalidConfiguration");
    contains(error_of([&] { launch("big", big_kernel, 1, 2048, 0, &out); }), "cudaErrorInvalidConfiguration");
}
TEST_CASE("stand-in: cards that are not there, not known or not built for are told apart") {
    std::string why;
    standin = {};
    Card c = find_card(why);
    CHECK(c.name == "stand-in");
    CHECK(c.cc == 90);
    CHECK(c.sms == 4);
    CHECK(c.memory_total == (size_t)4 << 30);
    CHECK(c.bytes_per_second == 2 * 1e9 * 128);
    standin.has_code = false;
    CHECK(find_card(why).name == "");
    contains(why, "no code for stand-in, compute capability 9.0. hint: make ARCH=90a");
    standin.cards = 0;
    CHECK(find_card(why).name == "");
    contains(why, "no GPU to use");
    standin = {}, standin.cc = 75;
    contains(error_of([&] { find_card(why); }), "compute capability 7.5");
    for (auto [cc, family] :
         {std::pair(80, 80), {86, 80}, {87, 80}, {89, 89}, {90, 90}, {100, 100}, {103, 100}, {120, 120}, {121, 120}}) {
        OnCard card(cc);
        CHECK(machine.cc == family);
        CHECK(machine.gpu);
    }
    CHECK(!machine.gpu);
}
KERNEL void add_kernel(int* x, int by) {
    if (thread_index() == 0) x[0] += by;
}
TEST_CASE("stand-in: a captured graph runs when it is launched, as often as it is, and not before") {
    OnCard card;
    int x = 0, *pinned;
    REQUIRE(cudaMallocHost((void**)&pinned, 8) == cudaSuccess);
    int &from = pinned[0], &to = pinned[1];
    from = 5, to = 0;
    cudaStream_t s = (cudaStream_t)machine.stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    REQUIRE(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal) == cudaSuccess);
    launch("add", add_kernel, 1, 32, 0, &x, 1);
    launch("add", add_kernel, 1, 32, 0, &x, 10);
    REQUIRE(cudaMemcpyAsync(&to, &from, sizeof to, cudaMemcpyDefault, s) == cudaSuccess);
    REQUIRE(cudaStreamEndCapture(s, &graph) == cudaSuccess);
    CHECK(x == 0);
    CHECK(to == 0);
    REQUIRE(cudaGraphInstantiate(&exec, graph) == cudaSuccess);
    REQUIRE(cudaGraphDestroy(graph) == cudaSuccess);
    for (int i = 1; i <= 3; i++) {
        from = i;
        REQUIRE(cudaGraphLaunch(exec, s) == cudaSuccess);
        synchronize("graph");
        CHECK(x == 11 * i);
        CHECK(to == i);
    }
    auto update = [&](int more, const void* source) { // the same launches with other arguments, and `more`
        cudaGraphExecUpdateResultInfo how;
        REQUIRE(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal) == cudaSuccess);
        launch("add", add_kernel, 2, 32, 0, &x, 3);
        launch("add", add_kernel, 1, 64, 0, &x, 20);
        REQUIRE(cudaMemcpyAsync(&to, source, sizeof to, cudaMemcpyDefault, s) == cudaSuccess);
        for (int i = 0; i < more; i++) launch("add", add_kernel, 1, 32, 0, &x, 1);
        REQUIRE(cudaStreamEndCapture(s, &graph) == cudaSuccess);
        cudaError_t e = cudaGraphExecUpdate(exec, graph, &how);
        cudaGraphDestroy(graph), cudaGetLastError();
        return e;
    };
    x = 0;
    CHECK(update(0, &to) == cudaSuccess);
    CHECK(x == 0);
    REQUIRE(cudaGraphLaunch(exec, s) == cudaSuccess);
    CHECK(x == 26); // two blocks of 3
    CHECK(update(1, &to) == cudaErrorGraphExecUpdateFailure);
    int* device = (int*)allocate_zeroed(256);
    CHECK(update(0, device) == cudaErrorGraphExecUpdateFailure);
    release_memory((char*)device, 256);
    REQUIRE(cudaGraphLaunch(exec, s) == cudaSuccess);
    CHECK(x == 52); // as it was
    cudaGraphExecDestroy(exec), cudaFreeHost(pinned);
}
TEST_CASE("stand-in: waiting, allocating or using the default stream during a capture is an error that breaks it") {
    OnCard card;
    cudaStream_t s = (cudaStream_t)machine.stream;
    void* p = nullptr;
    int x = 0;
    cudaEvent_t event;
    cudaEventCreate(&event);
    std::function<cudaError_t()> wrongs[] = {[&] { return cudaDeviceSynchronize(); },
                                             [&] { return cudaStreamSynchronize(s); },
                                             [&] { return cudaMalloc(&p, 16); },
                                             [&] { return cudaMallocManaged(&p, 16); },
                                             [&] { return cudaMemcpy(&x, &x, 4, cudaMemcpyDefault); },
                                             [&] { return cudaMemset(&x, 0, 4); },
                                             [&] { return cudaMallocHost(&p, 16); },
                                             [&] { return cudaEventQuery(event); },
                                             [&] { return cudaEventSynchronize(event); },
                                             [&] { return cudaFree(p); }};
    for (auto& wrong : wrongs) {
        cudaGraph_t graph;
        if (&wrong == &wrongs[9]) cudaMalloc(&p, 16);
        REQUIRE(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal) == cudaSuccess);
        CHECK(wrong() != cudaSuccess);
        CHECK(cudaStreamEndCapture(s, &graph) == cudaErrorStreamCaptureInvalidated);
        CHECK(!graph);
        cudaGetLastError();
        CHECK(wrong() == cudaSuccess);
        if (&wrong == &wrongs[2] || &wrong == &wrongs[3] || &wrong == &wrongs[6]) cudaFree(p);
    }
    cudaGraph_t graph;
    size_t free, total; // what waits for nothing is taken, but not copies that go through memory of the driver's,
    REQUIRE(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal) == cudaSuccess);
    CHECK(cudaMemGetInfo(&free, &total) == cudaSuccess);
    CHECK(cudaMemcpyAsync(&x, &x, 4, cudaMemcpyDefault, s) == cudaErrorStreamCaptureUnsupported);
    contains(cudaGetErrorString(cudaGetLastError()), "copying from or to memory that is not pinned while a stream is");
    CHECK(cudaStreamEndCapture(s, &graph) == cudaErrorStreamCaptureInvalidated);
    REQUIRE(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal) == cudaSuccess);
    REQUIRE(cudaEventRecord(event, s) == cudaSuccess);
    REQUIRE(cudaStreamEndCapture(s, &graph) == cudaSuccess);
    CHECK(cudaEventSynchronize(event) == cudaErrorCapturedEvent); // and nobody can wait for what was only recorded
    cudaGraphDestroy(graph), cudaEventDestroy(event);
    CHECK(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal) == cudaErrorStreamCaptureUnsupported);
    cudaGetLastError();
}
TEST_CASE("stand-in: memory ends, and what was given back can be had again") {
    OnCard card;
    standin.memory = 1 << 20;
    contains(error_of([] { allocate_zeroed(2 << 20); }), "out of memory");
    for (int i = 0; i < 3; i++) {
        char* p = allocate_zeroed(900000);
        for (int k = 0; k < 900000; k += 4999) REQUIRE(p[k] == 0);
        release_memory(p, 900000);
    }
    CHECK(standin.allocated == 0);
}

} // namespace
