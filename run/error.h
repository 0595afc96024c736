// Errors are one or two lines a person can act on: what was wrong, with the value and the shape, and what to do.
// Everything below main() throws; main() prints and chooses the exit status (1 failed, 2 usage).
#pragma once
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>

struct Error : std::runtime_error {
    int status;
    Error(const std::string& what, int status) : std::runtime_error(what), status(status) {}
};

#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))

inline std::string vformat(const char* fmt, va_list ap) {
    va_list again;
    va_copy(again, ap);
    std::string s((size_t)vsnprintf(nullptr, 0, fmt, ap), '\0');
    vsnprintf(s.data(), s.size() + 1, fmt, again);
    va_end(again);
    return s;
}
PRINTF_LIKE(1, 2) inline std::string format(const char* fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    std::string s = vformat(fmt, ap);
    va_end(ap);
    return s;
}
inline bool word_in(const std::string& word, const std::string& list) { // of words with spaces between them
    return (" " + list + " ").find(" " + word + " ") != std::string::npos && !word.empty();
}
inline std::string hex16(uint64_t v) { return format("%016llx", (unsigned long long)v); } // as fingerprints are shown
// Something in the world is wrong (a file, a shape, the disk): exit status 1.
[[noreturn]] PRINTF_LIKE(1, 2) inline void fail(const char* fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    std::string s = vformat(fmt, ap);
    va_end(ap);
    throw Error(s, 1);
}
// The command line is wrong: exit status 2.
[[noreturn]] PRINTF_LIKE(1, 2) inline void fail_usage(const char* fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    std::string s = vformat(fmt, ap);
    va_end(ap);
    throw Error(s, 2);
}
