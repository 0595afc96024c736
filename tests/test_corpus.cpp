// The built-in corpus: that its entropy is what it says, that a text can be read back in one way only, that the language
// is what the README promises. The oracles here use the compiled grammar's arrows and probabilities, not its sums.
#include "check.h"
#include "data/corpus.h"
#include <cmath>
#include <functional>
#include <map>
#include <set>
#include <sstream>

namespace { // test files share one program

// Words with which a derivation of each symbol can begin. A symbol that derives nothing would break the argument below.
std::vector<std::set<int>> first_words(const Corpus& c) {
    std::vector<std::set<int>> first(c.symbols.size());
    for (bool grew = true; grew;) {
        grew = false;
        for (size_t s = 0; s < c.symbols.size(); s++)
            for (int a = c.symbols[s].first; a < c.symbols[s].last; a++) {
                REQUIRE(c.alts[a].first < c.alts[a].last);
                int item = c.items[c.alts[a].first];
                size_t before = first[s].size();
                if (item >= 0) first[s].insert(first[item].begin(), first[item].end());
                else first[s].insert(~item);
                grew |= first[s].size() != before;
            }
    }
    return first;
}
bool is_letter(char ch) { return isalpha((unsigned char)ch); }
bool stands_at(const std::string& text, size_t at, const std::string& word) { // a whole word, not the start of another
    size_t end = at + word.size();
    return text.compare(at, word.size(), word) == 0 &&
           !(is_letter(word.back()) && end < text.size() && is_letter(text[end]));
}
struct Reader { // recovers the choices from the text: one word of look-ahead is enough
    const Corpus& c;
    const std::vector<std::set<int>>& first;
    const std::string& text;
    size_t at = 0;
    double nats = 0;
    std::vector<int> choices;
    void read(int symbol) {
        int found = -1;
        for (int a = c.symbols[symbol].first; a < c.symbols[symbol].last; a++) {
            int item = c.items[c.alts[a].first];
            std::set<int> begins = item >= 0 ? first[item] : std::set<int>{~item};
            for (int w : begins)
                if (stands_at(text, at, c.words[w])) {
                    REQUIRE((found == -1 || found == a));
                    found = a;
                }
        }
        REQUIRE(found >= 0);
        nats -= std::log(c.alts[found].p);
        choices.push_back(found);
        for (int i = c.alts[found].first; i < c.alts[found].last; i++)
            if (c.items[i] >= 0) read(c.items[i]);
            else {
                REQUIRE(stands_at(text, at, c.words[~c.items[i]]));
                at += c.words[~c.items[i]].size();
            }
    }
};

TEST_CASE("the grammar is unambiguous: where it offers a choice, the alternatives begin with different words") {
    const Corpus& c = corpus();
    auto first = first_words(c);
    for (auto& symbol : c.symbols) {
        std::set<std::string> seen;
        double total = 0;
        for (int a = symbol.first; a < symbol.last; a++) {
            total += c.alts[a].p;
            CHECK(c.alts[a].p * 0x1p32 == std::floor(c.alts[a].p * 0x1p32)); // what the generator draws with
            int item = c.items[c.alts[a].first];
            for (int w : item >= 0 ? first[item] : std::set<int>{~item}) {
                INFO(symbol.name << " can begin with" << c.words[w] << " in two ways");
                CHECK(seen.insert(c.words[w]).second);
            }
        }
        CHECK(total == 1);
    }
}

TEST_CASE("a tale reads back into the choices it was made of, with the same probability") {
    auto first = first_words(corpus());
    for (uint64_t i = 0; i < 300; i++) {
        double nats = 0;
        std::vector<int> choices;
        std::string text = tale(7, STREAM_VAL, i, &nats, &choices);
        Reader reader{corpus(), first, text, 0, 0, {}};
        reader.read(0);
        CHECK(reader.at == text.size());
        CHECK(reader.choices == choices);
        CHECK(reader.nats == doctest::Approx(nats).epsilon(1e-12)); // a few hundred additions of doubles
    }
}

TEST_CASE("entropies and lengths are exact: flows down the grammar give what the sums up gave") {
    // How often is each symbol expected in a tale? Symbols only lead to others that are reached later in topological
    // order, so visits flow from TALE down; entropy, bytes and byte counts are then sums over visits.
    const Corpus& c = corpus();
    std::vector<int> order;
    std::vector<char> done(c.symbols.size());
    std::function<void(int)> visit = [&](int s) {
        if (done[s]) return;
        done[s] = 1;
        for (int a = c.symbols[s].first; a < c.symbols[s].last; a++)
            for (int i = c.alts[a].first; i < c.alts[a].last; i++)
                if (c.items[i] >= 0) visit(c.items[i]);
        order.push_back(s);
    };
    visit(0);
    std::vector<double> visits(c.symbols.size());
    std::array<double, 256> count = {};
    visits[0] = 1;
    double nats = 0, bytes = 0;
    for (size_t k = order.size(); k-- > 0;) {
        int s = order[k];
        for (int a = c.symbols[s].first; a < c.symbols[s].last; a++) {
            double n = visits[s] * c.alts[a].p;
            nats -= n * std::log(c.alts[a].p);
            for (int i = c.alts[a].first; i < c.alts[a].last; i++)
                if (c.items[i] >= 0) visits[c.items[i]] += n;
                else
                    for (unsigned char b : c.words[~c.items[i]]) count[b] += n, bytes += n;
        }
    }
    double unigram = 0;
    for (double n : count) unigram -= n > 0 ? n / bytes * std::log(n / bytes) : 0;
    CHECK(nats / bytes == doctest::Approx(corpus_floor()).epsilon(1e-11)); // thousands of additions of doubles
    CHECK(unigram == doctest::Approx(corpus_unigram()).epsilon(1e-11));
    CHECK(corpus_floor() >= 0.6);
    CHECK(corpus_floor() <= 1.2);
}

TEST_CASE("a large sample agrees: -log p per byte converges to the floor, byte frequencies to the order-0 entropy") {
    const int n = 20000;
    double nats = 0, bytes = 0, squares = 0;
    std::array<double, 256> count = {};
    std::vector<std::pair<double, double>> tales;
    for (int i = 0; i < n; i++) {
        double own = 0;
        std::string text = tale(11, STREAM_TRAIN, i, &own);
        tales.push_back({own, (double)text.size()});
        nats += own, bytes += (double)text.size();
        for (unsigned char b : text) count[b]++;
    }
    // The ratio of two sample means; its standard error by the delta method from the residuals x - r y.
    double r = nats / bytes;
    for (auto& [x, y] : tales) squares += (x - r * y) * (x - r * y);
    double sigma = std::sqrt(squares) / bytes;
    INFO("floor " << corpus_floor() << ", sample " << r << " +- " << sigma);
    CHECK(std::fabs(r - corpus_floor()) < 4 * sigma);
    CHECK(sigma < 2e-3); // the test would notice an error of one percent
    double unigram = 0;
    for (double k : count) unigram -= k > 0 ? k / bytes * std::log(k / bytes) : 0;
    // 8e6 bytes in dependent tales of some 400: the spread of the estimate is below sqrt(400 / 8e6) * (spread of -log p,
    // about 1 nat) = 0.007
    CHECK(std::fabs(unigram - corpus_unigram()) < 4 * 0.007);
}

TEST_CASE("sentences have 8 to 20 words, the language at least 300, and no tale of validation is one of training") {
    std::set<std::string> training, words;
    for (int i = 0; i < 20000; i++) training.insert(tale(1, STREAM_TRAIN, i));
    for (int i = 0; i < 3000; i++) {
        std::string text = tale(1, STREAM_VAL, i);
        CHECK(training.count(text) == 0);
        CHECK(text.back() == '\n');
        std::istringstream in(text);
        for (std::string sentence; std::getline(in, sentence, '.');) {
            std::istringstream parts(sentence);
            int n = 0;
            for (std::string word; parts >> word; n++) words.insert(word);
            INFO(sentence);
            CHECK((n == 0 || (n >= 8 && n <= 20)));
        }
    }
    CHECK(words.size() >= 300);
}

TEST_CASE("tales and excerpts are functions of seed, stream and index, and an excerpt is any stretch of tales") {
    CHECK(tale(1, STREAM_TRAIN, 5) == tale(1, STREAM_TRAIN, 5));
    CHECK(tale(1, STREAM_TRAIN, 5) != tale(1, STREAM_TRAIN, 6));
    CHECK(tale(1, STREAM_TRAIN, 5) != tale(1, STREAM_VAL, 5));
    CHECK(tale(1, STREAM_TRAIN, 5) != tale(2, STREAM_TRAIN, 5));
    std::string a(3000, 0), b(3000, 0);
    excerpt(a.data(), a.size(), 1, 9), excerpt(b.data(), b.size(), 1, 9);
    CHECK(a == b);
    auto first = first_words(corpus()); // after the first line, every whole line is a tale
    size_t at = a.find('\n') + 1, lines = 0;
    for (size_t end; (end = a.find('\n', at)) != std::string::npos; at = end + 1, lines++) {
        std::string line = a.substr(at, end + 1 - at);
        Reader reader{corpus(), first, line, 0, 0, {}};
        reader.read(0);
        CHECK(reader.at == line.size());
    }
    CHECK(lines >= 2);
}

} // namespace
