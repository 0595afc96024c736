// What the short versions of docs/experiments share: they train a model of a second, and look into its tables.
#pragma once
#include "program.h"
#include "report/compare.h"
#include <algorithm>
#include <cmath>

inline const std::string SECONDS = " --threads 1 --quiet --eval-batches 1 --vocab 257 ";
inline std::string train(const std::string& args) { // what it writes to stdout
    Result r = run(TRAIN, args);
    INFO(args, "\n", r.err);
    REQUIRE(r.status == 0);
    return r.out;
}
// A column of a run's table, of the rows whose cells are as given: "recipe=hybrid step=1". Cells without number are left out.
inline std::vector<double> cells(const std::string& dir, const std::string& table, const std::string& where,
                                 const std::string& column) {
    Table t = read_table(dir + "/" + table + ".csv");
    std::vector<double> found;
    for (size_t row = 0; row < t.rows.size(); row++) {
        bool is = !t.text(row, column).empty();
        for (auto& condition : split(where, ' ')) {
            size_t at = condition.find('=');
            is &= t.text(row, condition.substr(0, at)) == condition.substr(at + 1);
        }
        if (is) found.push_back(atof(t.text(row, column).c_str()));
    }
    INFO(dir, " ", table, " ", where);
    REQUIRE(!found.empty());
    return found;
}
inline double cell(const std::string& dir, const std::string& table, const std::string& where,
                   const std::string& column) { // there is one row
    std::vector<double> found = cells(dir, table, where, column);
    INFO(dir, " ", table, " ", where);
    REQUIRE(found.size() == 1);
    return found[0];
}
inline double gradient_error(const std::string& dir, const std::string& recipe,
                             const std::string& column = "rel_error") {
    return cell(dir, "gradients", "layer=all recipe=" + recipe, column);
}
