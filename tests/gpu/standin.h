// The stand-in's place in tests that run on a real card: the same words for the same tests. What a reader would get wrong:
// - Every launch is waited for, and what tests allocate both machines see (memory.cpp), so that a test may hand a
//   std::vector's memory to a kernel and look at it at once, as it may on the stand-in.
// - A card asked for is not the card there is: copies lie as that one wants them, GEMMs run as this one does.
#pragma once
#include "ops/device.cuh"
#include "tests/check.h"
#include <cstring>

enum class Order { ascending, descending, shuffled }; // a card takes its threads as it likes; three times it is
constexpr Order orders[] = {Order::ascending, Order::descending, Order::shuffled};
struct OnCard {
    explicit OnCard(int cc = 0) {
        std::string why_not;
        Card card = find_card(why_not);
        if (card.name.empty()) fail("these tests need a GPU: %s", why_not.c_str());
        use_gpu(card);
        machine.debug = true;
        if (cc && machine.kernels == Kernels::fast) machine.layout = layout_for(cc);
    }
    ~OnCard() { machine.gpu = false, machine.cc = 0, machine.layout = {}; }
    OnCard(const OnCard&) = delete;
};
template <class Work> void in_every_order(Work work) {
    for (Order o : orders) work(o);
}
