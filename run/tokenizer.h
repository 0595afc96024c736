// Between text and tokens. What is easy to get wrong:
// - A token is bytes, not characters: a character may end in the next token, so what is shown is joined first.
// - GPT-2's encoder cuts text into pieces (a word with the space before it, a number, a run of punctuation), and merges
//   neighbours within a piece, again and again the pair that makes the token of the lowest id: GPT-2's ids from 256 on
//   are the order of its merges.
// - Which characters are letters is a table of Unicode's that is not here. Exact for ASCII; beyond it, everything is a
//   letter but Unicode's spaces; the numbers and symbols of Latin-1; U+2000 to U+2BFF and U+3001 to U+3020 (symbols);
//   U+FE10 to U+FE6F and U+FF01 to U+FF0F (forms of punctuation); and U+1F000 to U+1FAFF (pictures). Other scripts' digits and
//   marks may so be cut otherwise than by OpenAI's encoder: other tokens for the same text, never another text.
// - No text is a special token: <|endoftext|> in a prompt is 13 characters.
// - Text from a model must not play with the terminal: control characters and what is not UTF-8 are shown as ?.
#pragma once
#include <map>
#include <string>
#include <string_view>
#include <vector>

struct Tokenizer {
    std::string name;                            // for messages: the file, or what stands in for one
    int vocab;                                   // the model's, not less than what is known here
    int start;                                   // what an empty prompt is: the end of the text before, or a newline
    std::vector<std::string> tokens;             // bytes of token i; none: tokens are shown and read as numbers
    std::map<std::string, int, std::less<>> ids; // the other way round

    std::string decode(const std::vector<int>& ids) const; // without a text, and above the table, numbers
    // Errors name --prompt: a byte that no token holds, or what is no number.
    std::vector<int> encode(std::string_view text) const;
};
// llm.c's gpt2_tokenizer.bin (256 uint32: magic 20240328, version 1 or 2, number of tokens, in version 2 the
// end-of-text token; then of each token a byte, its length, and its bytes; source: write_tokenizer() in llm.c's
// train_gpt2.py), or *.json: Hugging Face's vocab.json or tokenizer.json of GPT-2 or another byte-level BPE.
Tokenizer read_tokenizer(const std::string& path);
// What a model of a vocabulary V speaks. file: --tokenizer, and V must not be below it. Without one (empty): bytes up
// to V = 256; else the first gpt2_tokenizer.bin or vocab.json in or beside one of the paths that V holds; else numbers.
Tokenizer open_tokenizer(const std::string& file, const std::vector<std::string>& beside, int V);
