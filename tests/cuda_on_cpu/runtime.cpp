// The runtime's calls. One thread of the host, one card; streams run what they are given at once, in order.
#include "standin.h"
#include <chrono>
#include <map>
#include <utility>

StandIn standin;

using Work = std::function<cudaError_t()>;
enum class Memory { pageable, pinned, device };
struct Node {
    const char* kind;
    Work run;
    Memory from = Memory::device, to = Memory::device; // of a copy
};
struct CUgraph_st {
    std::vector<Node> nodes;
};
struct CUgraphExec_st {
    std::vector<Node> nodes;
};
struct CUstream_st {
    CUgraph_st* capture = nullptr;
};
struct CUevent_st {
    bool timing = true, recorded = false, captured = false;
    std::chrono::steady_clock::time_point at;
};

namespace {
cudaError_t last = cudaSuccess;
std::string text; // of the last error
CUstream_st* capturing = nullptr;
bool capture_broken = false;
std::map<const void*, int> asked_for; // bytes of dynamic shared memory, by kernel
struct Allocation {
    size_t bytes;
    bool pinned;
};
std::map<void*, Allocation> allocations;

cudaError_t error(cudaError_t e, const std::string& why) {
    last = e, text = why;
    return e;
}
bool known(cudaError_t e, const char*& name) {
#define NAME(e)                                                                                                        \
    case e: name = #e; return true
    switch (e) {
        NAME(cudaSuccess);
        NAME(cudaErrorInvalidValue);
        NAME(cudaErrorMemoryAllocation);
        NAME(cudaErrorInvalidConfiguration);
        NAME(cudaErrorNoDevice);
        NAME(cudaErrorNoKernelImageForDevice);
        NAME(cudaErrorNotReady);
        NAME(cudaErrorLaunchFailure);
        NAME(cudaErrorStreamCaptureUnsupported);
        NAME(cudaErrorStreamCaptureInvalidated);
        NAME(cudaErrorStreamCaptureImplicit);
        NAME(cudaErrorCapturedEvent);
        NAME(cudaErrorGraphExecUpdateFailure);
    }
#undef NAME
    return false;
}
// What waits or allocates may not be called while a stream is captured, and breaks the capture.
cudaError_t refused_in_capture(const char* what) {
    if (!capturing) return cudaSuccess;
    capture_broken = true;
    return error(cudaErrorStreamCaptureUnsupported, format("%s while a stream is being captured", what));
}
cudaError_t enqueue(cudaStream_t s, Node node) {
    if (capturing && !s) {
        capture_broken = true;
        return error(cudaErrorStreamCaptureImplicit,
                     "work on the default stream would wait for the one being captured");
    }
    if (capturing && s == capturing) {
        if (capture_broken) return error(cudaErrorStreamCaptureInvalidated, "the capture was broken before");
        return capturing->capture->nodes.push_back(node), cudaSuccess;
    }
    return node.run();
}
int most_shared() { // that a block may ask for; CUDA C++ Programming Guide, table of compute capabilities
    switch (standin.cc) {
    case 80:
    case 87: return 163 * 1024;
    case 90:
    case 100:
    case 103: return 227 * 1024;
    default: return 99 * 1024;
    }
}
} // namespace

const char* cudaGetErrorName(cudaError_t e) {
    const char* name = "an unknown error";
    known(e, name);
    return name;
}
const char* cudaGetErrorString(cudaError_t e) { return e == cudaSuccess ? "no error" : text.c_str(); }
cudaError_t cudaGetLastError() { return std::exchange(last, cudaSuccess); }

// --- the card ----------------------------------------------------------------------------------------------------
cudaError_t cudaGetDeviceCount(int* count) {
    *count = standin.cards;
    return standin.cards ? cudaSuccess : error(cudaErrorNoDevice, "no CUDA-capable device is detected");
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
    *p = {};
    snprintf(p->name, sizeof p->name, "%s", standin.name);
    p->major = standin.cc / 10, p->minor = standin.cc % 10, p->multiProcessorCount = standin.sms;
    p->memoryBusWidth = 1024, p->totalGlobalMem = standin.memory, p->sharedMemPerBlockOptin = most_shared();
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 1000000, cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    *free = standin.memory - standin.allocated, *total = standin.memory;
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return refused_in_capture("cudaDeviceSynchronize"); }

