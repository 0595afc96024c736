// Files that are never half there, and reads that never crash. What is easy to get wrong:
// - A rename is only atomic for what has reached the disk: data is synced before it, the directory after it.
// - Reading is by position, not by mapping: a file that shrinks while it is read is an error, not a SIGBUS.
// Errors name the path, what was tried, and the system's reason.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

static_assert(sizeof(size_t) == 8, "files pass 4 GiB");

// A 64-bit hash of a stream of bytes, the same however the stream is cut into add()s. Every step of it is a bijection
// of the word it takes in, so that a change within one 8-byte word always changes the value. Not cryptographic.
struct Fingerprint {
    void add(const void* data, size_t bytes);
    uint64_t value() const;

private:
    uint64_t lanes[4] = {1, 2, 3, 4};
    unsigned char tail[32] = {};
    uint64_t count = 0;
};

// An existing regular file, open for reading.
struct InFile {
    std::string path;
    int fd;
    size_t size; // bytes
    explicit InFile(const std::string& path);
    InFile(const InFile&) = delete;
    ~InFile();
    void read(void* out, size_t offset, size_t bytes) const; // thread-safe
};
// A file that appears at `path`, or replaces what was there, whole at commit(). Without one (an error, an exception)
// what was there stays and the temporary file `path`.tmp is removed.
struct OutFile {
    std::string path;
    int fd;
    explicit OutFile(const std::string& path);
    OutFile(const OutFile&) = delete;
    ~OutFile();
    void write(const void* data, size_t bytes);
    uint64_t commit(); // the fingerprint of what was written

private:
    Fingerprint written;
};
std::string read_file(const std::string& path, size_t at_most); // the whole file; more bytes than at_most is an error
uint64_t write_file(const std::string& path, std::string_view text); // its fingerprint
uint64_t fingerprint_of_file(const std::string& path);
void sync_directory_of(const std::string& path); // makes a rename or a new name in path's directory durable
