#include "run/json.h"
#include "check.h"
#include "run/error.h"
#include <cfloat>
#include <cmath>
#include <cstring>
#include <random>

static std::string error_of(const std::string& text) {
    try {
        parse_json(text, "x.json");
    } catch (const Error& e) { return e.what(); }
    return "";
}

TEST_CASE("json: every kind of value comes back, objects in their order") {
    Json v = parse_json(R"( {"b":[1,-2.5e3,true,false,null,"x"], "a":{}, "":[ ]} )", "x");
    REQUIRE(v.kind == Json::Object);
    CHECK(v.keys == std::vector<std::string>{"b", "a", ""});
    const std::vector<Json>& b = v.find("b")->items;
    REQUIRE(b.size() == 6);
    CHECK(b[0].integer() == 1);
    CHECK(b[1].number() == -2500);
    CHECK(!b[1].integer());
    CHECK(b[2].is_bool(true));
    CHECK(b[3].is_bool(false));
    CHECK(b[4].kind == Json::Null);
    CHECK(b[5].text == "x");
    CHECK(v.find("a")->kind == Json::Object);
    CHECK(v.find("")->kind == Json::Array);
    CHECK(v.find("c") == nullptr);
    CHECK(v.items[0].find("b") == nullptr);
}

TEST_CASE("json: integers are exact up to the ends of 64 bits, and none beyond") {
    for (int64_t n : {int64_t(0), int64_t(9007199254740993), INT64_MAX, INT64_MIN, INT64_MAX - 1})
        CHECK(parse_json(std::to_string(n), "x").integer() == n);
    for (const char* s : {"9223372036854775808", "-9223372036854775809", "18446744073709551616", "1.0", "1e3", "\"1\"",
                          "true", "null", "[1]"})
        CHECK_MESSAGE(!parse_json(s, "x").integer(), s);
    CHECK(!parse_json("1e999", "x").number());
    CHECK(!parse_json("\"1\"", "x").number());
    CHECK(parse_json("9223372036854775808", "x").number() == 0x1p63);
}

