// The words of ops/device.cuh for a GPU made of fibers (fibers.cpp). What a reader would get wrong:
// - All threads of a block are fibers. Each runs until a warp operation, a barrier or its end, and sees what others
//   stored only because they ran before it: what a barrier should have ordered comes out wrong in one of the orders in
//   which threads take turns.
// - A warp operation happens when all 32 lanes have come to it, on all of their operands at once. Lanes that part ways,
//   or come to different operations, are an error here; a real warp hangs or reads garbage.
// - A copy to shared memory leaves garbage at its destination until the wait that covers it, and only then is made.
#pragma once
#include "run/error.h"
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

struct Fiber;             // a GPU thread
extern Fiber* this_fiber; // null on the host
struct ThreadIndex {
    int thread, block, threads;
};
extern ThreadIndex this_thread;

inline bool on_device() { return this_fiber; }
inline int thread_index() { return this_thread.thread; }
inline unsigned thread_index_anew() { return (unsigned)this_thread.thread; }
inline int lane_index() { return this_thread.thread % 32; }
inline int block_index() { return this_thread.block; }
inline int block_size() { return this_thread.threads; }

struct Place {
    const char* file = "";
    int line = 0;
};
#define HERE Place at = {__builtin_FILE(), __builtin_LINE()} // of the caller

// Where a lane or a thread waits. detail: what has to be equal in all lanes besides the place.
struct Meeting {
    const char* what = nullptr; // as errors call it
    uint64_t detail = 0;
    Place at;
    void (*happen)(void* const* lanes) = nullptr; // given all 32 operands; results are stored in them
};
void meet_warp(const Meeting& m, void* operand);
void meet_block(const Meeting& m);
void* shared_bytes_of_block(size_t bytes);                                      // error: the launch has fewer
void check_shared(const void* p, size_t bytes, size_t align, const char* what); // p has to lie in shared memory

inline void sync_threads(HERE) { meet_block({"sync_threads", 0, at}); }
inline void sync_lanes(HERE) {
    if (on_device()) meet_warp({"sync_lanes", 0, at, [](void* const*) {}}, nullptr);
}
template <class T> T shuffled(T x, int from, const Meeting& where) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 32 or 64 bits");
    struct Operand {
        T in, out;
        int from;
    } o = {x, x, from};
    Meeting m = where;
    m.happen = [](void* const* lanes) {
        for (int l = 0; l < 32; l++) {
            Operand* o = (Operand*)lanes[l];
            o->out = ((Operand*)lanes[o->from & 31])->in;
        }
    };
    meet_warp(m, &o);
    return o.out;
}
template <class T> T shfl_xor(T x, int mask, HERE) {
    if (!on_device()) return x;
    return shuffled(x, lane_index() ^ mask, {"shfl_xor", (uint64_t)mask, at});
}
template <class T> T shfl(T x, int lane, HERE) { return shuffled(x, lane, {"shfl", 0, at}); }
inline uint32_t vote(bool b, HERE) {
    uint32_t said = b;
    meet_warp({"vote", 0, at,
               [](void* const* lanes) {
                   uint32_t all = 0;
                   for (int l = 0; l < 32; l++) all |= *(uint32_t*)lanes[l] << l;
                   for (int l = 0; l < 32; l++) *(uint32_t*)lanes[l] = all;
               }},
              &said);
    return said;
}
template <class T> T& shared_memory() { return *(T*)shared_bytes_of_block(sizeof(T)); }

void ldmatrix(uint32_t (&r)[4], const void* row, HERE);
void ldmatrix_transposed(uint32_t (&r)[4], const void* row, HERE);
void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, HERE);
void copy_later(void* to, const void* from, int bytes, int size);
template <int N = 16> void cp_async(void* to, const void* from, int bytes = N) { copy_later(to, from, bytes, N); }
void cp_async_commit();
void cp_async_wait_but(int groups);
template <int N> void cp_async_wait() { cp_async_wait_but(N); }
inline float exp2_approx(float x) {
    float y = exp2f(x);
    return y < 1.17549435e-38f ? 0 : y; // NaN passes
}
inline uint32_t pack_bf16(float low, float high) {
    auto round = [](float f) {
        uint32_t u;
        memcpy(&u, &f, 4);
        return f != f ? 0x7fffu : (u + 0x7fff + (u >> 16 & 1)) >> 16;
    };
    return round(low) | round(high) << 16;
}
#undef HERE

// Runs a kernel: thread() by each of grid * threads fibers. Returns what went wrong, "" if nothing did.
std::string run_grid(size_t grid, int threads, size_t shared_bytes, const std::function<void()>& thread);
