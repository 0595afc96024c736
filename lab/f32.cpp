// model.cuh once more, with FP32 activations, in a namespace of its own: `act` is decided when a program is compiled, and
// so one program holds both. What model.cuh includes from outside has to be included before.
#include "lab/f32.h"
#include "ops/cast_cpu.h"
#include "ops/matmul_cpu.h"
#include "run/error.h"
#include "run/random.h"
#include "run/screen.h"
#include <algorithm>
#include <array>
#include <cfloat>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <sys/mman.h>
#include <type_traits>
#include <utility>
#undef REAL_DOUBLE
#undef ULP_STANDIN
#undef ACT_FLOAT
#define ACT_FLOAT
namespace f32 {
#include "fp8.cuh"
// The reference casts nothing, and casts are what takes a compiler long: these win over the templates.
[[noreturn]] static void no_cast() { fail("the FP32 reference casts nothing"); }
static void cast_tensor(uint8_t*, float*, const act*, const float*, Cast, bool, int, int, uint64_t) { no_cast(); }
static void cast_mx(uint8_t*, uint8_t*, const act*, Cast, bool, int, int, uint64_t) { no_cast(); }
static void cast_float8(uint8_t*, float*, const act*, Cast, bool, int, int, uint64_t) { no_cast(); }
static void cast_nvfp4(uint8_t*, uint8_t*, float*, float*, const act*, Cast, bool, int, int, uint64_t) { no_cast(); }
static void hadamard(act*, const act*, int, int) { no_cast(); }
static void amax_tensor(float*, const act*, size_t) { no_cast(); }
#include "model.cuh"
#include "ops/attention.cu"
#include "ops/device.cu"
#include "ops/matmul.cu"
#include "ops/ops.cu"
} // namespace f32

double f32_gradients(std::vector<std::vector<float>>& dw, Config config, const std::vector<const float*>& weights,
                     const Batches& batches, int B, int T) {
    using namespace f32;
    GPT g;
    allocate(g, config, Use::gradients, B, T);
    size_t i = 0;
    for_each_param(g, [&](const std::string&, Param& p) { std::copy_n(weights[i++], p.size(), p.w); });
    publish(g);
    batches.fill_windows(0, B, g.tokens, g.targets);
    g.index.count = batches.index(g.tokens, g.index.distinct, g.index.first, g.index.positions);
    g.pass.training = true;
    double loss = gpt_forward(g, B, T, 1 / ((float)B * (float)T));
    gpt_backward(g, B, T);
    dw.clear();
    for_each_linear(g, [&](const std::string&, Linear& l) {
        dw.emplace_back(l.weight.grad, l.weight.grad + l.weight.size());
    });
    release(g);
    return loss;
}
