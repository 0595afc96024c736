// ./train against PyTorch: the same as f32_model.cpp, where activations and operands are rounded to BF16.
#include "golden.h"

static_assert(std::is_same_v<act, bf16>);

static const Kernels all_kernels[] = {Kernels::reference, Kernels::portable, Kernels::fast};

TEST_CASE("bf16: eval loss equals PyTorch's to 5e-3 relative, whatever the kernels, the batch and the use") {
    for (const char* name : {"square", "odd", "deep"})
        for (Kernels kernels : all_kernels) {
            machine.kernels = kernels;
            INFO(std::string(name), ", kernels ", (int)kernels);
            Golden golden(name);
            double loss = golden.eval();
            CHECK(std::fabs(loss / golden.eval_loss - 1) <= 5e-3);
            CHECK(Golden(name, Use::inference).eval() == loss);
            CHECK(std::fabs(Golden(name, Use::inference, 1).eval() - loss) <= 1e-12); // sums of losses, in double
        }
    machine.kernels = Kernels::fast;
}
TEST_CASE("bf16: logits and every parameter's gradient are no farther from PyTorch's than BF16 makes them") {
    // Independent roundings add up as squares. One is off by up to 2^-8 of a power of two, evenly: 2^-8 / sqrt 3, and
    // relative to mantissas between 1 and 2, sqrt 2 less. On the way to the logits lie 15 a layer (11 activations, P
    // among them, and 4 weights) and 4 outside; to the gradients 24 a layer and 8 outside. Twice that is the bound, and
    // an error of r at right angles costs r^2 / 2 of the cosine.
    const double one = 0x1p-8 / sqrt(6);
    for (const char* name : {"square", "odd", "deep"})
        for (Kernels kernels : all_kernels) {
            machine.kernels = kernels;
            Golden golden(name);
            const int L = golden.g.config.layers;
            golden.set_windows(0, 1);
            gpt_forward(golden.g, 1, golden.T);
            Safetensors file(golden.dir + "/logits.safetensors");
            std::vector<float> want((size_t)golden.T * golden.g.config.vocab);
            file.read(want.data(), *file.find("logits"), 0, want.size());
            CHECK(distance(golden.g.logits, want.data(), want.size()).relative <= 2 * one * sqrt(15 * L + 4));
            golden.backward(0, 1);
            for_each_param(golden.g, [&](const std::string& tensor, Param& p) {
                INFO(std::string(name), " ", tensor, ", kernels ", (int)kernels);
                Distance d = distance(p.grad, golden.expected_gradient(tensor, p).data(), p.size());
                double bound = 2 * one * sqrt(24 * L + 8);
                CHECK(d.relative <= bound);
                CHECK(d.cosine >= 1 - bound * bound / 2);
            });
        }
    machine.kernels = Kernels::fast;
}
TEST_CASE("bf16: 30 steps, of one and of two microbatches, follow PyTorch's AdamW to 2e-2 nats") {
    // norms: as the gradients above, 0.03 at 3 layers
    for (int accum : {1, 2})
        for (const char* name : {"square", "odd", "deep"}) check_trace(name, accum, 2e-2, 3e-2);
}