// --- memory ------------------------------------------------------------------------------------------------------
cudaError_t cudaMallocBytes(void** p, size_t bytes, bool zero_means_null, bool pinned) {
    if (cudaError_t e = refused_in_capture("allocating")) return e;
    *p = nullptr;
    if (!bytes) return zero_means_null ? cudaSuccess : error(cudaErrorInvalidValue, "no bytes");
    if (bytes > standin.memory - standin.allocated || posix_memalign(p, 256, bytes))
        return error(cudaErrorMemoryAllocation, format("out of memory: %zu bytes", bytes));
    memset(*p, 0xff, bytes);
    allocations[*p] = {bytes, pinned}, standin.allocated += bytes;
    return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
    if (!p) return cudaSuccess;
    if (cudaError_t e = refused_in_capture("freeing")) return e;
    auto at = allocations.find(p);
    if (at == allocations.end()) return error(cudaErrorInvalidValue, "freeing what was not allocated");
    standin.allocated -= std::min(standin.allocated, at->second.bytes);
    allocations.erase(at);
    free(p);
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void* p) { return cudaFree(p); }
static size_t bytes_left(const void* p, bool& pinned) { // of the allocation that p lies in
    auto after = allocations.upper_bound((void*)p);
    if (after == allocations.begin()) return 0;
    auto [start, a] = *--after;
    size_t offset = (const char*)p - (char*)start;
    pinned = a.pinned;
    return offset < a.bytes ? a.bytes - offset : 0;
}
size_t device_bytes(const void* p) {
    bool pinned = false;
    size_t left = bytes_left(p, pinned);
    return pinned ? 0 : left;
}
static Memory memory_of(const void* p) {
    bool pinned = false;
    return !bytes_left(p, pinned) ? Memory::pageable : pinned ? Memory::pinned : Memory::device;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t s) {
    Node node = {"copy", [=] { return memmove(to, from, bytes), cudaSuccess; }, memory_of(from), memory_of(to)};
    if (s && s == capturing && (node.from == Memory::pageable || node.to == Memory::pageable))
        return refused_in_capture("copying from or to memory that is not pinned");
    return enqueue(s, node);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    if (cudaError_t e = refused_in_capture("cudaMemcpy")) return e;
    return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t s) {
    return enqueue(s, {"memset", [=] { return memset(p, value, bytes), cudaSuccess; }});
}
cudaError_t cudaMemset(void* p, int value, size_t bytes) { return cudaMemsetAsync(p, value, bytes, nullptr); }

