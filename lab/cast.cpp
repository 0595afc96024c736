// Words come in, lines go out; between them stand encode() and decode() of fp8.cuh. Half a second per million lines.
#include "lab/cast.h"
#include "lab/keys.cuh"
#include <algorithm>
#include <charconv>
#include <string_view>
#include <unistd.h>

// Formats whose values share scales, block by block: how the recipes of that name store x.
struct BlockFormat { const char* name; Format elem, scale; int block; std::string use; };
static std::vector<BlockFormat> find_block_formats() {
    std::vector<BlockFormat> all;
    for (const Recipe& r : recipes)
        if (Format scale = format_of(kind_of(r.x).scales); scale.bits() == 8)
            all.push_back({r.name.c_str(), r.x.elem, scale, r.x.block.cols, r.about.substr(0, r.about.find(';'))});
    return all;
}
static const std::vector<BlockFormat> block_formats = find_block_formats();

// --- numbers as text ---------------------------------------------------------------------------------------------
template <class T> static bool read_as(T& x, const char* first, const char* last) {
    const char* s = first + (first < last && (*first == '-' || *first == '+'));
    bool hex = last - s > 2 && s[0] == '0' && (s[1] == 'x' || s[1] == 'X');
    s += 2 * hex;
    if (s == last || *s == '-' || (hex && *s != '.' && !isxdigit((unsigned char)*s))) return false; // 0xinf, --1
    auto [end, error] = std::from_chars(s, last, x, hex ? std::chars_format::hex : std::chars_format::general);
    if (end != last || error == std::errc::invalid_argument) return false;
    if (error == std::errc::result_out_of_range) { // infinity, 0 or subnormal: from_chars does not say which
        std::string text(s - 2 * hex, last);
        x = sizeof x == 4 ? (T)strtof(text.c_str(), nullptr) : (T)strtod(text.c_str(), nullptr);
    }
    x = *first == '-' ? -x : x;
    return true;
}
bool read_number(double& typed, float& x, const char* first, const char* last) {
    return read_as(x, first, last) && read_as(typed, first, last);
}

// %.9g of 1e-4 <= a < 1e9, several times as fast as to_chars; nullptr where it cannot be sure of the last digit.
static char* put_plain(char* to, double a, int digits) {
    static const double all[] = {1e-4, .001, .01, .1, 1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12};
    const double* tens = all + 4;
    int e = (int)((bits_as<uint64_t>(a) >> 52) - 1023) * 77 >> 8; // exponent of the first digit, or one less
    e += a >= tens[e + 1];
    double x = a * tens[digits - 1 - e] + 0.5; // off by less than 1e-6
    int64_t n = (int64_t)x;
    if (fabs(x - (double)n - 0.5) > 0.5 - 1e-6 || (double)n >= tens[digits]) return nullptr;
    if (e < 0) to = (char*)memset(to, '0', (size_t)-e) - e;
    char *end = std::to_chars(to, to + 16, n).ptr, *point = to + e + 1;
    memmove(point + 1, point, (size_t)(end - point)), *point = '.';
    while (*end == '0') end--;
    return *end == '.' ? end : end + 1;
}
void put_number(std::string& s, double v, int digits) {
    if (v != v) return void(s += "nan");
    char text[40] = "-", *from = text, *end = nullptr;
    if (fabs(v) >= 1e-4 && fabs(v) < (digits < 9 ? 1e3 : 1e9)) {
        if (v == (double)(int)v) end = std::to_chars(text, text + 40, (int)v).ptr;
        else end = put_plain(text + 1, fabs(v), digits), from += v > 0;
    }
    if (!end) from = text, end = std::to_chars(text, text + 40, v, std::chars_format::general, digits).ptr;
    s.append(from, end);
}
static void put_right(std::string& s, double v, size_t width) {
    size_t at = s.size();
    put_number(s, v);
    if (s.size() - at < width) s.insert(at, width - (s.size() - at), ' ');
}
static void put_json(std::string& s, const char* key, double v) {
    const char* quote = std::isfinite(v) ? "" : "\"";
    s += key, s += quote, put_number(s, v), s += quote;
}
static void put_hex(std::string& s, Format f, uint32_t code) {
    char text[8], *end = text;
    for (int digit = std::max(2, (f.bits() + 3) / 4); digit-- > 0;) *end++ = "0123456789abcdef"[code >> 4 * digit & 15];
    s.append("0x").append(text, end);
}
static void put_bits(std::string& s, Format f, uint32_t code) { // sign|exponent|mantissa
    char text[40], *end = text;
    for (int b = f.bits(); b-- > 0;) {
        *end++ = (char)('0' + (code >> b & 1));
        if (b > 0 && (b == f.mbits || b == f.mbits + f.ebits)) *end++ = '|';
    }
    s.append(text, end);
}

