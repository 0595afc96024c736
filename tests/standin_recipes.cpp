// Whole models on cards of every kind: GEMMs through cuBLASLt, natively or emulated.
#include "cublasLt.h"
#include "drive.h"
#include "standin.h"

namespace { // test files share one program

// An odd vocabulary, 18 tokens and every linear quantized. Sums in another order may round a BF16 the other way, and that
// may move a code to its neighbour, which moves one product of a sum; 2 % leaves room for that, while a scale or a
// layout that is wrong anywhere moves loss or gradients by tenths.
TEST_CASE("cuBLASLt: every recipe trains on every card, and the loss is the row functions'") {
    Config c = {1, 2, 16, 9, 23};
    const int B = 2, T = c.seq_len, N = B * T;
    std::vector<int> tokens(N), targets(N);
    for (int i = 0; i < N; i++) tokens[i] = i * i % c.vocab, targets[i] = i * 3 % c.vocab;
    auto train = [&](const Recipe& r) {
        GPT g;
        allocate(g, c, Use::training, B, T, {{0, r, std::vector<bool>(5)}});
        initialise(g, 3);
        set_batch(g, tokens, targets);
        double loss = gpt_forward(g, B, T, 1.0f / N);
        gpt_backward(g, B, T, false);
        double norm = gradient_norm(g);
        release(g);
        return std::pair(loss, norm);
    };
    for (const Recipe& r : recipes) {
        machine.kernels = Kernels::reference;
        auto [loss, norm] = train(r);
        for (int cc : {80, 90, 100, 120}) {
            if (cc == 80 && r.name != "hybrid") continue; // where all are emulated
            OnCard card(cc);
            machine.kernels = Kernels::fast;
            INFO(r.name, " on sm_", cc);
            long before = standin_lt.matmuls;
            standin_lt.last_error = "";
            auto [there, norm_there] = train(r);
            CHECK(there == doctest::Approx(loss).epsilon(0.02));
            CHECK(norm_there == doctest::Approx(norm).epsilon(0.02));
            CHECK(standin_lt.matmuls - before == 15); // of 5 linears, each in fprop, dgrad and wgrad
            CHECK(standin_lt.last_error == "");
        }
    }
}
} // namespace
