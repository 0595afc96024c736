#include "run/tokenizer.h"
#include "check.h"
#include "errors.h"
#include "run/json.h"
#include "run/random.h"
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sys/stat.h>
#include <unistd.h>

namespace {
struct Scratch {
    std::string dir;
    Scratch() {
        char name[] = "/tmp/ulp-tokenizer-XXXXXX";
        dir = mkdtemp(name);
    }
    ~Scratch() { std::filesystem::remove_all(dir); }
    std::string write(const std::string& name, const std::string& bytes) const {
        std::ofstream(dir + "/" + name, std::ios::binary) << bytes;
        return dir + "/" + name;
    }
};
} // namespace
typedef std::vector<std::string> Table;

// llm.c's file, from its description.
static std::string bin(const Table& table, uint32_t version = 2, uint32_t start = 0) {
    std::string out;
    auto word = [&](uint32_t w) {
        for (int k = 0; k < 4; k++) out += (char)(w >> 8 * k);
    };
    word(20240328), word(version), word((uint32_t)table.size()), word(version == 2 ? start : 0);
    for (int k = 4; k < 256; k++) word(0);
    for (auto& t : table) out += (char)t.size() + t;
    return out;
}
// vocab.json: GPT-2's alphabet, spelled out. Printable bytes are themselves, the others U+0100 and up in order.
static std::string alphabet(unsigned char byte) {
    int other = 0, code = -1;
    for (int b = 0; b < 256; b++) {
        bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        if (b == byte) code = printable ? b : 256 + other;
        other += !printable;
    }
    return code < 128 ? std::string(1, (char)code) : std::string{(char)(0xc0 | code >> 6), (char)(0x80 | (code & 63))};
}
static std::string vocab_json(const Table& table) {
    std::string out;
    for (size_t k = table.size(); k-- > 0;) { // the order of the lines is not that of the ids
        std::string text;
        for (char c : table[k]) text += alphabet((unsigned char)c);
        out += (out.empty() ? "" : ",\n") + quote(text) + ": " + std::to_string(k);
    }
    return "{" + out + "}";
}
static Table all_bytes() {
    Table t;
    for (int b = 0; b < 256; b++) t.push_back(std::string(1, (char)b));
    return t;
}
static Table joined(Table t, const Table& more) {
    t.insert(t.end(), more.begin(), more.end());
    return t;
}
// Byte-pair encoding as its authors describe it: over and over, the pair that makes the lowest token, all over the piece.
static std::vector<int> naive_bpe(const std::string& piece, const Table& table) {
    Table parts;
    for (char c : piece) parts.push_back(std::string(1, c));
    auto id = [&](const std::string& s) { return std::find(table.begin(), table.end(), s) - table.begin(); };
    for (;;) {
        long best = (long)table.size();
        for (size_t i = 0; i + 1 < parts.size(); i++) best = std::min(best, id(parts[i] + parts[i + 1]));
        if (best == (long)table.size()) break;
        Table next;
        for (size_t i = 0; i < parts.size(); i++)
            if (i + 1 < parts.size() && parts[i] + parts[i + 1] == table[best]) next.push_back(table[best]), i++;
            else next.push_back(parts[i]);
        parts = next;
    }
    std::vector<int> ids;
    for (auto& p : parts) ids.push_back((int)id(p));
    return ids;
}
static std::string text_of(const Tokenizer& t, const std::vector<int>& ids) {
    std::string s;
    for (int id : ids) s += t.tokens[(size_t)id];
    return s;
}
// The pieces that text is cut into, seen through a vocabulary which holds every substring of it, whole words first.
static Table pieces(const std::string& text) {
    Table table = all_bytes(), longer;
    for (size_t n = 2; n <= text.size(); n++) // a token's parts come before it, so whatever may merge does
        for (size_t i = 0; i + n <= text.size(); i++) longer.push_back(text.substr(i, n));
    Scratch s;
    Tokenizer t = read_tokenizer(s.write("t.bin", bin(joined(table, longer))));
    Table out;
    for (int id : t.encode(text)) out.push_back(t.tokens[(size_t)id]);
    return out;
}

