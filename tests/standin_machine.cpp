#include "standin.h"
#include <ucontext.h>
#include <vector>

StandIn standin;

namespace {
enum Stop { running, shuffling, syncing, returned };
struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(256 * 1024);
    Stop stop = running;
    int mask = 0;
    uint64_t sent[2] = {}; // by turns, so that a fast lane does not overwrite what a slow one has yet to read
    int turn = 0;
};
Fiber fibers[LANES];
ucontext_t scheduler;
const std::function<void()>* work;
int current = -1; // lane; -1: the host
int first_thread, this_block, block_threads;

void stop_at(Stop why) {
    Fiber& f = fibers[current];
    f.stop = why;
    swapcontext(&f.context, &scheduler);
    f.stop = running;
}
void body() {
    (*work)();
    stop_at(returned);
}
void run_warp() {
    for (Fiber& f : fibers) {
        f.stop = running, f.turn = f.mask = 0;
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.data(), f.context.uc_stack.ss_size = f.stack.size();
        f.context.uc_link = nullptr;
        makecontext(&f.context, body, 0);
    }
    for (;;) {
        for (int i = 0; i < LANES; i++) {
            current = standin.descending ? LANES - 1 - i : i;
            swapcontext(&scheduler, &fibers[current].context);
        }
        current = -1;
        for (Fiber& f : fibers)
            if (f.stop != fibers[0].stop || f.mask != fibers[0].mask)
                fail("lanes of warp %d of block %d parted ways at a shuffle or sync", first_thread / LANES, this_block);
        standin.shuffles += fibers[0].stop == shuffling, standin.syncs += fibers[0].stop == syncing;
        if (fibers[0].stop == returned) break;
    }
    standin.warps++;
}
uint64_t exchange(uint64_t x, int mask) {
    Fiber& f = fibers[current];
    int turn = f.turn ^= 1;
    f.sent[turn] = x, f.mask = mask;
    stop_at(shuffling);
    return fibers[current ^ mask].sent[turn];
}
} // namespace

bool on_device() { return current >= 0; }
int thread_index() { return first_thread + current; }
int block_index() { return this_block; }
int block_size() { return block_threads; }
float shfl_xor(float x, int mask) { return bits_as<float>((uint32_t)exchange(bits_as<uint32_t>(x), mask)); }
double shfl_xor(double x, int mask) { return bits_as<double>(exchange(bits_as<uint64_t>(x), mask)); }
void sync_lanes() {
    if (current < 0) return;
    fibers[current].mask = 0;
    stop_at(syncing);
}

void run_block(const std::function<void()>& thread, int block, int threads) {
    work = &thread, this_block = block, block_threads = threads;
    for (first_thread = 0; first_thread < threads; first_thread += LANES) run_warp();
}
