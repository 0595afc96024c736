// Sampling, the part that knows nothing of a model.
#include "run/sample.h"
#include <algorithm>
#include <cmath>

int draw_token(const std::vector<double>& logits, const Draw& draw, double u) {
    int V = (int)logits.size(), sorted = 0;
    int keep = draw.temperature == 0 ? 1 : draw.top_k > 0 ? std::min(draw.top_k, V) : V;
    std::vector<std::pair<double, int>> order(V);
    for (int v = 0; v < V; v++) order[v] = {logits[v], v};
    auto likelier = [](auto& a, auto& b) { return a.first != b.first ? a.first > b.first : a.second < b.second; };
    double top = *std::max_element(logits.begin(), logits.end()), sum = 0;
    auto weight = [&](double logit) { return draw.temperature ? exp((logit - top) / draw.temperature) : 1; };
    auto weight_at = [&](int k) { // sorted as far as anybody looks: most often a few of 50,000
        if (k >= sorted) {
            int more = std::min(keep, std::max(64, 16 * sorted));
            std::partial_sort(order.begin() + sorted, order.begin() + more, order.end(), likelier);
            sorted = more;
        }
        return weight(order[k].first);
    };
    if (keep == V)
        for (double logit : logits) sum += weight(logit);
    else
        for (int k = 0; k < keep; k++) sum += weight_at(k);
    if (draw.top_p < 1) {
        double enough = draw.top_p * sum;
        int k = 1;
        for (sum = weight_at(0); k < keep && sum < enough; k++) sum += weight_at(k);
        keep = k;
    }
    u *= sum;
    int k = 0;
    while ((u -= weight_at(k)) >= 0 && k + 1 < keep) k++;
    return order[k].second;
}
