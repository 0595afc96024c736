#include "run/tokenizer.h"
#include "run/error.h"
#include "run/files.h"
#include "run/json.h"
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <queue>
#include <sstream>

// --- characters --------------------------------------------------------------------------------------------------
// The code point that begins at text[at], and in `bytes` how many it takes; -1 for one byte that is not UTF-8.
static int code_point(std::string_view text, size_t at, size_t* bytes) {
    unsigned char c = (unsigned char)text[at];
    int more = c < 0x80 ? 0 : c >= 0xc2 && c < 0xe0 ? 1 : c >= 0xe0 && c < 0xf0 ? 2 : c >= 0xf0 && c < 0xf5 ? 3 : -1;
    int u = more > 0 ? c & (0x3f >> more) : c;
    *bytes = 1;
    if (more < 0 || at + (size_t)more >= text.size()) return -1;
    for (int k = 1; k <= more; k++) {
        if ((text[at + k] & 0xc0) != 0x80) return -1;
        u = u << 6 | (text[at + k] & 0x3f);
    }
    static const int least[] = {0, 0x80, 0x800, 0x10000};
    if (u < least[more] || u > 0x10ffff || u >> 11 == 0xd800 >> 11) return -1;
    *bytes = (size_t)more + 1;
    return u;
}
enum Class { Letter, Number, Space, Other };
static Class class_of(int u) {
    auto in = [u](std::initializer_list<std::pair<int, int>> ranges) {
        return std::any_of(ranges.begin(), ranges.end(), [u](auto& r) { return u >= r.first && u <= r.second; });
    };
    if (in({{9, 13},
            {' ', ' '},
            {0x85, 0x85},
            {0xa0, 0xa0},
            {0x1680, 0x1680},
            {0x2000, 0x200a},
            {0x2028, 0x2029},
            {0x202f, 0x202f},
            {0x205f, 0x205f},
            {0x3000, 0x3000}}))
        return Space;
    if (in({{'0', '9'}, {0xb2, 0xb3}, {0xb9, 0xb9}, {0xbc, 0xbe}})) return Number;
    if (in({{'A', 'Z'}, {'a', 'z'}, {0xaa, 0xaa}, {0xb5, 0xb5}, {0xba, 0xba}})) return Letter;
    return in({{-1, 0xbf},
               {0xd7, 0xd7},
               {0xf7, 0xf7},
               {0x2000, 0x2bff},
               {0x3001, 0x3020},
               {0xfe10, 0xfe6f},
               {0xff01, 0xff0f},
               {0x1f000, 0x1faff}})
               ? Other
               : Letter;
}
// Where the piece that begins at `at` ends: GPT-2's
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
static size_t piece_end(std::string_view text, size_t at) {
    for (std::string_view s : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"})
        if (text.substr(at, s.size()) == s) return at + s.size();
    size_t n, i = at + (text[at] == ' ' && at + 1 < text.size());
    Class c = class_of(code_point(text, i, &n));
    if (c == Space) c = class_of(code_point(text, i = at, &n));
    size_t last = i; // where the last character begins
    for (; i < text.size() && class_of(code_point(text, i, &n)) == c; i += n) last = i;
    return c == Space && i < text.size() && last > at ? last : i; // the last space belongs to the word behind it
}

// --- encoding ----------------------------------------------------------------------------------------------------
// Cuts a piece into tokens: the part that begins at byte i ends at stop[i]. From single bytes on, the two neighbours
// that make the token of the lowest id are joined, the leftmost first. With a heap of candidates, for a word can be as
// long as the text: N log N, where looking for the best pair over and over is N^2.
static std::vector<size_t> merge(std::string_view piece, const std::map<std::string, int, std::less<>>& ids) {
    const size_t N = piece.size();
    std::vector<size_t> stop(N), before(N + 1); // before[i]: where the part before the one at i begins
    struct Pair {
        int id;
        size_t begin, end;
    };
    auto later = [](const Pair& a, const Pair& b) { return a.id != b.id ? a.id > b.id : a.begin > b.begin; };
    std::priority_queue<Pair, std::vector<Pair>, decltype(later)> pairs(later);
    auto consider = [&](size_t i) { // the part that begins at i, and the next one
        if (stop[i] == N) return;
        size_t end = stop[stop[i]];
        auto it = ids.find(piece.substr(i, end - i));
        if (it != ids.end()) pairs.push({it->second, i, end});
    };
    for (size_t i = 0; i < N; i++) stop[i] = i + 1, before[i + 1] = i;
    for (size_t i = 0; i < N; i++) consider(i);
    while (!pairs.empty()) {
        auto [id, i, end] = pairs.top();
        pairs.pop();
        bool merged = stop[i] == 0 || stop[i] == N || stop[stop[i]] != end; // one of the two, since
        if (merged) continue;
        stop[stop[i]] = 0, stop[i] = end, before[end] = i;
        consider(i);
        if (i > 0) consider(before[i]);
    }
    return stop;
}
std::vector<int> Tokenizer::encode(std::string_view text) const {
    std::vector<int> out;
    std::istringstream words{std::string(tokens.empty() ? text : "")};
    for (std::string word; words >> word;) {
        bool digits = word.size() < 10 && word.find_first_not_of("0123456789") == word.npos;
        if (!digits || atoi(word.c_str()) >= vocab)
            fail("--prompt: %s is no token from 0 to %d. hint: without a --tokenizer, give numbers",
                 quote(word).c_str(), vocab - 1);
        out.push_back(atoi(word.c_str()));
    }
    for (size_t at = 0, end; at < text.size() && !tokens.empty(); at = end) {
        end = piece_end(text, at);
        std::vector<size_t> stop = merge(text.substr(at, end - at), ids);
        for (size_t i = 0; i < stop.size(); i = stop[i]) {
            auto it = ids.find(text.substr(at + i, stop[i] - i));
            if (it == ids.end())
                fail("--prompt: byte %d is not in the vocabulary of %s", (unsigned char)text[at + i], name.c_str());
            out.push_back(it->second);
        }
    }
    return out.empty() ? std::vector{start} : out;
}
std::string Tokenizer::decode(const std::vector<int>& ids) const {
    std::string joined, shown;
    for (int t : ids)
        if (tokens.empty()) joined += std::to_string(t) + " ";
        else joined += t >= 0 && (size_t)t < tokens.size() ? tokens[(size_t)t] : "[" + std::to_string(t) + "]";
    for (size_t at = 0, n; at < joined.size(); at += n) {
        int u = code_point(joined, at, &n);
        bool control = (u < ' ' && u != '\n' && u != '\t') || (u >= 0x7f && u < 0xa0);
        shown += control ? "?" : joined.substr(at, n);
    }
    return shown;
}

// --- vocabularies ------------------------------------------------------------------------------------------------
static Tokenizer make(const std::string& name, int vocab, int start, std::vector<std::string> tokens) {
    Tokenizer t{name, vocab, start, std::move(tokens), {}};
    for (size_t k = 0; k < t.tokens.size(); k++) t.ids.emplace(t.tokens[k], (int)k); // of equal ones the first
    return t;
}
static Tokenizer read_bin(const std::string& path) {
    const std::string file = read_file(path, 4 << 20); // GPT-2's has 371 KB
    auto word = [&](size_t k) {
        uint32_t w;
        memcpy(&w, file.data() + k * 4, 4);
        return w;
    };
    if (file.size() < 1024) fail("%s: %zu bytes do not hold a header of 1024", path.c_str(), file.size());
    if (word(0) != 20240328) fail("%s: begins with %u, and llm.c's tokenizers with 20240328", path.c_str(), word(0));
    if (word(1) != 1 && word(1) != 2) fail("%s: version %u; 1 and 2 are known", path.c_str(), word(1));
    const uint32_t n = word(2), start = word(1) == 2 ? word(3) : n - 1; // GPT-2's end of text is its last token
    if (n == 0 || start >= n) fail("%s: announces %u tokens, and that text ends with token %u", path.c_str(), n, start);
    std::vector<std::string> tokens;
    size_t at = 1024;
    for (uint32_t k = 0; k < n; k++) {
        size_t length = at < file.size() ? (unsigned char)file[at] : 0;
        const char* wrong = at == file.size()               ? "is missing: the file ends"
                            : length == 0                   ? "has no bytes"
                            : file.size() - at - 1 < length ? "is cut off where the file ends"
                                                            : nullptr;
        if (wrong) fail("%s: token %u of %u %s", path.c_str(), k, n, wrong);
        tokens.push_back(file.substr(at + 1, length)), at += 1 + length;
    }
    if (at < file.size()) fail("%s: %zu bytes follow the last of its %u tokens", path.c_str(), file.size() - at, n);
    return make(path, (int)n, (int)start, std::move(tokens));
}
// In vocab.json every byte is a printable character: itself where it is one, else U+0100 and up, in order.
static Tokenizer read_json(const std::string& path) {
    const Json file = parse_json(read_file(path, 16 << 20), path); // GPT-2's: 1 MB; with its merges, 3
    const Json *model = file.find("model"), *vocab = model ? model->find("vocab") : nullptr; // of a tokenizer.json
    const Json& json = vocab ? *vocab : file;
    std::map<int, char> byte_of;
    for (int b = 0, next = 0x100; b < 256; b++)
        byte_of[(b >= '!' && b <= '~') || (b >= 0xa1 && b != 0xad) ? b : next++] = (char)b;
    const size_t n = json.items.size();
    std::vector<std::string> tokens(n);
    int start = (int)n - 1;
    if (json.kind != Json::Object || n == 0) fail("%s: a vocabulary {\"TOKEN\": ID, ..} is expected", path.c_str());
    for (size_t k = 0, bytes; k < n; k++) {
        const std::string& text = json.keys[k];
        auto bad = [&](const char* why) { fail("%s: token %s: %s", path.c_str(), quote(text).c_str(), why); };
        int64_t id = json.items[k].integer().value_or(-1);
        if (id < 0 || id >= (int64_t)n || !tokens[(size_t)id].empty())
            bad("the ids must be 0 and up, each of them once");
        for (size_t at = 0; at < text.size(); at += bytes) {
            auto it = byte_of.find(code_point(text, at, &bytes));
            if (it == byte_of.end()) bad("has a character that stands for no byte in GPT-2's vocabulary");
            tokens[(size_t)id] += it->second;
        }
        if (text.empty()) bad("has no bytes");
        if (text == "<|endoftext|>") start = (int)id;
    }
    return make(path, (int)n, start, std::move(tokens));
}
Tokenizer read_tokenizer(const std::string& path) { return path.ends_with(".json") ? read_json(path) : read_bin(path); }

Tokenizer open_tokenizer(const std::string& file, const std::vector<std::string>& beside, int V) {
    namespace fs = std::filesystem;
    std::vector<std::string> found(!file.empty(), file);
    std::error_code ec;
    for (const std::string& path : beside)
        for (const fs::path& dir : {fs::path(path), fs::path(path).parent_path()})
            for (const char* name : {"gpt2_tokenizer.bin", "vocab.json", "tokenizer.json"})
                if (file.empty() && V > 256 && !path.empty() && path != "builtin" && fs::exists(dir / name, ec))
                    found.push_back(dir / name);
    for (const std::string& path : found) {
        Tokenizer t = read_tokenizer(path);
        if (t.vocab > V && !file.empty())
            fail("%s: has %d tokens, and the model's vocabulary %d", path.c_str(), t.vocab, V);
        if (t.vocab <= V) return t.vocab = V, t;
    }
    if (V > 256) return make("numbers", V, V - 1, {});
    std::vector<std::string> bytes;
    for (int b = 0; b < V; b++) bytes.push_back(std::string(1, (char)b));
    return make(format("%d bytes", V), V, std::min<int>('\n', V - 1), std::move(bytes));
}
