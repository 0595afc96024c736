#include "run/json.h"
#include "run/error.h"
#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>

struct JsonParser {
    std::string_view s;
    const std::string& where;
    size_t i = 0;

    [[noreturn]] void bad(size_t at, const std::string& what) const {
        fail("%s: byte %zu: %s%s", where.c_str(), at, what.c_str(), at >= s.size() ? ", but the text ends" : "");
    }
    char peek() const { return i < s.size() ? s[i] : '\0'; } // NUL is legal nowhere, so it can stand for the end
    bool take(char c) { return peek() == c ? i++, true : false; }
    bool at_digit() const { return peek() >= '0' && peek() <= '9'; }
    void spaces() { i = std::min(s.find_first_not_of(" \t\n\r", i), s.size()); }
    void digits() {
        if (!at_digit()) bad(i, "a digit is expected");
        while (at_digit()) i++;
    }
    uint32_t hex4() {
        uint32_t v = 0;
        const char *p = s.data() + i, *end = p + std::min<size_t>(4, s.size() - i);
        if (std::from_chars(p, end, v, 16).ptr != p + 4) bad(i, "four hex digits are expected");
        return i += 4, v;
    }
    void escape(std::string& out, size_t at) {
        static const std::string_view from = "\"\\/bfnrt", to = "\"\\/\b\f\n\r\t";
        size_t k = from.find(peek());
        if (k != from.npos) return i++, void(out += to[k]);
        if (!take('u')) bad(at, "JSON has no such escape");
        uint32_t u = hex4();
        if (u >> 10 == 0xd800 >> 10 && s.substr(i, 2) == "\\u") { // a surrogate pair: ten bits from each half
            i += 2;
            uint32_t low = hex4();
            if (low >> 10 == 0xdc00 >> 10) u = 0x10000 + ((u & 0x3ff) << 10 | (low & 0x3ff));
        }
        if (u >> 11 == 0xd800 >> 11) bad(at, "half of a surrogate pair");
        int more = u < 0x80 ? 0 : u < 0x800 ? 1 : u < 0x10000 ? 2 : 3;
        out += (char)(more ? (0xff00 >> (more + 1) & 0xff) | u >> 6 * more : u);
        while (more--) out += (char)(0x80 | (u >> 6 * more & 63));
    }
    // One code point of two to four bytes. Longer spellings than needed are refused: a name has one spelling.
    void utf8(size_t at) {
        uint8_t c = (uint8_t)s[at];
        int more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
        uint32_t u = c & (0x3f >> more), least = more == 1 ? 0x80 : more == 2 ? 0x800 : 0x10000;
        bool ok = c >= 0xc0 && c < 0xf8;
        for (int k = 0; k < more; k++, i++) {
            ok = ok && (peek() & 0xc0) == 0x80;
            u = u << 6 | (peek() & 63);
        }
        if (!ok || u < least || u > 0x10ffff || u >> 11 == 0xd800 >> 11) bad(at, "this is not UTF-8");
    }
    std::string string() {
        std::string out;
        for (i++;;) {
            size_t at = i;
            if (i >= s.size()) bad(i, "a closing quote is expected");
            uint8_t c = (uint8_t)s[i++];
            if (c == '"') return out;
            if (c < 0x20) bad(at, "a control character in a string must be escaped");
            if (c >= 0x80) utf8(at);
            if (c == '\\') escape(out, at);
            else out += s.substr(at, i - at);
        }
    }
    Json value(int depth) {
        spaces();
        size_t start = i;
        if (peek() == '{' || peek() == '[') return container(depth);
        if (peek() == '"') return string();
        for (std::string_view word : {"true", "false", "null"})
            if (s.substr(i, word.size()) == word)
                return i += word.size(), word == "null" ? Json() : Json(word == "true");
        if (!take('-') && !at_digit()) bad(i, "a value is expected");
        if (!take('0')) digits();
        if (take('.')) digits();
        if (take('e') || take('E')) take('+') || take('-'), digits();
        Json v(Json::Number);
        v.text = s.substr(start, i - start);
        return v;
    }
    Json container(int depth) {
        if (depth == 64) bad(i, "nested deeper than 64 levels");
        Json v(s[i++] == '{' ? Json::Object : Json::Array);
        char close = v.kind == Json::Object ? '}' : ']';
        std::set<std::string> seen;
        spaces();
        if (take(close)) return v;
        do {
            spaces();
            if (size_t at = i; v.kind == Json::Object) {
                if (peek() != '"') bad(i, "a key in double quotes is expected");
                v.keys.push_back(string());
                if (!seen.insert(v.keys.back()).second) bad(at, "the key " + quote(v.keys.back()) + " appears twice");
                spaces();
                if (!take(':')) bad(i, "':' is expected after a key");
            }
            v.items.push_back(value(depth + 1));
            spaces();
        } while (take(','));
        if (!take(close)) bad(i, format("',' or '%c' is expected", close));
        return v;
    }
};

Json parse_json(std::string_view text, const std::string& where) {
    JsonParser p{text, where};
    Json v = p.value(0);
    p.spaces();
    if (p.i < text.size()) p.bad(p.i, "something follows the value");
    return v;
}

template <class T> static std::optional<T> convert(const Json& v) {
    T x;
    const char* end = v.text.data() + v.text.size();
    auto [p, error] = std::from_chars(v.text.data(), end, x);
    return v.kind == Json::Number && p == end && error == std::errc() ? std::optional<T>(x) : std::nullopt;
}
std::optional<int64_t> Json::integer() const { return convert<int64_t>(*this); }
std::optional<double> Json::number() const { return convert<double>(*this); }

const Json* Json::find(std::string_view key) const {
    for (size_t k = 0; k < keys.size(); k++)
        if (keys[k] == key) return &items[k];
    return nullptr;
}

Json::Json(double v) : kind(std::isfinite(v) ? Number : String) {
    text = std::isnan(v) ? "nan" : std::isinf(v) ? (v < 0 ? "-inf" : "inf") : format("%.9g", v);
}

std::string quote(std::string_view text) {
    std::string out = "\"";
    for (char c : text)
        if (c == '"' || c == '\\') (out += '\\') += c;
        else if ((c >= 0 && c < 0x20) || c == 0x7f) out += c == '\n' ? "\\n" : format("\\u%04x", c);
        else out += c;
    return out + '"';
}

std::string Json::dump(int indent) const {
    if (kind == Null || kind == String) return kind == Null ? "null" : quote(text);
    if (kind != Array && kind != Object) return text;
    std::string body, margin = indent && !items.empty() ? "\n" : "";
    for (size_t k = 0; k < items.size(); k++) {
        std::string name = kind == Object ? quote(keys[k]) + (indent ? ": " : ":") : "";
        body += (k ? "," : "") + margin + name + items[k].dump(indent);
    }
    if (indent) // what is inside moves right as one
        for (size_t p = 0; (p = body.find('\n', p)) != body.npos; p += 1 + indent) body.insert(p + 1, indent, ' ');
    return (kind == Object ? "{" : "[") + body + margin + (kind == Object ? "}" : "]");
}
