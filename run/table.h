// Tables: CSV files without quotes, a header line and then rows with as many cells.
// - They are written in whole lines: a row waits in memory until flush(), and a flush that fails is taken back.
// - They may belong to a run that is still writing, or was killed: a last line counts if a newline ends it.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

// A table as it was read. Errors name the file and the line, counted from 1.
struct Table {
    std::string path;
    std::vector<std::string> columns;
    std::vector<std::vector<std::string>> rows;               // rows[r] is line r + 2, with as many cells as columns
    size_t column(const std::string& name) const;             // an error if there is none
    double number(size_t row, const std::string& name) const; // nan and inf are numbers; an empty cell is none
    int64_t whole(size_t row, const std::string& name) const; // a whole number from 0
    const std::string& text(size_t row, const std::string& name) const { return rows[row][column(name)]; }
    [[noreturn]] void bad(size_t line, const std::string& what) const;
};
Table read_table(const std::string& path);

// Which rows of an interrupted run's tables stay.
using Keep = std::function<bool(const std::string& recipe, int64_t seed, int64_t step)>;

// A table being written.
struct Csv {
    // An error if the file cannot be written, or exists; with `keep` it exists, and all other rows are taken out.
    Csv(const std::string& path, const std::string& header, const Keep& keep = nullptr);
    ~Csv();
    Csv(const Csv&) = delete;
    void row(const std::vector<std::string>& cells);
    void flush(); // the rows so far are in the file; or none of them is (disk full), and an error says so
    void sync();  // what has been flushed outlives the machine

private:
    std::string path, pending;
    size_t columns;
    int64_t whole = 0; // bytes of whole lines in the file
    int fd;
};
