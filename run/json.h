// A small strict JSON (RFC 8259) reader and writer. What is easy to get wrong:
// - A number keeps the text it was written with, so that 2^63 - 1 stays exact; integer() and number() convert.
// - Strict: duplicate keys, trailing commas, comments, NaN, raw control characters, lone surrogates and broken UTF-8
//   are errors, with the byte they start at. Nesting stops at 64, so that no input can exhaust the stack.
// - JSON has no infinities: the writer makes them the strings "inf", "-inf", "nan". Other floats print with %.9g,
//   which brings every FP32 value back exactly.
#pragma once
#include <concepts>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

struct Json {
    enum Kind { Null, Bool, Number, String, Array, Object } kind = Null;
    std::string text;              // Number: as written; String: decoded, UTF-8; Bool: "true" or "false"
    std::vector<std::string> keys; // Object: keys[i] names items[i], in the order of the text
    std::vector<Json> items;       // Object and Array

    explicit Json(Kind k = Null) : kind(k) {}
    Json(bool v) : kind(Bool), text(v ? "true" : "false") {}
    template <std::integral T> Json(T v) : kind(Number), text(std::to_string(v)) {}
    Json(double v);
    Json(const char* s) : kind(String), text(s) {}
    Json(std::string s) : kind(String), text(std::move(s)) {}
    template <class T> Json(const std::vector<T>& v) : kind(Array), items(v.begin(), v.end()) {}
    Json& add(Json v) { return items.push_back(std::move(v)), *this; } // to an array
    Json& set(std::string k, Json v) {
        return keys.push_back(std::move(k)), add(std::move(v));
    } // a new key, to an object

    const Json* find(std::string_view key) const; // a member of an object, or nullptr
    bool is_bool(bool v) const { return kind == Bool && text == (v ? "true" : "false"); }
    std::optional<int64_t> integer() const; // a number without fraction or exponent that fits 64 bits
    std::optional<double> number() const;   // any number in the range of double
    std::string dump(int indent = 0) const; // 0: one line without spaces; else one item per line
};

// The one value that `text` holds, spaces around it allowed. Errors read "WHERE: byte N: what is wrong".
Json parse_json(std::string_view text, const std::string& where);
// "text" in quotes, everything unprintable escaped: for JSON, and for names from files in error messages.
std::string quote(std::string_view text);
