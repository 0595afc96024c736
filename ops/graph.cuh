// The launches of a training step as one graph: a GPU goes from kernel to kernel without its host. What a reader would
// get wrong:
// - They are recorded anew every time, which costs a microsecond each while the GPU does the step before, and the graph
//   that is there takes over their arguments. A graph recorded once and replayed would save that, but then everything
//   that changes (learning rates, rounding keys, counts of tokens) would have to lie in memory, every op would have to
//   look for it there, and what was forgotten would stay what it was and go on training.
// - Nothing runs while it is recorded, so that work() can be called again: what cannot be recorded is run as it is.
#pragma once
#include "ops/device.cuh"
#include <functional>

struct Graph {
    bool used = false;   // for the last run()
    void* exec = nullptr; // a cudaGraphExec_t
    std::string refused; // why it was not recorded; then it is not tried again
    Graph() = default;
    Graph(Graph&& g) : exec(std::exchange(g.exec, nullptr)) {}
    ~Graph();
    // plain: not as a graph. So are the first step of its kind, which searches, allocates and loads code, and one that
    // somebody looks at; those of a CPU, of DEBUG=1 and of --profile are in any case.
    void run(bool plain, const std::function<void()>& work);

  private:
    bool launched(const std::function<void()>& work);
};
