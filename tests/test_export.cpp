// Exports as users meet them: ./train export, and eval, sample, inspect of what it wrote. tests/golden/make_export.py
// says what they must hold and lose. Everything runs on one thread: the machine may be busy.
#include "errors.h"
#include "program.h"
#include "run/json.h"
#include "run/safetensors.h"
#include <cmath>
#include <cstring>
#include <functional>
#include <map>

namespace { // test files share one program

namespace fs = std::filesystem;
using std::string, std::vector;

const string GPT2 = "tests/golden/gpt2/", SQUARE = GPT2 + "square", TOKENS = " --data " + SQUARE + "/tokens.bin ";
Result run(const string& args) { return ::run(TRAIN, args + " --threads 1"); }
string ok(const string& args, const string& program = TRAIN) { // what it prints
    Result r = ::run(program, args + (args.starts_with("inspect") ? "" : " --threads 1 --quiet"));
    INFO(args, "\n", r.err);
    REQUIRE(r.status == 0);
    return r.out;
}
string error(const string& args, int status = 1) { // one line, or two
    Result r = run(args);
    CHECK_MESSAGE(r.status == status, args << "\n" << r.err);
    size_t at = r.err.find("error: ");
    return at < r.err.size() ? r.err.substr(at) : "no error";
}
string loss(const string& args, const string& program = TRAIN) { return field(ok("eval " + args, program), "loss"); }
string exported(const string& from, const string& to, const string& args) {
    return ok("export " + from + " " + to + " --format " + args);
}

// A safetensors file that can be written again with something changed.
struct File {
    std::map<string, string> bytes;
    vector<TensorOut> tensors;
    TextMap metadata;
    explicit File(const string& dir) {
        Safetensors in(dir + "/model.safetensors");
        metadata = in.header.metadata;
        for (const TensorInfo& t : in.header.tensors) {
            string& data = bytes[t.name];
            data.resize(t.end - t.begin);
            in.file.read(data.data(), in.header.data + t.begin, data.size());
            tensors.push_back({t.name, t.dtype, t.shape, data.data()});
        }
    }
    TensorOut& at(const string& name) {
        for (TensorOut& t : tensors)
            if (t.name == name) return t;
        FAIL(name);
        throw 0;
    }
    void remove(const string& name) {
        std::erase_if(tensors, [&](auto& t) { return t.name == name; });
    }
    void write(const string& dir) const { // on purpose, as an error's hint has it
        write_safetensors(dir + "/model.safetensors", tensors, metadata);
        fs::remove(dir + "/checksums");
    }
};
// SQUARE with weights that are BF16 values, and no word of where they come from.
void make_plain(const string& dir) {
    exported(SQUARE, dir, "bf16");
    File f(dir);
    f.metadata = {{"format", "pt"}};
    f.write(dir);
}
// FNV-1a of the names and bytes of all tensors of codes and scales, in the order of their names.
string hash_of(const string& dir) {
    uint64_t h = 0xcbf29ce484222325;
    File f(dir);
    for (auto& [name, data] : f.bytes) {
        string layer = name.substr(0, name.rfind(".weight"));
        if (f.bytes.count(layer + ".weight_scale") == 0) continue; // of layers without codes, or no weight
        for (unsigned char c : name + data) h = (h ^ c) * 0x100000001b3;
    }
    char text[17];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)h);
    return text;
}

