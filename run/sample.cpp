// Sampling, the part that knows nothing of a model.
#include "run/sample.h"
#include <algorithm>
#include <cmath>

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
