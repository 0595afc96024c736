// ./train-f32 against PyTorch. How far apart may two FP32 computations be? The files hold PyTorch's own float32 beside
// its float64: apart by 1e-7 of a loss and, 30 steps later, by 1e-6 nats and 5e-7 of a norm. We add in another order, no
// better and no worse: about ten times that is the tolerance.
#include "golden.h"

static_assert(std::is_same_v<act, float>);

TEST_CASE("f32: eval loss equals PyTorch's to 1e-5 relative, whatever the kernels, the batch and the use") {
    for (const char* name : {"square", "odd", "deep"})
        for (Kernels kernels : {Kernels::reference, Kernels::portable, Kernels::fast}) {
            machine.kernels = kernels;
            INFO(std::string(name), ", kernels ", (int)kernels);
            Golden golden(name);
            double loss = golden.eval();
            CHECK(std::fabs(loss / golden.eval_loss - 1) <= 1e-5);
            CHECK(Golden(name, Use::inference).eval() == loss);
            CHECK(std::fabs(Golden(name, Use::inference, 1).eval() - loss) <= 1e-12); // sums of losses, in double
        }
    machine.kernels = Kernels::fast;
}
TEST_CASE("f32: logits equal PyTorch's float64 to 1e-5 of their norm") {
    for (const char* name : {"square", "odd", "deep"}) {
        Golden golden(name);
        golden.set_windows(0, 1);
        gpt_forward(golden.g, 1, golden.T);
        Safetensors file(golden.dir + "/logits.safetensors");
        std::vector<float> want((size_t)golden.T * golden.g.config.vocab);
        file.read(want.data(), *file.find("logits"), 0, want.size());
        CHECK(distance(golden.g.logits, want.data(), want.size()).relative <= 1e-5);
    }
}
TEST_CASE("f32: every parameter's gradient equals PyTorch's float64 to 1e-5 of its norm") {
    // The longest chain, from the loss to the embedding of a model of 3 layers, is about 15 roundings per layer and
    // direction and sums of at most 192 terms: 100 roundings of 2^-24 that all pointed one way would make 6e-6.
    for (const char* name : {"square", "odd", "deep"})
        for (Kernels kernels : {Kernels::reference, Kernels::portable, Kernels::fast}) {
            machine.kernels = kernels;
            Golden golden(name);
            CHECK(std::fabs(golden.backward(0, 1) / golden.batch_loss_64 - 1) <= 1e-6);
            for_each_param(golden.g, [&](const std::string& tensor, Param& p) {
                INFO(std::string(name), " ", tensor, ", kernels ", (int)kernels);
                Distance d = distance(p.grad, golden.expected_gradient(tensor, p).data(), p.size());
                CHECK(d.relative <= 1e-5);
            });
        }
    machine.kernels = Kernels::fast;
}
TEST_CASE("f32: 30 steps follow PyTorch's AdamW: losses to 1e-5 nats, norms to 1e-5 relative") {
    for (const char* name : {"square", "odd", "deep"}) check_trace(name, 1, 1e-5, 1e-5);
}
TEST_CASE("f32: 30 steps of two microbatches each follow PyTorch's AdamW") {
    for (const char* name : {"square", "odd", "deep"}) check_trace(name, 2, 1e-5, 1e-5);
}
