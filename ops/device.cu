// What device.cuh promises, in CUDA's words or, in a build without GPU code, in the CPU's.
#include "ops/graph.cuh"
#include "run/screen.h"
#include <algorithm>
#include <cstring>
#include <sys/mman.h>

#ifdef ULP_GPU
KERNEL static void probe_kernel() {}
bool has_gpu_code() { return true; }
#else
bool has_gpu_code() { return false; }
#endif
Card find_card(std::string& why_not) {
    Card c;
#ifdef ULP_GPU
    cudaDeviceProp p;
    int cards = 0, kilohertz = 0;
    cudaError_t e = cudaGetDeviceCount(&cards);
    if (e == cudaSuccess && cards) e = cudaGetDeviceProperties(&p, 0);
    if (e != cudaSuccess || !cards) {
        why_not = e == cudaSuccess ? "no GPU in this machine" : format("no GPU to use: %s", cudaGetErrorString(e));
        cudaGetLastError(); // forget it
        return c;
    }
    c.cc = p.major * 10 + p.minor;
    if (!word_in(std::to_string(c.cc), "80 86 87 89 90 100 103 120 121"))
        fail("%s has compute capability %d.%d, which nothing here was written for. hint: --device cpu", p.name, p.major,
             p.minor);
    cudaFuncAttributes kernel; // is there code for this card in the binary?
    if (cudaFuncGetAttributes(&kernel, probe_kernel) != cudaSuccess) {
        why_not = format("this build has no code for %s, compute capability %d.%d. hint: make ARCH=%d%s", p.name,
                         p.major, p.minor, c.cc, c.cc >= 100 ? "f" : c.cc == 90 ? "a" : "");
        cudaGetLastError();
        return c;
    }
    c.name = p.name, c.sms = p.multiProcessorCount;
    cuda_check(cudaMemGetInfo(&c.memory_free, &c.memory_total), c.name.c_str());
    cuda_check(cudaDeviceGetAttribute(&kilohertz, cudaDevAttrMemoryClockRate, 0), c.name.c_str());
    c.bytes_per_second = 2.0 * kilohertz * 1e3 * p.memoryBusWidth / 8; // two transfers a clock
#else
    why_not = "this build has no GPU code. hint: make ARCH=90a, or whatever the card is";
#endif
    return c;
}
void use_gpu(const Card& c) {
    machine.gpu = true, machine.cc = c.cc == 89 ? 89 : c.cc / 10 * 10;
    machine.layout = machine.kernels == Kernels::fast ? layout_for(c.cc) : Layout();
    machine.peak_bytes = c.bytes_per_second, machine.peak_flops = peak_flops(c.name);
#ifdef ULP_GPU
    const char* debug = getenv("DEBUG");
    machine.debug = debug && *debug && std::string(debug) != "0";
    cudaStream_t s = nullptr; // one of our own, because the default one cannot be captured
    if (!machine.stream) cuda_check(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), "stream"), machine.stream = s;
#endif
}

void synchronize([[maybe_unused]] const char* what) {
#ifdef ULP_GPU
    if (machine.gpu) cuda_check(cudaDeviceSynchronize(), what);
#endif
}
size_t memory_room() {
    size_t free = SIZE_MAX;
#ifdef ULP_GPU
    size_t total;
    if (machine.gpu) cuda_check(cudaMemGetInfo(&free, &total), "free memory");
#endif
    return free;
}
char* allocate_zeroed(size_t bytes) {
    char* p = nullptr;
#ifdef ULP_GPU
    if (machine.gpu) {
        if (cudaMallocManaged(&p, bytes) != cudaSuccess) p = nullptr, cudaGetLastError();
        else cuda_check(cudaMemsetAsync(p, 0, bytes, (cudaStream_t)machine.stream), "clearing memory");
        synchronize("clearing memory");
    } else
#endif
    {
        p = (char*)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) p = nullptr; // pages appear when touched, so what is never used costs nothing
#ifdef MADV_HUGEPAGE
        else madvise(p, bytes, MADV_HUGEPAGE);
#endif
    }
    if (!p) fail("out of memory: the model needs %.2f GB. hint: a smaller --batch-size or --seq-len", bytes / 1e9);
    return p;
}
void release_memory(char* p, [[maybe_unused]] size_t bytes) {
#ifdef ULP_GPU
    if (machine.gpu) return (void)cudaFree(p);
#endif
    if (p) munmap(p, bytes);
}