static std::string power(double x) { return format("2^%d", ilogb(x)); }

// --- words in, lines out -----------------------------------------------------------------------------------------
struct Lines {
    int fd;
    std::string text = {};
    void flush() {
        for (size_t at = 0; at < text.size();) {
            ssize_t n = write(fd, text.data() + at, text.size() - at);
            if (n < 0 && errno != EINTR) text.clear(), fail("cannot write the results: %s", strerror(errno));
            at += n > 0 ? (size_t)n : 0;
        }
        text.clear();
    }
};
struct Words {
    int fd;
    Lines& lines; // flushed before each wait, so that a person at a terminal or a slow pipe sees answers at once
    std::vector<char> buffer = std::vector<char>(1 << 20);
    size_t at = 0, end = 0, line = 1;
    static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
    bool more() { // keeps [at, end), at the front; false when there is nothing to add, or no room
        memmove(buffer.data(), buffer.data() + at, end - at), end -= at, at = 0;
        if (end == buffer.size()) return false;
        lines.flush();
        ssize_t n = read(fd, buffer.data() + end, buffer.size() - end);
        if (n < 0 && errno == EINTR) return more();
        if (n < 0) fail("cannot read the values: %s", strerror(errno));
        return end += (size_t)n, n > 0;
    }
    std::string_view next() { // empty at the end
        while ((at < end || more()) && is_space(buffer[at])) line += buffer[at++] == '\n';
        size_t p = at;
        for (; p < end || (p -= at, more()); p++)
            if (is_space(buffer[p])) break;
        size_t from = std::exchange(at, p);
        return {buffer.data() + from, p - from};
    }
};

// --- one value ---------------------------------------------------------------------------------------------------
// What happened to y on its way to code, in words behind the line.
static void put_notes(std::string& s, Format f, bool stochastic, double typed, float y, uint32_t code) {
    const char* between = "   ";
    auto add = [&](const char* text) { s += between, s += text, between = ", "; };
    float a = fabsf(y), q = decode(f, code), aq = fabsf(q);
    if (y != y) return q != q ? void() : add("no NaN in this format: the largest");
    if (f.specials == Specials::scale) {
        if (std::signbit(y)) add("sign dropped");
        if (a < decode(f, 0)) add("below the smallest");
        if (a > f.max) add("above the largest: NaN");
        return;
    }
    if (a > f.max && f.bits() <= 8) return add("saturated");
    if (aq == INFINITY && std::isfinite(typed)) return add("overflowed");
    uint32_t m = code & ((1u << (f.bits() - 1)) - 1);
    if (q == 0 && typed != 0) add("underflowed");
    if (q != 0 && m >> f.mbits == 0) add("subnormal");
    if (a == aq || stochastic) return;
    double neighbour = fabs(decode(f, a > aq ? m + 1 : m - 1)); // on the other side of a; in double all this is exact
    if ((double)a - aq == neighbour - a) add(q == 0 ? "a tie" : "a tie, to even");
}

