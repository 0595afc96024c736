// What tests of the GPU's code say to the stand-in, and ask it.
#pragma once
#include "tests/check.h"
#include "ops/device.cuh"
#include <cstring>

enum class Order { ascending, descending, shuffled }; // of blocks, of a block's warps, of a warp's lanes
constexpr Order orders[] = {Order::ascending, Order::descending, Order::shuffled};
inline const char* name_of(Order o) {
    return o == Order::ascending ? "ascending" : o == Order::descending ? "descending" : "shuffled";
}
struct StandIn {
    Order order = Order::ascending;
    uint64_t seed = 1; // of the shuffled one
    int cards = 1, cc = 90, sms = 4;
    const char* name = "stand-in";
    bool has_code = true; // for that card
    size_t memory = (size_t)4 << 30;
    long launches = 0, warps = 0, meetings = 0, barriers = 0; // that have happened; meetings of a warp
    long graphs = 0, instantiations = 0;                      // graphs launched
    size_t allocated = 0;
};
extern StandIn standin;
size_t device_bytes(const void* p); // from p to the end of the allocation that it lies in, 0 if in none

// The GPU is a card of that compute capability while this lives.
struct OnCard {
    explicit OnCard(int cc = 90) {
        std::string why_not;
        standin = {}, standin.cc = cc;
        use_gpu(find_card(why_not));
    }
    ~OnCard() { machine.gpu = false, machine.cc = 0, machine.layout = {}; }
    OnCard(const OnCard&) = delete;
};
// work(order) in each; orders differ in the turns of threads, and in nothing that a kernel may depend on
template <class Work> void in_every_order(Work work) {
    for (Order o : orders) {
        INFO("threads in ", name_of(o), " order");
        standin.order = o;
        work(o);
    }
    standin.order = Order::ascending;
}
// What work(out) leaves in `out`, n elements of garbage before: the same bits in every order.
template <class T, class Work> std::vector<T> same_in_every_order(const std::string& what, size_t n, Work work) {
    std::vector<T> first;
    in_every_order([&](Order o) {
        std::vector<T> out(n);
        if (n) memset((void*)out.data(), 0xff, n * sizeof(T));
        work(out);
        if (o == orders[0]) first = out;
        REQUIRE(out.size() == first.size());
        for (size_t i = 0; i < out.size(); i++)
            if (memcmp(&out[i], &first[i], sizeof(T))) {
                FAIL_CHECK(what << "[" << i << "] of " << out.size() << ": threads in " << name_of(o)
                                << " order find other bits: " << (double)out[i] << " and " << (double)first[i]);
                return;
            }
    });
    return first;
}