TEST_CASE("a tokenizer of llm.c's, versions 1 and 2, and the same vocabulary as vocab.json or in a tokenizer.json") {
    Scratch s;
    Table table = joined(all_bytes(), {" t", "he", " the", "\n\n", "\xc3\xbc", "<|endoftext|>"});
    int last = (int)table.size() - 1;
    std::string json = vocab_json(table);
    for (std::string path :
         {s.write("1.bin", bin(table, 1)), s.write("2.bin", bin(table, 2, (uint32_t)last)), s.write("vocab.json", json),
          s.write("tokenizer.json", "{\"model\": {\"type\": \"BPE\", \"vocab\": " + json + "}}")}) {
        Tokenizer t = read_tokenizer(path);
        INFO(path);
        CHECK(t.tokens == table);
        CHECK(t.vocab == last + 1);
        CHECK(t.start == last);
        CHECK(t.encode("") == std::vector{last});
        CHECK(t.encode(" the\n\n") == std::vector{258, 259});
        CHECK(t.encode("h\xc3\xbc") == std::vector{'h', 260});
        CHECK(t.decode({258, ' ', 'x', last}) == " the x<|endoftext|>");
    }
    CHECK(read_tokenizer(s.write("3.bin", bin(table, 2, 7))).start == 7);
    CHECK(read_tokenizer(s.write("v.json", vocab_json(all_bytes()))).start == 255); // none is called <|endoftext|>
}
TEST_CASE("text is cut as GPT-2 cuts it") {
    CHECK(pieces("Hello world") == Table{"Hello", " world"});
    CHECK(pieces("don't we'll I'd") == Table{"don", "'t", " we", "'ll", " I", "'d"});
    CHECK(pieces("'s't're've'm'll'd") == Table{"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"});
    CHECK(pieces("it'S 'sx") == Table{"it", "'", "S", " '", "sx"}); // lower case only; and not after a space
    CHECK(pieces("a1 23b") == Table{"a", "1", " 23", "b"});
    CHECK(pieces("x=(1)+ !?") == Table{"x", "=(", "1", ")+", " !?"});
    CHECK(pieces("a  b") == Table{"a", " ", " b"});         // the last space goes with the word
    CHECK(pieces("a \n b") == Table{"a", " \n", " b"});     // of any spaces
    CHECK(pieces("a\n\nb") == Table{"a", "\n", "\n", "b"}); // but only a blank joins it
    CHECK(pieces("a \n") == Table{"a", " \n"});             // at the end there is no word
    CHECK(pieces("a ") == Table{"a", " "});
    CHECK(pieces("  ") == Table{"  "});
    CHECK(pieces("\t\tx") == Table{"\t", "\t", "x"});
    CHECK(pieces("!!'s") == Table{"!!'", "s"});
    CHECK(pieces(std::string("a\0\x1c b", 5)) ==
          Table{"a", std::string("\0\x1c", 2), " b"}); // control characters are punctuation
    // Beyond ASCII: umlauts and kana are letters, dashes and quotes are not, and there is more than one space.
    CHECK(pieces("f\xc3\xbcr \xe2\x80\x93 \xe2\x80\x9exy\xe2\x80\x9c") ==
          Table{"f\xc3\xbcr", " \xe2\x80\x93", " \xe2\x80\x9e", "xy", "\xe2\x80\x9c"});
    CHECK(pieces("\xe3\x81\x82\xe3\x81\x84\xe3\x80\x82") == Table{"\xe3\x81\x82\xe3\x81\x84", "\xe3\x80\x82"});
    CHECK(pieces("a\xc2\xa0\xe3\x80\x80"
                 "b") == Table{"a", "\xc2\xa0", "\xe3\x80\x80", "b"});
    CHECK(pieces("1\xc2\xbd\xc3\x97") == Table{"1\xc2\xbd", "\xc3\x97"});
    CHECK(pieces("a\xff\xc3") == Table{"a", "\xff\xc3"}); // no UTF-8: punctuation
}
TEST_CASE("merging is what the naive encoder does, whatever the vocabulary, and loses no byte") {
    for (uint64_t seed = 0; seed < 300; seed++) {
        uint64_t draws = 0;
        auto below = [&](uint64_t n) { return random_bits(seed, draws++) % n; };
        // As training makes it: a token is two earlier ones.
        Table table = all_bytes();
        for (int k = 0, n = (int)below(60); k < n; k++) {
            auto part = [&] {
                return below(2) && table.size() > 256 ? table[256 + below(table.size() - 256)]
                                                      : std::string(1, "abc"[below(3)]);
            };
            std::string t = part() + part();
            if (std::find(table.begin(), table.end(), t) == table.end() && t.size() < 200) table.push_back(t);
        }
        Scratch s;
        Tokenizer t = read_tokenizer(s.write("t.bin", bin(table)));
        for (int k = 0; k < 20; k++) {
            std::string word;
            for (size_t i = 0, n = 1 + below(30); i < n; i++) word += "abc"[below(below(2) + 2)];
            std::vector<int> ids = t.encode(word);
            INFO(seed << " " << word);
            REQUIRE(ids == naive_bpe(word, table));
            REQUIRE(text_of(t, ids) == word);
        }
        std::string any;
        for (int i = 0; i < 200; i++) any += (char)below(256);
        REQUIRE(text_of(t, t.encode(any)) == any);
    }
}
TEST_CASE("a word as long as a command line is encoded at once") {
    Scratch s;
    Table more;
    for (std::string w = "aa"; w.size() < 128; w += w) more.push_back(w);
    Tokenizer t = read_tokenizer(s.write("t.bin", bin(joined(all_bytes(), more))));
    CHECK(t.encode(std::string(1 << 17, 'a')).size() == (1 << 17) / 64);
}
TEST_CASE("what a model writes cannot play with the terminal") {
    Tokenizer t = open_tokenizer("", {}, 256);
    auto shown = [&](const std::string& bytes) {
        std::vector<int> ids;
        for (char c : bytes) ids.push_back((unsigned char)c);
        return t.decode(ids);
    };
    CHECK(shown("a\n\tb") == "a\n\tb");
    CHECK(shown(std::string("\0\x1b[31m\r\x7f", 8)) == "??[31m??");
    CHECK(shown("f\xc3\xbcr \xe2\x82\xac \xf0\x9f\x99\x82") == "f\xc3\xbcr \xe2\x82\xac \xf0\x9f\x99\x82");
    CHECK(shown("\xc2\x9b"
                "31m\xc2\x85") == "?31m?"); // control characters of two bytes
    CHECK(shown("a\xc3") == "a?");          // cut off
    CHECK(shown("\xe2\x82") == "??");
    CHECK(shown("\xc3(") == "?(");                                       // no continuation
    CHECK(shown("\xc0\x9b\xe0\x82\x9b\xf0\x80\x82\x9b") == "?????????"); // spelled longer than needed
    CHECK(shown("\xed\xa0\x80\xf4\x90\x80\x80\xff") == "????????");      // a surrogate, above U+10FFFF, never
    std::vector<int> any;
    for (int k = 0; k < 20000; k++) any.push_back((int)(random_bits(1, (uint64_t)k) % 256));
    for (unsigned char c : t.decode(any)) REQUIRE(((c >= ' ' && c != 0x7f) || c == '\n' || c == '\t'));
    // A character may end in the next token.
    Scratch s;
    Tokenizer two = read_tokenizer(s.write("t.bin", bin({"x\xe2\x82", "\xacy", "\x1b["})));
    CHECK(two.decode({0, 1}) == "x\xe2\x82\xacy");
    CHECK(two.decode({1, 0, 2}) == "?yx???[");
    CHECK(two.decode({3, -1}) == "[3][-1]"); // above the table, where a vocabulary is padded
}
TEST_CASE("bytes where the vocabulary is small, numbers where no tokenizer is known") {
    Tokenizer bytes = open_tokenizer("", {}, 256);
    CHECK(bytes.encode("") == std::vector<int>{'\n'});
    CHECK(bytes.encode("a \xff") == std::vector<int>{'a', ' ', 255});
    CHECK(bytes.decode({'a', '\n', 'b'}) == "a\nb");
    Tokenizer ascii = open_tokenizer("", {}, 128);
    CHECK(
        has(error_of([&] { ascii.encode("a\xc3\xbc"); }), "--prompt: byte 195 is not in the vocabulary of 128 bytes"));
    CHECK(ascii.decode({200}) == "[200]");
    CHECK(open_tokenizer("", {}, 5).encode("") == std::vector<int>{4});
    Tokenizer numbers = open_tokenizer("", {}, 257);
    CHECK(numbers.encode("") == std::vector<int>{256});
    CHECK(numbers.encode(" 0 12\n256 ") == std::vector<int>{0, 12, 256});
    CHECK(numbers.encode("  ") == std::vector<int>{256});
    CHECK(numbers.decode({0, 12, 256}) == "0 12 256 ");
    for (std::string bad : {"257", "-1", "x", "1x", "1.5", "99999999999999999999", "0x1"})
        CHECK(has(error_of([&] { numbers.encode("3 " + bad); }),
                  "--prompt: \"" + bad + "\" is no token from 0 to 256. hint:"));
}
TEST_CASE("--tokenizer, else the one beside the checkpoint, else the one beside the data, if it fits") {
    Scratch s;
    for (auto dir : {"/ckpt", "/data", "/none"}) mkdir((s.dir + dir).c_str(), 0777);
    std::string ckpt = s.dir + "/ckpt", shards = s.dir + "/data/t_*.bin", none = s.dir + "/none/x.bin";
    Table table = joined(all_bytes(), {"ab", "abc"});
    auto from = [&](const std::string& file, std::vector<std::string> beside, int V = 300) {
        return open_tokenizer(file, beside, V).name;
    };
    CHECK(from("", {ckpt, shards}) == "numbers");
    std::string of_data = s.write("data/vocab.json", vocab_json(table));
    CHECK(from("", {ckpt, shards}) == of_data);
    CHECK(from("", {none, "builtin", "", s.dir + "/missing/x"}) == "numbers");
    std::string of_ckpt = s.write("ckpt/gpt2_tokenizer.bin", bin(table));
    CHECK(from("", {ckpt, shards}) == of_ckpt);
    CHECK(from("", {ckpt + "/", shards}) == ckpt + "/gpt2_tokenizer.bin");
    CHECK(from("", {ckpt + "/model.bin"}) == of_ckpt);
    CHECK(from(of_data, {ckpt}) == of_data);
    CHECK(from("", {ckpt}, 258) == of_ckpt);
    CHECK(from("", {ckpt}, 257) == "numbers"); // too large for the model: it is another's
    CHECK(from("", {ckpt}, 256) == "256 bytes");
    CHECK(has(error_of([&] { from(of_data, {}, 257); }), "vocab.json: has 258 tokens, and the model's vocabulary 257"));
    CHECK(has(error_of([&] { from(s.dir + "/no.bin", {}); }), "no.bin: cannot open"));
    Tokenizer padded = open_tokenizer(of_ckpt, {}, 300);
    CHECK(padded.vocab == 300);
    CHECK(padded.decode({257, 258, 299}) == "abc[258][299]");
}
TEST_CASE("a damaged tokenizer is an error that says where") {
    Scratch s;
    const std::string good = bin({"a", "bc", "def"});
    auto error = [&](std::string bytes) { return error_of([&] { read_tokenizer(s.write("t.bin", bytes)); }); };
    auto claim = [&](size_t k, uint32_t w) {
        std::string bytes = good;
        for (int i = 0; i < 4; i++) bytes[k * 4 + i] = (char)(w >> 8 * i);
        return error(bytes);
    };
    CHECK(error(good) == "no error");
    CHECK(has(error(""), "t.bin: 0 bytes do not hold a header of 1024"));
    CHECK(has(error(good.substr(0, 1023)), "1023 bytes do not hold"));
    CHECK(has(claim(0, 20240326), "begins with 20240326, and llm.c's tokenizers with 20240328"));
    CHECK(has(claim(1, 3), "version 3; 1 and 2 are known"));
    CHECK(has(claim(2, 0), "announces 0 tokens"));
    CHECK(has(claim(2, 2), "4 bytes follow the last of its 2 tokens"));
    CHECK(has(claim(2, 4), "token 3 of 4 is missing: the file ends"));
    CHECK(has(claim(2, ~0u), "token 3 of 4294967295 is missing"));
    CHECK(has(claim(3, 3), "announces 3 tokens, and that text ends with token 3"));
    CHECK(has(error(good + "x"), "1 bytes follow the last of its 3 tokens"));
    CHECK(has(error(good.substr(0, good.size() - 1)), "token 2 of 3 is cut off where the file ends"));
    CHECK(has(error(good.substr(0, good.size() - 3)), "token 2 of 3 is cut off"));
    CHECK(has(error(good.substr(0, good.size() - 4)), "token 2 of 3 is missing"));
    CHECK(has(error(bin({"a", "", "b"})), "token 1 of 3 has no bytes"));
    CHECK(has(error(bin({"a", "b", ""})), "token 2 of 3 has no bytes"));
    auto json = [&](const std::string& text) { return error_of([&] { read_tokenizer(s.write("v.json", text)); }); };
    CHECK(json("{\"a\": 0, \"\xc4\xa0\": 1}") == "no error");
    for (std::string bad : {"[]", "{}", "3", "{\"model\": {\"vocab\": [1]}}"})
        CHECK(has(json(bad), "v.json: a vocabulary {\"TOKEN\": ID, ..} is expected"));
    CHECK(has(json("{\"a\": 0, \"b\": 0}"), "token \"b\": the ids must be 0 and up, each of them once"));
    for (std::string bad : {"2", "-1", "0.5", "\"0\"", "9223372036854775807", "9223372036854775808"})
        CHECK(has(json("{\"a\": 0, \"b\": " + bad + "}"), "token \"b\": the ids must be 0 and up"));
    CHECK(has(json("{\"a\": 0, \"\xe2\x96\x81the\": 1}"),
              "has a character that stands for no byte in GPT-2's vocabulary"));
    CHECK(has(json("{\"a b\": 0}"), "stands for no byte")); // a blank is spelled U+0120
    CHECK(has(json("{\"\": 0}"), "has no bytes"));
    CHECK(has(json("{\"a\": 0, \"a\": 1}"), "appears twice"));
    CHECK(has(json("{\"a\": 0"), "v.json: byte 7"));
}