struct Caster {
    struct Value { double typed; float x; };
    const Options& o;
    Lines& lines;
    const BlockFormat* block = nullptr;
    Format f = E4M3; // of the elements
    ScaleRule rule = ScaleRule::rceil;
    bool stochastic = o.round == "sr", known = false;
    RowKey key = row_key(draw_key((uint64_t)o.seed), 0); // as the kernels draw
    uint32_t index = 0;
    std::vector<Value> row = {}; // that wait for their block's scale
    Caster(const Options& o, Lines& lines) : o(o), lines(lines) {
        std::vector<std::string> names;
        auto is = [&](const char* name) { return names.push_back(name), o.args[0] == name && (known = true); };
        for (Format g : ALL_FORMATS)
            if (is(g.name)) f = g;
        for (auto& b : block_formats)
            if (is(b.name)) block = &b, f = b.elem;
        if (!known)
            fail_usage("unknown format %s. hint: the nearest is %s; `./train formats` shows them all",
                       quote(o.args[0]).c_str(), nearest(o.args[0], names).c_str());
        if (o.given.count("scale-rule") && !(block && block->scale == E8M0))
            fail_usage("--scale-rule: %s has no MX scales. hint: mxfp8, mxfp6 and mxfp4 do", o.args[0].c_str());
        if (stochastic && (f.bits() > 8 || f == E8M0))
            fail_usage("--round sr: %s is rounded to %s only", f.name, f == E8M0 ? "the next power of two" : "nearest");
        rule = (ScaleRule)choose(o.scale_rule, rules);
    }
    void add(Value v) {
        if (!block) return element(v, 1, 1, nullptr);
        row.push_back(v);
        if (block->scale == E8M0 && row.size() == (size_t)block->block) flush_blocks();
    }
    // y = x * S * multiplier is cast; the code times `scale`, divided by S, is what is read back.
    void element(Value v, float multiplier, float scale, const Scaled* stored) {
        float y = v.x * o.scale * multiplier;
        uint32_t draw = draw24(key, index++);
        uint32_t code = stochastic ? encode_stochastic(f, y, draw) : encode(f, y);
        float decoded = decode(f, code) * scale / o.scale;
        std::string& s = lines.text;
        if (o.json) {
            put_json(s, "{\"value\":", v.typed);
            s += ",\"code\":\"", put_hex(s, f, code), s += '"';
            put_json(s, ",\"decoded\":", decoded);
            if (stored) {
                s += ",\"scale_code\":\"", put_hex(s, block->scale, stored->code), s += '"';
                put_json(s, ",\"scale\":", decode(block->scale, stored->code));
            }
            s += '}';
        } else {
            put_right(s, v.typed, 15);
            s += "  ", put_hex(s, f, code), s += "  ", put_bits(s, f, code);
            put_right(s, decoded, 17);
            double error = fabs(decoded - v.typed), percent = 100 * (error / fabs(v.typed));
            size_t at = s.size();
            if (decoded == v.typed) s += "   exact";
            else if (error == error) s += "   error ", put_number(s, error);
            if (error > 0 && percent < INFINITY) s += " (", put_number(s, percent, 3), s += "%)";
            size_t width = s.size() - at;
            if (scale == scale) put_notes(s, f, stochastic, v.typed, y, code);
            if (s.size() > at + width && width < 29) s.insert(at + width, 29 - width, ' '); // a column of notes
        }
        s += '\n';
        if (s.size() > 1 << 18) lines.flush();
    }
    void flush_blocks() { // casts the waiting values; with NVFP4 they are the whole row
        if (row.empty()) return;
        bool mx = block->scale == E8M0;
        size_t N = (size_t)block->block, first = index;
        auto length = [&](size_t at) { return std::min(N, row.size() - at); };
        auto amax_of = [&](size_t at) { // NaN counts as the largest
            uint32_t most = 0;
            for (size_t i = at; i < at + length(at); i++) most = std::max(most, magnitude(row[i].x * o.scale));
            return bits_as<float>(most);
        };
        float amax_tensor = 0;
        for (size_t at = 0; at < row.size(); at += N) // blocks that are not finite do not count
            if (float amax = amax_of(at); amax < INFINITY) amax_tensor = std::max(amax_tensor, amax);
        float encode_scale = nvfp4_encode_scale(amax_tensor);
        if (!o.json && !mx)
            lines.text += format("%zu values: amax %.9g, encode scale %.9g\n", row.size(), amax_tensor, encode_scale);
        for (size_t at = 0; at < row.size(); at += N) {
            float amax = amax_of(at);
            uint32_t byte = mx_scale(rule, f, amax);
            Scaled stored = nvfp4_scale(amax, encode_scale);
            if (mx) stored = {byte, byte == 255 ? 1 : exp2i(127 - (int)byte)};
            float s = decode(block->scale, stored.code), scale = mx ? s : s * amax_tensor * (1 / (E4M3.max * E2M1.max));
            std::string shown = s != s ? "NaN: a value that is not finite takes its block along"
                                : mx   ? power(s) : format("%.9g, times amax / 2688: %.9g", s, scale);
            if (!o.json)
                lines.text += format("block %zu: values %zu to %zu, amax %.9g, scale 0x%02x = %s\n", (first + at) / N,
                                     first + at, first + at + length(at) - 1, fabs(amax), stored.code, shown.c_str());
            for (size_t i = at; i < at + length(at); i++) element(row[i], stored.multiplier, scale, &stored);
        }
        row.clear();
    }
};

