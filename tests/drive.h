// Drives the model without main(): batches, with the token index that the embedding's gradient needs.
#pragma once
#include "model.cuh"

inline void set_batch(GPT& g, const std::vector<int>& tokens, const std::vector<int>& targets) {
    std::map<int, std::vector<int>> at; // ascending tokens, ascending positions
    for (size_t n = 0; n < tokens.size(); n++) {
        g.tokens[n] = tokens[n], g.targets[n] = targets[n];
        at[tokens[n]].push_back((int)n);
    }
    if (g.use != Use::training) return;
    int i = 0, k = 0;
    for (auto& [token, positions] : at) {
        g.index.distinct[i] = token, g.index.first[i++] = k;
        for (int n : positions) g.index.positions[k++] = n;
    }
    g.index.first[i] = k, g.index.count = i;
}