TEST_CASE("an export holds the codes and scales that NumPy makes, to the bit, and ./train-f32 eval gives its loss") {
    Scratch s;
    size_t cases = 0;
    for (auto& line : lines(slurp("tests/golden/export.txt"))) {
        vector<string> golden = split(line, ' '); // checkpoint, format, loss, hash
        REQUIRE(golden.size() == 4);
        INFO(line);
        string out = s / "x", T = golden[0] == "deep" ? " --seq-len 9" : "";
        exported(GPT2 + golden[0], out, golden[1]);
        CHECK(hash_of(out) == golden[3]);
        string got = loss(out + " --data " + GPT2 + golden[0] + "/tokens.bin" + T, TRAIN_F32);
        // The same weights, so what is left is FP32's distance from float64: below 1e-6 on these models, as
        // tests/f32_model.cpp measures it, where ten times that is the tolerance too.
        CHECK(std::fabs(atof(got.c_str()) / atof(golden[2].c_str()) - 1) <= 1e-5);
        cases++;
    }
    CHECK(cases == 23);
}
TEST_CASE("./train and ./train-f32 write the same file") {
    Scratch s;
    for (const char* format : {"bf16", "e4m3", "mxfp4", "nvfp4"}) {
        exported(SQUARE, s / "a", format);
        ok("export " + SQUARE + " " + (s / "b") + " --format " + format, TRAIN_F32);
        CHECK(slurp(s / "a/model.safetensors") == slurp(s / "b/model.safetensors"));
        CHECK(slurp(s / "a/config.json") == slurp(s / "b/config.json"));
    }
}
TEST_CASE("an export's loss is that of the checkpoint under a recipe that casts weights only, and under the recipe") {
    Scratch s;
    make_plain(s / "plain");
    for (string format :
         {"e4m3", "current", "mxfp8", "mxfp6", "mxfp4", "nvfp4", "blockwise", "blockwise:pow2_scales=0", "unit",
          "nvfp4:w.block=1x16", "mxfp4:w.scale_rule=floor", "mxfp8:w.format=e5m2", "mxfp4:skip=first1"}) {
        INFO(format);
        exported(s / "plain", s / "x", format);
        string how = TOKENS + " --recipe ", weights = format + ":x.scaling=none:dy.scaling=none";
        CHECK(loss(s / "x" + how + "bf16") == loss(s / "plain" + how + weights));
        if (format != "e4m3") // whose x is calibrated with the weights that are there
            CHECK(loss(s / "x" + how + format) == loss(s / "plain" + how + format));
    }
}
TEST_CASE("a BF16 export is an ordinary checkpoint: same loss and text, and training may start from it") {
    Scratch s;
    make_plain(s / "plain");
    exported(s / "plain", s / "x", "bf16");
    CHECK(loss(s / "x" + TOKENS) == loss(s / "plain" + TOKENS));
    string how = " --tokens 20 --seed 3";
    CHECK(ok("sample " + (s / "x") + how) == ok("sample " + (s / "plain") + how));
    CHECK(slurp(s / "x/config.json").find("quantization_config") == string::npos);
    CHECK(run("--init " + (s / "x") + TOKENS + "--steps 1 --recipe bf16 --batch-size 1 --out " + (s / "run")).status ==
          0);
    exported(s / "x", s / "y", "mxfp4");
    exported(s / "plain", s / "z", "mxfp4");
    CHECK(hash_of(s / "y") == hash_of(s / "z"));
}
TEST_CASE("bits per weight are what the format promises, on the disk") {
    Scratch s;
    const string small =
        " --layers 1 --channels 128 --heads 2 --seq-len 8 --vocab 257 --steps 1 --batch-size 1 --eval-batches 1";
    REQUIRE(run("--recipe bf16 --quiet --out " + (s / "run") + small).status == 0);
    const string from = s / "run/bf16-s1/step-000001";
    const struct {
        const char* format;
        double bits, per_tensor;
    } promises[] = {{"bf16", 16, 0},    {"e4m3", 8, 32},    {"mxfp8", 8.25, 0},
                    {"mxfp6", 6.25, 0}, {"mxfp4", 4.25, 0}, {"nvfp4", 4.5, 32}};
    const double weights = 12 * 128 * 128;
    for (auto& p : promises) {
        Json line = parse_json(exported(from, s / "x", string(p.format) + " --json"), "export");
        CHECK(*line.find("weights")->number() == weights);
        CHECK(*line.find("bytes")->number() * 8 == p.bits * weights + 4 * p.per_tensor); // of four linears
        CHECK(*line.find("bits_per_weight")->number() == doctest::Approx(p.bits).epsilon(1e-3));
        double others = 2 * (257 + 8) * 128 + 4 * (9 + 6) * 128, file = *line.find("file")->number();
        CHECK(file == (double)fs::file_size(s / "x/model.safetensors"));
        CHECK(file - *line.find("bytes")->number() > others);
        CHECK(file - *line.find("bytes")->number() < others + 8192); // the header
    }
    CHECK(field(exported(from, s / "x", "mxfp4"), "bits_per_weight") == "4.25");
}
TEST_CASE("a skip list names the linears that stay in BF16, weights and inputs") {
    Scratch s;
    make_plain(s / "plain");
    exported(s / "plain", s / "x", "mxfp8 --skip first1,*.c_fc");
    File f(s / "x");
    for (const char* name : {"h.0.attn.c_attn", "h.0.mlp.c_proj", "h.1.mlp.c_fc"}) {
        CHECK(f.at(name + string(".weight")).dtype == "BF16");
        CHECK(!f.bytes.count(name + string(".weight_scale")));
    }
    CHECK(f.at("h.0.attn.c_attn.weight").shape == vector<int64_t>{48, 144}); // as published
    CHECK(f.at("h.1.attn.c_attn.weight").dtype == "F8_E4M3");
    CHECK(f.at("h.1.attn.c_attn.weight").shape == vector<int64_t>{144, 48}); // as a GEMM reads it
    string how = TOKENS + "--recipe mxfp8";
    CHECK(loss(s / "x" + how) == loss(s / "plain" + how + " --skip first1,*.c_fc"));
    CHECK(loss(s / "x" + how + " --skip last1") != loss(s / "x" + how));
    exported(s / "plain", s / "y", "nvfp4 --skip none");
    CHECK(File(s / "y").at("lm_head.weight").dtype == "F4");
    CHECK(loss(s / "y" + TOKENS + "--recipe nvfp4 --skip none") ==
          loss(s / "plain" + TOKENS + "--recipe nvfp4 --skip none"));
    Json config = parse_json(slurp(s / "x/config.json"), "config");
    CHECK(config.find("quantization_config")->find("modules_to_not_convert")->items.size() == 6);
}
TEST_CASE("eval states the difference to the checkpoint that an export was made from, where that is still the same") {
    Scratch s;
    make_plain(s / "plain");
    exported(s / "plain", s / "x", "mxfp4");
    string line = ok("eval " + (s / "x") + TOKENS), json = ok("eval " + (s / "x") + TOKENS + " --json");
    CHECK(field(line, "weights") == "mxfp4");
    double from = atof(loss(s / "plain" + TOKENS).c_str()), own = atof(field(line, "loss").c_str());
    CHECK(std::fabs(atof(field(line, "difference").c_str()) - (own - from)) < 1e-6);
    CHECK(field(line, "difference").find_first_of("+-") == 0);
    CHECK(*parse_json(json, "eval").find("difference")->number() == doctest::Approx(own - from).epsilon(1e-6));
    CHECK(parse_json(json, "eval").find("weights")->text == "mxfp4");
    // in every recipe's line
    Result two = run("eval " + (s / "x") + TOKENS + " --recipe bf16,mxfp8");
    for (auto& l : lines(two.out)) CHECK(field(l, "difference") != "");
    File f(s / "plain");
    f.bytes["ln_f.bias"][0] ^= 1;
    f.write(s / "plain");
    Result changed = run("eval " + (s / "x") + TOKENS);
    CHECK(changed.status == 0);
    CHECK(field(changed.out, "difference") == "");
    CHECK(has(changed.err, "no difference"));
    CHECK(has(changed.err, "has other weights than those the export was made from"));
    CHECK(field(ok("eval " + (s / "x") + TOKENS + " --against " + (s / "plain")), "difference") != "");
    fs::remove_all(s / "plain");
    Result gone = run("eval " + (s / "x") + TOKENS);
    CHECK(gone.status == 0);
    CHECK(field(gone.out, "loss") == field(line, "loss"));
    CHECK(field(gone.out, "difference") == "");
    CHECK(has(gone.err, "hint: --against CKPT"));
    CHECK(has(error("eval " + (s / "x") + TOKENS + "--against " + (s / "plain")), "plain"));
    CHECK(field(ok("eval " + SQUARE + TOKENS + "--against " + SQUARE), "difference") == "+0.000000");
}
TEST_CASE("calibrated input scales are those that eval would find in the same windows, and it uses them") {
    Scratch s;
    make_plain(s / "plain");
    string line = exported(s / "plain", s / "x", "bf16 --calibrate 8" + TOKENS);
    CHECK(field(line, "calibrated") == "8");
    for (string recipe : {"e4m3", "hybrid:margin=1", "e4m3:x.format=e5m2", "e4m3:x.format=e2m1"}) {
        string how = TOKENS + "--batch-size 1 --recipe " + recipe;
        string own = ok("eval " + (s / "x") + how + " --calibrate 8"), file = ok("eval " + (s / "x") + how);
        CHECK(field(own, "calibrated") == "8");
        CHECK(field(own, "scales") == "");
        CHECK(field(file, "scales") == "file");
        CHECK(field(file, "calibrated") == "");
        CHECK(field(file, "loss") == field(own, "loss"));
        CHECK(field(file, "saturation") == field(own, "saturation"));
    }
    CHECK(parse_json(ok("eval " + (s / "x") + TOKENS + "--json --recipe e4m3"), "").find("scales")->text == "file");
    for (string format : {"e4m3", "nvfp4"}) { // and weights are what they are without
        exported(s / "plain", s / "y", format);
        string without = hash_of(s / "y");
        exported(s / "plain", s / "y", format + " --calibrate 2" + TOKENS);
        CHECK(hash_of(s / "y") == without);
    }
    // Where the scale matters, the number of samples does; and the training part has 11 windows.
    string e2m1 = TOKENS + "--recipe e4m3:x.format=e2m1", few = loss(s / "x" + e2m1);
    exported(s / "plain", s / "y", "bf16 --calibrate 1" + TOKENS);
    CHECK(loss(s / "y" + e2m1) != few);
    CHECK(field(exported(s / "plain", s / "y", "mxfp4 --calibrate 1000 --batch-size 2" + TOKENS), "calibrated") == "6");
    CHECK(field(ok("eval " + (s / "y") + TOKENS + "--recipe e4m3"), "scales") == "file");
    CHECK(field(ok("eval " + (s / "y") + TOKENS + "--recipe current"), "scales") == ""); // has no use for them
    // amax / 448, of the input of every linear that is not skipped
    File f(s / "y");
    size_t scales = 0;
    for (auto& t : f.tensors) scales += t.name.ends_with(".input_scale") && t.dtype == "F32" && t.shape.empty();
    CHECK(scales == 8);
    // What lies beyond the scale: nothing where all has been seen, or half of it with a power of two to spare; something
    // with one too few; with none at all, everything but zeros.
    auto saturation = [&](const string& recipe) {
        return field(ok("eval " + (s / "x") + TOKENS + "--batch-size 1 --calibrate 13 --recipe " + recipe),
                     "saturation");
    };
    // amax * (448 / amax) may round to just above 448: one element of each of 8 linears, of 209,664
    CHECK(atof(saturation("e4m3").c_str()) < 0.0039);
    CHECK(saturation("e4m3:margin=1") == "0.0000%");
    CHECK(atof(saturation("e4m3:margin=-1").c_str()) > 0);
    CHECK(atof(saturation("e4m3:margin=-1").c_str()) < 2); // 1.3 %
    CHECK(atof(saturation("e4m3:margin=-100").c_str()) > 99);
    CHECK(field(ok("eval " + (s / "x") + TOKENS + "--recipe mxfp8"), "saturation") == "");
    // eval's own calibration, of as many batches as asked for
    for (auto [given, said] : {std::pair("3", "3"), {"100", "13"}})
        CHECK(field(ok("eval " + SQUARE + TOKENS + "--batch-size 1 --recipe e4m3 --calibrate " + given),
                    "calibrated") == said);
}
TEST_CASE("sample and inspect take an export") {
    Scratch s;
    exported(SQUARE, s / "x", "nvfp4 --calibrate 1" + TOKENS);
    CHECK(ok("sample " + (s / "x") + " --tokens 5").size() > 0);
    string text = ok("inspect " + (s / "x"));
    CHECK(has(text,
              "\nparameters: " +
                  field(" parameters=" +
                            parse_json(lines(ok("inspect " + SQUARE + " --json")).back(), "").find("parameters")->text,
                        "parameters") +
                  "\n"));
    CHECK(has(text, "quant_format: nvfp4\nquant_source: " + SQUARE + "\nquant_source_fingerprint: "));
    CHECK(has(text, "h.0.attn.c_attn.weight           F4     [144,48]         3456"));
    CHECK(has(text, "h.0.attn.c_attn.weight_scale     F8_E4M3 [144,3]          432"));
    CHECK(!has(text, "problem"));
}
TEST_CASE("what cannot be exported is one clear error, and nothing is written") {
    Scratch s;
    string to = " " + (s / "x") + " --format ";
    auto says = [&](const string& args, const string& what, int status = 1) {
        string text = error(args, status);
        INFO(args, "\n", text);
        CHECK(has(text, what));
        CHECK(lines(text).size() == 1);
        CHECK(!fs::exists(s / "x"));
        CHECK(!fs::exists(s / "x.tmp"));
    };
    says("export " + SQUARE + " " + (s / "x"), "how are weights to be stored? hint: --format mxfp8", 2);
    says("export " + SQUARE, "hint: ./train export CKPT OUT --format", 2);
    says("export " + SQUARE + to + "mxfp3", "--format mxfp3: there is no recipe mxfp3. hint: the nearest is mxfp", 2);
    says("export " + SQUARE + to + "mxfp4:w.block=1x16", "takes 1x32", 2);
    says("export " + SQUARE + to + "mxfp4,mxfp8", "one recipe", 2);
    says("export " + SQUARE + to + "bf16+mxfp4@10", "one stage", 2);
    says("export " + SQUARE + to + "mxfp4 --skip h.7.*", "matches no layer", 2);
    says("export " + GPT2 + "odd" + to + "mxfp4",
         "h.0.attn.c_attn has 35 input channels, whose codes of 4 bits do not end");
    says("export " + GPT2 + "nothing" + to + "mxfp4", "nothing");
    says("export " + SQUARE + to + "mxfp4 --calibrate 1 --data " + SQUARE + "/nothing.bin", "nothing.bin");
    says("export " + SQUARE + to + "mxfp4 --seq-len 25", "has 24 positions");
    File f(SQUARE);
    f.write(s.dir);
    fs::copy(SQUARE + "/config.json", s / "config.json");
    for (float bad : {NAN, INFINITY}) {
        memcpy(f.bytes["h.1.mlp.c_fc.bias"].data() + 8, &bad, 4);
        f.write(s.dir);
        says("export " + s.dir + to + "mxfp4", "h.1.mlp.c_fc.bias[2] is ");
    }
    exported(GPT2 + "odd", s / "odd", "mxfp4 --skip *.c_attn,*.attn.c_proj,*.c_fc"); // but 140 channels do
    string before = slurp(s / "odd/model.safetensors");
    CHECK(has(error("export " + (s / "odd") + " " + (s / "odd") + " --format bf16"), "is what is to be exported"));
    CHECK(has(error("export " + (s / "odd") + to + "bf16"),
              "an export for inference, with tensor \"h.0.mlp.c_proj.weight_scale\""));
    std::ofstream(s / "odd/notes.txt") << "mine";
    CHECK(has(error("export " + GPT2 + "odd " + (s / "odd") + " --format bf16"), "holds \"notes.txt\""));
    CHECK(slurp(s / "odd/model.safetensors") == before);
    fs::remove(s / "odd/notes.txt");
    exported(GPT2 + "odd", s / "odd", "bf16"); // an older export is replaced
    CHECK(File(s / "odd").at("h.0.mlp.c_proj.weight").dtype == "BF16");
}
TEST_CASE("what an export cannot be used for is one clear error") {
    Scratch s;
    exported(SQUARE, s / "x", "mxfp8:w.format=e5m2");
    for (auto& [args, what] : vector<std::pair<string, string>>{
             {"--steps 1 --recipe bf16 --init " + (s / "x") + TOKENS + " --out " + (s / "run"),
              "hint: start from the checkpoint that it"},
             {"scan " + (s / "x") + TOKENS + " --recipe mxfp4", "hint: start from the checkpoint that it"},
             {"eval " + (s / "x") + TOKENS + " --native", "GEMMs are emulated"},
             {"eval " + (s / "x") + TOKENS + " --recipe mxfp8:outlier=4", "an outlier is put into weights"},
             {"eval " + (s / "x") + TOKENS + " --recipe mxfp8:x.format=e5m2:dy.format=e4m3:w.format=e4m3",
              "E5M2 on both sides of fprop"}}) {
        string text = error(args);
        INFO(args, "\n", text);
        CHECK(has(text, what));
    }
}
TEST_CASE("a damaged export is an error that names the file and the tensor") {
    Scratch s;
    auto damaged = [&](const string& format, const string& what, const std::function<void(File&)>& damage) {
        exported(SQUARE, s / "x", format + " --calibrate 1" + TOKENS);
        File f(s / "x");
        damage(f);
        f.write(s / "x");
        string text = error("eval " + (s / "x") + TOKENS);
        INFO(format, " ", what, "\n", text);
        CHECK(has(text, s / "x/model.safetensors: "));
        CHECK(has(text, what));
        CHECK(lines(text).size() == 1);
    };
    const string linear = "h.1.attn.c_proj";
    {
        exported(SQUARE, s / "x", "mxfp4");
        std::fstream file(s / "x/model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
        file.seekp(-3, std::ios::end), file.put('~');
        file.close();
        CHECK(has(error("eval " + (s / "x") + TOKENS), s / "x/model.safetensors: damaged"));
    }
    auto set = [](File& f, const string& name, size_t at, auto value) {
        memcpy(f.bytes[name].data() + at, &value, sizeof value);
    };
    for (float bad : {0.0f, -1.0f, NAN, INFINITY}) {
        damaged("e4m3", "\"" + linear + ".weight_scale\" F32 []: element 0, ",
                [&](File& f) { set(f, linear + ".weight_scale", 0, bad); });
        damaged("bf16", "\"" + linear + ".input_scale\" F32 []: element 0, ",
                [&](File& f) { set(f, linear + ".input_scale", 0, bad); });
        damaged("blockwise", "\"" + linear + ".weight_scale\" F32 [1,1]: element 0, ",
                [&](File& f) { set(f, linear + ".weight_scale", 0, bad); });
        if (bad)
            damaged("nvfp4", "\"" + linear + ".weight_scale_2\" F32 []: element 0, ",
                    [&](File& f) { set(f, linear + ".weight_scale_2", 0, bad); });
    }
    damaged("mxfp4", "\"" + linear + ".weight_scale\" F8_E8M0 [48,2]: byte 7, 0xff",
            [&](File& f) { set(f, linear + ".weight_scale", 7, '\xff'); });
    for (char bad : {'\x7f', '\x81'})
        damaged("nvfp4", "\"" + linear + ".weight_scale\" F8_E4M3 [48,3]: byte 7, ",
                [&](File& f) { set(f, linear + ".weight_scale", 7, bad); });
    damaged("mxfp8", "\"" + linear + ".weight\" F8_E4M3 [48,48]: byte 9, 0xff, is nan",
            [&](File& f) { set(f, linear + ".weight", 9, '\xff'); });
    damaged("mxfp8:w.format=e5m2", "byte 9, 0x7c, is inf", [&](File& f) { set(f, linear + ".weight", 9, '\x7c'); });
    damaged("nvfp4", "is no amax of BF16 weights / 2688",
            [&](File& f) { f.bytes[linear + ".weight_scale_2"][0] ^= 1; });
    for (string name : {linear + ".weight", linear + ".weight_scale", linear + ".bias", string("wte.weight"),
                        linear + ".input_scale"})
        damaged("mxfp8", name, [&](File& f) { f.remove(name); });
    damaged("nvfp4", "\"" + linear + ".weight_scale_2\" F32 [] is missing",
            [&](File& f) { f.remove(linear + ".weight_scale_2"); });
    damaged("mxfp8", "F8_E4M3 [48,48] is expected", [&](File& f) { f.at(linear + ".weight").shape = {24, 96}; });
    damaged("mxfp8", "F8_E8M0 [48,2] is expected", [&](File& f) { f.at(linear + ".weight_scale").shape = {2, 48}; });
    damaged("mxfp8", "no cast here makes such codes", [&](File& f) { f.at(linear + ".weight_scale").dtype = "U8"; });
    damaged("mxfp8", "no cast here makes such codes",
            [&](File& f) { f.at(linear + ".weight_scale").dtype = "F8_E4M3"; });
    damaged("mxfp8", "no cast here makes such codes", [&](File& f) { f.at(linear + ".weight").dtype = "I8"; });
    damaged("mxfp8", "F32 [48] is expected", [&](File& f) { f.at(linear + ".bias").dtype = "I32"; });
    damaged("mxfp8", "\"extra\" F32 [1]: this model has no such tensor", [&](File& f) {
        f.tensors.push_back({"extra", "F32", {1}, f.bytes["ln_f.bias"].data()});
    });
    damaged("mxfp8", "quant_format \"mx\\nfp8\" is no recipe", [&](File& f) {
        f.metadata = {{"quant_format", "mx\nfp8"}};
    });
}

} // namespace