void cast_values(int out, int in, const Options& o) {
    Lines lines{out};
    Caster caster(o, lines);
    auto add = [&](std::string_view word, auto not_a_number, Caster::Value v = {}) {
        if (read_number(v.typed, v.x, word.data(), word.data() + word.size())) return caster.add(v);
        lines.flush();
        not_a_number((quote(word.substr(0, 40)) + (word.size() > 40 ? ".." : "")).c_str());
    };
    for (size_t i = 1; i < o.args.size(); i++)
        add(o.args[i], [&](const char* word) { fail_usage("value %zu, %s, is not a number", i, word); });
    if (o.args.size() == 1) {
        Words words{in, lines};
        for (std::string_view word; !(word = words.next()).empty();)
            add(word, [&](const char* word) { fail("line %zu: %s is not a number", words.line, word); });
    }
    caster.flush_blocks(), lines.flush();
}
int cast_command(const Options& o) { return cast_values(STDOUT_FILENO, STDIN_FILENO, o), 0; }

// --- the table ---------------------------------------------------------------------------------------------------
static std::string specials_of(Format f, uint32_t top) { // what the codes above the largest number's mean
    uint32_t c = top + 1, last = f == E8M0 ? 255 : (1u << (f.bits() - 1)) - 1;
    if (f.specials == Specials::fnuz) return format("NaN %x, no -0", f.nan);
    if (c > last) return "none";
    if (f.bits() > 8) return "inf, NaN";
    std::string inf = std::isinf(decode(f, c)) ? format("inf %x, ", c++) : "", nan = format("NaN %x", c);
    return inf + nan + (c < last ? format("-%x", last) : "") + (f == E8M0 ? ", no 0" : "");
}
std::string formats_text(bool json) {
    std::string s = "format   s.e.m  bias max         min normal subnormal values     decades specials          use\n";
    if (json) s.clear();
    for (Format f : ALL_FORMATS) {
        uint32_t top = encode(f, f.max), first = f == E8M0 ? 0 : 1u << f.mbits;
        double normal = decode(f, first), least = f == E8M0 ? normal : decode(f, 1), decades = log10(f.max / least);
        int64_t values = (f == E8M0 ? 1 : 2) * (int64_t)top + 1; // both signs of codes 1 to top, and code 0
        std::string specials = specials_of(f, top);
        if (json)
            s += Json(Json::Object).set("name", f.name).set("bits", f.bits())
                .set("exponent_bits", f.ebits).set("mantissa_bits", f.mbits).set("bias", f.bias)
                .set("max", (double)f.max).set("min_normal", normal)
                .set("min_subnormal", f == E8M0 ? Json() : Json(least)).set("values", values)
                .set("decades", decades).set("specials", specials).set("use", f.use).dump() + "\n";
        else
            s += format("%-8s %d.%d.%-2d %4d %-11.6g %-10s %-9s %-10lld %-7.1f %-17s %s\n", f.name, f != E8M0, f.ebits,
                        f.mbits, f.bias, f.max, power(normal).c_str(), f == E8M0 ? "-" : power(least).c_str(),
                        (long long)values, decades, specials.c_str(), f.use);
    }
    if (!json) s += "\nblocks   values elements scales bits per value\n";
    for (auto& b : block_formats) {
        double scale = (double)b.scale.bits() / b.block, bits = b.elem.bits() + scale;
        double stored = (double)code_bytes(b.elem, b.block) * 8 / b.block + scale;
        if (json)
            s += Json(Json::Object).set("name", b.name).set("block", b.block).set("element", b.elem.name)
                .set("scale_format", b.scale.name).set("bits_per_value", bits).set("stored_bits_per_value", stored)
                .set("use", b.use).dump() + "\n";
        else
            s += format("%-8s %-6d %-8s %-6s %.2f%-14s %s\n", b.name, b.block, b.elem.name, b.scale.name, bits,
                        stored == bits ? "" : format(" (stored %.2f)", stored).c_str(), b.use.c_str());
    }
    return s;
}
int formats_command(const Options& o) { return Lines{STDOUT_FILENO, formats_text(o.json)}.flush(), 0; }
