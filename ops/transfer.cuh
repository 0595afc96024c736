// Between the CPU and its GPU, without waiting: small things go down while a step runs, and come back a step later.
// Both go through pinned memory, because from any other the driver copies in its own time.
#pragma once
#include "ops/lanes.cuh"

// *to (device) = *from (host), before what is launched from now on; `from` may change as soon as this returns. At most
// STAGING bytes. Two halves of pinned memory take turns: one fills while the other's copies may still be on their way.
constexpr size_t STAGING = 16 << 20;
#ifdef ULP_GPU
struct Staging {
    char* memory = nullptr;
    cudaEvent_t copied[2];
    size_t used = 0;
    int half = 0;
};
inline Staging staging;
#endif
inline void upload(void* to, const void* from, size_t bytes) {
    if (!machine.gpu) return (void)memcpy(to, from, bytes);
#ifdef ULP_GPU
    Staging& s = staging;
    if (bytes > STAGING) fail("upload: %zu bytes; it takes %zu at most", bytes, STAGING);
    if (!s.memory) {
        cuda_check(cudaMallocHost((void**)&s.memory, 2 * STAGING), "pinned memory");
        for (auto& e : s.copied) cuda_check(cudaEventCreateWithFlags(&e, cudaEventDisableTiming), "event");
    }
    if (s.used + bytes > STAGING) {
        cuda_check(cudaEventRecord(s.copied[s.half], (cudaStream_t)machine.stream), "upload");
        s.half ^= 1, s.used = 0;
        cuda_check(cudaEventSynchronize(s.copied[s.half]), "upload");
    }
    char* at = s.memory + s.half * STAGING + s.used;
    memcpy(at, from, bytes), s.used += (bytes + 255) / 256 * 256;
    cuda_check(cudaMemcpyAsync(to, at, bytes, cudaMemcpyHostToDevice, (cudaStream_t)machine.stream), "upload");
#endif
}

// A value on the device, asked for now and read later.
template <class T> struct Later {
    T value = {};
#ifdef ULP_GPU
    T* pinned = nullptr; // two: what was asked for last may arrive before the one before it is read
    cudaEvent_t arrived[2];
    int64_t asked = 0, read = 0;
    Later() = default;
    Later(const Later&) = delete;
    ~Later() {
        if (pinned) cudaFreeHost(pinned), cudaEventDestroy(arrived[0]), cudaEventDestroy(arrived[1]);
    }
#endif
    void ask(const T* from) { // at most two are under way
        if (!machine.gpu) return (void)(value = *from);
#ifdef ULP_GPU
        if (!pinned) {
            cuda_check(cudaMallocHost((void**)&pinned, 2 * sizeof(T)), "pinned memory");
            for (auto& e : arrived) cuda_check(cudaEventCreateWithFlags(&e, cudaEventDisableTiming), "event");
        }
        int i = asked++ % 2;
        cuda_check(cudaMemcpyAsync(pinned + i, from, sizeof(T), cudaMemcpyDeviceToHost, (cudaStream_t)machine.stream), "result");
        cuda_check(cudaEventRecord(arrived[i], (cudaStream_t)machine.stream), "result");
#endif
    }
    T get() { // in the order in which they were asked for; waits for it
#ifdef ULP_GPU
        if (machine.gpu) {
            int i = read++ % 2;
            cuda_check(cudaEventSynchronize(arrived[i]), "result");
            value = pinned[i];
        }
#endif
        return value;
    }
};
