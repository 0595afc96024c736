// What the casts of fp8.cuh cost, in GB/s of input (R, C), on whichever machine is selected. A round runs every
// cast once, so that whatever else the machine does is shared by all; the median over the rounds counts. The copy is
// the roofline: no cast reads its input once and writes less faster than memory allows.
#pragma once
#include "ops/ops.cuh"
#include <algorithm>
#include <functional>
#include <vector>

inline void bench_casts(int R, int C, int repeats, void (*print)(const char* name, double gb_per_s)) {
    struct Memory {
        size_t bytes;
        char* p;
        explicit Memory(size_t n) : bytes(n + 4096), p(allocate_zeroed(bytes)) {}
        ~Memory() { release_memory(p, bytes); }
    };
    size_t n = (size_t)R * C, per_16 = std::max(R * blocks(C, 16), C * blocks(R, 16));
    Memory input(n * sizeof(act)), output(C * blocks(R, 16) * 16 * sizeof(act)), code(n), scale_bytes(per_16), floats(4 * per_16 + 8);
    act *x = (act*)input.p, *y = (act*)output.p;
    uint8_t *q = (uint8_t*)code.p, *s = (uint8_t*)scale_bytes.p;
    float *scale = (float*)floats.p, *amax = scale + 1, *f = scale + 2;
    *scale = 100;
    for (size_t i = 0; i < n; i++) { // a sum of 8 bytes is near enough to a normal distribution
        uint64_t u = mix(1, i), sum = 0;
        for (int byte = 0; byte < 8; byte++) sum += u >> 8 * byte & 255;
        x[i] = act(((float)(int)sum - 1020) * (1 / 209.0f));
    }
    struct Case {
        std::string name;
        std::function<void()> cast;
        std::vector<double> seconds;
    };
    std::vector<Case> cases;
    auto add = [&](std::string name, std::function<void()> cast) { cases.push_back({name, cast, {}}); };
    add("copy", [=] { copy(y, x, n); });
    for (bool t : {false, true}) {
        const Cast sr = {.elem = E2M1, .block = {1, 16}, .round = Rounding::sr};
        auto named = [&](const char* name) { return format("%s %s", name, t ? "columns" : "rows"); };
        add(named("e4m3"), [=] { cast_tensor(q, (float*)nullptr, x, scale, {.elem = E4M3}, t, R, C); });
        add(named("e5m2, amax"), [=] { cast_tensor(q, amax, x, scale, {.elem = E5M2}, t, R, C); });
        add(named("e4m3, amax before"), [=] {
            amax_tensor(amax, x, n);
            cast_tensor(q, (float*)nullptr, x, scale, {.elem = E4M3}, t, R, C);
        });
        for (int rows : {1, 128})
            add(named(rows == 1 ? "float8 1x128" : "float8 128x128"), [=] {
                cast_float8(q, f, x, {.elem = E4M3, .block = {rows, 128}, .pow2_scales = true}, t, R, C);
            });
        add(named("mxfp8 e4m3"), [=] { cast_mx(q, s, x, {.elem = E4M3}, t, R, C); });
        add(named("mxfp8 e5m2"), [=] { cast_mx(q, s, x, {.elem = E5M2}, t, R, C); });
        add(named("mxfp6 e2m3"), [=] { cast_mx(q, s, x, {.elem = E2M3}, t, R, C); });
        add(named("mxfp4 e2m1"), [=] { cast_mx(q, s, x, {.elem = E2M1}, t, R, C); });
        add(named("nvfp4 1x16"), [=] { cast_nvfp4(q, s, amax, f, x, {.elem = E2M1, .block = {1, 16}}, t, R, C); });
        add(named("nvfp4 1x16, stochastic"), [=] { cast_nvfp4(q, s, amax, f, x, sr, t, R, C, 7); });
        add(named("nvfp4 16x16"), [=] { cast_nvfp4(q, s, amax, f, x, {.elem = E2M1, .block = {16, 16}}, t, R, C); });
    }
    add("hadamard columns", [=] { hadamard(y, x, R, C); });
    for (int round = -1; round < repeats; round++) // the first, -1, touches the memory
        for (auto& c : cases) {
            synchronize("bench");
            auto start = std::chrono::steady_clock::now();
            c.cast();
            synchronize("bench");
            std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
            if (round >= 0) c.seconds.push_back(passed.count());
        }
    for (auto& c : cases) {
        std::nth_element(c.seconds.begin(), c.seconds.begin() + repeats / 2, c.seconds.end());
        print(c.name.c_str(), sizeof(act) * n / c.seconds[repeats / 2] / 1e9);
    }
}