// --- streams, events, graphs -------------------------------------------------------------------------------------
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { return *s = new CUstream_st, cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t s) { return delete s, cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return refused_in_capture("cudaStreamSynchronize"); }
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t, unsigned) {
    return enqueue(s, {"wait", [] { return cudaSuccess; }});
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned flags) {
    *e = new CUevent_st;
    (*e)->timing = !(flags & cudaEventDisableTiming);
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    e->captured = s && s == capturing;
    return enqueue(
        s, {"record", [=] { return e->recorded = true, e->at = std::chrono::steady_clock::now(), cudaSuccess; }});
}
static cudaError_t look_at(cudaEvent_t e, const char* how) {
    if (cudaError_t refused = refused_in_capture(how)) return refused;
    return e->captured ? error(cudaErrorCapturedEvent, format("%s of an event that a capture recorded", how))
                       : cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t e) { return look_at(e, "cudaEventQuery"); }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { return look_at(e, "cudaEventSynchronize"); }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
    if (!from->timing || !to->timing || !from->recorded || !to->recorded)
        return error(cudaErrorInvalidValue, "an event without a time");
    *ms = std::chrono::duration<float, std::milli>(to->at - from->at).count();
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t e) { return delete e, cudaSuccess; }

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
    if (!s) return error(cudaErrorStreamCaptureUnsupported, "the default stream cannot be captured");
    if (capturing) return error(cudaErrorInvalidValue, "a stream is being captured already");
    capturing = s, capture_broken = false, s->capture = new CUgraph_st;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* g) {
    *g = nullptr;
    if (!s || s != capturing) return error(cudaErrorInvalidValue, "the stream is not being captured");
    capturing = nullptr;
    *g = std::exchange(s->capture, nullptr);
    if (!capture_broken) return cudaSuccess;
    delete std::exchange(*g, nullptr);
    return error(cudaErrorStreamCaptureInvalidated, "the capture was broken: " + text);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* e, cudaGraph_t g, unsigned long long) {
    standin.instantiations++;
    return *e = new CUgraphExec_st{g->nodes}, cudaSuccess;
}
// Arguments, grids and kernels may be others; how many nodes there are, of what kind, and between which kinds of memory
// they copy may not.
cudaError_t cudaGraphExecUpdate(cudaGraphExec_t e, cudaGraph_t g, cudaGraphExecUpdateResultInfo* how) {
    size_t n = e->nodes.size();
    how->result = 1;
    if (g->nodes.size() != n)
        return error(cudaErrorGraphExecUpdateFailure, format("%zu nodes, and %zu now", n, g->nodes.size()));
    for (size_t i = 0; i < n; i++) {
        const Node &was = e->nodes[i], &is = g->nodes[i];
        if (was.kind != std::string(is.kind) || was.from != is.from || was.to != is.to)
            return error(cudaErrorGraphExecUpdateFailure, format("node %zu: %s was %s", i, is.kind, was.kind));
    }
    how->result = 0, e->nodes = g->nodes;
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) {
    return enqueue(s, {"graph", [nodes = e->nodes] {
                           standin.graphs++;
                           for (const Node& n : nodes)
                               if (cudaError_t e = n.run()) return e;
                           return cudaSuccess;
                       }});
}
cudaError_t cudaGraphDestroy(cudaGraph_t g) { return delete g, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) { return delete e, cudaSuccess; }

// --- kernels -----------------------------------------------------------------------------------------------------
cudaError_t func_get_attributes(cudaFuncAttributes* a, const void* kernel) {
    if (!standin.has_code) return error(cudaErrorNoKernelImageForDevice, "no kernel image is available for this card");
    auto asked = asked_for.find(kernel);
    *a = {1024, asked == asked_for.end() ? 48 * 1024 : asked->second};
    return cudaSuccess;
}
cudaError_t func_set_attribute(const void* kernel, cudaFuncAttribute, int value) {
    if (value < 0 || value > most_shared())
        return error(cudaErrorInvalidValue,
                     format("%d bytes of shared memory; a block of this card has %d", value, most_shared()));
    asked_for[kernel] = value;
    return cudaSuccess;
}
cudaError_t launch_kernel(const cudaLaunchConfig_t& c, const void* kernel, std::function<void()> thread) {
    unsigned grid = c.gridDim.x, block = c.blockDim.x;
    if (!grid || grid > 0x7fffffff || !block || block > 1024 || block % 32 || c.gridDim.y != 1 || c.gridDim.z != 1 ||
        c.blockDim.y != 1 || c.blockDim.z != 1)
        return error(cudaErrorInvalidConfiguration,
                     format("%u blocks of %u threads; 1 to 1024, in whole warps, along x", grid, block));
    cudaFuncAttributes a;
    if (cudaError_t e = func_get_attributes(&a, kernel)) return e;
    if (c.dynamicSmemBytes > (size_t)a.maxDynamicSharedSizeBytes)
        return error(cudaErrorInvalidValue, format("%zu bytes of shared memory, but only %d were asked for",
                                                   c.dynamicSmemBytes, a.maxDynamicSharedSizeBytes));
    return enqueue(c.stream, {"kernel", [=, shared = c.dynamicSmemBytes] {
                                  standin.launches++;
                                  std::string wrong = run_grid(grid, (int)block, shared, thread);
                                  return wrong.empty() ? cudaSuccess : error(cudaErrorLaunchFailure, wrong);
                              }});
}
