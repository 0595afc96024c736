// A GPU made of fibers, so that the device's side of the seam runs, and is tested, where there is no GPU. What a reader
// would get wrong:
// - A warp is 32 fibers that take turns: each runs until it shuffles or synchronises, then the next one does. Lanes
//   therefore see each other's stores only across those points, as a GPU promises no more. Both orders of taking turns
//   are offered, so that a missing sync() shows in one of them.
// - Lanes that part ways (one shuffles where another returns, or with another mask) are an error here; a real warp
//   hangs or reads garbage.
// - Only -DULP_STANDIN builds include this, and exactly one file of the program is standin_machine.cpp.
#pragma once
#include "ops/lanes.cuh"
#include <functional>

struct StandIn {
    bool descending = false;                 // lane 31 first
    long warps = 0, shuffles = 0, syncs = 0; // that have run, counted per warp
};
extern StandIn standin;
void run_block(const std::function<void()>& thread, int block, int threads);

template <class K, class... A> void launch(const char*, K kernel, size_t grid, int block, size_t, A... args) {
    for (size_t b = 0; b < grid; b++) run_block([&] { kernel(args...); }, (int)b, block);
}
