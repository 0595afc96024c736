// Reads tests/golden/gpt2/<case>, where PyTorch says what the losses, logits, gradients and AdamW steps of three small
// GPT-2s are, and walks the model along them. Paths are relative to the repository's root, where tests run.
#pragma once
#include "close.h"
#include "drive.h"
#include "run/checkpoint.h"
#include "run/safetensors.h"
#include <cstdlib>
#include <fstream>
#include <sstream>

struct Golden {
    Threads one{1}; // thousands of small launches; test_ops.cpp tests that the number of threads changes nothing
    std::string dir;
    int T, B, windows;
    double eval_loss, batch_loss_64;
    std::vector<int> tokens;
    GPT g;

    explicit Golden(const std::string& name, Use use = Use::training, int rows = 0) {
        dir = "tests/golden/gpt2/" + name;
        auto summary = csv("summary.csv").at(0);
        T = (int)summary[5], B = (int)summary[6], windows = (int)summary[7];
        eval_loss = summary[8], batch_loss_64 = summary[11];
        std::ifstream file(dir + "/tokens.bin", std::ios::binary);
        file.seekg(1024); // the header
        for (uint16_t t; file.read((char*)&t, 2);) tokens.push_back(t);
        Config c = read_config(dir);
        REQUIRE(std::vector<int>{c.layers, c.heads, c.channels, c.seq_len, c.vocab} ==
                std::vector<int>(summary.begin(), summary.begin() + 5));
        allocate(g, c, use, rows ? rows : B, T);
        std::vector<NamedTensor> params;
        for_each_param(g, [&](const std::string& name, Param& p) {
            std::vector<int64_t> shape = p.rows ? std::vector<int64_t>{p.rows, p.cols} : std::vector<int64_t>{p.cols};
            params.push_back({name, shape, p.w, p.conv1d});
        });
        load_checkpoint(dir, params);
        publish(g);
    }
    Golden(const Golden&) = delete;
    ~Golden() { release(g); }

    std::vector<std::vector<double>> csv(const std::string& name) const { // without its header line
        std::ifstream file(dir + "/" + name);
        std::string line, cell;
        std::vector<std::vector<double>> rows;
        for (std::getline(file, line); std::getline(file, line);) {
            std::istringstream cells(line);
            rows.emplace_back();
            while (std::getline(cells, cell, ',')) rows.back().push_back(strtod(cell.c_str(), nullptr));
        }
        return rows;
    }
    // windows first .. first + rows - 1, modulo their number; window w predicts tokens wT+1 .. wT+T from wT .. wT+T-1
    void set_windows(int first, int rows) {
        std::vector<int> in, out;
        for (int r = 0; r < rows; r++)
            for (int t = 0; t < T; t++) {
                size_t at = (size_t)((first + r) % windows) * T + t;
                in.push_back(tokens[at]), out.push_back(tokens[at + 1]);
            }
        set_batch(g, in, out);
    }
    double eval() {
        double sum = 0;
        for (int w = 0, rows; w < windows; w += rows) {
            rows = std::min(g.B, windows - w);
            set_windows(w, rows);
            sum += gpt_forward(g, rows, T) * rows;
        }
        return sum / windows;
    }
    // the mean loss over `accum` microbatches of step `step` (from 0), and its gradients
    double backward(int step, int accum) {
        double sum = 0;
        for (int m = 0; m < accum; m++) {
            g.pass.micro = m;
            set_windows((step * accum + m) * B, B);
            sum += gpt_forward(g, B, T, 1.0f / (B * T * accum));
            gpt_backward(g, B, T);
        }
        return sum / accum;
    }
    std::vector<float> expected_gradient(const std::string& name, const Param& p) const {
        Safetensors file(dir + "/grads.safetensors");
        const TensorInfo* t = file.find(name);
        REQUIRE(t);
        REQUIRE(t->count() == p.size());
        std::vector<float> x(p.size());
        if (p.conv1d) file.read_transposed(x.data(), *t);
        else file.read(x.data(), *t, 0, x.size());
        return x;
    }
};
struct Distance { // |a - b| / |b|, and the cosine of the angle between them
    double relative, cosine;
};
template <class A, class B> Distance distance(const A* a, const B* b, size_t n) {
    double aa = 0, bb = 0, ab = 0, dd = 0;
    for (size_t i = 0; i < n; i++) {
        double x = a[i], y = b[i];
        aa += x * x, bb += y * y, ab += x * y, dd += (x - y) * (x - y);
    }
    return {sqrt(dd / bb), ab / sqrt(aa * bb)};
}
// 30 steps as trace.csv or trace-accum2.csv has them. Errors are relative for norms, in nats for losses.
inline void check_trace(const std::string& name, int accum, double loss_error, double norm_error) {
    Golden golden(name);
    auto rows = golden.csv(accum == 2 ? "trace-accum2.csv" : "trace.csv");
    REQUIRE(rows.size() == 30);
    for (int step = 0; step < 30; step++) {
        double loss = golden.backward(step, accum), norm = gradient_norm(golden.g, 1.0);
        update(golden.g, step + 1, 1e-3, 0.1);
        INFO(name, ", accum ", accum, ", step ", step + 1, ", kernels ", (int)machine.kernels);
        REQUIRE(std::fabs(loss - rows[step][1]) <= loss_error);
        REQUIRE(std::fabs(norm / rows[step][2] - 1) <= norm_error);
    }
}
