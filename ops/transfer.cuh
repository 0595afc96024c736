// Between the CPU and its GPU, without waiting: small things go down while a step runs, and come back a step later.
// Both go through pinned memory, because from any other the driver copies in its own time.
#pragma once
#include "ops/lanes.cuh"

// *to (device) = *from (host), before what is launched from now on; `from` may change as soon as this returns. At most
// STAGING bytes. Two halves of pinned memory take turns: one fills while the other's copies may still be on their way.
constexpr size_t STAGING = 16 << 20;
#ifdef ULP_GPU
struct Pinned { // two halves of memory, and when the last copy of each was made
    char* memory = nullptr;
    cudaEvent_t copied[2];
    void need(size_t bytes) { // in all
        if (memory) return;
        cuda_check(cudaMallocHost((void**)&memory, bytes), "pinned memory");
        for (auto& e : copied) cuda_check(cudaEventCreateWithFlags(&e, cudaEventDisableTiming), "event");
    }
    void mark(int half) { cuda_check(cudaEventRecord(copied[half], (cudaStream_t)machine.stream), "transfer"); }
    void wait(int half) { cuda_check(cudaEventSynchronize(copied[half]), "transfer"); }
};
struct Staging : Pinned {
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
    s.need(2 * STAGING);
    if (s.used + bytes > STAGING) s.mark(s.half), s.half ^= 1, s.used = 0, s.wait(s.half);
    char* at = s.memory + s.half * STAGING + s.used;
    memcpy(at, from, bytes), s.used += (bytes + 255) / 256 * 256;
    cuda_check(cudaMemcpyAsync(to, at, bytes, cudaMemcpyHostToDevice, (cudaStream_t)machine.stream), "upload");
#endif
}

// A value on the device, asked for now and read later.
template <class T> struct Later {
    T value = {};
#ifdef ULP_GPU
    Pinned pinned; // two values: what was asked for last may arrive before the one before it is read
    int64_t asked = 0, read = 0;
    Later() = default;
    Later(const Later&) = delete;
    ~Later() {
        if (pinned.memory)
            cudaFreeHost(pinned.memory), cudaEventDestroy(pinned.copied[0]), cudaEventDestroy(pinned.copied[1]);
    }
#endif
    void ask(const T* from) { // at most two are under way
        if (!machine.gpu) return (void)(value = *from);
#ifdef ULP_GPU
        pinned.need(2 * sizeof(T));
        int i = asked++ % 2;
        cuda_check(cudaMemcpyAsync((T*)pinned.memory + i, from, sizeof(T), cudaMemcpyDeviceToHost,
                                   (cudaStream_t)machine.stream), "result");
        pinned.mark(i);
#endif
    }
    T get() { // in the order in which they were asked for; waits for it
#ifdef ULP_GPU
        if (machine.gpu) {
            int i = read++ % 2;
            pinned.wait(i);
            value = ((T*)pinned.memory)[i];
        }
#endif
        return value;
    }
};
