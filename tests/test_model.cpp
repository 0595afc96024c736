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

TEST_CASE("initialise: normals of 0.02, of 0.02 / sqrt(2L) into the residual stream, ones and zeros; all by the seed") {
    const int L = 3;
    GPT a, b, c;
    for (GPT* g : {&a, &b, &c}) allocate(*g, {L, 2, 64, 32, 300}, Use::inference, 1, 32);
    initialise(a, 7), initialise(b, 7), initialise(c, 8);
    std::map<std::string, std::vector<real>> weights[3];
    for (int i = 0; i < 3; i++)
        for_each_param(*std::vector<GPT*>{&a, &b, &c}[i], [&](const std::string& name, Param& p) {
            weights[i][name].assign(p.w, p.w + p.size());
            for (size_t j = 0; j < p.size(); j++) REQUIRE(p.operand[j].bits == bf16(p.w[j]).bits);
        });
    auto ends = [](const std::string& s, const std::string& with) { return s.ends_with(with); };
    for (auto& entry : weights[0]) {
        const std::string& name = entry.first;
        const std::vector<real>& w = entry.second;
        INFO(name);
        CHECK(w == weights[1][name]);
        bool norm = name.find("ln_") != std::string::npos;
        if (norm || ends(name, ".bias")) {
            CHECK(w == std::vector<real>(w.size(), ends(name, ".weight") ? 1.0f : 0.0f));
            continue;
        }
        CHECK(w != weights[2][name]);
        double sigma = ends(name, "c_proj.weight") ? 0.02 / sqrt(2 * L) : 0.02, n = w.size(), sum = 0, squares = 0,
               fourth = 0;
        for (double x : w) sum += x / sigma, squares += pow(x / sigma, 2), fourth += pow(x / sigma, 4);
        // standard deviations of the mean, the mean square, the mean fourth power: 1, sqrt 2, sqrt 96, over sqrt n
        CHECK(std::fabs(sum / n) <= 5 / sqrt(n));
        CHECK(std::fabs(squares / n - 1) <= 5 * sqrt(2 / n));
        CHECK(std::fabs(fourth / n - 3) <= 5 * sqrt(96 / n));
    }
    CHECK(weights[0]["h.0.mlp.c_fc.weight"] != weights[0]["h.1.mlp.c_fc.weight"]);
    CHECK(weights[0].size() == 2 + 12 * L + 2);
    for (GPT* g : {&a, &b, &c}) release(*g);
}
TEST_CASE(
    "allocate: no two tensors overlap, the categories add up, inference needs less, too long a context is refused") {
    Config c = {2, 3, 33, 9, 61};
    size_t used[2];
    for (Use use : {Use::inference, Use::training}) {
        GPT g;
        allocate(g, c, use, 2, 7);
        size_t sum = 0;
        for (auto& [category, bytes] : g.arena.bytes) sum += bytes;
        CHECK(sum == g.arena.used);
        used[use == Use::training] = sum;
        std::vector<std::pair<char*, size_t>> all;
        for_each_param(g, [&](const std::string&, Param& p) {
            all.push_back({(char*)p.w, p.size() * sizeof(real)}),
                all.push_back({(char*)p.operand, p.size() * sizeof(act)});
            if (use == Use::training)
                for (real* x : {p.grad, p.m, p.v}) all.push_back({(char*)x, p.size() * sizeof(real)});
        });
        size_t N = 14, C = 33;
        auto add = [&](act* x, size_t n) { all.push_back({(char*)x, n * sizeof(act)}); };
        for (TransformerBlock& b : g.blocks) {
            if (use == Use::inference && &b != &g.blocks[0]) continue; // they share one set
            for (act* x : {b.ln1, b.att, b.mid, b.ln2, b.out}) add(x, N * C);
            add(b.qkv, N * 3 * C), add(b.fc, N * 4 * C), add(b.gelu, N * 4 * C);
        }
        add(g.x0, N * C), add(g.lnf, N * C), add(g.logits, N * 61), add(g.branch, N * C);
        std::sort(all.begin(), all.end());
        CHECK(all[0].first >= g.arena.memory);
        for (size_t i = 0; i < all.size(); i++) {
            char* end = i + 1 < all.size() ? all[i + 1].first : g.arena.memory + g.arena.used;
            REQUIRE(all[i].first + all[i].second <= end);
            REQUIRE((uintptr_t)all[i].first % 256 == 0);
        }
        release(g);
    }
    CHECK(used[0] < used[1]);
    GPT g;
    CHECK_THROWS_AS(allocate(g, c, Use::training, 1, 10), Error);
}
