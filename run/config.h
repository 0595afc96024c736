// The five numbers that make a GPT-2. Alone in a file so that nvcc and the plain C++ around the model share it.
#pragma once

struct Config {
    int layers, heads, channels, seq_len, vocab; // L, NH, C (a multiple of NH), T (the longest context), V
};
