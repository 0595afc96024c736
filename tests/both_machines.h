// The same work on the CPU and on a GPU: the same bits.
#pragma once
#include "close.h"
#include "standin.h"
#include "ops/lanes.cuh"

static_assert(std::is_same_v<act, bf16>);
using Acts = std::vector<act>;
using Reals = std::vector<real>;

// What `work` appends to its argument, once on the host, once on the GPU in each order of threads.
template <class F> void check_both_machines(const std::string& what, F work) {
    machine.kernels = Kernels::reference;
    Reals host, device;
    work(host);
    OnCard card;
    in_every_order([&](Order o) {
        long before = machine.launches;
        device.clear();
        work(device);
        CHECK(machine.launches > before);
        check_same_bits(what + ", order " + std::to_string((int)o), device, host);
    });
    machine.kernels = Kernels::fast;
}
template <class T> void append(Reals& all, const std::vector<T>& x) {
    for (const T& v : x) all.push_back((real)v);
}