TEST_CASE("json: escapes and UTF-8 decode to UTF-8") {
    CHECK(parse_json(R"("\"\\\/\b\f\n\r\t")", "x").text == "\"\\/\b\f\n\r\t");
    CHECK(parse_json(R"("\u0041\u00e9\u20AC\ud83d\uDE00")", "x").text == "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
    CHECK(parse_json("\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\x7f\"", "x").text ==
          "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\x7f");
    CHECK(parse_json(R"("a\u0000b")", "x").text == std::string("a\0b", 3));
    for (uint32_t u : {0x7fu, 0x80u, 0x7ffu, 0x800u, 0xd7ffu, 0xe000u, 0xffffu}) { // both ends of each length
        std::string s = parse_json(format("\"\\u%04x\"", u), "x").text;
        CHECK(s.size() == (u < 0x80 ? 1u : u < 0x800 ? 2u : 3u));
        CHECK(parse_json("\"" + s + "\"", "x").text == s);
    }
    CHECK(parse_json(R"("\ud800\udc00\udbff\udfff")", "x").text == "\xf0\x90\x80\x80\xf4\x8f\xbf\xbf");
}

TEST_CASE("json: what is not JSON is refused, with the byte where it goes wrong") {
    struct {
        std::string text;
        int byte;
        const char* says;
    } table[] = {
        {"", 0, "a value is expected, but the text ends"},
        {"  ", 2, "a value is expected"},
        {"nul", 0, "a value is expected"},
        {"NaN", 0, "a value is expected"},
        {"-Infinity", 1, "a digit"},
        {"+1", 0, "a value is expected"},
        {"01", 1, "something follows"},
        {"1.", 2, "a digit"},
        {".5", 0, "a value is expected"},
        {"1e", 2, "a digit"},
        {"1e+", 3, "a digit"},
        {"-", 1, "a digit is expected, but the text ends"},
        {"0x10", 1, "something follows"},
        {"truee", 4, "something follows"},
        {"1 2", 2, "something follows"},
        {"{} x", 3, "something follows"},
        {std::string("{}\0", 3), 2, "something follows"},
        {"[1,]", 3, "a value is expected"},
        {"[,1]", 1, "a value is expected"},
        {"[1 2]", 3, "',' or ']' is expected"},
        {"[1}", 2, "',' or ']' is expected"},
        {"[1", 2, "',' or ']' is expected, but the text ends"},
        {"{\"a\":1,}", 7, "a key in double quotes"},
        {"{a:1}", 1, "a key in double quotes"},
        {"{'a':1}", 1, "a key in double quotes"},
        {"{\"a\" 1}", 5, "':' is expected"},
        {"{\"a\":}", 5, "a value is expected"},
        {"{\"a\":1 \"b\":2}", 7, "',' or '}' is expected"},
        {"{\"a\":1,\"b\":2,\"a\":3}", 13, "the key \"a\" appears twice"},
        {"{\"a\":1,\"\\u0061\":3}", 7, "the key \"a\" appears twice"},
        {"[{\"k\\n\":1,\"k\\n\":3}]", 10, "the key \"k\\n\" appears twice"},
        {"// x\n1", 0, "a value is expected"},
        {"\"a", 2, "a closing quote is expected, but the text ends"},
        {"\"a\\\"", 4, "a closing quote"},
        {"\"a\nb\"", 2, "control character"},
        {std::string("\"a\0b\"", 5), 2, "control character"},
        {"\"\\x41\"", 1, "no such escape"},
        {"\"\\", 1, "no such escape"},
        {"\"\\u12g4\"", 3, "four hex digits"},
        {"\"\\u12\"", 3, "four hex digits"},
        {"\"\\u 123\"", 3, "four hex digits"},
        {"\"\\u-123\"", 3, "four hex digits"},
        {"\"\\ud800\"", 1, "surrogate"},
        {"\"\\udc00\"", 1, "surrogate"},
        {"\"\\ud800\\u0041\"", 1, "surrogate"},
        {"\"\\ud800\\n\"", 1, "surrogate"},
        {"\"\x80\"", 1, "UTF-8"},
        {"\"\xc3\"", 1, "UTF-8"},
        {"\"\xc0\xaf\"", 1, "UTF-8"},         // '/' in two bytes
        {"\"\xe0\x80\xaf\"", 1, "UTF-8"},     // in three
        {"\"\xf0\x80\x80\xaf\"", 1, "UTF-8"}, // in four
        {"\"\xed\xa0\x80\"", 1, "UTF-8"},     // a surrogate
        {"\"\xf4\x90\x80\x80\"", 1, "UTF-8"}, // beyond U+10FFFF
        {"\"\xfc\x84\x80\x80\"", 1, "UTF-8"},
        {"\"\xff\"", 1, "UTF-8"},
        {"\"\xe2\x82", 1, "UTF-8"},
        {"\xef\xbb\xbf{}", 0, "a value is expected"}, // a byte order mark
    };
    for (auto& t : table) {
        std::string e = error_of(t.text);
        CAPTURE(t.text);
        CAPTURE(e);
        CHECK(e.starts_with(format("x.json: byte %d: ", t.byte)));
        CHECK(e.find(t.says) != e.npos);
    }
}

TEST_CASE("json: nesting is read to 64 levels and refused beyond, however deep") {
    auto nest = [](size_t n, const char* open, const char* close) {
        std::string s;
        for (size_t i = 0; i < n; i++) s += open;
        s += "1";
        for (size_t i = 0; i < n; i++) s += close;
        return s;
    };
    CHECK(error_of(nest(64, "[", "]")) == "");
    CHECK(error_of(nest(64, "{\"k\":", "}")) == "");
    CHECK(error_of(nest(65, "[", "]")) == "x.json: byte 64: nested deeper than 64 levels");
    CHECK(error_of(nest(1000000, "[{\"k\":", "")).find("nested deeper than 64") != std::string::npos);
}

TEST_CASE("json: what the writer writes, the reader reads back, in one line or indented") {
    Json v(Json::Object);
    v.set("name", "a\"b\\c\n\x01\x7f\xc3\xa9").set("n", INT64_MIN).set("x", 0.1f).set("yes", true).set("none", Json());
    v.set("list", std::vector<int>{1, 2, 3})
        .set("empty", Json(Json::Array))
        .set("object", Json(Json::Object).set("k", "v"));
    CHECK(
        v.dump() ==
        "{\"name\":\"a\\\"b\\\\c\\n\\u0001\\u007f\xc3\xa9\",\"n\":-9223372036854775808,\"x\":0.100000001,\"yes\":true,"
        "\"none\":null,\"list\":[1,2,3],\"empty\":[],\"object\":{\"k\":\"v\"}}");
    CHECK(Json(Json::Object).set("a", std::vector<int>{1, 2}).set("b", Json(Json::Object)).dump(2) ==
          "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": {}\n}");
    for (int indent : {0, 1, 4}) CHECK(parse_json(v.dump(indent), "x").dump() == v.dump());
}

TEST_CASE("json: floats come back bit for bit, and what JSON lacks is a text") {
    std::mt19937 rng(1);
    for (int i = 0; i < 20000; i++) {
        uint32_t bits = (uint32_t)rng(), back;
        float f;
        memcpy(&f, &bits, 4);
        if (!std::isfinite(f)) continue;
        float g = (float)*parse_json(Json(f).dump(), "x").number();
        memcpy(&back, &g, 4);
        REQUIRE(back == bits);
    }
    CHECK(Json(FLT_MAX).dump() == "3.40282347e+38");
    CHECK(Json(-0.0).dump() == "-0");
    CHECK(Json(INFINITY).dump() == "\"inf\"");
    CHECK(Json(-INFINITY).dump() == "\"-inf\"");
    CHECK(Json(NAN).dump() == "\"nan\"");
    CHECK(Json(-NAN).dump() == "\"nan\"");
}

TEST_CASE("json: damaged text is an error or another value, never a crash") {
    std::string good =
        R"({"wte":{"dtype":"F32","shape":[3,2],"data_offsets":[0,24]},"\u00e9\ud83d\ude00":[-1.5e-3,true,null,"\n"]})";
    std::mt19937 rng(2);
    int refused = 0;
    for (int i = 0; i < 20000; i++) {
        std::string s = good;
        for (int k = rng() % 3; k >= 0; k--) s[rng() % s.size()] = (char)rng();
        if (i % 4 == 0) s.resize(rng() % s.size());
        std::string e = error_of(s);
        refused += e != "";
        REQUIRE((e == "" || e.starts_with("x.json: byte ")));
    }
    CHECK(refused > 10000);
    CHECK(refused < 20000);
}
