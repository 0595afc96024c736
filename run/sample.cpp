// Sampling, the part that knows nothing of a model.
#include "run/sample.h"
#include "run/error.h"
#include <algorithm>
#include <cmath>
#include <sstream>

int draw_token(const std::vector<double>& logits, double temperature, int top_k, double u) {
    int V = (int)logits.size(), keep = temperature == 0 ? 1 : top_k > 0 ? std::min(top_k, V) : V;
    std::vector<std::pair<double, int>> p(V);
    for (int v = 0; v < V; v++) p[v] = {logits[v], v};
    std::partial_sort(p.begin(), p.begin() + keep, p.end(), [](auto& a, auto& b) {
        return a.first != b.first ? a.first > b.first : a.second < b.second;
    });
    double sum = 0, top = p[0].first;
    for (int k = 0; k < keep; k++) sum += p[k].first = temperature ? exp((p[k].first - top) / temperature) : 1;
    u *= sum;
    int k = 0;
    while (k + 1 < keep && (u -= p[k].first) >= 0) k++;
    return p[k].second;
}

std::string show_tokens(const std::vector<int>& tokens, int V) {
    std::string s;
    for (int t : tokens)
        if (V > 256) s += std::to_string(t) + " ";
        else s += (t < ' ' && t != '\n' && t != '\t') || t == 127 ? '?' : (char)t;
    return s;
}
std::vector<int> prompt_tokens(const std::string& prompt, int V) {
    std::vector<int> tokens;
    if (V <= 256)
        for (unsigned char c : prompt.empty() ? "\n" : prompt) {
            if (c >= V) fail("--prompt: byte %d is not in the model's vocabulary of %d", c, V);
            tokens.push_back(c);
        }
    else if (prompt.empty()) tokens.push_back(V - 1);
    else {
        std::istringstream in(prompt);
        for (std::string word; in >> word;) {
            char* end;
            long t = strtol(word.c_str(), &end, 10);
            if (*end || t < 0 || t >= V)
                fail("--prompt: \"%s\" is no token from 0 to %d. hint: without a tokenizer, give numbers", word.c_str(),
                     V - 1);
            tokens.push_back((int)t);
        }
    }
    return tokens;
}
