// Softmax and cross-entropy in one: three passes over a row of logits, the last of which may overwrite it with its own
// gradient. A target of -1 is ignored (loss and gradient 0).
#pragma once
#include "ops/ops.cuh"

// loss = log sum exp(logits) - logits[target]; with a gradient: logits <- (softmax - onehot) * scale
HD inline void classifier_row(Lanes g, real* loss, act* logits, int target, real scale, bool gradient, int V) {
    real at_target = target < 0 ? 0 : (real)logits[target]; // read before any lane may overwrite it
    real top = g.max(V, [](real z) { return z; }, logits);
    real sum = g.sum(V, [=](real z) { return exp_(z - top); }, logits);
    if (g.first()) *loss = target < 0 ? 0 : log_(sum) + top - at_target;
    if (!gradient) return;
    if (target < 0) return g.map(V, logits, [](real) { return (real)0; }, logits);
    real inverse = 1 / sum;
    g.map(V, logits, [=](real z) { return exp_(z - top) * inverse * scale; }, logits);
    if (g.owns(target)) logits[target] = act((exp_(at_target - top) * inverse - 1) * scale);
}
void classifier(real* losses, act* logits, const int* targets, real scale, bool gradient, int N, int V) {
    for_rows("classifier", (gradient ? 4.0 : 2.0) * N * V * sizeof(act), N, [=] HD(Lanes g, int n) {
        classifier_row(g, losses + n, logits + (size_t)n * V, targets[n], scale, gradient, V);
    });
}
