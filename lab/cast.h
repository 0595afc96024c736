// ./train cast and ./train formats: what a format makes of numbers, by the functions of fp8.cuh that the kernels call.
// - A value is read to the nearest FP32 at once, never by way of double, and that is cast. Shown, and the reference of
//   the errors, is the number as typed: 0.3 stays 0.3, and its reading to FP32 counts as an error too.
// - A tie, saturation or underflow is one of what was rounded: the FP32 value times --scale or the block's scale.
// - Block formats take all values as one row; a short last block is cast as if zeros followed. MX prints a block when
//   it is full, NVFP4 all at the end, for its scales need the largest of all values.
#pragma once
#include "run/options.h"

// Casts o.args[1..], or without those the words of file `in`, to format o.args[0]; writes a line per value to file
// `out`, what there is whenever it waits for more words. Errors: an unknown format, an option of no use to it (usage),
// a word that is no number (its line), a file that cannot be read or written. What came before is written first.
void cast_values(int out, int in, const Options& o);
int cast_command(const Options& o); // stdin to stdout

// The table of formats and that of block formats; as JSON one object per line.
std::string formats_text(bool json);
int formats_command(const Options& o);

// The word [first, last) as a double and as an FP32, each nearest. false: no number.
bool read_number(double& typed, float& x, const char* first, const char* last);
// What printf's %.9g makes of v, appended to s; NaN without its sign.
void put_number(std::string& s, double v, int digits = 9);