void fill_zero(void* to, size_t bytes) {
    profiled("fill_zero", (double)bytes, 0, [&] {
#ifdef ULP_GPU
        if (machine.gpu) {
            cuda_check(cudaMemsetAsync(to, 0, bytes, (cudaStream_t)machine.stream), "fill_zero");
            return (void)machine.launches++;
        }
#endif
        constexpr size_t PART = 1 << 16;
#pragma omp parallel for schedule(static) if (bytes > PART)
        for (size_t at = 0; at < bytes; at += PART) memset((char*)to + at, 0, std::min(PART, bytes - at));
    });
}

#ifdef ULP_GPU
void Pinned::need(size_t bytes) {
    if (memory) return;
    cuda_check(cudaMallocHost((void**)&memory, bytes), "pinned memory");
    for (void*& e : copied) cuda_check(cudaEventCreateWithFlags((cudaEvent_t*)&e, cudaEventDisableTiming), "event");
    half = bytes / 2;
}
Pinned::~Pinned() {
    if (memory) cudaFreeHost(memory), cudaEventDestroy((cudaEvent_t)copied[0]), cudaEventDestroy((cudaEvent_t)copied[1]);
}
void Pinned::mark(int i) {
    cuda_check(cudaEventRecord((cudaEvent_t)copied[i], (cudaStream_t)machine.stream), "transfer");
}
void Pinned::wait(int i) { cuda_check(cudaEventSynchronize((cudaEvent_t)copied[i]), "transfer"); }
void Pinned::fetch(int i, const void* from, size_t bytes) {
    cuda_check(cudaMemcpyAsync(memory + i * half, from, bytes, cudaMemcpyDeviceToHost, (cudaStream_t)machine.stream),
               "result");
    mark(i);
}
struct Staging : Pinned { // a half fills while the other's copies may still be on their way
    size_t used = 0;
    int i = 0; // the half that fills
    void turn() { need(2 * STAGING), mark(i), i ^= 1, used = 0, wait(i); }
};
static Staging& staging = *new Staging; // left to the end of the process, which may come after the driver's
void upload(void* to, const void* from, size_t bytes) {
    if (!machine.gpu) return (void)memcpy(to, from, bytes);
    Staging& s = staging;
    if (bytes > STAGING) fail("upload: %zu bytes; it takes %zu at most", bytes, STAGING);
    s.need(2 * STAGING);
    if (s.used + bytes > STAGING && machine.recording) fail("a step's uploads take more than %zu bytes", STAGING);
    if (s.used + bytes > STAGING) s.turn();
    char* at = s.memory + s.i * STAGING + s.used;
    memcpy(at, from, bytes), s.used += (bytes + 255) / 256 * 256;
    cuda_check(cudaMemcpyAsync(to, at, bytes, cudaMemcpyHostToDevice, (cudaStream_t)machine.stream), "upload");
}

Graph::~Graph() {
    if (exec) cudaGraphExecDestroy((cudaGraphExec_t)exec);
}
bool Graph::launched(const std::function<void()>& work) {
    cudaStream_t s = (cudaStream_t)machine.stream;
    cudaGraph_t graph = nullptr;
    staging.turn(); // room for a step's uploads, because nothing can be waited for
    cuda_check(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal), "graph");
    machine.recording = true;
    try {
        work();
    } catch (const std::exception& e) { refused = e.what(); }
    machine.recording = false;
    cudaError_t ended = cudaStreamEndCapture(s, &graph);
    if (ended != cudaSuccess && refused.empty()) refused = cudaGetErrorString(ended);
    if (refused.empty()) {
        cudaGraphExecUpdateResultInfo how;
        auto e = (cudaGraphExec_t)exec;
        if (e && cudaGraphExecUpdate(e, graph, &how) != cudaSuccess) // other launches than the last time
            cudaGraphExecDestroy(std::exchange(e, nullptr));
        if (!e) cuda_check(cudaGraphInstantiate(&e, graph, 0), "graph");
        exec = e;
        cuda_check(cudaGraphLaunch(e, s), "graph (DEBUG=1 tells which operation)");
    }
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError(); // forget it
    return refused.empty();
}
#else // nobody asks for them
Graph::~Graph() {}
bool Graph::launched(const std::function<void()>&) { return false; }
Pinned::~Pinned() {}
void Pinned::need(size_t) {}
void Pinned::mark(int) {}
void Pinned::wait(int) {}
void Pinned::fetch(int, const void*, size_t) {}
void upload(void* to, const void* from, size_t bytes) { memcpy(to, from, bytes); }
#endif
void Graph::run(bool plain, const std::function<void()>& work) {
    bool tries = machine.gpu && !plain && !machine.debug && !machine.profile && refused.empty();
    used = tries && launched(work);
    if (used) return;
    work();
    if (tries) note("steps are launched operation by operation: %s", refused.c_str());
}
