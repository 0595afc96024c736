// Runs ./train as a user does, and reads what it says.
#pragma once
#include "check.h"
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdlib.h>
#include <string>
#include <sys/wait.h>
#include <vector>

struct Scratch { // a directory of its own, gone afterwards
    std::string dir = std::filesystem::temp_directory_path() / "ulp-test-XXXXXX";
    Scratch() { REQUIRE(mkdtemp(dir.data())); }
    ~Scratch() { std::filesystem::remove_all(dir); }
    Scratch(const Scratch&) = delete;
    std::string operator/(const std::string& name) const { return dir + "/" + name; }
};
inline std::string slurp(const std::string& path) {
    std::ostringstream s;
    s << std::ifstream(path, std::ios::binary).rdbuf();
    return s.str();
}
inline std::string binary(const char* variable, const char* normally) {
    const char* given = getenv(variable);
    return std::filesystem::absolute(given ? given : normally).string();
}
inline const std::string TRAIN = binary("ULP_TRAIN", "./train"), TRAIN_F32 = binary("ULP_TRAIN_F32", "./train-f32");

struct Result {
    int status;
    std::string out, err;
};
inline Result run(const std::string& program, const std::string& args) {
    Scratch s;
    std::string command = program + " " + args + " >" + (s / "out") + " 2>" + (s / "err") + " </dev/null";
    int rc = system(command.c_str());
    return {WIFEXITED(rc) ? WEXITSTATUS(rc) : -1, slurp(s / "out"), slurp(s / "err")};
}
inline std::vector<std::string> split(const std::string& text, char at) {
    std::vector<std::string> all;
    std::istringstream in(text);
    for (std::string part; std::getline(in, part, at);) all.push_back(part);
    if (!text.empty() && text.back() == at && at != '\n') all.push_back("");
    return all;
}
inline std::vector<std::string> lines(const std::string& text) { return split(text, '\n'); }
inline std::string field(const std::string& text, const std::string& key) { // the last value in " key=value"
    size_t at = text.rfind(" " + key + "=");
    if (at == std::string::npos) return "";
    at += key.size() + 2;
    return text.substr(at, text.find_first_of(" \n", at) - at);
}
