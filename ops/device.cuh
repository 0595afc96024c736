// The seam: the compiler's and CUDA's own words (__CUDACC__, asm, cudaMalloc) stand in this file and nowhere else. The
// rest of the house asks ULP_GPU (does this build hold GPU code?) and on_device() (am I running there?), writes kernels
// in the words of section 1, and launches them with launch(). What a reader would get wrong:
// - There is one path for two GPUs. With -DULP_STANDIN the C++ compiler sees the same kernels and the same calls of the
//   runtime: <cuda_runtime.h> is then tests/cuda_on_cpu's, which declares what is used here under CUDA's names and runs
//   kernels thread by thread on the CPU. There stand the twins, in plain C++, of the one-line wrappers of instructions.
// - Work goes to machine.stream, in order, and the host does not wait for it: synchronize() before it looks.
// - A warp's words (shfl, vote, ldmatrix, mma, sync_lanes) are for all 32 lanes at once.
#pragma once
#include "run/error.h"
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>
#include <utility>

constexpr int LANES = 32;

// --- 1. the compiler's words, and ours ---------------------------------------------------------------------------
#if defined(__CUDACC__) || defined(ULP_STANDIN)
#define ULP_GPU 1
#include <cuda_runtime.h>
#endif
#ifdef __CUDACC__
#define HD __host__ __device__
#define DEVICE __device__ __forceinline__
#define KERNEL __global__
#define BOUNDS(threads, blocks) __launch_bounds__(threads, blocks) // of a block; that a multiprocessor should hold
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
// what can be called on both machines: `gpu` there, `cpu` here
#ifdef __CUDA_ARCH__
#define EITHER(gpu, cpu) gpu
#else
#define EITHER(gpu, cpu) cpu
#endif
HD constexpr bool on_device() { return EITHER(true, false); }
HD inline int thread_index() { return EITHER((int)threadIdx.x, 0); }
DEVICE unsigned thread_index_anew() { // read again, so that nothing made of it is kept in registers across a loop
    unsigned i;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(i));
    return i;
}
HD inline int lane_index() { return EITHER((int)threadIdx.x % LANES, 0); } // blocks are whole warps
HD inline int block_index() { return EITHER((int)blockIdx.x, 0); }
HD inline int block_size() { return EITHER((int)blockDim.x, 1); }
HD inline void sync_lanes() { EITHER(__syncwarp(), ); }
template <class T> HD inline T shfl_xor(T x, int mask) { return EITHER(__shfl_xor_sync(~0u, x, mask), x); }
template <class T> DEVICE T shfl(T x, int lane) { return __shfl_sync(~0u, x, lane); }
DEVICE uint32_t vote(bool b) { return __ballot_sync(~0u, b); } // bit l: what lane l says
DEVICE void sync_threads() { __syncthreads(); }
// The block's dynamic shared memory, laid out by T, which launch() was given the size of.
template <class T> DEVICE T& shared_memory() {
    extern __shared__ __align__(128) char shared_bytes[];
    return *(T*)shared_bytes;
}
DEVICE uint32_t in_shared(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }
// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8, 16 bytes, aligned.
// r[i]: of matrix i, elements 2(l % 4) and the next of row l / 4; transposed: of column l / 4.
DEVICE void ldmatrix(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(in_shared(row)) : "memory");
}
DEVICE void ldmatrix_transposed(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(in_shared(row)) : "memory");
}
// d (16, 8) += a (16, 16) b (16, 8), BF16 into FP32. With l = 4 g + t, a lane holds of d rows g (d[0], d[1]) and g + 8,
// columns 2t, 2t+1; of a rows g, g + 8, g, g + 8 at columns 2t.. (a[0], a[1]) and 2t + 8.. (a[2], a[3]); of b column g
// at rows 2t.. (b0) and 2t + 8.. (b1). The lower half of a word is the lower index.
DEVICE void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// N bytes, 16 or 4, from global to shared memory, of which only the first `bytes` are read and the rest are zeros. They
// are there when this thread has waited for its group, for other threads after a barrier then.
template <int N = 16> DEVICE void cp_async(void* to, const void* from, int bytes = N) {
    if constexpr (N == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(in_shared(to)), "l"(from), "r"(bytes)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(in_shared(to)), "l"(from), "n"(N), "r"(bytes)
                     : "memory");
}
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> DEVICE void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); } // but N
DEVICE float exp2_approx(float x) { // relative error below 2^-22; results below 2^-126 are 0
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE uint32_t pack_bf16(float low, float high) { // rounded to nearest even
    uint32_t y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
#elif defined(ULP_STANDIN)
#define HD
#define DEVICE inline
#define KERNEL
#define BOUNDS(threads, blocks)
#define UNROLL
#define ROLLED
#include <device_words.h>
#else
#define HD
constexpr bool on_device() { return false; }
inline int thread_index() { return 0; }
inline int lane_index() { return 0; }
template <class T> inline T shfl_xor(T x, int) { return x; }
inline void sync_lanes() {}
#endif
#define INLINE inline __attribute__((always_inline))
// What the chip converts by itself: FP8 since 8.9; FP6, FP4 and E8M0 on 10.x and 12.x, in targets such as 100f.
#ifdef __CUDA_ARCH__
#define ULP_CVT_FP8 (__CUDA_ARCH__ >= 890)
#ifdef __CUDA_ARCH_FAMILY_SPECIFIC__
#define ULP_CVT_FP4 (__CUDA_ARCH__ >= 1000)
#endif
#endif
// What nvcc must not see in a function of both machines; captures of lambdas must not depend on it.
#ifdef __CUDA_ARCH__
#define ON_HOST(...)
#else
#define ON_HOST(...) __VA_ARGS__
#endif
// *to = the larger of *to and x, whatever else does the same at the same time. The order changes nothing.
HD INLINE void atomic_max(int* to, int x) {
#ifdef __CUDA_ARCH__
    if (x > *(volatile int*)to) atomicMax(to, x);
#else
    int old = __atomic_load_n(to, __ATOMIC_RELAXED);
    while (x > old && !__atomic_compare_exchange_n(to, &old, x, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
#endif
}
#if defined(__clang__) // before a loop whose iterations do not depend on each other; clang finds out at run time
#define UNALIASED
#else
#define UNALIASED _Pragma("GCC ivdep")
#endif

// --- 2. the machine ----------------------------------------------------------------------------------------------
enum class Kernels { reference, portable, fast }; // row functions only; no special instructions; everything we have

// How copies of operands lie in memory, which is a matter of the GEMMs that read them.
struct Layout {
    int pad = 1;             // rows of codes are as long as the next multiple of so many elements, with zeros
    bool transposes = false; // codes are contiguous along every contraction; else one copy serves two GEMMs, by strides
    bool tiled = false;      // byte scales lie as tiled_scale() says
    bool columns = false;    // FP32 scales of blocks as scale_grid() does for sm_90
};
struct Machine {
    bool gpu = false;
    bool tensor_cores = true; // false: GEMMs and attention by their row functions, for tests of all that is around them
    Layout layout;
    int cc = 0;             // the GPU's family: 80, 89, 90, 100 or 120; 0 on the CPU
    void* stream = nullptr; // a cudaStream_t
    bool debug = false;     // wait for every launch, so that an error names its op (DEBUG=1)
    Kernels kernels = Kernels::fast;
    bool profile = false;
    bool recording = false; // what is launched becomes part of a graph (graph.cuh), and nothing may be waited for
    long launches = 0;
    struct Cost { long calls = 0; double seconds = 0, bytes = 0, flops = 0, at_peak = 0; }; // seconds of flops at peak
    std::map<std::string, Cost> costs; // by op, filled when profiling
    double peak_bytes = 0, peak_flops = 0; // a second: of the card's memory, of its tensor cores in BF16; 0: not known
};
inline Machine machine;

struct Card {
    std::string name;                         // "" if there is none to use
    int cc = 0, sms = 0;                      // compute capability 9.0 is 90
    size_t memory_free = 0, memory_total = 0; // bytes
    double bytes_per_second = 0;              // of its memory, at the clock it names
};

// A card's dense BF16 peak in FLOP/s, of NVIDIA's data sheets; 0: not known. FP8's is twice, NVFP4's four times that.
inline double peak_flops(const std::string& card) {
    const std::pair<const char*, double> cards[] = {{"H100 PCIe", 756e12}, {"H100 NVL", 835e12}, {"H100", 989.4e12},
        {"H200", 989.4e12}, {"A100", 312e12}, {"L40S", 362e12}, {"4090", 165.2e12}, {"B200", 2250e12}};
    for (auto& [name, peak] : cards)
        if (card.find(name) != std::string::npos) return peak;
    return 0;
}
#ifdef ULP_GPU
inline void cuda_check(cudaError_t e, const char* what) {
    if (e != cudaSuccess) fail("%s: CUDA says %s (%s)", what, cudaGetErrorName(e), cudaGetErrorString(e));
}
#endif

bool has_gpu_code(); // does this build?
// The first GPU, or why there is none to use. A chip that nobody has heard of is an error.
Card find_card(std::string& why_not);
// As cuBLASLt reads them: FP8 along K alone but on 10.x, block scales in tiles, on 9.0 FP32 ones by columns.
inline Layout layout_for(int cc) {
    return {.pad = 32, .transposes = cc / 10 != 10, .tiled = cc >= 100, .columns = cc == 90};
}
void use_gpu(const Card& c); // from now on everything runs on that card
void synchronize(const char* what); // the host waits for it; errors carry what is said here

size_t memory_room();                         // bytes that are free for tensors
char* allocate_zeroed(size_t bytes);          // memory for tensors, 256-byte aligned; both machines see it
void release_memory(char* p, size_t bytes);
void fill_zero(void* to, size_t bytes);

// --- 3. small things between the CPU and its GPU, without waiting ------------------------------------------------
// Both ways go through pinned memory, because from any other the driver copies in its own time.
constexpr size_t STAGING = 16 << 20;
// *to (device) = *from (host), before what is launched from now on; `from` may change as soon as this returns. At most
// STAGING bytes.
void upload(void* to, const void* from, size_t bytes);

struct Pinned { // two halves of pinned memory, and when the last copy of each was made
    char* memory = nullptr;
    size_t half = 0;      // bytes
    void* copied[2] = {}; // cudaEvent_t
    Pinned() = default;
    Pinned(const Pinned&) = delete;
    ~Pinned();
    void need(size_t bytes); // in all
    void mark(int i);
    void wait(int i);
    void fetch(int i, const void* from, size_t bytes); // to the beginning of half i
};
// A value on the device, asked for now and read later.
template <class T> struct Later {
    T value = {};
    Pinned pinned; // what was asked for last may arrive before the one before it is read
    int64_t asked = 0, read = 0;
    void ask(const T* from) { // at most two are under way
        if (!machine.gpu) return (void)(value = *from);
        pinned.need(2 * sizeof(T));
        pinned.fetch(asked++ % 2, from, sizeof(T));
    }
    T get() { // in the order in which they were asked for; waits for it
        if (!machine.gpu) return value;
        int i = read++ % 2;
        pinned.wait(i);
        return value = ((T*)pinned.memory)[i];
    }
};

// --- 4. launching ------------------------------------------------------------------------------------------------
#ifdef ULP_GPU
// The only place that launches; errors carry the op's name.
template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), size_t grid, int block, size_t shared_bytes, A... args) {
    if (shared_bytes > 48 * 1024) // more has to be asked for
        cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes), name);
    cudaLaunchConfig_t c = {};
    c.gridDim = dim3((unsigned)grid), c.blockDim = dim3(block), c.dynamicSmemBytes = shared_bytes;
    c.stream = (cudaStream_t)machine.stream;
    cuda_check(cudaLaunchKernelEx(&c, kernel, args...), name);
    machine.launches++;
    if (machine.debug) synchronize(name);
}
#endif

// Runs work() and books its time, bytes moved and floating-point operations under `name`. speed: BF16's is 1.
template <class Work> void profiled(const char* name, double bytes, double flops, Work work, int speed = 1) {
    if (!machine.profile) return work();
    synchronize(name);
    auto start = std::chrono::steady_clock::now();
    work();
    synchronize(name);
    auto& cost = machine.costs[name];
    cost.calls++;
    cost.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    cost.bytes += bytes;
    cost.flops += flops;
    if (machine.peak_flops) cost.at_peak += flops / (machine.peak_flops * speed);
}
